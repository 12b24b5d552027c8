"""Ending a call that takes too long, as far as a process can do that to itself.

A Python function cannot be stopped from outside: a thread that is left behind goes on for ever, and holds the
interpreter's lock if it is in C. So the system's alarm interrupts the call, which is good for loops in Python, for
sleeping, for waiting for a server, and for code in C that looks at signals, as `re` does. It is no good

- outside of the main thread, where no signal arrives: there is no deadline then. Ray's workers run in theirs;
- for code in C that looks at no signals, such as `10**10**9`. The whole process's deadline ends that, from outside;
- where the call takes the alarm for itself, or goes on after `BaseException`.

A call that a person has stopped in a debugger is left alone.

Coroutines are cancelled instead: `asyncio.timeout`.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_DEBUGGERS = ("pdb", "bdb", "pydevd", "_pydevd")
"""How the names of debuggers' modules begin, pdb's and those of editors."""


class OverrunError(BaseException):
    """A call was interrupted at its deadline. No `Exception`, since the call is not to handle it."""


@contextmanager
def interrupted_after(seconds: float | None) -> Iterator[None]:
    """Interrupt what runs inside after so many seconds; None never does. See above for where this works.

    Raises:
        OverrunError: inside of what runs, at the line that it has come to.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGALRM"):
        yield
        return
    began = time.monotonic()
    previous = signal.signal(signal.SIGALRM, _interrupt)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        # An alarm of a call around this one goes on, and one that is overdue comes at once.
        signal.setitimer(signal.ITIMER_REAL, outer and max(1e-6, outer - (time.monotonic() - began)))
        signal.signal(signal.SIGALRM, previous)


def _interrupt(number: int, frame: FrameType | None) -> None:
    while frame is not None:
        if str(frame.f_globals.get("__name__")).rpartition(".")[2].startswith(_DEBUGGERS):
            return
        frame = frame.f_back
    raise OverrunError
