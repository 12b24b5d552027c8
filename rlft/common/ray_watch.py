"""Notices that a private Ray cluster has lost one of its own processes, of which Ray itself says nothing for long.

A driver that waits for Ray goes on waiting for 16 seconds after the raylet has died, and then aborts without a word;
after the death of the control service, or when either is stopped by a signal, it waits for minutes or for ever.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import psutil

from rlft.common.private_names import missing

NAMES = {"raylet": "raylet", "gcs_server": "control service"}
"""Ray's processes without which nothing goes on."""
STOPPED_S = 10.0
"""Seconds that one may be stopped (SIGSTOP, a debugger) before the cluster counts as lost."""
DEAF_S = 30.0
"""Seconds that the main thread has to save what it has and to close the cluster, before the process ends anyway."""
EVERY_S = 0.25
START_S = 180.0
"""Seconds that Ray may take to start or to be joined; it takes a few, on a busy machine some tens."""


class ClusterLostError(RuntimeError):
    """The run's Ray cluster is gone; what it had finished is in the run directory."""


@contextmanager
def bounded_start() -> Iterator[None]:
    """End this process with a message where Ray does not start within `START_S`.

    Ray waits for its own processes without an end, in a call that no signal handler interrupts; a clock that jumps
    while they start is enough for that.
    """
    message = f"Ray did not start within {START_S:g} s; nothing was lost, the same command may work now"
    timer = threading.Timer(START_S, _end, [message])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Watch:
    """Watches the cluster that this process has started, and raises in the main thread when it is lost."""

    def __init__(self) -> None:
        """Begin; the processes are children of this one.

        Raises:
            ImportError: there are none of these names.
        """
        children = psutil.Process().children(recursive=True)
        self._processes = {process: NAMES[name] for process in children if (name := process.name()) in NAMES}
        for name, called in NAMES.items():
            if called not in self._processes.values():
                raise missing(f"ray: process {name}")
        self._is_over = threading.Event()
        self._lost = ""
        self._is_main = threading.current_thread() is threading.main_thread()
        self._handler: Any = signal.signal(signal.SIGUSR1, self._raise) if self._is_main else None
        self._thread = threading.Thread(target=self._watch, name="ray watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop watching, before the cluster is ended.

        Raises:
            ClusterLostError: it had been lost, and the main thread was where it could not be told.
        """
        self._is_over.set()
        self._thread.join()
        if self._is_main:
            signal.signal(signal.SIGUSR1, self._handler)
        if self._lost:
            raise ClusterLostError(self._lost)

    def _watch(self) -> None:
        since: dict[int, float] = {}
        while not self._is_over.wait(EVERY_S):
            for process, name in self._processes.items():
                what, state = f"its {name} (process {process.pid})", _state(process)
                if state == psutil.STATUS_STOPPED:
                    if time.monotonic() - since.setdefault(process.pid, time.monotonic()) < STOPPED_S:
                        continue
                    self._lost = f"the run's Ray cluster is lost: {what} has been stopped for {STOPPED_S:g} s"
                    process.kill()  # else nothing that waits for it would end
                elif state in ("", psutil.STATUS_ZOMBIE):
                    self._lost = f"the run's Ray cluster is lost: {what} has died"
                else:
                    since.pop(process.pid, None)
                    continue
                self._tell()
                return

    def _tell(self) -> None:
        if not self._is_main or self._is_over.is_set():
            return
        lost = self._lost
        os.kill(os.getpid(), signal.SIGUSR1)  # its handler runs in the main thread
        if not self._is_over.wait(DEAF_S):  # it waits inside of Ray, which swallows what a handler raises
            _end(f"{lost}; `rlft resume RUN` continues from the last checkpoint")

    def _raise(self, number: int, frame: FrameType | None) -> None:
        lost, self._lost = self._lost, ""
        raise ClusterLostError(lost)


def _end(message: str) -> None:
    """End this process, whose main thread cannot be told; what guards the cluster clears up after it."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    os._exit(1)


def _state(process: psutil.Process) -> str:
    """The process's state, empty if it is gone."""
    try:
        return str(process.status())
    except psutil.NoSuchProcess:
        return ""
