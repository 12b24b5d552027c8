"""`rlft why`: what moved the reward between two windows, and what fails in the second."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli.arguments import RunFolder
from rlft.cli.listing import print_whole
from rlft.curves.text import number, percent, visible
from rlft.run import damage

if TYPE_CHECKING:
    from rlft.curves.contributions import Change
    from rlft.curves.failing import Failing
    from rlft.curves.sample_kinds import Example


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(why)


def why(
    run: RunFolder,
    before: Annotated[
        str,
        typer.Option("--from", metavar="WINDOW", help="Steps, as in 1-5, or an evaluation: base, sft, last."),
    ] = "",
    after: Annotated[
        str, typer.Option("--to", metavar="WINDOW", help="The same; the first and the last steps when left out.")
    ] = "",
    samples: Annotated[int, typer.Option(min=0, help="How many are shown of what appeared and disappeared.")] = 6,
    seed: Annotated[int | None, typer.Option(help="Decides which; the run's seed when left out.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all of it as JSON.")] = False,
) -> None:
    """Say what moved the reward: which rewards, which tasks, which samples; the contributions add up to the change."""
    from rlft.curves import reading
    from rlft.curves.contributions import explain, read_window
    from rlft.curves.failing import failing

    config = reading.read_config(run)
    with damage.left_out() as damaged:
        first, last = (before, after) if before and after else _ends(run, before, after)
        windows = read_window(run, first), read_window(run, last)
    try:
        change = explain(config, *windows, count=samples, seed=seed)
    except ValueError as error:
        raise ValueError("; ".join([str(error), *damaged])) from None
    fails = failing(config, windows[1], count=samples, seed=seed)
    if as_json:
        print(json.dumps({**change.as_dict(), "fails": fails.as_dict(), "notes": damaged}, indent=1))
        return
    _show(change, fails)
    for note in damaged:
        Console().print(Text(visible(f"note: {note}"), style="yellow"), soft_wrap=True)


def _ends(run: Path, before: str, after: str) -> tuple[str, str]:
    """The windows of a command that leaves one out: the first and the last steps whose rollouts can be read.

    Raises ValueError where there are none, or where one step would be compared with itself.
    """
    from rlft.curves import reading
    from rlft.run.records import EVALS

    steps = reading.readable_steps(run)
    evals = [e.name for e in reading.evals_of_result(run) if (run / EVALS / f"{e.name}.parquet").is_file()]
    instead = f"; of evaluations: rlft why {run} --from {evals[0]} --to {evals[-1]}" if len(evals) > 1 else ""
    if not steps:
        damaged = " that can be read" if reading.rollout_steps(run) else " yet"
        raise ValueError(f"{run} has no rollouts{damaged}, so there is nothing to explain{instead}")
    if len(steps) == 1 and not before and not after:
        raise ValueError(
            f"{run} has rollouts of step {steps[0]} only, and one step has nothing to compare with{instead}"
        )
    width = max(1, min(20, len(steps) // 10))
    return before or f"{steps[0]}-{steps[:width][-1]}", after or f"{steps[-width:][0]}-{steps[-1]}"


def _show(change: Change, fails: Failing) -> None:
    console = Console()
    for sentence in change.sentences:
        console.print(Text(visible(sentence)), soft_wrap=True)
    if len(change.clusters) > 1:
        rows = [
            (each.name, *map(percent, each.share), *map(number, each.mean), f"{each.within:+.3f}", f"{each.mix:+.3f}")
            for each in change.clusters
        ]
        _table("Kinds of tasks, and what each adds", "tasks|share|then|mean|then|answers|mix", rows)
    kinds = [(each.name, *map(str, each.count), *map(percent, each.share)) for each in change.kinds]
    _table("Kinds of samples", "sample|before|after|share|then", kinds)
    _examples(f"Appeared, in {change.after.label}", change.appeared)
    _examples(f"Disappeared, in {change.before.label}", change.disappeared)
    console.print(Text(visible(f"\n{fails.sentence}")), soft_wrap=True)
    if fails.kinds:
        counted = [(name, str(count), percent(count / fails.total)) for name, count in fails.kinds]
        _table("What fails", "sample|count|share", counted)
    _examples("Typical", fails.typical)
    _examples("Lowest rewards", fails.extremes)


def _table(title: str, headings: str, rows: Sequence[Sequence[str]]) -> None:
    table = Table(title=title, title_justify="left")
    for index, heading in enumerate(headings.split("|")):
        table.add_column(heading, justify="right" if index else "left", no_wrap=index > 0)
    for row in rows:
        table.add_row(*(Text(" ".join(visible(cell).splitlines())) for cell in row))
    print_whole(table)


def _examples(title: str, examples: Sequence[Example]) -> None:
    console = Console()
    if examples:
        console.print(Text(visible(f"\n{title}"), style="bold"))
    for each in examples:
        reward = "no score" if each.reward is None else f"reward {number(each.reward)}"
        heading = f"{each.kind}: step {each.step}, {each.task_id}, sample {each.sample_index}, {reward}"
        console.print(Text(" ".join(visible(heading).splitlines()), style="cyan"), soft_wrap=True)
        for name, text in (("prompt", each.prompt), ("wrote", each.completion), ("answer", each.answer)):
            lines = visible(text).splitlines() or [""]
            console.print(Text("\n".join([f"  {name:<6}  {lines[0]}", *(f"          {line}" for line in lines[1:])])))
