"""Which of its calls a scoring process works on, and since when: memory that it shares with the driver.

A process gets many calls in one message. When one of them hangs or ends the process, the driver has to know which, and
the process cannot say so any more.

The memory is the process's own to write, so what stands there is believed only as far as it can be true
(`ScoringProcess.present`). A reward that writes there can have another sample of its message fail in its place, and
gains `process.LATE_S` of time at the most.
"""

from __future__ import annotations

import mmap
import struct
import tempfile
import time
from typing import IO

_FORM = struct.Struct("@qd")


class Progress:
    """The position of the call that is worked on, and when it began by the system's monotonic clock."""

    def __init__(self, descriptor: int) -> None:
        """Args: descriptor: an open file of `SIZE` bytes, which both processes map."""
        self._memory = mmap.mmap(descriptor, SIZE)

    def begin(self, position: int) -> None:
        """Note that a call begins; -1 for none yet, their number for none any more."""
        _FORM.pack_into(self._memory, 0, position, time.monotonic())

    def read(self) -> tuple[int, float]:
        """(position, when it began)."""
        position, began = _FORM.unpack_from(self._memory)
        return position, began


SIZE = _FORM.size
"""Bytes of the shared memory."""


def shared_file() -> IO[bytes]:
    """A nameless file to share; it goes when it is closed."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    file.truncate(SIZE)
    return file
