"""`rlft sweep`: a config with many settings and seeds, and whether they differ."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
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
    from rlft.train.sweep.early_stopping import EarlyStopping, Plan
    from rlft.train.sweep.grid import Trial
    from rlft.train.sweep.table import Line

_KINDS = ("train", "sft", "dpo")
"""Commands whose runs a sweep compares: those of a policy that is measured on held-out tasks or rows."""

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
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Folder of the runs within output_dir; CONFIG'S-NAME-sweep if left out.")
    ] = "",
    metric: Annotated[
        str, typer.Option(metavar="NAME", help="Reward or part; the config's headline if left out.")
    ] = "",
    scheduler: Annotated[
        Literal["", "asha"], typer.Option(help="asha: stop trials that look worse than the others (Ray Tune's ASHA).")
    ] = "",
    stop_by: Annotated[
        str,
        typer.Option(metavar="NAME", help="asha: metric of steps to compare by, as reward/mean; held-out if left out."),
    ] = "",
    grace_period: Annotated[
        int | None,
        typer.Option(min=1, help="asha: steps that every trial gets; a ninth of them if left out.", show_default=False),
    ] = None,
    reduction_factor: Annotated[float, typer.Option(help="asha: about one of so many trials goes on at a rung.")] = 3,
    max_concurrent: Annotated[int, typer.Option(min=1, help="Trials that run at the same time.")] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything and list the trials.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train every combination of settings and seeds, each as an ordinary run, and compare them over seeds.

    CONFIG is one of rlft train, sft or dpo.
    The same command goes on where a sweep was stopped; with more values it adds their trials. Trials that are killed
    are resumed. With --scheduler asha those that look worse than the others while they train are stopped early.
    Exit code 1 if a trial failed.
    """
    from rlft.cli.run_config import load_any
    from rlft.train.sweep.early_stopping import plan_of, stopped_steps
    from rlft.train.sweep.grid import trials_of
    from rlft.train.sweep.trials import check_metric, check_same, has_ended, run_trials

    def read(path: Path, overrides: Sequence[str]) -> BaseRunConfig:
        loaded = load_any(path, overrides)
        kind = getattr(loaded, "kind", "train")
        if kind not in _KINDS:
            known = ", ".join(_KINDS)
            raise ValueError(
                f"{path}: this is a config of `rlft {kind}`; a sweep compares the policies that {known} train"
            )
        return loaded

    console = Console(stderr=as_json)
    trials = trials_of(config, settings, name=name, load=read)
    check_same(trials)
    check_metric(trials, metric)
    folder = trials[0].path.parent
    _say(console, f"{len(trials)} trials in {folder}, {min(max_concurrent, len(trials))} at a time")
    if not scheduler and (stop_by or grace_period is not None):
        raise ValueError("--stop-by and --grace-period are for --scheduler asha; add it, or leave them out")
    make_stopping: Callable[[Path], EarlyStopping] | None = None
    if scheduler:
        plan = plan_of(trials, metric=metric, of_steps=stop_by, grace_period=grace_period, factor=reduction_factor)
        rungs = ", ".join(map(str, plan.rungs))
        _say(console, f"asha compares them by {plan.by} at steps {rungs}; about one of {plan.factor:g} goes on")
        make_stopping = partial(_make_stopping, plan=plan)

    if dry_run:
        stopped = stopped_steps(folder) if scheduler else {}
        for trial in trials:
            step = stopped.get(trial.path.name)
            told = "ended" if has_ended(trial) else "to do" if step is None else f"stopped at step {step} by asha"
            _say(console, f"{trial.path.name}: {told}")
        return
    failures = run_trials(
        config,
        trials,
        max_concurrent=max_concurrent,
        tell=lambda line: _say(console, line),
        make_stopping=make_stopping,
    )
    stopped = stopped_steps(folder) if scheduler else {}
    _show(console, trials, stopped, metric, as_json=as_json)
    for failure in failures:
        console.print(Text(visible(f"failed: {failure.trial.path}: {failure.reason}"), style="red"), soft_wrap=True)
    if failures:
        raise typer.Exit(1)


def _make_stopping(folder: Path, plan: Plan) -> EarlyStopping:
    from rlft.common.asha import Asha
    from rlft.train.sweep.early_stopping import EarlyStopping

    asha = Asha(max_steps=plan.max_steps, grace_period=plan.grace_period, reduction_factor=plan.factor)
    return EarlyStopping(folder, plan, asha)


def _show(console: Console, trials: Sequence[Trial], stopped: Mapping[str, int], metric: str, *, as_json: bool) -> None:
    """The table of the trials that have ended, or that were stopped at a step."""
    from rlft.common.files import write_file
    from rlft.train.sweep.table import of_the_best, table_of, too_few
    from rlft.train.sweep.trials import has_ended

    folder = trials[0].path.parent
    early = {
        trial.path.name: stopped[trial.path.name]
        for trial in trials
        if trial.path.name in stopped
        if not has_ended(trial)
    }
    shown = [trial for trial in trials if has_ended(trial) or trial.path.name in early]
    if not any(trial.path.name not in early for trial in shown):
        return
    lines = table_of(shown, metric, folder, early)
    few, best = too_few(lines), of_the_best(lines)
    told = {
        "configurations": [line.as_dict() for line in lines],
        "stopped": early,
        "too_few_seeds": few or None,
        "of_the_best": best or None,
    }
    text = json.dumps(told, indent=1)
    write_file(folder / "sweep.json", text + "\n")
    if as_json:
        print(text)
        return
    console.print(_table(lines))
    for name, step in early.items():
        _say(console, f"{name}: stopped at step {step} by asha")
    if early:
        _say(
            console,
            "Configurations with stopped runs are in no comparison: their other seeds were chosen by their scores",
        )
    for line in lines:
        if line.page:
            _say(console, f"{line.label} against {lines[0].label}, with the curves: {line.page}")
    for remark in filter(None, (few, best)):
        console.print(Text(visible(remark), style="yellow"), soft_wrap=True)
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
        seeds = str(len(line.scores)) + (f" of {len(line.scores) + len(line.stopped)}" if line.stopped else "")
        mean = interval_text(line.mean) if line.scores else ""
        cells = (line.label, seeds, mean, change, p, line.verdict)
        table.add_row(*(Text(visible(cell)) for cell in cells))
    return table


def _say(console: Console, line: str) -> None:
    console.print(Text(visible(line)), soft_wrap=True)
