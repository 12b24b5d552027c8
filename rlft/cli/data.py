"""`rlft data`: look at data before a run is spent on it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.curves.text import visible

if TYPE_CHECKING:
    from rlft.train.data_check.findings import Checked, Finding

app = typer.Typer(help="Look at data before a run is spent on it.", no_args_is_help=True)

PLACES = 3
"""Rows of a finding that the table names; --json has all."""
TOKENS = 200
"""Tokens of the row that is shown."""
_STYLES = {"error": "bold red", "warning": "yellow", "not checked": "cyan"}


@app.callback()
def _group() -> None:
    """Look at data before a run is spent on it."""


@app.command()
def check(
    source: Annotated[
        str, typer.Argument(help="A config (YAML), or a table: .jsonl, .json, .csv, .parquet.", show_default=False)
    ],
    heldout: Annotated[str, typer.Option(metavar="FILE", help="Table of what is measured on, beside a table.")] = "",
    model: Annotated[str, typer.Option(help="Model whose tokenizer is used, beside a table.")] = "",
    prompt: Annotated[str, typer.Option(metavar="COLUMN", help="Column that asks, where its name does not tell.")] = "",
    answer: Annotated[str, typer.Option(metavar="COLUMN", help="Column that answers.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print all that was found as JSON.")] = False,
) -> None:
    """Find duplicates, leaks into held-out rows, broken or cut texts, rows too long for the model, uneven labels.

    Exit code: 1 an error, 0 warnings at the most.
    """
    checked = _checked(source, heldout, model, prompt, answer)
    if as_json:
        print(json.dumps({**checked.as_dict(), "exit_code": checked.exit_code}, indent=1))
    else:
        _show(Console(), checked)
    raise typer.Exit(checked.exit_code)


def _checked(source: str, heldout: str, model: str, prompt: str, answer: str) -> Checked:
    if not source.endswith((".yaml", ".yml")):
        from rlft.train.data_check.check import check_file

        return check_file(source, heldout=heldout, model=model, prompt=prompt, answer=answer)
    options = {"--heldout": heldout, "--model": model, "--prompt": prompt, "--answer": answer}
    if given := [name for name, value in options.items() if value]:
        raise ValueError(f"{given[0]} is for a table; {source} is a config, which says that itself")
    from rlft.cli.run_config import load_any

    config = load_any(Path(source), None)
    from rlft.train.data_check.check import check_config

    return check_config(config)


def _show(console: Console, checked: Checked) -> None:
    counted = f"{checked.rows - checked.heldout} rows to train on, {checked.heldout} held out"
    console.print(Text(visible(f"{checked.source}: {counted}"), style="bold"), soft_wrap=True)
    for name, fact in checked.facts.items():
        console.print(Text(visible(f"  {name.partition(' ')[0]}: {fact}")), soft_wrap=True)
    if checked.findings:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for heading in ("", "what", "rows", "where and what to do"):
            table.add_column(heading, justify="right" if heading == "rows" else "left", overflow="fold")
        for finding in checked.findings:
            style = _STYLES[finding.severity]
            count = str(len(finding.places) or "")
            table.add_row(Text(finding.severity, style=style), Text(finding.name), count, Text(visible(_said(finding))))
        console.print(table)
    if checked.tokens:
        _show_tokens(console, checked)
    errors = sum(finding.severity == "error" for finding in checked.findings)
    warnings = sum(finding.severity == "warning" for finding in checked.findings)
    skipped = [finding.name for finding in checked.findings if finding.severity == "not checked"]
    end = f"{errors} errors, {warnings} warnings" + (f"; not checked: {', '.join(skipped)}" if skipped else "")
    console.print(Text(end, style="red" if errors else "yellow" if warnings or skipped else "green"))


def _said(finding: Finding) -> str:
    more = len(finding.places) - PLACES
    named = ", ".join(finding.places[:PLACES]) + (f" and {more} more" if more > 0 else "")
    return "\n".join(filter(None, (named, finding.what, f"do: {finding.todo}")))


def _show_tokens(console: Console, checked: Checked) -> None:
    """One row in tokens, divided by bars, those that are learnt in colour and between double angles."""
    learnt = sum(is_learnt for _, is_learnt in checked.tokens)
    title = f"{checked.shown} as the model reads it: {len(checked.tokens)} tokens, {learnt} of them learnt"
    console.print(Text(visible(title), style="bold"), soft_wrap=True)
    line = Text()
    for text, is_learnt in checked.tokens[:TOKENS]:
        told = visible(text).replace("\n", "⏎").replace("\t", "⇥")
        line.append(f"«{told}»" if is_learnt else told, style="green" if is_learnt else "")
        line.append("|", style="dim")
    if len(checked.tokens) > TOKENS:
        line.append(f" ... and {len(checked.tokens) - TOKENS} more")
    console.print(line, soft_wrap=True)
