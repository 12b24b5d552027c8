"""The guard of a child process: it waits, and when the child has ended it ends all that the child has left behind.

A child forks as the first thing that it does: one half becomes the guard, the other goes on and runs what the parent
asked for. On Linux the guard is a subreaper: a process whose own parent has ended becomes the guard's child, whatever
session it leads and however often it forked, so nothing slips away. When the child has ended, or the parent is gone,
however that ended, the guard kills its children until it has none.

What they print goes through the guard into a log that stays small, whatever they print.

What it cannot hold is code that attacks it: processes of one user may kill each other. Elsewhere than on Linux it finds
only what is in the child's process group, or still has its parents.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import select
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

from rlft.common.bounded_log import BoundedLog, inert

CLEANING_LIMIT_S = 5.0
"""Time to kill what the child has left behind; only a process that the kernel cannot end needs more than a little."""
READ_SIZE = 2**20
"""Bytes that are read at a time."""

_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36  # linux/prctl.h


def fork_guarded(lifeline: int, channel: int) -> None:
    """Fork, and return in the child alone, which leads a session of its own.

    To be called before anything has started a thread, in a process whose stdout is an open file; see `BoundedLog`.

    Args:
        lifeline: a pipe's reading end, whose other end the parent alone holds; the guard's.
        channel: the socket to the parent; the child's.
    """
    guard = os.getpid()
    _control_process(_PR_SET_CHILD_SUBREAPER, 1)
    printed, printing = os.pipe()
    child = os.fork()
    if child:
        try:
            os.close(channel)
            os.close(printing)
            _end_like(_guard(child, lifeline, printed))
        finally:
            os._exit(1)
    for stream in (1, 2):
        os.dup2(printing, stream)
    for descriptor in (lifeline, printed, printing):
        os.close(descriptor)
    os.setsid()
    _control_process(_PR_SET_PDEATHSIG, signal.SIGKILL)  # if the guard is killed, this process is, too
    if os.getppid() != guard:
        os._exit(1)


def _guard(child: int, lifeline: int, printed: int) -> int:
    """Wait until the child has ended or the parent is gone, then end the rest; the child's wait status."""
    log = BoundedLog(1)
    faulthandler.disable()  # the child writes its own
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # its parent's end ends it
        signal.signal(number, signal.SIG_IGN)
    woken, waker = os.pipe()
    os.set_blocking(waker, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    events = select.poll()
    for descriptor in (lifeline, woken, printed):
        events.register(descriptor, select.POLLIN)
    is_parent_alive = True
    status = _reap(child)[0]
    while status is None and is_parent_alive:
        ready = {descriptor for descriptor, _ in events.poll()}
        if woken in ready:
            os.read(woken, 4096)
        if printed in ready and not _pass_on(printed, log):
            events.unregister(printed)
        is_parent_alive = lifeline not in ready  # nothing is ever written to it
        status = _reap(child)[0]
    ended = _end_children(child)
    os.set_blocking(printed, False)
    with contextlib.suppress(BlockingIOError):  # something that could not be killed may print more
        while _pass_on(printed, log):
            pass
    return ended if status is None else status


def _pass_on(printed: int, log: BoundedLog) -> bool:
    """Log some of what was printed; whether there can be more."""
    data = os.read(printed, READ_SIZE)
    with contextlib.suppress(OSError):  # the disk is full; the child must be able to go on
        log.write(inert(data))
    return bool(data)


def _end_children(child: int) -> int:
    """Kill this process's children, and theirs as they become its own, until it has none; the status of `child`."""
    status, until = int(signal.SIGKILL), time.monotonic() + CLEANING_LIMIT_S
    if sys.platform != "linux":
        with contextlib.suppress(OSError):
            os.killpg(child, signal.SIGKILL)
    while time.monotonic() < until:
        ended, is_any_left = _reap(child)
        status = status if ended is None else ended
        if not is_any_left:
            break
        for pid in _children():
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    return status


def _reap(child: int) -> tuple[int | None, bool]:
    """Take note of all children that have ended, orphans among them.

    Returns:
        The wait status of `child` if it is one of them, and whether this process still has children.
    """
    status = None
    while True:
        try:
            pid, ended = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return status, False
        if not pid:
            return status, True
        if pid == child:
            status = ended


def _children() -> list[int]:
    """Process ids of this process's children; elsewhere than on Linux also of theirs."""
    if sys.platform != "linux":
        import psutil

        return [process.pid for process in psutil.Process().children(recursive=True)]
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):  # ended meanwhile
            # PID (NAME) STATE PARENT ..., where NAME may hold anything
            stat = Path("/proc", pid, "stat").read_bytes()
            if int(stat.rpartition(b")")[2].split()[1]) == os.getpid():
                found.append(int(pid))
    return found


def _end_like(status: int) -> NoReturn:
    """End with the exit code or the signal that a wait status tells."""
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(max(0, code))


def _control_process(option: int, value: int) -> None:
    """Linux's prctl; elsewhere nothing. A kernel that does not know the option is no worse than another system."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(option, ctypes.c_ulong(value), 0, 0, 0)
