"""The command line. Heavy imports happen inside the commands, so that `--help` and `report` answer at once."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli import (
    bisect,
    chat,
    curves,
    data,
    distill,
    doctor,
    env,
    export,
    head,
    listing,
    new,
    plan,
    reward,
    runs,
    serve,
    sft,
    submit,
    sweep,
    verify,
    view,
    watch,
    why,
)
from rlft.cli.arguments import ConfigFile, Overrides, Restart, RunFolder
from rlft.cli.summary import show_reward_model, show_summary
from rlft.common import interrupts
from rlft.common.files import describe_os_error
from rlft.curves.passes import passes
from rlft.curves.reading import adapter_of, read_config
from rlft.curves.text import visible

_NO_BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")

app = typer.Typer(
    name="rlft",
    help="Fine-tune language models by reinforcement learning: write a reward, launch a run, read its curve.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(env.app, name="env")
app.add_typer(data.app, name="data")
app.add_typer(reward.app, name="reward")


def _show_version(is_asked: bool) -> None:
    if is_asked:
        print(f"rlft {version('rlft')}")
        raise typer.Exit


@app.callback()
def _options(
    is_asked: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Options of `rlft` itself."""


@app.command()
def train(config: ConfigFile, overrides: Overrides = None, restart: Restart = False) -> None:
    """Run a config: measure the base model, warm-start by SFT where asked, train by RL, report."""
    from rlft.cli.run_config import load

    loaded = load(config, overrides)
    from rlft.train.rl import launch  # takes seconds, which a misspelt key should not cost

    show_summary(loaded.run_dir, launch.train(loaded, restart=restart))


@app.command()
def dpo(config: ConfigFile, overrides: Overrides = None, restart: Restart = False) -> None:
    """Train on preferences from a file or the hub (DPO, IPO, SLiC, SimPO, ORPO, KTO), measure held-out ones, report."""
    from rlft.cli.run_config import load_kind
    from rlft.train.preference.config import PreferenceConfig

    loaded = load_kind(config, overrides, PreferenceConfig)
    from rlft.train.preference import launch as launch_dpo

    show_summary(loaded.run_dir, launch_dpo.train(loaded, restart=restart))


@app.command("reward-model")
def reward_model(config: ConfigFile, overrides: Overrides = None, restart: Restart = False) -> None:
    """Train a reward model on preferences, measure it on held-out pairs, and write it in PEFT's layout."""
    from rlft.cli.run_config import load_kind
    from rlft.train.reward_model.config import RewardModelConfig

    loaded = load_kind(config, overrides, RewardModelConfig)
    from rlft.train.reward_model import launch as launch_reward

    show_reward_model(loaded.run_dir, launch_reward.train(loaded, restart=restart))


head.register(app)


@app.command()
def chaos(
    config: ConfigFile,
    overrides: Overrides = None,
    kills: Annotated[int, typer.Option(min=1, help="How many rollout workers are killed.")] = 3,
    seed: Annotated[int, typer.Option(min=0, help="Decides when they are killed.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Steps of both runs, at most the config's.")] = 5,
) -> None:
    """Run a config twice, the second time with rollout workers killed, and show whether the curve is the same."""
    from rlft.cli.run_config import load

    loaded = load(config, overrides)
    loaded = load(config, [*(overrides or []), f"steps={min(steps, loaded.steps)}"])
    from rlft.cli import chaos as module

    outcome = module.chaos(loaded, kills=kills, seed=seed)
    _show_chaos(outcome)
    if not outcome.is_same:
        raise typer.Exit(1)


@app.command()
def resume(
    run: RunFolder,
    overrides: Overrides = None,
    fork: Annotated[
        str,
        typer.Option(metavar="NAME", help="Continue as a new run of this name: with other settings, rewards, data."),
    ] = "",
    step: Annotated[
        int | None, typer.Option(min=1, help="Step whose checkpoint a fork continues from; the newest when left out.")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse to use an older checkpoint than the newest.")
    ] = False,
) -> None:
    """Continue an interrupted run from its newest whole checkpoint, or fork it there or at an earlier one.

    Settings that decide no numbers, such as rollout.workers or guards.stop, may change within a run, others in a fork.
    """
    from rlft.run.resume import How

    how = How(fork=fork, overrides=overrides or (), step=step, strict=strict)
    _refuse_stage(run, "resume", "it is short and starts over: rlft {kind} CONFIG --restart")
    if _is_preference_run(run):
        from rlft.train.preference import launch as launch_dpo

        show_summary(*launch_dpo.resume(run, how))
        return
    if _kind(run) == "sft":
        from rlft.train.supervised import launch as launch_sft

        sft.show(*launch_sft.resume(run, how))
        return
    from rlft.train.rl import launch

    show_summary(*launch.resume(run, how))


@app.command()
def evaluate(
    target: Annotated[
        Path,
        typer.Argument(help="Config file (base model) or run directory (its last adapter).", show_default=False),
    ],
    overrides: Overrides = None,
    adapter: Annotated[Path | None, typer.Option(help="Adapter folder (PEFT layout) to measure instead.")] = None,
    set_name: Annotated[
        str,
        typer.Option("--set", metavar="NAME", help="Which of the config's `evaluations`; `evaluation` if left out."),
    ] = "",
) -> None:
    """Measure held-out accuracy and print it as JSON; nothing is written."""
    from rlft.cli.run_config import load, load_run

    if target.is_dir():
        _refuse_stage(target, "evaluate", f"its held-out accuracy is in {target / 'summary.json'}")
        if _is_preference_run(target):
            raise ValueError(
                f"{target} is a preference run, which has no tasks; its held-out numbers are in {target / 'evals'}. To "
                f"measure its adapter on tasks: rlft evaluate CONFIG --adapter {adapter_of(target)}"
            )
        if _kind(target) == "sft":
            raise ValueError(
                f"{target} is a supervised run; its held-out numbers are in {target / 'evals'}. To measure its adapter "
                f"on tasks: rlft evaluate CONFIG --adapter {adapter_of(target)}"
            )
        adapter = adapter or adapter_of(target)
        loaded = load_run(target, overrides, is_trained=False)
    else:
        loaded = load(target, overrides, is_trained=False)
    from rlft.train.rl.measure import measure

    result = measure(loaded, adapter, set_name=set_name).as_dict()
    if solved := passes(result.pop("by_task"), result.pop("same", {})):
        result["passes"] = [each.as_dict() for each in solved]
    print(json.dumps({"adapter": str(adapter) if adapter else "base", **result}, indent=1))


sft.register(app)
distill.register(app)
sweep.register(app)
submit.register(app)
runs.register(app)
curves.register(app)
watch.register(app)
why.register(app)
verify.register(app)
bisect.register(app)
doctor.register(app)
export.register(app)
chat.register(app)
serve.register(app)
view.register(app)
new.register(app)
plan.register(app)


@app.command("list")
def list_(
    kind: Annotated[
        str,
        typer.Argument(help="rewards, environments, presets or engines; all when left out.", show_default=False),
    ] = "",
) -> None:
    """List what a config can name."""
    tables = listing.what_there_is()
    if kind and kind not in tables:
        raise ValueError(f"nothing called {kind!r} to list; one of {', '.join(tables)}")
    for name in [kind] if kind else tables:
        listing.print_names(name, tables[name])


@app.command()
def schema(
    kind: Annotated[
        Literal["rl", "sft", "dpo", "reward-model", "head"], typer.Option(help="Which command's config.")
    ] = "rl",
) -> None:
    """Print the JSON Schema of a config, for editors."""
    from rlft import config_file

    if kind == "head":
        from rlft.train.head.config import HeadConfig

        print(json.dumps(config_file.schema(HeadConfig), indent=1))
        return
    if kind == "reward-model":
        from rlft.train.reward_model.config import RewardModelConfig

        print(json.dumps(config_file.schema(RewardModelConfig), indent=1))
        return
    if kind == "sft":
        from rlft.train.supervised.config import SupervisedConfig

        print(json.dumps(SupervisedConfig.model_json_schema(), indent=1))
        return
    if kind == "dpo":
        from rlft.train.preference.config import PreferenceConfig

        print(json.dumps(config_file.schema(PreferenceConfig), indent=1))
        return
    from rlft.cli.run_config import schema as config_schema

    print(json.dumps(config_schema(), indent=1))


@app.command()
def models() -> None:
    """List the models that can be named without a hub."""
    from rlft.model.sources import CATALOGUE

    table = Table(box=None, padding=(0, 2))
    for heading in ("name", "parameters", "download", "license", "hub id"):
        table.add_column(heading, no_wrap=True)
    for model in CATALOGUE.values():
        row = (
            model.name,
            f"{model.parameters / 1e6:.0f} M",
            f"{model.size_bytes / 1e6:.0f} MB",
            model.license,
            model.hub_id,
        )
        table.add_row(*map(Text, row))
    listing.print_whole(table)


def main() -> None:
    """Entry point: errors that a user can mend are shown without a traceback; exit codes as a shell expects."""
    interrupts.install()
    if not (sys.stdout.isatty() and sys.stderr.isatty()):
        for name in _NO_BARS:  # bars of the libraries would fill a log with their every state
            os.environ.setdefault(name, "1")
    try:
        app()
    except (ValueError, RuntimeError, OSError) as error:
        is_of_files = isinstance(error, OSError) and not isinstance(error, ConnectionError)
        told = describe_os_error(error) if is_of_files else str(error)  # type: ignore[arg-type]
        Console(stderr=True).print(Text(visible(f"error: {told}"), style="red"), soft_wrap=True)
        sys.exit(1)


def _kind(run: Path) -> str:
    return str(read_config(run).get("kind", "rl"))


def _is_preference_run(run: Path) -> bool:
    return _kind(run) == "dpo"


def _refuse_stage(run: Path, command: str, instead: str) -> None:
    kind = _kind(run)
    if what := {"reward-model": "a reward model", "head": "a head"}.get(kind):
        raise ValueError(f"{run} holds {what}, which `rlft {command}` is not for; {instead.replace('{kind}', kind)}")


def _show_chaos(outcome: Any) -> None:
    console = Console()
    for kill in outcome.kills:
        console.print(Text(f"killed: the worker that had chunk {kill.chunk} of step {kill.step}"))
    table = Table(title=f"{len(outcome.kills)} kills, {outcome.replaced} workers replaced", title_justify="left")
    for heading in ("result", "compared", "undisturbed and disturbed"):
        table.add_column(heading, justify="right" if heading == "compared" else "left")
    for row in outcome.comparisons:
        verdict = Text(row.difference, style="red") if row.difference else Text("the same", style="green")
        table.add_row(row.what, str(row.files), verdict)
    console.print(table)
    if not outcome.is_same and outcome.reason:
        console.print(Text(f"They may differ without a fault: {outcome.reason}."), soft_wrap=True)
    console.print(Text(visible(f"Written:\n  {outcome.undisturbed}\n  {outcome.disturbed}")), soft_wrap=True)
