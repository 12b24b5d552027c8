"""Blocks instead of a table: a line for each fact, whole at any width, so that replies and paths can be copied."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.text import Text

from rlft.curves.text import visible


def show_block(console: Console, heading: str, facts: Mapping[str, str], *, style: str, of: str = "") -> None:
    """Print a heading, and below it what is known, each with its name; empty facts are left out.

    Args:
        style: colour of the heading.
        of: what the heading is about, in plain letters behind it.
    """
    title = Text(visible(heading), style=style)
    if of:
        title.append(f"  {visible(of)}", style="default not bold")
    console.print(title, soft_wrap=True)
    for name, fact in facts.items():
        if fact:
            line = Text(f"  {name:<11}", style="dim").append(visible(fact), style="default not dim")
            console.print(line, soft_wrap=True)
    console.print()
