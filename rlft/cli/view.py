"""`rlft view`: runs in a browser, live."""

from __future__ import annotations

import importlib.util
import secrets
import socket
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from rlft.curves.text import visible


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(view)


def view(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUNS",
            help="Run directories, or folders that hold some; `runs` when left out.",
            show_default=False,
        ),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Where it listens; any but this machine's own needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    token: Annotated[
        str,
        typer.Option(
            envvar="RLFT_VIEW_TOKEN",
            help="What others have to know; made up and printed where --host needs one.",
            show_default=False,
        ),
    ] = "",
) -> None:
    """Show runs in a browser while they grow: all rollouts, verdicts in a list, two compared. Ctrl-C ends it.

    The server only reads. It needs the packages of the extra `view`.
    """
    if missing := [name for name in ("starlette", "uvicorn") if importlib.util.find_spec(name) is None]:
        raise ValueError(f"rlft view needs {' and '.join(missing)}: pip install 'rlft[view]'")
    import uvicorn

    from rlft.curves.view_server import LOOPBACK, Access, create_app

    folders = runs or [Path("runs")]
    secret = token or ("" if host in LOOPBACK else secrets.token_urlsafe(24))
    servers: list[uvicorn.Server] = []
    access = Access(host=host, token=secret)
    app = create_app(folders, access, is_stopping=lambda: any(server.should_exit for server in servers))
    with _listening(host, port) as listening:
        address = f"[{host}]" if ":" in host else host
        url = f"http://{address}:{listening.getsockname()[1]}/{f'?token={secret}' if secret else ''}"
        console = Console()
        console.print(Text(visible(f"Showing {', '.join(map(str, folders))} at {url}")), soft_wrap=True)
        console.print("Ctrl-C ends it.")
        servers.append(uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=3)))
        servers[0].run(sockets=[listening])


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens there. Raises ValueError if it cannot."""
    try:
        (family, _, _, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        raise ValueError(f"cannot listen on {host}, port {port}: {error.strerror}; see --host and --port") from None
