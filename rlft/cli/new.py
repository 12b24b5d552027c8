"""`rlft new`: a small project of the user's own, copied from a template that runs as it is."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

import typer
from rich.console import Console
from rich.text import Text

from rlft.curves.text import visible

TEMPLATES = Path(__file__).parent / "templates"
"""A folder of files for each template, and what all of them get."""
IGNORED = "gitignore"
"""The file that becomes a project's `.gitignore`; under its own name it would hold for this repository."""
CONFIG = "config.yaml"

Template: TypeAlias = Literal["answer", "judge", "tools", "game", "classify"]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(new)


def new(
    folder: Annotated[
        Path,
        typer.Argument(help="Folder to make; it may be there if it is empty.", show_default=False, metavar="FOLDER"),
    ],
    template: Annotated[
        Template,
        typer.Option(
            help="answer: questions with answers; judge: replies that a model judges; tools: a tool to call; game: "
            "several turns; classify: texts with labels."
        ),
    ] = "answer",
) -> None:
    """Make a small project of your own: config, reward with its cases, tasks, README. It runs as it is, on a CPU."""
    files = make_project(folder, template)
    console = Console()
    console.print(Text(visible(f"Made {folder} from the template {template}: {', '.join(files)}")), soft_wrap=True)
    inside = shlex.quote(str(folder))  # one word to a shell, whatever its name is
    steps = (
        (f"cd {inside} && rlft reward check {CONFIG}", "what is wrong with the reward: seconds, no model"),
        (f"rlft train {CONFIG}", "base measurement, training, report: minutes on a CPU"),
        (f"rlft report runs/{template}", "the curves again"),
    )
    width = max(len(command) for command, _ in steps)
    told = "".join(f"\n  {command:{width}}  # {what}" for command, what in steps)
    console.print(Text(visible(f"Next:{told}")), soft_wrap=True)


def make_project(folder: Path, template: Template) -> list[str]:
    """Copy a template's files into a folder that is empty or not there.

    Returns:
        Names of the files.

    Raises:
        ValueError: the folder is not empty, or there is a file of that name; nothing is written then.
    """
    if folder.is_dir() and (found := sorted(path.name for path in folder.iterdir())):
        shown = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        raise ValueError(f"{folder} is not empty ({shown}) and is left as it is; name a folder that is not there yet")
    if not folder.is_dir() and (folder.exists() or folder.is_symlink()):
        raise ValueError(f"{folder} is there already and is no folder; name one that is not there yet")
    sources = {path.name: path for path in (TEMPLATES / template).iterdir() if path.is_file()}
    sources[f".{IGNORED}"] = TEMPLATES / IGNORED
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in sources.items():
        with (folder / name).open("xb") as file:  # never over one that has just appeared
            file.write(source.read_bytes())
    return sorted(sources)
