"""`rlft view`: what the server shows, and whom it shows nothing."""

from __future__ import annotations

import gzip
import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.testing import CliRunner

from rlft.cli import view as command
from rlft.cli.main import app
from rlft.curves.page_data import page_data
from rlft.curves.scored_run import read_groups
from rlft.curves.view_samples import PAGE, Query, RunSamples
from rlft.curves.view_server import Access, create_app
from tests import gallery
from tests.fakes_run import append, make_run, rollout, write_config, write_rollouts


@contextmanager
def served(folders: list[Path], access: Access | None = None, **settings: float) -> Iterator[int]:
    """The port of a server that runs in a thread."""
    application = create_app(folders, access, **settings)
    with command._listening("127.0.0.1", 0) as listening:
        server = uvicorn.Server(uvicorn.Config(application, log_level="error", timeout_graceful_shutdown=1))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(30)


class Answer:
    """What the server says to one request."""

    def __init__(self, port: int, path: str, *, method: str = "GET", **headers: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        connection.putrequest(method, path, skip_host="Host" in headers)
        for name, value in headers.items():
            connection.putheader(name, value)
        connection.endheaders()
        response = connection.getresponse()
        body = response.read()
        self.status = response.status
        self.headers = response.headers
        self.text = (gzip.decompress(body) if response.headers["Content-Encoding"] == "gzip" else body).decode()
        connection.close()

    @property
    def data(self) -> Any:
        return json.loads(self.text)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two runs, something that is none, and something that cannot be read."""
    folder = tmp_path_factory.mktemp("runs")
    make_run(folder / "first", steps=6)
    make_run(folder / "second", steps=6, failures=True, seed=1)
    (folder / "notes").mkdir()
    write_config(folder / "bad name&<b>")
    (folder / "bad name&<b>" / "config.yaml").write_text("[")
    (folder / "secret.txt").write_text("nobody may read this")
    return folder


@pytest.fixture(scope="module")
def port(runs: Path) -> Iterator[int]:
    with served([runs], poll_s=0.05, stream_s=20.0) as number:
        yield number


def test_the_list_names_every_run_and_tells_its_verdict(port: int) -> None:
    index = Answer(port, "/")
    assert index.text.count("data-line=") == 3
    assert 'href="runs/first/"' in index.text
    assert "runs/bad%20name%26%3Cb%3E/" in index.text
    assert "<b>" not in index.text
    line = Answer(port, "/runs/first/line.json").data
    assert (line["steps"], line["state"]) == ("6 of 6", "ended")
    assert line["word"] in ("SHIP", "CAN'T TELL", "DON'T")
    bad = Answer(port, "/runs/bad%20name%26%3Cb%3E/line.json").data
    assert bad["word"] == "cannot be read"
    assert "not readable YAML" in bad["sentence"]


def test_the_page_gets_the_data_of_the_offline_file(port: int, runs: Path) -> None:
    page = Answer(port, "/runs/first/")
    assert 'data-live="yes"' in page.text
    assert "connect-src 'self'" in page.text
    assert page.headers["X-Frame-Options"] == "DENY"
    data = Answer(port, "/runs/first/data.json").data
    offline = page_data(runs / "first")
    assert data["verdict"] == json.loads(json.dumps(offline["verdict"]))
    assert (data["samples"]["total"], data["samples"]["groups"]) == (6 * 96, [])
    bad = Answer(port, "/runs/bad%20name%26%3Cb%3E/data.json")
    assert (bad.status, "not readable YAML" in bad.text) == (422, True)


def test_all_rollouts_are_asked_for_page_by_page(port: int) -> None:
    seen, cursor = [], ""
    while cursor is not None:
        answer = Answer(port, f"/runs/second/samples?cursor={cursor}").data
        assert len(answer["groups"]) <= PAGE
        assert answer["total"] == 6 * 96
        seen += [(group["step"], group["group"]) for group in answer["groups"]]
        cursor = answer["next"]
    assert seen == [(step, group) for step in range(6, 0, -1) for group in range(16)]
    failed = Answer(port, "/runs/second/samples?kind=failed").data["groups"]
    assert [(group["step"], group["group"]) for group in failed] == [(4, 0)]
    one = Answer(port, "/runs/second/samples?step=3&task=sum-005").data["groups"]
    assert [(group["step"], group["task"], len(group["samples"])) for group in one] == [(3, "sum-005", 6)]
    assert Answer(port, "/runs/second/samples?step=x").status == 400
    assert Answer(port, "/runs/second/samples?kind=odd").status == 400


def test_any_two_windows_are_explained(port: int) -> None:
    change = Answer(port, "/runs/first/moved?from=1-2&to=4-6").data
    assert (change["from"], change["to"]) == ("steps 1-2", "steps 4-6")
    assert change["sentences"][0].startswith("The mean reward went from ")
    assert {name: type(value) for name, value in change.items()} == {
        name: type(value) for name, value in Answer(port, "/runs/first/data.json").data["moved"]["changes"][0].items()
    }
    for windows in ("from=1&to=99", "from=../../etc&to=1", ""):
        assert Answer(port, f"/runs/first/moved?{windows}").status == 422


def test_texts_are_searched(tmp_path: Path) -> None:
    write_config(tmp_path)
    for step in (1, 2, 3):
        texts = ["it is RARE" if group == step else "it is common" for group in range(9)]
        rows = [rollout(step, group, 0, completion=text) for group, text in enumerate(texts)]
        write_rollouts(tmp_path / "rollouts" / f"step-{step:06d}.parquet", rows)
    samples = RunSamples(tmp_path)
    found = samples.find(Query(text="rare"))
    assert [(group["step"], group["group"]) for group in found["groups"]] == [(3, 3), (2, 2), (1, 1)]
    assert found["next"] is None
    many = samples.find(Query(text="common"))
    assert (len(many["groups"]), many["next"]) == (PAGE, 23)  # three of the first 23 said something else
    rest = samples.find(Query(text="common", start=23))
    assert (len(rest["groups"]), rest["next"]) == (4, None)
    assert samples.find(Query(step=100))["groups"][0]["step"] == 3  # the nearest
    assert samples.find(Query(task="no such task"))["groups"] == []


def test_a_run_that_grows_is_told_and_read_again(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=2)
    with served([run], poll_s=0.05, stream_s=20.0) as number:
        assert Answer(number, "/runs/run/data.json").data["tiles"][0]["value"] == "2 of 2"
        connection = http.client.HTTPConnection("127.0.0.1", number, timeout=30)
        connection.request("GET", "/runs/run/events")
        stream = connection.getresponse()
        assert stream.headers["Content-Type"].startswith("text/event-stream")
        assert stream.readline() == b"retry: 3000\n"
        append(run / "metrics.jsonl", {"step": 3, "reward/mean": 0.5})
        while (line := stream.readline()) and line != b"event: grown\n":
            pass
        assert line == b"event: grown\n"
        connection.close()
        assert Answer(number, "/runs/run/data.json").data["tiles"][0]["value"] == "3 of 2"


def test_two_runs_are_compared(port: int) -> None:
    page = Answer(port, "/compare?a=first&b=second")
    assert "second against first" in page.text
    assert "script-src" not in page.text  # nothing runs in it
    for names in ("a=first", "a=first&b=../first", "a=first&b=second&b=none", ""):
        refused = Answer(port, f"/compare?{names}")
        assert (refused.status, "at least one run of this list on each side" in refused.text) == (400, True)


def test_groups_of_seeds_are_compared_or_refused_as_by_the_command(tmp_path: Path) -> None:
    gallery.compared(tmp_path)  # three seeds of each of two configs
    seeds = {side: [f"{label}-{seed}" for seed in range(3)] for side, label in (("a", "base"), ("b", "new"))}
    names = "&".join(f"{side}={name}" for side, each in seeds.items() for name in each)
    with served([tmp_path]) as port:
        page = Answer(port, f"/compare?{names}")
        assert page.status == 200, page.text
        assert "3 seeds" in page.text
        for asked, words in (
            ("a=base-0&a=new-0&b=new-1", ["base-0", "new-0", "vs", "new-1"]),
            ("a=base-0&b=base-0", ["base-0", "vs", "base-0"]),
        ):
            refused = Answer(port, f"/compare?{asked}")
            with pytest.raises(ValueError) as error:
                read_groups([each if each == "vs" else str(tmp_path / each) for each in words])
            assert (refused.status, refused.text) == (422, str(error.value))


def test_nothing_but_the_runs_is_read(port: int) -> None:
    for path in (
        *("/secret.txt", "/runs/secret.txt/", "/runs/notes/", "/runs/../secret.txt", "/runs/first/../../secret.txt"),
        *("/runs/..%2fsecret.txt/data.json", "/runs/%2e%2e/data.json", "/runs/first/config.yaml", "//etc/passwd"),
        "/runs/first/%2e%2e/second/config.yaml",
    ):
        answer = Answer(port, path)
        assert answer.status == 404, path
        assert "nobody may read this" not in answer.text
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert Answer(port, "/", method=method).status == 405


def test_other_names_of_this_machine_get_nothing(port: int) -> None:
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", ""):
        assert Answer(port, "/runs/first/data.json", Host=host).status == 400, host
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}", "LOCALHOST"):
        assert Answer(port, "/", Host=host).status == 200, host


def test_beyond_this_machine_a_token_is_needed(runs: Path) -> None:
    with pytest.raises(ValueError, match="needs a token"):
        Access(host="0.0.0.0")
    with served([runs], Access(host="0.0.0.0", token="s3cret")) as number:
        for path in ("/", "/runs/first/data.json", "/?token=wrong", "/runs/first/events"):
            assert Answer(number, path, Host="box.example").status == 401
        first = Answer(number, "/?token=s3cret", Host="box.example")
        assert (first.status, first.headers["Location"]) == (303, "/")  # it does not stay in the address
        deep = Answer(number, "//runs/first/?step=4&token=s3cret&sort=reward", Host="box.example")
        assert deep.headers["Location"] == "/runs/first/?step=4&sort=reward"
        cookie = first.headers["Set-Cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=strict" in cookie
        assert Answer(number, "/", Cookie=cookie.partition(";")[0]).status == 200
        assert Answer(number, "/", Authorization="Bearer s3cret").status == 200


def test_the_command_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="runs is no folder; give run directories"):
        CliRunner().invoke(app, ["view"], catch_exceptions=False)
    (tmp_path / "runs").mkdir()
    with command._listening("127.0.0.1", 0) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(ValueError, match=f"cannot listen on 127.0.0.1, port {port}"):
            CliRunner().invoke(app, ["view", "--port", port], catch_exceptions=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"pip install 'rlft\[view\]'"):
        CliRunner().invoke(app, ["view"], catch_exceptions=False)
