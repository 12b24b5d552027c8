"""`rlft export`: a trained policy as a folder that other software loads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from rlft.cli.arguments import RunFolder
from rlft.curves.text import visible

AdapterName = Annotated[
    str,
    typer.Option(metavar="vNNN", help="Another adapter of the run than its last: v12, or sft."),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(export)


def export(
    run: RunFolder,
    merged: Annotated[bool, typer.Option("--merged", help="A whole model instead of an adapter.")] = False,
    to: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Where to; below RUN/exports when left out.")
    ] = None,
    adapter: AdapterName = "",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="What a merged model is stored in; auto: as its base is."),
    ] = "auto",
) -> None:
    """Write a trained policy as a PEFT adapter or a merged model with a model card, proven in a fresh process.

    Plain peft, transformers and vLLM load the folder. A fresh process does so before it gets its name, and has to find
    the learner's log-probs.
    """
    from rlft.cli.curves import show_verdict
    from rlft.curves.verdict import verdict_of
    from rlft.train.export.export import export as write

    done = write(run, adapter=adapter, merged=merged, to=to, dtype=dtype)
    what = done.what
    form = f"a PEFT adapter ({what.kind})" if what.is_adapter else f"a model in {what.dtype}"
    megabytes = sum(path.stat().st_size for path in done.folder.iterdir()) / 1e6
    console = Console()
    _tell(console, f"Exported {what.name}: {form} of {what.base.source}, {megabytes:.1f} MB")
    _tell(console, f"Proof: {done.proof.sentence}")
    show_verdict(verdict_of(run))
    _tell(console, f"Written: {done.folder}")
    for path in sorted(done.folder.iterdir()):
        _tell(console, f"  {path.name}")
    if what.is_adapter and what.base.reference != what.base.hub_id:
        _tell(console, "The base lies on this machine only: to pass it on, use --merged, or pass the base on, too.")


def _tell(console: Console, text: str) -> None:
    console.print(Text(visible(text)), soft_wrap=True)
