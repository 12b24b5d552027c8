"""Printing that no width of a terminal cuts, so that names, replies and numbers can be copied: blocks and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from rlft.curves.text import visible

GAP = 3
"""Spaces between two columns of a table."""


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
            line = Text(f"  {name:<11}", style="dim").append(
                visible(fact).replace("\n", f"\n{' ' * 13}"), style="default not dim"
            )
            console.print(line, soft_wrap=True)
    console.print()


def show_table(
    console: Console, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[str] = ()
) -> None:
    """Print a table under its title, as wide as it is: what exceeds the terminal goes on in the next line there.

    Args:
        left: headings of the columns whose texts begin at the left; numbers end at the right.
    """
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for heading in headings:
        table.add_column(heading, justify="left" if heading in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    table.width = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    console.print(Text(visible(title), style="italic"), soft_wrap=True)
    console.print(table, soft_wrap=True)
    console.print()
