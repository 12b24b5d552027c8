"""What a person sees of runs: `rlft report`, and the commands that compare runs and decide about them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli.arguments import RunFolder
from rlft.cli.compare import compare
from rlft.cli.gate import gate
from rlft.cli.health import health
from rlft.cli.power import power
from rlft.curves.evaluation_sets import HEADINGS, EvaluationSet, read_sets
from rlft.curves.text import visible
from rlft.curves.verdict import Verdict

_COLORS = {"ship": "green", "dont": "red", "cant_tell": "yellow", "against": "red", "doubt": "yellow"}


def register(app: typer.Typer) -> None:
    """Add the commands that read run directories; each has a file of its own in this folder where it is long."""
    app.command()(report)
    app.command()(compare)
    app.command()(gate)
    app.command()(power)
    app.command()(health)


def report(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON and write nothing.")] = False,
) -> None:
    """Say SHIP, DON'T or CAN'T TELL and why, and write report.html and reward.png of a run, finished or not."""
    from rlft.curves.passes import passes
    from rlft.curves.reading import evals_of_result, read_config
    from rlft.curves.verdict import verdict_of

    if read_config(run).get("kind") == "head":
        from rlft.cli.head import report as report_head

        report_head(run, as_json=as_json)
        return
    verdict, sets = verdict_of(run), read_sets(run, read_config(run))
    if as_json:
        evals = evals_of_result(run)
        solved = [each.as_dict() for each in passes(evals[-1].by_task)] if evals else []
        besides = {"passes": solved, "evaluations": [each.as_dict() for each in sets]}
        told = {"run": str(run), **verdict.as_dict(), **{name: value for name, value in besides.items() if value}}
        print(json.dumps(told, indent=1))
        return
    show_verdict(verdict)
    show_sets(sets)
    from rlft.curves.report import write_report, write_reward_png

    for path in (write_report(run), write_reward_png(run)):
        Console().print(Text(visible(str(path))), soft_wrap=True)


def show_sets(sets: Sequence[EvaluationSet]) -> None:
    """Print what each evaluation set shows, if there are any."""
    rows = [row for each in sets for row in each.rows]
    if not rows:
        return
    table = Table(title="Evaluation sets", title_justify="left")
    shown = [column for column in range(len(HEADINGS)) if any(row[column] not in ("", "0") for row in rows)]
    for column in shown:
        table.add_column(HEADINGS[column], justify="right" if 2 <= column < 5 else "left")
    for row in rows:
        table.add_row(*(Text(visible(row[column])) for column in shown))
    console = Console()
    console.print(table)
    for each in sets:
        console.print(Text(visible(each.sentence)), soft_wrap=True)


def show_verdict(verdict: Verdict) -> None:
    """Print a verdict and its reasons."""
    console = Console()
    head = Text.assemble((verdict.word, f"bold {_COLORS[verdict.kind]}"), "  ", visible(verdict.sentence))
    console.print(head, soft_wrap=True)
    for reason in verdict.reasons:
        if reason.says != verdict.sentence:
            console.print(Text(f"  - {visible(reason.says)}", style=_COLORS.get(reason.weight, "")), soft_wrap=True)
