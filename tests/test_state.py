"""Whether a run runs, was stopped or has ended, and how long it took, as its lock and events tell."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.curves.state import read_state
from rlft.run import lock
from tests.fakes_run import append, make_run, write_config


def event(kind: str, clock: str, message: str = "") -> dict[str, str]:
    return {"time": f"2030-01-01T{clock}+00:00", "kind": kind, "message": message}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    write_config(tmp_path / "run")
    (tmp_path / "run" / "provenance.json").write_text(json.dumps({"started": "2030-01-01T12:00:00+00:00"}))
    for step in (1, 2):
        append(tmp_path / "run" / "metrics.jsonl", {"step": step, "time/step": 30.0})
    return tmp_path / "run"


def test_a_run_that_somebody_works_on(run: Path) -> None:
    assert lock.is_held(run) is None
    assert read_state(run).sentence == "still running elsewhere, or killed"
    append(run / "events.jsonl", event("stopped", "12:05:00", "by SIGTERM"))
    with FileLock(run / ".lock"):
        assert lock.is_held(run) is True
        assert read_state(run).kind == "running"  # it is being resumed
        assert lock.is_held(run) is True  # asking takes nothing away
    assert lock.is_held(run) is False
    assert read_state(run).sentence == "stopped by SIGTERM"


def test_the_lock_of_a_process_that_was_killed_is_free(run: Path) -> None:
    code = "import sys, filelock as f\nk = f.FileLock(sys.argv[1])\nk.acquire()\nprint(flush=True)\nsys.stdin.read()"
    command = [sys.executable, "-c", code, str(run / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert read_state(run).kind == "running"
        process.kill()
    assert read_state(run).sentence == "killed: no process works on it, and none wrote why"


def test_a_driver_waits_while_somebody_asks(run: Path) -> None:
    import fcntl
    import threading

    (run / ".lock").touch()
    with (run / ".lock").open() as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        threading.Timer(0.1, fcntl.flock, (file.fileno(), fcntl.LOCK_UN)).start()
        with FileLock(run / ".lock").acquire(timeout=lock.PATIENCE_S):
            pass


def test_wall_time_has_the_pauses_and_training_time_has_not(run: Path) -> None:
    (run / ".lock").touch()
    append(run / "events.jsonl", event("stopped", "12:10:00", "RuntimeError: no memory\nTraceback"))
    state = read_state(run)
    assert (state.wall_s, state.paused_s, state.training_s) == (600, 0, 60)
    assert state.sentence == "stopped: RuntimeError: no memory"
    append(run / "events.jsonl", event("resumed", "14:10:00"))
    append(run / "events.jsonl", event("ended", "14:20:00"))
    (run / "summary.json").write_text("{}")
    state = read_state(run)
    assert (state.kind, state.wall_s, state.paused_s) == ("ended", 2 * 3600 + 1200, 7200)
    assert state.times == "wall time 2 h 20 min, 2 h 0 min of it stopped; training time 1 min 0 s"


def test_a_fork_counts_from_where_it_begins(run: Path) -> None:
    for record in (
        event("stopped", "12:10:00"),
        event("resumed", "12:20:00"),
        event("forked", "15:00:00"),
        event("stopped", "15:30:00", "by SIGINT"),
    ):
        append(run / "events.jsonl", record)
    state = read_state(run)
    assert (state.wall_s, state.paused_s, state.why) == (1800, 0, "by SIGINT")


def test_what_is_not_known_is_not_made_up(run: Path) -> None:
    (run / "summary.json").write_text("{}")  # of an earlier rlft, which wrote no event at the end
    assert math.isnan(read_state(run).wall_s)
    assert read_state(run).as_dict()["wall_s"] is None
    append(run / "events.jsonl", {"time": "yesterday", "kind": "ended", "message": ""})
    assert read_state(run).times == "training time 1 min 0 s"


def test_the_runs_of_a_folder(run: Path) -> None:
    (run / ".lock").touch()
    append(run / "events.jsonl", event("stopped", "12:10:00", "by SIGTERM"))
    make_run(run.parent / "sweep" / "sums", steps=3)
    write_config(run.parent / "odd")
    (run.parent / "odd" / "config.yaml").write_text("- a list")
    told = CliRunner().invoke(app, ["runs", str(run.parent)])
    assert told.exit_code == 0, told.output
    odd, stopped, ended = (line for line in told.output.splitlines()[1:])
    assert "killed, 1 damaged" in odd
    assert re.search(r"run +stopped by SIGTERM +2/12 +wall time 10 min 0 s; training time 1 min 0 s", stopped)
    assert re.search(r"sweep/sums +ended +3/3 +0\.\d+ \[0\.\d+, 0\.\d+\]  n=120  accuracy", ended)
    rows = json.loads(CliRunner().invoke(app, ["runs", str(run.parent), "--json"]).stdout)
    odd, stopped, ended = rows
    assert (odd["state"], odd["steps"], odd["evaluation"], len(odd["damaged"])) == ("unknown", None, None, 1)
    assert (stopped["run"], stopped["sentence"], stopped["step"]) == (str(run), "stopped by SIGTERM", 2)
    assert (ended["state"], ended["evaluation"]["metric"], ended["evaluation"]["n"]) == ("ended", "math_answer", 120)
    refused = CliRunner().invoke(app, ["runs", str(run)])
    assert "holds no run" in str(refused.exception)
