"""Signals that ask the program to stop: the first ends it where its state is whole, the second ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONGEST_S = 15.0
"""Seconds after a signal until it also ends what `held` protects."""


TOGETHER_S = 0.5
"""Signals that come closer together are one request: a closing terminal sends two, supervisors several kinds."""


class Interrupted(SystemExit):
    """A signal asked the program to stop; the exit code is 128 and the signal's number, as a shell expects."""

    def __str__(self) -> str:
        return signal.Signals(int(self.code or 0) - 128).name


class _State:
    held = 0  # nested `held` blocks
    asked = 0  # number of the first signal; 0 before
    asked_at = 0.0  # when it came, by the monotonic clock
    is_late = False  # whether a held block took too long after it


def install() -> None:
    """Handle SIGINT, SIGTERM and SIGHUP; one that is ignored, as under nohup, stays so. Only in the main thread."""
    for number in SIGNALS:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _handle)


@contextmanager
def held() -> Iterator[None]:
    """Put off a signal until the end of the block, as the state in between is neither the old nor the new one.

    Raises:
        Interrupted: at its end if there was a signal; or within it, `LONGEST_S` after the signal.
    """
    _State.held += 1
    try:
        yield
    finally:
        _State.held -= 1
    if _State.asked and not _State.held:
        raise Interrupted(128 + _State.asked)


def _handle(number: int, frame: FrameType | None) -> None:
    if _State.is_late:
        _State.is_late = False
        if _State.held:
            raise Interrupted(128 + _State.asked)
        return  # the block has ended meanwhile, and raised
    if _State.asked:
        if time.monotonic() - _State.asked_at > TOGETHER_S:
            os._exit(128 + number)  # asked twice
        return
    _State.asked, _State.asked_at = number, time.monotonic()
    if not _State.held:
        raise Interrupted(128 + number)
    print(
        f"stopping after this step, or in its middle after {LONGEST_S:g} s; once more to stop at once",
        file=sys.stderr,
        flush=True,
    )
    timer = threading.Timer(LONGEST_S, _too_long)
    timer.daemon = True
    timer.start()


def _too_long() -> None:
    if _State.held:
        _State.is_late = True
        os.kill(os.getpid(), _State.asked)  # the main thread's handler runs, and raises
