"""`rlft watch`: what a run is doing, from another terminal."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(watch)


def watch(
    run: Annotated[Path, typer.Argument(help="Run directory, which need not be there yet.", show_default=False)],
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame and end, as where there is no terminal.")
    ] = False,
    every: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="Time between two looks.")] = 1.0,
) -> None:
    """Show a run while it trains: verdict, numbers, curve, evaluation, alarms, a sample; ends with the run, or Ctrl-C.

    It only reads the run directory.
    """
    from rlft.curves.follow import Followed
    from rlft.curves.watch_frame import Frame

    followed, console = Followed(run), Console()
    followed.look()
    if once or not console.is_terminal:
        if followed.state is None:
            raise ValueError(f"{run} is not a run directory: it has no config.yaml; without --once it is waited for")
        followed.decide()
        console.print(Frame(followed))
        return
    with Live(Frame(followed), console=console, auto_refresh=False) as live:
        while True:
            live.update(Frame(followed), refresh=True)
            if followed.is_undecided:  # behind what is new, which is shown first
                followed.decide()
                live.update(Frame(followed), refresh=True)
            if followed.state is not None and followed.state.is_over:
                break
            time.sleep(every)
            followed.look()
