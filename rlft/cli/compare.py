"""`rlft compare`: two runs, or two groups of seeds, and whether the second is better."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli.cannot_tell import refusals
from rlft.curves.text import interval_text, number, shortened, visible

if TYPE_CHECKING:
    from rlft.curves.comparison import Comparison, Row, TaskChange

RUNS_HELP = "Run directories or quoted globs, `vs` between the groups: runs/a vs runs/b, or 'runs/a-*' 'runs/b-*'."
_BAR = 33
_FOLDED = 16  # columns that they have at least where the table is too wide
_LABEL = 40  # columns that the names of rows have at least before bars are drawn

Metric = Annotated[str, typer.Option(metavar="NAME", help="Reward or part; the config's headline when left out.")]
ById = Annotated[
    bool, typer.Option("--by-id", help="Pair tasks by id although prompts or answers differ, as between templates.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print everything as JSON.")]


def compare(
    runs: Annotated[list[str], typer.Argument(help=RUNS_HELP, show_default=False)],
    metric: Metric = "",
    min_effect: Annotated[
        float | None, typer.Option(help="Smallest change of interest; the first config's evaluation.min_effect.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Train reward whose reaching is timed; 80 % of the first's gain when left out.")
    ] = None,
    by_id: ById = False,
    as_json: AsJson = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the comparison as a page.")] = None,
) -> None:
    """Say whether runs differ: paired by task, over seeds where there are several, or that it cannot be told.

    A group is one config trained with several seeds. `@base`, `@sft` or `@step-000010` behind a name means that
    evaluation instead of the last one. Exit code 2: a run cannot be read.
    """
    from rlft.curves.compare import compare as compared
    from rlft.curves.compare import min_effect_of
    from rlft.curves.compare_page import write_page
    from rlft.curves.scored_run import read_groups

    with refusals(as_json=as_json):
        before, after, remarks = read_groups(runs, metric, by_id=by_id)
        wanted = min_effect_of(before) if min_effect is None else min_effect
        result = compared(before, after, min_effect=wanted, threshold=threshold, remarks=remarks)
        if html is not None:
            write_page(result, html)
    if as_json:
        print(json.dumps(result.as_dict(), indent=1))
        return
    show(result)
    if html is not None:
        Console().print(Text(visible(f"Written: {html}")))


def show(result: Comparison) -> None:
    """Print a comparison: the sentence, what was compared, the table, the tasks that moved most."""
    from rlft.curves.compare_page import facts

    console = Console()
    style = {"better": "bold green", "worse": "bold red"}.get(result.verdict, "bold yellow")
    console.print(Text(visible(result.sentence), style=style), soft_wrap=True)
    for remark in result.remarks:
        console.print(Text(visible(f"note: {remark}"), style="yellow"), soft_wrap=True)
    console.print()
    for fact in facts(result):
        console.print(Text(visible(f"- {fact}")), soft_wrap=True)
    console.print()
    table = _table(result, console.width)
    fitting = Console(width=max(console.width, sum((column.width or 0) + 3 for column in table.columns) + 1))
    fitting.print(table, crop=False)
    for group, scores, mean in zip((result.before, result.after), result.scores, result.intervals, strict=True):
        if len(scores) > 1:
            every = " ".join(number(score) for score in scores)
            told = f"every seed of {group.label}: {every}; mean {interval_text(mean)}"
            console.print(Text(visible(told)), soft_wrap=True)
    for title, tasks in (("got worse most", result.worse), ("got better most", result.better)):
        _show_tasks(console, title, tasks)


def _table(result: Comparison, width: int) -> Table:
    """The measured quantities. Nothing is cut: bars are left out where they do not fit into `width`, then labels and
    lists of steps are folded, and a table that is wider even so is printed as wide as it is."""
    from rlft.curves.compare_page import more_rows, p_text

    rows = [result.headline, *result.rows]
    lines = [
        (row.label, number(row.before), number(row.after), interval_text(row.change, "+"),
         f"{p_text(row.p)}{'*' if row.conclusive else ''}", bar)
        for row, bar in zip(rows, _bars(rows), strict=True)
    ]  # fmt: skip
    lines += [(*cells, "", "") for cells in more_rows(result)]
    headings = ("mean", result.before.label, result.after.label, "change", "p", "")
    widths = [max(map(len, column)) for column in zip(headings, *lines, strict=True)]
    has_bars = min(widths[0], _LABEL) + sum(widths[1:]) + 3 * len(headings) + 1 <= width
    shown = range(len(headings) if has_bars else len(headings) - 1)
    table = Table(title="95 % intervals; * is no chance; p of all but the first adjusted by Holm", title_justify="left")
    excess = sum(widths[index] + 3 for index in shown) + 1 - width
    for index in shown:
        # Intervals and p-values with their stars stay whole; labels, names of runs and lists of steps are folded.
        words = [_FOLDED] if index == 0 else [len(word) for line in lines for word in line[index].split()]
        least = min(widths[index], max(words)) if index < 3 else widths[index]
        own = max(least, widths[index] - max(0, excess))
        excess -= widths[index] - own
        text = Text(visible(headings[index]), overflow="fold")
        is_text = index in (0, len(headings) - 1)
        table.add_column(text, justify="left" if is_text else "right", overflow="fold", width=own)
    for line in lines:
        table.add_row(*(Text(visible(line[index])) for index in shown))
    return table


def _show_tasks(console: Console, title: str, tasks: Sequence[TaskChange]) -> None:
    for task in tasks:
        prompt = " ".join(shortened(task.task, 100).split())
        change = f"{number(task.before)} -> {number(task.after)}"
        console.print(Text(visible(f"{title}: {change}  {prompt}")), soft_wrap=True)


def _bars(rows: Sequence[Row]) -> list[str]:
    """The intervals as lines of text around 0, all on one scale."""
    ends = [abs(v) for row in rows for v in (row.change.low, row.change.high, row.change.mean) if math.isfinite(v)]
    reach, middle = max([*ends, 1e-12]), _BAR // 2

    def place(value: float) -> int:
        return middle + round(value / reach * middle)

    bars = []
    for row in rows:
        line = [" "] * _BAR
        line[middle] = "|"
        if row.change.bounded:
            for index in range(place(row.change.low), place(row.change.high) + 1):
                line[index] = "-" if index != middle else "+"
        line[place(row.change.mean)] = "o"
        bars.append("".join(line))
    return bars
