"""`rlft serve`: a trained policy, or a model, behind OpenAI's API on this machine."""

from __future__ import annotations

import json
import shlex
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.text import Text

from rlft.cli.export import AdapterName
from rlft.curves.text import visible

RunOrModel = Annotated[
    str,
    typer.Argument(
        metavar="RUN|MODEL",
        help="Run directory, or a model: a folder, a name of `rlft models`, or a hub id.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(serve)


def serve(
    target: RunOrModel,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where it listens; 0 takes a free port.")] = 8000,
    server: Annotated[
        Literal["auto", "vllm", "transformers"],
        typer.Option(help="auto: vLLM where it is installed, else transformers' own server."),
    ] = "auto",
    adapter: AdapterName = "",
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16"],
        typer.Option(help="What a run's policy is served in; auto: as its base is stored."),
    ] = "auto",
) -> None:
    """Serve a run's policy, or a model, by OpenAI's API on 127.0.0.1 until Ctrl-C.

    The model is called as the run is. A run's policy is merged and proven as by `rlft export --merged`.
    """
    from rlft.model.chat import load_tokenizer
    from rlft.train.export.server import choose, free_port, serving

    choice, port = choose(server), free_port(port)
    run = Path(target) if is_run(target) else None
    console = Console()
    with tempfile.TemporaryDirectory(prefix=".serve-", dir=run) as place:
        folder = _folder(console, target, run, adapter, dtype, Path(place))
        software = {"vllm": "vLLM", "transformers": "transformers' own server"}[choice.kind]
        _tell(console, f"Starting {software}, {choice.why} ...")
        with serving(choice.kind, folder, port=port, log=Path(place) / "server.log") as running:
            is_chat = bool(load_tokenizer(folder, for_chat=False).chat_template)
            asked = {"messages": [{"role": "user", "content": "Hello!"}]} if is_chat else {"prompt": "Hello"}
            question = json.dumps({"model": folder.name, **asked})
            route = "chat/completions" if is_chat else "completions"
            _tell(console, f"Serving {folder.name} at {running.url}")
            _tell(
                console,
                f"  curl {running.url}/{route} -H 'Content-Type: application/json' -d {shlex.quote(question)}",
            )
            if run is not None and is_chat:
                arguments = f"{{base_url: {running.url}, model: {folder.name}}}"
                _tell(
                    console,
                    f"  rlft evaluate {shlex.quote(str(run / 'config.yaml'))} rollout.engine=openai "
                    f"{shlex.quote(f'rollout.engine_args={arguments}')}",
                )
            _tell(console, "Ctrl-C ends it.")
            running.wait()


def is_run(target: str) -> bool:
    """Whether a run directory is meant, and not a model."""
    return (Path(target) / "config.yaml").is_file()


def _folder(
    console: Console,
    target: str,
    run: Path | None,
    adapter: str,
    dtype: Literal["auto", "float32", "bfloat16"],
    place: Path,
) -> Path:
    """The model's folder under the name that it is served by."""
    if run is None:
        from rlft.model import sources

        if adapter or dtype != "auto":
            raise ValueError(f"{target} is no run directory, and --adapter and --dtype are for runs")
        model = sources.resolve(target)
        named = place / (target.rstrip("/").rpartition("/")[2].partition("@")[0] or "model")
        named.symlink_to(model, target_is_directory=True)
        return named
    from rlft.curves.reading import read_config
    from rlft.train.export.export import export

    _tell(console, f"Merging the policy of {run}, and proving that it is what was trained ...")
    name = str(read_config(run).get("name") or run.name)
    done = export(run, adapter=adapter, merged=True, to=place / name, dtype=dtype)
    _tell(console, f"{done.what.name}: {done.proof.sentence}")
    return done.folder


def _tell(console: Console, text: str) -> None:
    console.print(Text(visible(text)), soft_wrap=True)
