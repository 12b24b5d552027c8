"""`rlft report`: what a person sees of a run."""

from __future__ import annotations

import typer
from rich.console import Console
from rich.text import Text

from rlft.cli.arguments import RunFolder
from rlft.curves.text import visible


def register(app: typer.Typer) -> None:
    """Add the commands that read run directories; each has a file of its own in this folder where it is long."""
    app.command()(report)


def report(run: RunFolder) -> None:
    """Write report.html and reward.png of a run, finished or not."""
    from rlft.curves.report import write_report, write_reward_png

    for path in (write_report(run), write_reward_png(run)):
        Console().print(Text(visible(str(path))))
