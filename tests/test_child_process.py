"""Child processes: what they get, what their end tells, and that none is left when its parent is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from rlft.common.child_process import SHOWN_OUTPUT, ChildProcess
from tests.processes import gone

ROOT = Path(__file__).parents[1]
NAMES = ("RLFT_GIVEN", "RLFT_INHERITED", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAY_AUTH_TOKEN")

Start = Callable[..., ChildProcess]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts child processes, which are ended after the test."""
    started: list[ChildProcess] = []

    def make(main: Callable[[Connection], None], **options: object) -> ChildProcess:
        started.append(ChildProcess(main, **options))  # type: ignore[arg-type]
        return started[-1]

    yield make
    for child in started:
        child.kill()


# What the children do.


def describe_itself(connection: Connection) -> None:
    connection.send(
        {
            "variables": {name: os.environ.get(name) for name in NAMES},
            "session": os.getsid(0) == os.getpid(),
            "argv": sys.argv,
            "path": sys.path,
            "input": sys.stdin.read(),
        }
    )


def answer(connection: Connection) -> None:
    while True:
        connection.send(-connection.recv())


def follow(connection: Connection) -> None:
    """Print, then end as told."""
    print("to stdout")
    print("to stderr", file=sys.stderr)
    how = connection.recv()
    if how == "raise":
        raise RuntimeError("no licence found")
    if how == "exit":
        sys.exit(3)
    if how == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)


def hang_with_children(connection: Connection) -> None:
    """Start two processes, one of which leaves the session, and look at the connection no more."""
    children = [subprocess.Popen(["sleep", "60"], start_new_session=new) for new in (False, True)]
    connection.send([child.pid for child in children])
    time.sleep(60)


def fork_and_end(connection: Connection) -> None:
    """End while a fork still has the socket."""
    if os.fork() == 0:
        time.sleep(30)
    os._exit(4)


def print_much(connection: Connection) -> None:
    print("begin" + "x" * SHOWN_OUTPUT + "end")
    connection.send("printed")
    connection.recv()
    print("more")


# What they get.


def test_a_child_gets_the_environment_that_it_is_given(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLFT_INHERITED", "parent's")
    monkeypatch.setenv("RLFT_GIVEN", "parent's")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("MKL_NUM_THREADS", "7")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    found = start(
        describe_itself, threads=3, defaults={"RLFT_INHERITED": "default"}, environment={"RLFT_GIVEN": "given"}
    ).receive(60)
    assert found["variables"] == {
        "RLFT_GIVEN": "given",
        "RLFT_INHERITED": "parent's",
        "OMP_NUM_THREADS": "3",
        "MKL_NUM_THREADS": "3",
        "RAY_AUTH_TOKEN": None,
    }
    assert found["session"]
    assert found["argv"] == ["tests.test_child_process:describe_itself"]
    assert found["path"] == [os.path.abspath(entry) for entry in sys.path]
    assert found["input"] == ""
    monkeypatch.delenv("RLFT_INHERITED")
    plain = start(describe_itself, defaults={"RLFT_INHERITED": "default"}).receive(60)
    assert plain["variables"]["RLFT_INHERITED"] == "default"
    assert plain["variables"]["OMP_NUM_THREADS"] == "7"


def test_messages_go_both_ways(start: Start) -> None:
    child = start(answer)
    for number in range(3):
        child.send(number)
        assert child.receive(60) == -number
    with pytest.raises(TimeoutError, match=r"sent nothing within 0\.1 s"):
        child.receive(0.1)
    child.send(9)  # and is used again
    assert child.receive(60) == -9


# How they end.


@pytest.mark.parametrize(
    ("how", "ending", "last"),
    [
        ("raise", "ended with exit code 1", "RuntimeError: no licence found"),
        ("exit", "ended with exit code 3", "to stderr"),
        ("return", "ended with exit code 0", "to stderr"),
        ("signal", "was killed by SIGSEGV", "def follow"),  # faulthandler's stack
    ],
)
def test_an_end_tells_how_it_came_and_what_was_printed(start: Start, how: str, ending: str, last: str) -> None:
    child = start(follow)
    child.send(how)
    with pytest.raises(EOFError):
        child.receive(60)
    assert child.kill() == ending
    assert child.printed().startswith("to stdout\nto stderr")
    if how == "signal":
        assert "Fatal Python error: Segmentation fault" in child.printed()
    else:
        assert child.printed().endswith(last)
    child.send("anything")  # what is sent to a dead one is lost, and to wait for it ends at once
    with pytest.raises(EOFError):
        child.receive()
    assert child.kill() == ending


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the socket alone tells")
def test_an_end_is_noticed_although_a_fork_holds_the_socket(start: Start) -> None:
    child = start(fork_and_end)
    with pytest.raises(EOFError):
        child.receive(20)
    assert child.kill() == "ended with exit code 4"


def test_to_kill_one_kills_all_that_it_started(start: Start) -> None:
    child = start(hang_with_children)
    pids = child.receive(60)
    assert child.kill() == "was killed by SIGKILL"
    assert [gone(pid, 10) for pid in (child.pid, *pids)] == [True, True, True]


def test_the_end_of_what_it_printed_is_shown(start: Start) -> None:
    child = start(print_much)
    assert child.receive(60) == "printed"
    until = time.monotonic() + 10
    while not child.printed().endswith("xend") and time.monotonic() < until:
        time.sleep(0.01)
    assert child.printed().endswith("xend")
    assert len(child.printed()) <= SHOWN_OUTPUT
    child.send("go on")
    with pytest.raises(EOFError):  # reading did not move what it writes
        child.receive(60)
    assert child.printed().endswith("xend\nmore")
    assert "begin" not in child.printed()


def test_a_log_is_appended_to_and_may_be_moved(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "child.log"
    log.write_text("before\n")
    child = start(follow, log=log)
    log.rename(tmp_path / "moved.log")
    child.send("return")
    with pytest.raises(EOFError):
        child.receive(60)
    assert (tmp_path / "moved.log").read_text() == "before\nto stdout\nto stderr\n"
    assert child.printed() == "before\nto stdout\nto stderr"


PARENT = """
import sys, time
sys.path.insert(0, {root!r})
from rlft.common.child_process import ChildProcess
from tests.test_child_process import answer, hang_with_children
busy, idle = ChildProcess(hang_with_children), ChildProcess(answer)
idle.send(1)
idle.receive(60)
print(busy.pid, idle.pid, busy.receive(60)[0], flush=True)
time.sleep({seconds})
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a stuck process outlives its killed parent")
@pytest.mark.parametrize("ending", ["killed", "by itself"])
def test_children_end_with_their_parent(ending: str) -> None:
    code = PARENT.format(root=str(ROOT), seconds=60 if ending == "killed" else 0)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        if ending == "killed":
            parent.send_signal(signal.SIGKILL)
    assert len(pids) == 3
    assert [gone(pid, 10) for pid in pids] == [True, True, True]


def test_the_thread_that_started_one_may_end(start: Start) -> None:
    import threading

    made: list[ChildProcess] = []
    thread = threading.Thread(target=lambda: made.append(start(answer)))
    thread.start()
    thread.join()
    made[0].send(2)
    assert made[0].receive(60) == -2
