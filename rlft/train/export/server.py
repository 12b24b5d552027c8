"""Serving a model's folder by OpenAI's API on the loopback interface: vLLM, or transformers' own server.

The server runs in a child process under its own command line, which is what its documentation describes
(https://docs.vllm.ai/en/stable/cli/serve.html, https://huggingface.co/docs/transformers/serving). It ends with this
process, however that ends, with everything that it has started.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import entry_points
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Literal, TypeAlias

from rlft.common.child_process import ChildProcess

HOST = "127.0.0.1"
Kind: TypeAlias = Literal["vllm", "transformers"]
LOADING_LIMIT_S = 1800.0
"""Time that a server may take until it answers; a large model is read in minutes."""
_POLL_S = 0.2
_NEEDS = {"vllm": ("vllm",), "transformers": ("fastapi", "uvicorn", "openai")}
"""Modules that each server needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which server is taken."""

    kind: Kind
    why: str
    """In words, after "with ..."."""


def choose(wanted: Kind | Literal["auto"] = "auto") -> Choice:
    """vLLM where it is installed, else transformers' own server.

    Raises:
        ValueError: what to install.
    """
    missing = {
        kind: [name for name in names if importlib.util.find_spec(name) is None] for kind, names in _NEEDS.items()
    }
    if wanted != "auto":
        if missing[wanted]:
            extra = "vllm" if wanted == "vllm" else "serve"
            raise ValueError(
                f"the server of {wanted} needs {', '.join(missing[wanted])}, which is not installed here: "
                f"pip install 'rlft[{extra}]'"
            )
        return Choice(kind=wanted, why="as --server asks for")
    if not missing["vllm"]:
        return Choice(kind="vllm", why="which is installed here and serves many requests at once")
    if not missing["transformers"]:
        return Choice(kind="transformers", why="since vLLM is not installed here; it serves one request after another")
    raise ValueError(
        "serving needs a server: vLLM (pip install 'rlft[vllm]'), or transformers' own one, for which "
        f"{', '.join(missing['transformers'])} is missing (pip install 'rlft[serve]')"
    )


def free_port(port: int) -> int:
    """The port, or one that is free for 0.

    Raises:
        ValueError: another program listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just been given up is free
        try:
            probe.bind((HOST, port))
        except OSError as error:
            raise ValueError(f"port {port} cannot be taken ({error.strerror}); name another one with --port") from None
        return int(probe.getsockname()[1])


class Server:
    """A server that answers."""

    def __init__(self, child: ChildProcess, port: int) -> None:
        """Take over its process."""
        self._child, self.port = child, port
        self.url = f"http://{HOST}:{port}/v1"

    def wait(self) -> None:
        """Wait until it ends by itself, which it should not.

        Raises:
            RuntimeError: how it ended, and what it printed last.
        """
        wait(self._child.handles)
        raise RuntimeError(_ended(self._child))


@contextmanager
def serving(kind: Kind, folder: Path, *, port: int, log: Path) -> Iterator[Server]:
    """Serve a model's folder under the folder's own name within the block.

    Args:
        port: a free one.
        log: file for what the server prints.

    Raises:
        RuntimeError: it ended before it answered, or did not answer in time; with what it printed.
    """
    child = ChildProcess(
        main,
        log=log,
        environment={"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", "PYTHONUNBUFFERED": "1"},
    )
    try:
        child.send((kind, str(folder.parent), command(kind, folder.name, port)))
        _until_it_answers(child, port)
        yield Server(child, port)
    finally:
        child.kill()


def command(kind: Kind, name: str, port: int) -> list[str]:
    """The command line that serves the folder `name` of the working directory, and that alone."""
    where = ["--host", HOST, "--port", str(port)]
    if kind == "vllm":
        return ["vllm", "serve", f"./{name}", "--served-model-name", name, *where]
    return ["transformers", "serve", name, *where]  # a model that is named there is the only one, under this name


def main(connection: Connection) -> None:
    """Run in the child: become the server."""
    program, folder, arguments = connection.recv()
    os.chdir(folder)
    sys.argv = arguments
    (script,) = entry_points(group="console_scripts", name=program)
    script.load()()


def _until_it_answers(child: ChildProcess, port: int) -> None:
    until = time.monotonic() + LOADING_LIMIT_S
    while time.monotonic() < until:
        if wait(child.handles, _POLL_S):
            raise RuntimeError(_ended(child))
        with suppress(OSError), urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=10) as answer:
            if answer.status == 200:
                return
    raise RuntimeError(f"the server did not answer within {LOADING_LIMIT_S:g} s; it printed:\n{child.printed()}")


def _ended(child: ChildProcess) -> str:
    how = child.kill()
    return f"the server {how}; it printed:\n{child.printed() or 'nothing'}"
