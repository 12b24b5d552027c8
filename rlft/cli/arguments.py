"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(help="Config file (YAML).", show_default=False)]
RunFolder = Annotated[Path, typer.Argument(help="Run directory, such as runs/quickstart.", show_default=False)]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        help="Settings that replace the config's: key.sub=value.",
        show_default=False,
        metavar="KEY=VALUE",
    ),
]
Restart = Annotated[bool, typer.Option("--restart", help="Start over; an existing run of that name is moved aside.")]
