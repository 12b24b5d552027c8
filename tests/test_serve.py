"""`rlft serve`: which server is taken, that nothing of it is left, and that it answers as the run's own engine does."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import socket
import urllib.error
import urllib.request
from pathlib import Path

import psutil
import pytest

from rlft.cli.run_config import load, load_run
from rlft.curves.reading import adapter_of
from rlft.train.export import server
from rlft.train.export.folder import write_merged
from rlft.train.export.policy import find_policy
from rlft.train.rl.measure import measure

MISSING = [name for name in ("fastapi", "uvicorn", "openai") if importlib.util.find_spec(name) is None]
needs_server = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} is not installed: pip install 'rlft[serve]'"
)


@pytest.mark.parametrize(
    ("installed", "wanted", "found"),
    [
        ({"vllm", "fastapi", "uvicorn", "openai"}, "auto", "vllm"),
        ({"vllm"}, "auto", "vllm"),
        ({"fastapi", "uvicorn", "openai"}, "auto", "transformers"),
        ({"vllm", "fastapi", "uvicorn", "openai"}, "transformers", "transformers"),
        ({"openai"}, "auto", r"fastapi, uvicorn is missing \(pip install 'rlft\[serve\]'\)"),
        ({"openai"}, "transformers", r"needs fastapi, uvicorn, .*pip install 'rlft\[serve\]'"),
        ({"fastapi", "uvicorn", "openai"}, "vllm", r"pip install 'rlft\[vllm\]'"),
    ],
)
def test_vllm_is_taken_where_it_is_installed(
    installed: set[str], wanted: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: name if name in installed else None)
    if found in ("vllm", "transformers"):
        assert server.choose(wanted).kind == found  # type: ignore[arg-type]
        return
    with pytest.raises(ValueError, match=found):
        server.choose(wanted)  # type: ignore[arg-type]


def test_both_servers_listen_on_the_loopback_interface_alone() -> None:
    for kind in ("vllm", "transformers"):
        words = server.command(kind, "mine", 8123)  # type: ignore[arg-type]
        assert words[words.index("--host") + 1] == "127.0.0.1"
        assert words[words.index("--port") + 1] == "8123"


def test_a_taken_port_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="name another one with --port"):
            server.free_port(taken.getsockname()[1])
    assert server.free_port(0) > 1023


@needs_server
@pytest.mark.timeout(240)
def test_the_server_finds_the_runs_accuracy_and_ends_with_all_it_started(finished_run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    folder.mkdir()
    write_merged(folder, find_policy(finished_run), "auto")
    port, before = server.free_port(0), set(psutil.Process().children(recursive=True))
    with server.serving("transformers", folder, port=port, log=tmp_path / "server.log") as running:
        started = set(psutil.Process().children(recursive=True)) - before
        where = f"{{base_url: {running.url}, model: tiny, retries: 0}}"
        settings = ["rollout.engine=openai", f"rollout.engine_args={where}"]
        served = measure(load(finished_run / "config.yaml", settings, is_trained=False), None)
        with pytest.raises(urllib.error.HTTPError) as refused:  # it serves nothing else that lies on the disk
            _ask(running.url, str(find_policy(finished_run).model_folder))
        assert refused.value.code == 400
    own = measure(load_run(finished_run, None, is_trained=False), adapter_of(finished_run))
    base = measure(load_run(finished_run, None, is_trained=False), None)
    assert served.by_task == own.by_task
    assert served.accuracy == own.accuracy
    assert base.by_task != own.by_task  # else it would prove nothing
    assert started
    assert not [process for process in started if process.is_running()]
    with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pytest.fail("somebody still listens there")


def test_a_server_that_cannot_start_says_what_it_printed(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError, match=r"(?s)the server ended with exit code 1; it printed:.*Traceback"),
        server.serving("no such program", tmp_path, port=server.free_port(0), log=tmp_path / "log"),  # type: ignore[arg-type]
    ):
        pytest.fail("it serves without a server")


def _ask(url: str, model: str) -> bytes:
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "?"}], "max_tokens": 1}).encode()
    request = urllib.request.Request(f"{url}/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        return bytes(answer.read())
