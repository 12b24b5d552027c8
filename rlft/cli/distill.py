"""`rlft distill`: supervised fine-tuning on a run's best own samples."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from rlft.cli.arguments import RunFolder
from rlft.curves.text import number, visible

if TYPE_CHECKING:
    from rlft.train.supervised.distill import Chosen


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(distill)


def distill(
    run: RunFolder,
    top: Annotated[int, typer.Option(min=1, help="Most samples of each task, the best ones.")] = 1,
    min_reward: Annotated[
        float | None,
        typer.Option(help="Least reward of a sample; above the run's mean when left out.", show_default=False),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where it is written; RUN-distilled when left out.")
    ] = None,
    all_steps: Annotated[
        bool, typer.Option("--all-steps", help="Take samples from after a critical alarm, too.")
    ] = False,
    train: Annotated[bool, typer.Option("--train", help="Train on them at once.")] = False,
) -> None:
    """Write the best samples of an RL run as rows to learn from, with the config of `rlft sft` that learns them.

    Held-out tasks, cut and repeated samples are left out, and steps after a critical alarm.
    """
    from rlft.cli.run_config import load_kind
    from rlft.curves.reading import read_config
    from rlft.run.directory import read_config as read_settings

    if (kind := str(read_config(run).get("kind", "rl"))) != "rl":
        raise ValueError(f"{run} is a run of kind {kind}, which has no samples with rewards; give one of `rlft train`")
    from rlft.config import RunConfig
    from rlft.train.supervised import distill as module

    config = read_settings(run, RunConfig)
    chosen = module.choose(run, config, top=top, min_reward=min_reward, all_steps=all_steps)
    _show(chosen)
    rows, settings = module.write(out or run.with_name(f"{run.name}-distilled-data"), run, config, chosen)
    console = Console()
    console.print(Text(visible(f"Written:\n  {rows}\n  {settings}")), soft_wrap=True)
    if not train:
        console.print(Text(visible(f"To learn them: rlft sft {settings}")), soft_wrap=True)
        return
    from rlft.cli import sft
    from rlft.train.supervised import launch
    from rlft.train.supervised.config import SupervisedConfig

    loaded = load_kind(settings, (), SupervisedConfig)
    sft.show(loaded.run_dir, launch.train(loaded))


def _show(chosen: Chosen) -> None:
    console = Console()
    rewards = [float(row["reward"]) for row in chosen.rows]
    console.print(
        f"{chosen.good} of {chosen.tasks} sampled tasks have a good sample, {chosen.tasks - chosen.good} have none "
        f"(reward of at least {number(chosen.min_reward)}).",
        soft_wrap=True,
    )
    console.print(
        f"{len(rewards)} of {chosen.samples} samples are taken; their mean reward is "
        f"{number(sum(rewards) / len(rewards))}, that of all {number(chosen.mean)}.",
        soft_wrap=True,
    )
    if chosen.left_out:
        told = ", ".join(f"{count} {why}" for why, count in chosen.left_out.items())
        console.print(Text(f"Of the good ones are left out: {told}."), soft_wrap=True)
    if chosen.until is not None:
        console.print(
            Text(f"Steps after {chosen.until} are left out: {chosen.why} (rlft health; --all-steps takes them)."),
            soft_wrap=True,
        )
