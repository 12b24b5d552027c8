"""Child processes of this project: a fresh Python interpreter that serves its parent over a socket and dies with it.

So does everything that it started, daemons included: `child_guard.py`.

Scoring, loading an environment a second time, and vLLM run in one. They are started with `subprocess`, not
`multiprocessing`: a fork would copy the locks of ray's and torch's threads, and multiprocessing's spawn would run the
parent's `__main__` again.
"""

from __future__ import annotations

import importlib
import math
import os
import pickle
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import IO, Any

from rlft.common.child_guard import CLEANING_LIMIT_S, fork_guarded

TRANSFER_LIMIT_S = 10
"""Time that the child may take to take one message in; only a stuck process needs more than milliseconds."""
ENDING_LIMIT_S = 1.0
"""Time that the kernel has to end a child whose socket it has closed."""
READ_SIZE = 2**16
"""Bytes that are read at a time."""
LAG_S = 0.3
"""Time that a child's guard has to write down what the child has just printed."""
SHOWN_OUTPUT = 3000
"""Longest end of a child's output, in bytes, that goes into an error."""


class ChildProcess:
    """A child process that runs one function: `main(connection)`.

    It leads its own session, so the terminal's Ctrl-C does not reach it. Its guard ends it and all that it has started
    when the parent is gone, however that ended. Its parent ends it with `kill`.
    """

    def __init__(
        self,
        main: Callable[[Connection], None],
        *,
        log: Path | None = None,
        threads: int | None = None,
        inherited: Mapping[str, str] | None = None,
        defaults: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """Start it.

        Args:
            main: a module's function, which the child imports by its name.
            log: file that what it prints is appended to, and whose size is bounded (`BoundedLog`); if not given, it is
                kept for `printed` alone.
            threads: OpenMP's threads; if not given, what the environment says.
            inherited: environment variables that it gets from this process; if not given, all but the key of the Ray
                cluster.
            defaults: environment variables for the child, where it inherits none of that name.
            environment: environment variables for the child, whatever this process has.
            pass_fds: open descriptors that the child gets, under the same numbers.
        """
        if inherited is None:
            inherited = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
        limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
        ours, theirs = socket.socketpair()
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", TRANSFER_LIMIT_S, 0))
        lifeline, self._lifeline = os.pipe()
        self._output: IO[bytes] = tempfile.TemporaryFile("ab+") if log is None else open(log, "ab+")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                python_command(_serve, f"{main.__module__}:{main.__qualname__}", str(theirs.fileno()), str(lifeline)),
                stdin=subprocess.DEVNULL,
                stdout=self._output,
                stderr=self._output,
                pass_fds=(theirs.fileno(), lifeline, *pass_fds),
                start_new_session=True,
                env={**(defaults or {}), **inherited, **limits, **(environment or {})},
            )
        except BaseException:
            ours.close()
            self._output.close()
            os.close(self._lifeline)
            raise
        finally:
            theirs.close()
            os.close(lifeline)
        self.pid = self._process.pid  # the guard's; it ends like the child
        self.connection = Connection(ours.detach())
        self._exit = _exit_handle(self.pid)
        self._received = bytearray()
        self._ending = self._printed = ""

    @property
    def handles(self) -> list[Connection | int]:
        """What becomes readable, for `multiprocessing.connection.wait`, when it has sent something or ended."""
        return [self.connection] if self._exit is None else [self.connection, self._exit]

    def send(self, message: Any) -> None:
        """Send it a pickled message. Where it is dead nothing happens; `receive` tells."""
        with suppress(OSError):
            self.connection.send(message)

    def receive(self, limit_s: float = math.inf) -> Any:
        """Wait for its next pickled message, which may run code here: only for children that run nobody else's code.

        Raises:
            EOFError: it ended; `kill` says how.
            TimeoutError: nothing whole came within `limit_s` seconds.
        """
        return pickle.loads(self.receive_bytes(limit_s))

    def receive_bytes(self, limit_s: float = math.inf, largest: int = sys.maxsize) -> bytes:
        """Wait for its next message as it was sent with `Connection.send_bytes`; nothing of it is read.

        A part that came before the limit is kept for the next call, so that no child can hold this process up.

        Args:
            limit_s: seconds to wait.
            largest: most bytes that a message may have.

        Raises:
            EOFError: it ended; `kill` says how.
            TimeoutError: nothing whole came within `limit_s` seconds.
            ValueError: the message is longer than `largest`; then the child cannot be understood any more.
        """
        until = time.monotonic() + limit_s
        while (message := self._message(largest)) is None:
            if self.connection.closed:
                raise EOFError("the child process was killed")
            if not wait(self.handles, None if limit_s == math.inf else max(0.0, until - time.monotonic())):
                raise TimeoutError(f"the child process sent nothing within {limit_s:g} s")
            part = b""
            with suppress(OSError):
                # If a child that it forked holds the socket open, its death leaves nothing to read.
                if self.connection.poll():
                    part = os.read(self.connection.fileno(), READ_SIZE)
            if not part:
                self.wait(ENDING_LIMIT_S)  # the kernel closes its socket first, and to kill it now would hide its end
                raise EOFError("the child process ended")
            self._received += part
        return message

    def _message(self, largest: int) -> bytes | None:
        """Take the first message from what has been received; None if it is not whole yet."""
        head = 4  # four bytes of length, or -1 and eight bytes: `Connection.send_bytes`
        if len(self._received) < head:
            return None
        (size,) = struct.unpack_from("!i", self._received)
        if size == -1:
            head = 12
            if len(self._received) < head:
                return None
            (size,) = struct.unpack_from("!Q", self._received, 4)
        if not 0 <= size <= largest:
            raise ValueError(f"a message of {size} bytes, where {largest} are allowed")
        if len(self._received) < head + size:
            return None
        message = bytes(self._received[head : head + size])
        del self._received[: head + size]
        return message

    @property
    def has_more(self) -> bool:
        """Whether bytes of another message came with the last one; the connection does not become readable for them."""
        return bool(self._received)

    def wait(self, limit_s: float) -> None:
        """Wait until it has ended by itself, for so many seconds at the most."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, limit_s))

    def kill(self) -> str:
        """Kill it and everything that it started, unless that is done.

        Returns:
            How it ended, as in "was killed by SIGKILL" or "ended with exit code 1".
        """
        if not self._ending:
            self._ending = self._kill()
        return self._ending

    def printed(self) -> str:
        """The end of what it has printed, stripped, also after `kill`; empty where it printed nothing.

        What a running child has just printed is waited for, `LAG_S` at the most.
        """
        if self._output.closed:
            return self._printed
        if self._process.poll() is None:
            time.sleep(LAG_S)
        descriptor = self._output.fileno()
        # At a position of its own: the child writes through the same open file.
        start = max(0, os.fstat(descriptor).st_size - SHOWN_OUTPUT)
        return os.pread(descriptor, SHOWN_OUTPUT, start).decode(errors="replace").strip()

    def _kill(self) -> str:
        os.close(self._lifeline)  # its guard ends it, then itself
        try:
            code = self._process.wait(CLEANING_LIMIT_S + ENDING_LIMIT_S)
        except subprocess.TimeoutExpired:  # the child has stopped its guard
            code = self._kill_tree()
        self._printed = self.printed()
        self._output.close()
        self.connection.close()
        if self._exit is not None:
            os.close(self._exit)
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"

    def _kill_tree(self) -> int:
        import psutil  # which the child, too, would import

        descendants = []
        with suppress(psutil.Error):
            descendants = psutil.Process(self.pid).children(recursive=True)
        for process in descendants:
            with suppress(psutil.Error):
                process.kill()
        self._process.kill()
        return self._process.wait()


def python_command(main: Callable[[], None], *arguments: str) -> list[str]:
    """The command of a fresh interpreter with this one's import path that calls a module's function.

    The function finds the arguments at `sys.argv[1:]`. The import path stands behind them: in PYTHONPATH it would leak
    into the programs that the process starts.
    """
    boot = f"import sys; sys.path[:] = sys.argv[{1 + len(arguments)}:]; "
    boot += f"from {main.__module__} import {main.__qualname__} as main; main()"
    options = ("-P", "-u", "-X", "faulthandler")  # what it printed, or how it crashed, is there when it is killed
    return [sys.executable, *options, "-c", boot, *arguments, *map(os.path.abspath, sys.path)]


def _serve() -> None:
    """Run in the child: leave a guard behind, then call the function that the parent named."""
    name, channel, lifeline = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    sys.argv = [name]  # code that reads its arguments must not find ours
    for descriptor in (channel, lifeline):
        os.set_inheritable(descriptor, False)
    fork_guarded(lifeline, channel)
    os.dup(channel)  # kept open until the kernel closes it: the parent is to see an end when it has come
    module, _, function = name.partition(":")
    getattr(importlib.import_module(module), function)(Connection(channel))


def _exit_handle(pid: int) -> int | None:
    """A descriptor that becomes readable when the process ends, where the system has one."""
    if sys.platform == "linux":
        with suppress(OSError):
            return os.pidfd_open(pid)
    return None
