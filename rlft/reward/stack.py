"""Where a scoring process is when its time is over: its stack, which it writes to a shared file on a signal.

Python's faulthandler writes from within the signal's handler, so a loop in C code, such as a regular expression that
backtracks, shows its line, too. What stands in the file is the process's own word: it is shown, and nothing follows.
"""

from __future__ import annotations

import faulthandler
import os
import re
import signal
import time
from contextlib import suppress

import psutil

from rlft.common.by_path import is_users_code

_SIGNAL = getattr(signal, "SIGUSR1", None)
_WAIT_S, _LOOK_S = 0.2, 0.005
"""How long a process may take to write its stack, which a busy machine delays, and between two looks at it."""
_MOST = 1 << 16
_FRAME = re.compile(r'^  File "(.+)", line (\d+) in ', re.MULTILINE)


def write_when_asked(descriptor: int) -> None:
    """Let this process write its stack to an open file, at the file's position, when it is asked to."""
    os.set_inheritable(descriptor, False)
    if _SIGNAL is not None:
        faulthandler.register(_SIGNAL, file=descriptor, all_threads=True)


def users_line(pid: int, descriptor: int, *, start: int, parent: int) -> str:
    """`file.py:12`, the innermost line of the user's code at which a process is; empty where it does not say.

    Args:
        pid: of a process that has called `write_when_asked`; what is no child of `parent` is left alone.
        descriptor: of the same open file.
        start: where in the file the stack begins.
    """
    with suppress(psutil.Error, OSError):
        if _SIGNAL is None or not pid or psutil.Process(pid).ppid() != parent:
            return ""
        os.lseek(descriptor, start, os.SEEK_SET)
        os.kill(pid, _SIGNAL)
        ends, before, written = time.monotonic() + _WAIT_S, b"", b""
        while time.monotonic() < ends and not (written and written == before):  # it is written in many pieces
            time.sleep(_LOOK_S)
            before, written = written, os.pread(descriptor, _MOST, start)
        stack = written.decode(errors="replace")
        return next((f"{file}:{line}" for file, line in _FRAME.findall(stack) if is_users_code(file)), "")
    return ""
