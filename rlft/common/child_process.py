"""Ending a child process when the process that started it is gone, however it went."""

from __future__ import annotations

import os
import sys
from contextlib import suppress


def end_with_parent(lifeline: int) -> None:
    """Have the kernel kill this process group when the parent's end of the pipe `lifeline` closes.

    A socket tells an idle process that its parent is gone, but one that is busy or hangs never looks at it.
    PR_SET_PDEATHSIG is no help: it fires when the thread that started us ends, and it spares our children. The caller
    leads its own process group (`start_new_session`).
    """
    if sys.platform == "linux":
        import fcntl
        import signal

        with suppress(OSError):  # a kernel without it: this process still ends when it next reads the socket
            fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
            fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
            fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
