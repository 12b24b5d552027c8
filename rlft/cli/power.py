"""`rlft power`: how many seeds, tasks and samples show a change of a given size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.curves.text import number, visible

if TYPE_CHECKING:
    from rlft.curves.power import Noise, Size

SEEDS, SAMPLES = (1, 4, 5, 6, 8, 10), (1, 2, 4, 8)
"""Rows and columns of the table."""


def power(
    effect: Annotated[float, typer.Option(help="Change of the held-out mean to be seen.", show_default=False)],
    config: Annotated[Path | None, typer.Option(help="Config file: its evaluation's tasks and samples.")] = None,
    run: Annotated[
        str, typer.Option(help="Run directory, or quoted glob of seeds, whose stored evaluations show the noise.")
    ] = "",
    wanted: Annotated[float, typer.Option("--power", help="Share of comparisons that should see it.")] = 0.8,
    seed_sd: Annotated[
        float | None, typer.Option(help="Spread of a run's held-out mean over seeds; 0.02 where nothing is known.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Say how many seeds, tasks and samples show a change of a given size, before they are paid for.

    Two runs compared on the same held-out tasks tell two policies apart; groups of seeds tell ways of training apart.
    """
    from rlft.curves import power as module

    if not 0 < effect < 1 and not run:
        raise ValueError(
            f"--effect is a change of a mean of 0/1 rewards, such as 0.05, not {effect}; with --run, of any"
        )
    if not effect > 0:
        raise ValueError(f"--effect must be above 0, not {effect}")
    if not 0.05 < wanted < 1:
        raise ValueError(f"--power must be a share between 0.05 and 1, such as 0.8, not {wanted}")
    if seed_sd is not None and not 0 <= seed_sd < math.inf:
        raise ValueError(f"--seed-sd is a spread of the held-out mean, 0 or more, such as 0.02, not {seed_sd}")
    if config is None and not run:
        raise ValueError("--config CONFIG says how many tasks and samples are evaluated, or --run RUN whose they are")
    size, is_greedy, what, remarks = _planned(config, run)
    noise = _measured(run, effect, seed_sd, is_greedy) if run else None
    if noise is None:
        sd = module.SEED_SD if seed_sd is None else seed_sd
        noise = module.prior_noise(effect, seed_sd=sd, is_greedy=is_greedy)
    noise = replace(noise, sources=(*remarks, *noise.sources))
    result = _result(noise, effect, size, wanted, what)
    if as_json:
        print(json.dumps(result, indent=1))
        return
    _show(result, noise)


def _planned(config: Path | None, run: str) -> tuple[Size, bool, str, list[str]]:
    """Tasks and samples of the evaluation, whether it is greedy, whose it is, and remarks.

    Of a run it is what the last evaluation measured, of a config what its environment has for it.
    """
    from rlft.curves.power import Size

    if config is not None:
        from rlft.cli.run_config import load
        from rlft.environment.loading import load as load_environment

        loaded = load(config, None, is_trained=False)
        planned, remarks = loaded.evaluation, []
        tasks = planned.tasks
        try:
            tasks = min(tasks, len(load_environment(loaded.environment).heldout))
        except ValueError as error:  # such as a data set that is not on this machine
            remarks.append(f"held-out tasks: at most {tasks}, as the environment cannot be loaded here: {error}")
        size = Size(tasks=tasks, samples=planned.samples_per_task)
        return size, planned.temperature == 0, str(config), remarks
    from rlft.curves.contents import repeated, told
    from rlft.curves.reading import read_config
    from rlft.curves.scored_run import find_runs, read_run

    folder = find_runs(run)[0]
    stored: Any = read_config(folder).get("evaluation") or {}
    measured = read_run(folder)
    count = repeated(measured.values, measured.contents)
    size = Size(tasks=len(measured.values) - count, samples=int(stored.get("samples_per_task", 1)))
    return size, not stored.get("temperature"), str(folder), [told(count)] if count else []


def _measured(pattern: str, effect: float, seed_sd: float | None, is_greedy: bool) -> Noise:
    from rlft.curves.power import measured_noise
    from rlft.curves.scored_run import check_seeds_only, find_runs, first_evaluation, read_run

    folders = find_runs(pattern)
    runs = [read_run(folder) for folder in folders]
    check_seeds_only(runs)
    firsts = [first_evaluation(folder) for folder in folders]
    starts = [read_run(folder, name, runs[0].metric) for folder, name in zip(folders, firsts, strict=True) if name]
    known = starts if len(starts) == len(runs) else []
    return measured_noise(effect, runs, known, seed_sd=seed_sd, is_greedy=is_greedy)


def _result(noise: Noise, effect: float, size: Size, wanted: float, what: str) -> dict[str, Any]:
    from rlft.curves import power as module

    samples = [1] if noise.is_greedy else sorted({*SAMPLES, size.samples})
    table = [
        {
            "seeds": seeds,
            "tasks": {
                str(k): module.tasks_needed(noise, effect, replace(size, seeds=seeds, samples=k), wanted)
                for k in samples
            },
        }
        for seeds in SEEDS
    ]
    seeds = module.seeds_needed(noise, effect, size, wanted)
    return {
        "effect": effect,
        "power": wanted,
        "config": what,
        "planned": asdict(size),
        "seeds_needed": seeds,
        "tasks_needed": module.tasks_needed(noise, effect, size, wanted),
        "power_of_two_runs": module.power(noise, effect, size),
        "smallest_effect_of_two_runs": _finite(module.smallest_effect(noise, size, wanted)),
        "table": table,
        "noise": {k: v for k, v in asdict(noise).items() if k != "sources"},
        "sources": list(noise.sources),
    }


def _show(result: Mapping[str, Any], noise: Noise) -> None:
    console, size = Console(), result["planned"]
    for sentence in _sentences(result, noise):
        console.print(Text(visible(sentence)), soft_wrap=True)
    table = Table(title=f"Tasks that show {result['effect']:g}", title_justify="left")
    table.add_column("runs")
    columns: Sequence[str] = list(result["table"][0]["tasks"])
    for samples in columns:
        mark = " (planned)" if int(samples) == size["samples"] else ""
        table.add_column(f"{samples} sample{'s' if samples != '1' else ''}{mark}", justify="right")
    for row in result["table"]:
        cells = (f"{tasks:,}" if tasks else "\N{EN DASH}" for tasks in row["tasks"].values())
        table.add_row("1 against 1" if row["seeds"] == 1 else f"{row['seeds']} seeds each", *cells)
    console.print(table)
    console.print("\N{EN DASH}: no number of tasks does, the seeds are too few")
    for source in result["sources"]:
        console.print(Text(visible(f"- {source}")), soft_wrap=True)


def _sentences(result: Mapping[str, Any], noise: Noise) -> list[str]:
    size, effect = result["planned"], f"{result['effect']:g}"
    often = f"{100 * result['power']:.0f} of 100 comparisons"
    measured = f"{size['tasks']} tasks x {size['samples']} sample{'s' if size['samples'] > 1 else ''}"
    tasks, seeds = result["tasks_needed"], result["seeds_needed"]
    one = f"one run against one needs {tasks:,} tasks x {size['samples']}" if tasks else "one run against one cannot"
    several = (
        f"two ways of training need {seeds} seeds each with {measured}"
        if seeds
        else f"with {measured} no number of seeds tells two ways of training apart"
    )
    sees = result["smallest_effect_of_two_runs"]
    told = [
        f"To see a change of {effect} in {often}: {one}; {several}.",
        f"{result['config']} as it is ({measured}, one run against one) sees {effect} in "
        f"{100 * result['power_of_two_runs']:.0f} of 100"
        + (f", and {number(sees)} in {100 * result['power']:.0f} of 100." if sees is not None else "."),
    ]
    if noise.is_greedy:
        told.append(
            "evaluation.temperature is 0, so all samples of a task are the same and more of them tell nothing; with "
            "evaluation.temperature: 1 they do."
        )
    return told


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
