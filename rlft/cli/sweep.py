"""`rlft sweep`: a config with many settings and seeds, and whether they differ."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli.arguments import ConfigFile
from rlft.curves.text import interval_text, number, visible

if TYPE_CHECKING:
    from rlft.config import BaseRunConfig
    from rlft.train.sweep.grid import Trial
    from rlft.train.sweep.table import Line

Settings = Annotated[
    list[str],
    typer.Argument(
        help="Settings with one value or several: key.sub=a,b or seed=0..4.", show_default=False, metavar="KEY=VALUES"
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(sweep)


def sweep(
    config: ConfigFile,
    settings: Settings,
    kind: Annotated[Literal["train", "sft", "dpo"], typer.Option(help="The command whose config it is.")] = "train",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Folder of the runs within output_dir; CONFIG'S-NAME-sweep if left out.")
    ] = "",
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="Reward or part; the config's headline if left out.")
    ] = "",
    max_concurrent: Annotated[int, typer.Option(min=1, help="Trials that run at the same time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and list the trials.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train every combination of settings and seeds, each as an ordinary run, and compare them over seeds.

    The same command goes on where a sweep was stopped; with more values it adds their trials. Trials that are killed
    are resumed. Exit code 1 if a trial failed.
    """
    from rlft.cli.run_config import load, load_kind
    from rlft.train.preference.config import PreferenceConfig
    from rlft.train.supervised.config import SupervisedConfig
    from rlft.train.sweep.grid import trials_of
    from rlft.train.sweep.trials import check_same, is_done, run_trials

    def read(path: Path, overrides: Sequence[str]) -> BaseRunConfig:
        if kind == "train":
            return load(path, overrides)
        return load_kind(path, overrides, SupervisedConfig if kind == "sft" else PreferenceConfig)

    console = Console(stderr=as_json)
    trials = trials_of(config, settings, name=name, load=read)
    check_same(trials)
    folder = trials[0].path.parent
    _say(console, f"{len(trials)} trials in {folder}, {min(max_concurrent, len(trials))} at a time")
    if dry_run:
        for trial in trials:
            _say(console, f"{trial.path.name}: {'done' if is_done(trial) else 'to do'}")
        return
    failures = run_trials(config, trials, max_concurrent=max_concurrent, tell=lambda line: _say(console, line))
    _show(console, [trial for trial in trials if is_done(trial)], metric, folder, as_json=as_json)
    for failure in failures:
        console.print(Text(visible(f"failed: {failure.trial.path}: {failure.reason}"), style="red"), soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def _show(console: Console, done: Sequence[Trial], metric: str, folder: Path, *, as_json: bool) -> None:
    from rlft.common.files import write_file
    from rlft.train.sweep.table import table_of, too_few

    if not done:
        return
    lines = table_of(done, metric, folder)
    few = too_few(lines)
    text = json.dumps({"configurations": [line.as_dict() for line in lines], "too_few_seeds": few or None}, indent=1)
    write_file(folder / "sweep.json", text + "\n")
    if as_json:
        print(text)
        return
    console.print(_table(lines))
    for line in lines:
        if line.page:
            _say(console, f"{line.label} against {lines[0].label}, with the curves: {line.page}")
    if few:
        console.print(Text(visible(few), style="yellow"), soft_wrap=True)
    _say(console, f"Written: {folder / 'sweep.json'}")


def _table(lines: Sequence[Line]) -> Table:
    title = "held-out mean over seeds, 95 % intervals; change from the first line; p adjusted by Holm"
    table = Table(title=title, title_justify="left")
    for heading in ("configuration", "seeds", "mean", "change", "p", "verdict"):
        is_text = heading in ("configuration", "verdict")
        table.add_column(heading, justify="left" if is_text else "right", overflow="fold")
    for line in lines:
        change = interval_text(line.comparison.headline.change, "+") if line.comparison else ""
        p = number(line.p) if line.comparison else ""
        cells = (line.label, str(len(line.scores)), interval_text(line.mean), change, p, line.verdict)
        table.add_row(*(Text(visible(cell)) for cell in cells))
    return table


def _say(console: Console, line: str) -> None:
    console.print(Text(visible(line)), soft_wrap=True)
