"""What a reward can do to the process that scores it: contained in time, its siblings scored, nothing left behind.

One table. Each attack is one sample between two good ones, in one message to one process.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from rlft.common.bounded_log import LOG_LIMIT
from rlft.reward.process import LATE_S
from rlft.reward.scoring import Scorer
from rlft.types import Failed, RewardSpec, Score
from tests.processes import gone
from tests.test_scoring import kinds, make_group, outcomes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers and /proc")

DEADLINE_S = 1.0
MARGIN_S = 1.0
"""What may pass after the deadline until the process is dead, on a machine with nothing else to do."""
BUSY = 8.0
"""Factor on the margin where other things run, too. What is contained here would take a minute or more."""
MEMORY_MB = 400


@dataclass(frozen=True)
class Attack:
    """What a reward does, and what becomes of its sample."""

    code: str
    """Body of the function. `note(pid)` notes a process that has to be gone afterwards."""
    kind: str
    """Of its outcome."""
    said: str = ""
    """What its message holds."""
    extra_s: float = field(default=0.0, kw_only=True)
    """Seconds that it may take besides."""
    if_slow: str = field(default="", kw_only=True)
    """What becomes of it where the machine is too slow for it to get that far before the deadline."""


FOREVER = "time.sleep(600)"
DAEMON = """
if os.fork() == 0:
    os.setsid()
    if daemon := os.fork():
        note(daemon)
        os._exit(0)
    os.closerange(0, 256)
    os.execve("/bin/sleep", ["sleep", "600"], {})
os.wait()
"""
MEMORY_OF_PROGRESS = "progress = frame('_answer_in_turn').f_locals['progress']\n"

ATTACKS = {
    # it does not end
    "hangs in Python and ignores signals": Attack(
        "for number in range(1, 32):\n    with contextlib.suppress(OSError): signal.signal(number, signal.SIG_IGN)\n"
        "while True: pass",
        "timeout",
        "no result within 1 s",
    ),
    "hangs in C": Attack('re.match(r"(a+)+$", "a" * 60 + "b")', "timeout"),
    "stops itself": Attack("os.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
    # it dies
    "exits": Attack("os._exit(0)", "crash", "ended with exit code 0"),
    "kills itself": Attack("os.kill(os.getpid(), signal.SIGKILL)", "crash", "killed by SIGKILL"),
    "kills its guard": Attack(f"os.kill(os.getppid(), signal.SIGKILL); {FOREVER}", "crash"),
    "dies while a fork of it holds the socket": Attack(
        f"if not (pid := os.fork()): {FOREVER}\nnote(pid); os._exit(7)", "crash", "exit code 7"
    ),
    # it leaves processes
    "leaves children and a daemon": Attack(
        "for new in (False, True): note(subprocess.Popen(['sleep', '600'], start_new_session=new).pid)\n"
        "note(int(subprocess.run(['sh', '-c', 'sleep 600 >&2 & echo $!'], stdout=subprocess.PIPE).stdout))\n"
        + DAEMON
        + FOREVER,
        "timeout",
    ),
    "leaves a daemon and dies": Attack(DAEMON + "os._exit(3)", "crash", "exit code 3"),
    "forks and forks": Attack(f"for _ in range(5): os.fork(); note(os.getpid())\n{FOREVER}", "timeout"),
    # it takes what there is
    "grows": Attack(
        f"held = []\nfor _ in range(20): held.append(b'x' * (60 * 2**20))\n{FOREVER}",
        "crash",
        f"more than scoring.memory_mb={MEMORY_MB} allows",
        if_slow="timeout",
    ),
    "floods its output": Attack("while True: os.write(1, b'x' * 10**6)", "timeout"),
    # it takes what is ours
    "closes all descriptors": Attack("os.closerange(0, 256)", "crash"),
    "closes all descriptors and hangs": Attack(f"os.closerange(0, 256); {FOREVER}", "crash"),
    "writes garbage to the socket": Attack(
        f"for each in sockets(): os.write(each, b'garbage' * 99)\n{FOREVER}", "crash", "sent what is no answer"
    ),
    "says again and again that it has just begun": Attack(
        MEMORY_OF_PROGRESS + "while True: progress.begin(1); time.sleep(0.05)", "timeout", extra_s=LATE_S
    ),
    "says that it has not begun": Attack(
        MEMORY_OF_PROGRESS + f"progress._memory[:] = b'\\xff' * len(progress._memory)\n{FOREVER}", "timeout"
    ),
}
"""Of ordinary functions."""

ASYNC_ATTACKS = {
    "blocks the event loop": Attack("time.sleep(600)", "timeout"),
    "swallows its cancellation": Attack(
        "while True:\n    with contextlib.suppress(asyncio.CancelledError): await asyncio.sleep(600)", "timeout"
    ),
    "leaves tasks": Attack("for _ in range(9): asyncio.ensure_future(asyncio.sleep(600))\nreturn 1.0", "Score"),
    "stops the event loop": Attack("asyncio.get_running_loop().stop(); await asyncio.sleep(600)", "error"),
}
"""Of `async def`."""

REWARDS = """
import asyncio, contextlib, os, re, signal, subprocess, sys, time

def note(pid):
    with open({pids!r}, "a") as file:
        file.write(f"{{pid}}\\n")

def frame(name):
    found = sys._getframe()
    while found.f_code.co_name != name:
        found = found.f_back
    return found

def sockets():
    links = [(int(fd), f"/proc/self/fd/{{fd}}") for fd in os.listdir("/proc/self/fd")]
    return [fd for fd, link in links if os.path.lexists(link) and os.readlink(link).startswith("socket:")]
"""


def _source(pids: Path) -> str:
    text = REWARDS.format(pids=str(pids))
    for name, attacks, prefix in (("attack", ATTACKS, ""), ("attack_async", ASYNC_ATTACKS, "async ")):
        text += f"\n{prefix}def {name}(completion):\n"
        for reply, attack in attacks.items():
            body = "".join(f"        {line}\n" for line in attack.code.strip().splitlines())
            text += f"    if completion == {reply!r}:\n{body}"
        text += "    return float(len(completion))\n"
    return text


@dataclass(frozen=True)
class Arena:
    """Scorers of one process each, and the folder in which they leave things."""

    sync: Scorer
    concurrent: Scorer
    folder: Path


@pytest.fixture(scope="module")
def arena(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    folder = tmp_path_factory.mktemp("attacks")
    (folder / "temporary").mkdir()
    (folder / "unruly.py").write_text(_source(folder / "pids"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(folder / "temporary"))
        patch.setattr(tempfile, "tempdir", None)
        made = [
            Scorer(
                [RewardSpec(path=f"{folder}/unruly.py:{name}")],
                workers=1,
                deadline_s=DEADLINE_S,
                log_dir=folder / name,
                memory_mb=MEMORY_MB,
            )
            for name in ("attack", "attack_async")
        ]
        with made[0], made[1]:
            yield Arena(*made, folder)


def _open_here() -> tuple[int, list[str], int]:
    """Descriptors, names in shared memory, and processes of this process."""
    return len(os.listdir("/proc/self/fd")), sorted(os.listdir("/dev/shm")), len(psutil.Process().children(True))


def _is_idle() -> bool:
    return os.getloadavg()[0] < (os.cpu_count() or 1)


@pytest.mark.parametrize("name", [*ATTACKS, *ASYNC_ATTACKS])
def test_an_attack_is_contained(arena: Arena, name: str) -> None:
    attack = {**ATTACKS, **ASYNC_ATTACKS}[name]
    scorer = arena.sync if name in ATTACKS else arena.concurrent
    (arena.folder / "pids").write_text("")
    for _ in range(3):  # a busy machine may still be starting the process after the last attack
        if (warm := kinds(scorer.score([make_group("warm")])[0])) == ["Score"]:
            break
    assert warm == ["Score"]
    before, was_idle = _open_here(), _is_idle()
    (scored,) = scorer.score([make_group("one", name, "three")])
    ended = kinds(scored)
    assert ended in [["Score", kind, "Score"] for kind in (attack.kind, attack.if_slow) if kind]
    first, outcome, last = outcomes(scored)
    assert (first, last) == tuple(Score(value=float(n), parts={scorer_label(name): float(n)}) for n in (3, 5))
    if isinstance(outcome, Failed) and ended[1] == attack.kind:
        assert attack.said in outcome.message
    assert scorer.stats.slowest is not None
    margin = MARGIN_S if was_idle and _is_idle() else MARGIN_S * BUSY
    assert scorer.stats.slowest.seconds < DEADLINE_S + attack.extra_s + margin
    assert [pid for pid in map(int, (arena.folder / "pids").read_text().split()) if not gone(pid)] == []
    assert kinds(scorer.score([make_group("warm")])[0]) == ["Score"]  # the process that replaced it is there
    until = time.monotonic() + 5
    while (after := _open_here()) != before and time.monotonic() < until:
        time.sleep(0.05)
    assert after == before
    assert list((arena.folder / "temporary").iterdir()) == []
    logs = [file for folder in arena.folder.glob("attack*") if folder.is_dir() for file in folder.iterdir()]
    assert all(file.stat().st_size < LOG_LIMIT + 200 for file in logs)


def scorer_label(name: str) -> str:
    return "attack" if name in ATTACKS else "attack_async"
