"""`rlft submit` and `rlft runs`: what travels, what the cluster is told to run, and a real head that takes jobs."""

from __future__ import annotations

import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from typer.testing import CliRunner

from rlft.cli import main, submit
from rlft.common import jobs as jobs_module
from rlft.common import travelling as travelling_module
from rlft.common.cluster import protect
from rlft.common.interrupts import Interrupted
from rlft.common.jobs import INSTALL, Job, Jobs
from rlft.common.travelling import copy_files, travelling

ROOT = Path(__file__).parents[1]


def files(folder: Path, texts: dict[str, str]) -> Path:
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


# What travels.


def test_what_git_ignores_stays(tmp_path: Path) -> None:
    files(
        tmp_path,
        {
            ".gitignore": "*.bin\nruns/\n/top.txt\n!keep.bin\n",
            ".rayignore": "notes\n",
            "a.py": "", "x.bin": "", "keep.bin": "", "top.txt": "", "deep/top.txt": "",
            "runs/one/config.yaml": "", "deep/runs/two": "", "notes/n": "", "deep/notes": "",
            "deep/.gitignore": "!x.bin\nown/*\n!own/kept\n", "deep/x.bin": "", "deep/own/lost": "", "deep/own/kept": "",
            ".git/HEAD": "", ".venv/lib": "", "deep/__pycache__/a.pyc": "", ".hidden": "",
        },
    )  # fmt: skip
    (tmp_path / "link.py").symlink_to("a.py")
    (tmp_path / "around").symlink_to(tmp_path)
    found = [str(path) for path in travelling(tmp_path)]
    assert found == [
        ".gitignore", ".hidden", ".rayignore", "a.py", "deep/.gitignore", "deep/own/kept", "deep/top.txt", "deep/x.bin",
        "keep.bin", "link.py",
    ]  # fmt: skip
    (tmp_path / "a.py").chmod(0o755)
    copy_files(tmp_path, travelling(tmp_path), tmp_path / "copy")
    assert (tmp_path / "copy" / "a.py").stat().st_mode & 0o777 == 0o755
    assert [str(path) for path in travelling(tmp_path / "copy")] == found


def test_too_much_is_refused_with_the_biggest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(travelling_module, "MOST_BYTES", 5000)
    files(tmp_path, {f"f{n}": "x" * n * 1024 for n in range(1, 8)} | {"left.out": "x" * 9000, ".gitignore": "*.out"})
    with pytest.raises(ValueError, match=r"is 28 kB .* and 5 kB may travel. The biggest files: f7 \(7 kB\), f6 .*f3"):
        travelling(tmp_path)


# What the cluster is told.


class FakeJobs:
    """A cluster that takes every job."""

    sent: ClassVar[dict[str, Any]] = {}
    is_protected = True
    state = "succeeded"

    def __init__(self, address: str) -> None:
        self.address = address

    def submit(self, command: str, *, folder: Path, **options: Any) -> None:
        type(self).sent = {"command": command, **options, "files": sorted(path.name for path in folder.iterdir())}

    def find(self, name: str) -> Job:
        return Job(name=name, state=self.state, message="it broke", command="", started=None, run="")

    def follow(self, name: str, write: Any) -> Job:
        write("step 1\x1b[2J\n")
        if self.state == "interrupted":
            raise Interrupted(130)
        return self.find(name)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's, and a cluster."""
    run = """\
name: far
steps: 2
model: {source: some/model}
environment: {path: "environments.sums:load", args: {high: 9, heldout: 8}}
rewards: [{path: mine.py:mine}]
"""
    folder = files(
        tmp_path / "project",
        {"configs/run.yaml": run, "configs/more.yaml": "extends: run.yaml\nseed: 5\n", "mine.py": "", "x.csv": ""},
    )
    monkeypatch.chdir(folder)
    monkeypatch.setattr(jobs_module, "Jobs", FakeJobs)
    monkeypatch.setattr(FakeJobs, "state", "succeeded")
    monkeypatch.delenv(jobs_module.ADDRESS, raising=False)
    return folder


def invoke(*arguments: str) -> Any:
    return CliRunner().invoke(main.app, list(arguments), env={"COLUMNS": "200"})


def test_the_command_runs_in_a_copy_of_the_folder(project: Path) -> None:
    files(project, {".gitignore": "*.csv\n", "needs.txt": "# what it needs\nrapidfuzz>=3  # texts\n\n"})
    done = invoke(
        "submit", "configs/more.yaml", "learner.lr=1e-4", 'sampling.stop=["a b"]', "--address", "http://head:8265",
        "--pip", "needs.txt", "--gpus", "1", "--with-rlft", "--env", "PATH",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    sent = FakeJobs.sent
    assert sent["files"] == [".gitignore", "configs", "mine.py", "needs.txt"]
    assert shlex.split(sent["command"]) == [
        "python", "-m", "rlft", "train", "configs/more.yaml", "learner.lr=1e-4", 'sampling.stop=["a b"]',
        "ray_address=auto", "output_dir=$HOME/runs",
    ]  # fmt: skip
    assert sent["command"].endswith(' output_dir="$HOME"/runs')
    assert (sent["run"], sent["packages"], sent["gpus"]) == ("~/runs/far", ["rapidfuzz>=3"], 1)
    assert sent["variables"] == {"PATH": os.environ["PATH"]}
    assert [path.name for path in sent["modules"]] == ["rlft", "rewards", "environments"]
    assert all((path / "__init__.py").exists() or path.name != "rlft" for path in sent["modules"])
    assert re.fullmatch(r"far-[0-9a-f]{6}", sent["name"])
    assert "step 1\N{SYMBOL FOR ESCAPE}[2J" in done.output
    assert f"job {sent['name']} succeeded" in done.output


def test_other_commands_places_and_resuming(project: Path) -> None:
    arguments = ("submit", "configs/run.yaml", "--address", "head:8265", "--detach", "--output-dir")
    assert invoke(*arguments, "/data/my runs", "backend=inline").exit_code == 0
    assert FakeJobs.sent["command"] == (
        "python -m rlft train configs/run.yaml backend=inline output_dir='/data/my runs'"
    )
    assert invoke(*arguments, "/data/my runs", "--resume").exit_code == 0
    assert FakeJobs.sent["command"] == "python -m rlft resume '/data/my runs'/far"
    assert invoke(*arguments, "/d", "steps=9", "name=other", "guards.stop=[kl, entropy]", "--resume").exit_code == 0
    assert FakeJobs.sent["command"] == "python -m rlft resume /d/other steps=9 'guards.stop=[kl, entropy]'"
    assert invoke(*arguments, "/d", "ray_address=10.0.0.1:6379").exit_code == 0
    assert "ray_address=auto" not in FakeJobs.sent["command"]


@pytest.mark.parametrize("command", ["sft", "dpo", "reward-model", "head"])
def test_configs_of_all_commands_are_sent(project: Path, command: str) -> None:
    shipped = Path(__file__).parents[1] / "configs" / f"{command.replace('-', '_')}.yaml"
    files(project, {"mine.yaml": shipped.read_text()})
    done = invoke("submit", "mine.yaml", "--address", "head:8265", "--detach")
    assert done.exit_code == 0, done.output
    assert FakeJobs.sent["command"] == f'python -m rlft {command} mine.yaml output_dir="$HOME"/runs'


RUN = "extends: configs/run.yaml\n"
SET = "evaluations: [{name: hard, environment: {path: 'e.py:f'}}]\n"
CORPUS = "environment: {args: {corpus: runs/texts}}\n"
MIX = {
    "mix.yaml": "name: m\nsteps: 1\nmodel: {source: x/y}\nrewards: [{path: mine.py:mine}]\n"
    "environment: {mix: [{name: e, path: e.py:f}]}\n"
}


@pytest.mark.parametrize(
    ("change", "arguments", "told"),
    [
        ({}, ["configs/run.yaml"], "which cluster. --address http://HOST:8265"),
        ({}, ["configs/run.yaml", "--output-dir", "runs"], "the copy of this folder is deleted after the run"),
        ({}, ["configs/run.yaml", "--env", "NOT_THERE"], "there is no such variable"),
        ({}, ["configs/run.yaml", "learner.lrr=1"], "learner.lrr=1: unknown key. Did you mean 'lr'"),
        ({".gitignore": "mine.py"}, ["configs/run.yaml"], "mine.py would not travel: .gitignore"),
        ({".gitignore": "run.yaml"}, ["configs/more.yaml"], "configs/run.yaml would not travel"),
        (
            {**MIX, "e.py": "", ".gitignore": "e.py"},
            ["mix.yaml"],
            "e.py would not travel",
        ),
        (
            {"set.yaml": f"{RUN}{SET}", "e.py": "", ".gitignore": "e.py"},
            ["set.yaml"],
            "e.py would not travel",
        ),
        (
            {"corpus.yaml": f"{RUN}{CORPUS}", "runs/texts/a.txt": "", ".gitignore": "runs/"},
            ["corpus.yaml"],
            "runs/texts would not travel",
        ),
        (
            {"sft.yaml": "name: s\nmodel: {source: x}\ndata: {source: x.csv}\nepochs: 1\n", ".gitignore": "*.csv"},
            ["sft.yaml"],
            "x.csv would not travel",
        ),
        ({"../out.yaml": "extends: project/configs/run.yaml"}, ["../out.yaml"], "out.yaml is not in .*project, which"),
    ],
)  # fmt: skip
def test_what_cannot_work_there_is_refused_here(
    project: Path, change: dict[str, str], arguments: list[str], told: str
) -> None:
    files(project, change)
    address = [] if "which cluster" in told else ["--address", "head:8265"]
    FakeJobs.sent = {}
    done = invoke("submit", *arguments, *address)
    assert isinstance(done.exception, ValueError)
    assert re.search(told, str(done.exception))
    assert FakeJobs.sent == {}


def test_the_end_of_a_job_is_the_end_of_the_command(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("submit", "configs/run.yaml", "--address", "http://head:8265")
    monkeypatch.setattr(FakeJobs, "state", "failed")
    failed = invoke(*arguments)
    assert failed.exit_code == 1
    assert "failed: it broke" in failed.output
    monkeypatch.setattr(FakeJobs, "state", "interrupted")
    left = invoke(*arguments)
    assert left.exit_code == 130
    name = FakeJobs.sent["name"]
    assert f"the job goes on. Follow it: rlft runs --address http://head:8265 --follow {name}; stop it: " in left.output
    monkeypatch.setattr(FakeJobs, "is_protected", False)
    assert "takes code from everybody who reaches it" in invoke(*arguments, "--detach").output


# The job API.


class Client:
    """What Ray's client answers; its connection breaks after some text."""

    def __init__(self, pieces: list[list[str]], error: Exception | None = None) -> None:
        self.pieces, self.error = pieces, error

    async def tail_job_logs(self, name: str) -> AsyncIterator[str]:
        for text in self.pieces.pop(0):
            yield text
        if self.pieces:
            raise ConnectionError("gone")

    def get_job_info(self, name: str) -> Any:
        if self.error:
            raise self.error
        return SimpleNamespace(
            submission_id=name, status="SUCCEEDED", message="a\n b", entrypoint="c", start_time=1000, metadata={}
        )


def jobs_of(client: Client) -> Jobs:
    jobs = object.__new__(Jobs)
    jobs.address, jobs._client = "http://head:8265", client
    return jobs


def test_a_broken_connection_is_made_again_and_nothing_comes_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("aiohttp", reason=INSTALL)
    monkeypatch.setattr(jobs_module.time, "sleep", lambda seconds: None)
    written: list[str] = []
    job = jobs_of(Client([["ab", "c"], ["a"], ["abcd", "ef"]])).follow("j", written.append)
    assert "".join(written) == "abcdef"
    assert job == Job(
        name="j", state="succeeded", message="a b", command="c", started=datetime.fromtimestamp(1, UTC), run=""
    )
    monkeypatch.setattr(jobs_module, "PATIENCE_S", -1.0)
    with pytest.raises(ConnectionError, match=r"the connection broke .* the job may go on"):
        jobs_of(Client([["a"], ["b"]])).follow("j", written.append)


def test_what_the_head_refuses_is_said_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    protect()  # Ray remembers the first token that it sees, and this process may have a cluster
    from ray.exceptions import AuthenticationError

    missing = AuthenticationError("Authentication required: Unauthorized")
    for error, kind, told in (
        (missing, ConnectionError, "asks for a token, and there is none here. Set RAY_AUTH_MODE=token"),
        (AuthenticationError("Authentication failed"), ConnectionError, "does not know this token"),
        (RuntimeError("Request failed with status code 404"), ValueError, "knows no job 'j'; rlft runs --address"),
        (RuntimeError("status code 500: Traceback"), RuntimeError, "status code 500"),
    ):
        with pytest.raises(kind, match=told):
            jobs_of(Client([], error)).find("j")
    with pytest.raises(ValueError, match="expected the head's job server, such as http"):
        Jobs("ray://head:10001")
    with monkeypatch.context() as without:
        without.setattr(jobs_module, "find_spec", lambda name: None)
        with pytest.raises(ValueError, match=re.escape("not installed: pip install 'rlft[submit]'")):
            Jobs("127.0.0.1:9")
    pytest.importorskip("aiohttp", reason=INSTALL)
    with pytest.raises(ConnectionError, match=r"no job server answers.*usually port 8265"):
        Jobs("127.0.0.1:9")


TOKEN = "0123456789abcdef" * 4
ASKS = """
import json, sys
from pathlib import Path
from rlft.common.jobs import Jobs
jobs, told = Jobs(sys.argv[1]), []
folder = Path(sys.argv[2])
jobs.submit("cat there.txt; echo $MINE; exit 3", name="one", folder=folder, run="~/runs/x", variables={"MINE": "m"})
one = jobs.follow("one", told.append)
jobs.submit("sleep 600", name="two", folder=folder)
stopped = jobs.stop("two")
two = jobs.follow("two", told.append)
print(json.dumps([[job.name, job.state, job.run] for job in (one, two, *jobs.all())] + ["".join(told), stopped]))
"""


@pytest.fixture
def head() -> Iterator[str]:
    """Address of a real head with a token."""
    pytest.importorskip("aiohttp_cors", reason=INSTALL)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.job_server", str(port)],
        cwd=ROOT,
        env={**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        assert address, "Ray's head did not start"
        yield address
    finally:
        process.communicate()


@pytest.mark.timeout(400)
def test_a_real_head_takes_runs_lists_and_stops_jobs(head: str, tmp_path: Path) -> None:
    files(tmp_path, {"there.txt": "it is there\n"})
    environment = {**os.environ, "RAY_AUTH_MODE": "token"}

    def ask(*arguments: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(
            command, cwd=ROOT, env={**environment, "RAY_AUTH_TOKEN": token}, capture_output=True, text=True, check=False
        )

    done = ask("-c", ASKS, head, str(tmp_path))
    assert done.returncode == 0, done.stderr
    one, two, *listed, told, stopped = json.loads(done.stdout.splitlines()[-1])
    assert one == ["one", "failed", "~/runs/x"]
    assert two == ["two", "stopped", ""]
    assert listed == [one, two]
    assert "it is there\nm\n" in told
    assert stopped is True
    wrong = ask("-m", "rlft", "runs", "--address", head, token="f" * 64)
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert wrong.stderr.startswith(f"error: {head} does not know this token. Set RAY_AUTH_MODE=token")


def test_jobs_are_of_a_cluster() -> None:
    assert re.search("which one", str(invoke("runs", "--stop", "x").exception))
    assert submit._how(jobs_of(Client([])), "j").count("rlft runs --address http://head:8265") == 2
