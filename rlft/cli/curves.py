"""What a person sees of runs: `rlft report`, and the commands that compare runs and decide about them."""

from __future__ import annotations

import errno
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli.arguments import RunFolder
from rlft.cli.cannot_tell import refusals
from rlft.cli.compare import compare
from rlft.cli.gate import gate
from rlft.cli.health import health
from rlft.cli.power import power
from rlft.curves.evaluation_sets import HEADINGS, EvaluationSet
from rlft.curves.text import visible
from rlft.curves.verdict import Verdict
from rlft.run import damage

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
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Write there instead of into the run, as for one that is read-only."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the verdict as JSON and write nothing.")] = False,
) -> None:
    """Say SHIP, DON'T or CAN'T TELL and why, and write report.html and reward.png of a run, ended or not.

    Exit code: 0 whatever the verdict is, 2 if the run cannot be read.
    """
    with refusals(as_json=as_json, run=str(run)):
        _report(run, out, as_json=as_json)


def _report(run: Path, out: Path | None, *, as_json: bool) -> None:
    from rlft.curves.passes import passes
    from rlft.curves.reading import evals_of_result, read_config
    from rlft.curves.state import read_state
    from rlft.curves.verdict import verdict_of

    if read_config(run).get("kind") == "head":
        from rlft.cli.head import report as report_head

        report_head(run, as_json=as_json)
        return
    with damage.left_out() as damaged:
        verdict, state = verdict_of(run), read_state(run)
        evals = evals_of_result(run) if as_json else []
    damaged += [note for note in (verdict.health.notes if verdict.health else ()) if note not in damaged]
    if as_json:
        solved = [each.as_dict() for each in passes(evals[-1].by_task, evals[-1].same)] if evals else []
        besides = {"passes": solved, "evaluations": [each.as_dict() for each in verdict.sets], "notes": damaged}
        told = {"run": str(run), **verdict.as_dict(), **{name: value for name, value in besides.items() if value}}
        print(json.dumps({**told, "state": state.as_dict()}, indent=1))
        return
    show_verdict(verdict)
    show_sets(verdict.sets)
    console = Console()
    console.print(Text(visible("; ".join(filter(None, (state.sentence, state.times))))), soft_wrap=True)
    for path in _write_pages(run, out, verdict, damaged):
        console.print(Text(visible(str(path))), soft_wrap=True)
    shown = [reason.says.casefold() for reason in verdict.reasons]
    for note in damaged:
        if f"{note}.".casefold() not in shown:
            console.print(Text(visible(f"note: {note}"), style="yellow"), soft_wrap=True)


def _write_pages(run: Path, out: Path | None, verdict: Verdict, damaged: list[str]) -> list[Path]:
    """Write the page and the picture; what is found damaged meanwhile comes to `damaged`."""
    from rlft.curves.report import write_report, write_reward_png

    try:
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
        with damage.left_out() as further:
            paths = [write_report(run, out, verdict), write_reward_png(run, out)]
    except OSError as error:
        if out is not None or error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise ValueError(
            f"{run} is read-only ({error.strerror}): rlft report {run} --out FOLDER writes report.html and reward.png "
            "elsewhere, and --json writes nothing"
        ) from error
    damaged += [note for note in further if note not in damaged]
    return paths


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
