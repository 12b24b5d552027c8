"""`rlft doctor`: what this machine can do, a line for each thing, and what to do about it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.curves.text import visible

if TYPE_CHECKING:
    from rlft.train.doctor import Fact

_STYLES = {"ok": "green", "slower": "yellow", "missing": "red"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(doctor)


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
    start_ray: Annotated[bool, typer.Option("--start-ray", help="Start Ray once and end it: takes seconds.")] = False,
    compile_: Annotated[
        bool, typer.Option("--compile", help="Compile the kernels where the cache lacks them: takes a minute.")
    ] = False,
) -> None:
    """Say what this machine can do: processor, kernels, memory, GPUs, sandbox, Ray, model, packages, and what to do.

    Exit code 0: rlft can train here; 1: something that it needs is missing.
    """
    from rlft.train.doctor import examine

    facts = examine(starts_ray=start_ray, compiles=compile_)
    is_able = not any(fact.is_needed and fact.state == "missing" for fact in facts)
    if as_json:
        print(json.dumps({"can_train": is_able, "facts": [fact.as_dict() for fact in facts]}, indent=1))
    else:
        _show(Console(), facts, is_able)
    raise typer.Exit(0 if is_able else 1)


def _show(console: Console, facts: list[Fact], is_able: bool) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("what", "state", "here"):
        table.add_column(heading, no_wrap=heading != "here", overflow="fold")
    for fact in facts:
        state = fact.state if fact.state != "missing" or fact.is_needed else "missing (optional)"
        style = _STYLES[fact.state] if fact.is_needed or fact.state != "missing" else "dim"
        here = Text(visible(fact.here))
        if fact.todo:
            here.append(visible(f"\ndo: {fact.todo}"), style="dim" if fact.state == "ok" else "")
        table.add_row(Text(fact.what), Text(state, style=style), here)
    console.print(table)
    lacking = ", ".join(fact.what for fact in facts if fact.is_needed and fact.state == "missing")
    said = (
        Text("rlft can train here.", style="green")
        if is_able
        else Text(f"rlft cannot train here: {lacking}", style="red")
    )
    console.print(said)
