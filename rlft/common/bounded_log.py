"""A log that stays small whatever is written to it: its beginning and its end are kept, the middle is dropped."""

from __future__ import annotations

import os
import re

LOG_LIMIT = 10 * 2**20
"""Largest size of a log in bytes; of one that would be larger the first half is kept, and what was written last."""
_CONTROLS = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|\xc2[\x80-\x9f]")
"""Control characters in UTF-8, of which a terminal makes commands; tabs and ends of lines are none."""
KEPT = 2**16
"""What was written last and is always kept, in bytes."""

_NOTICE = "\n[... {} bytes of output were dropped here: a log holds {} ...]\n"
_FOUND = re.compile(rb"\n\[\.\.\. (\d+) bytes of output were dropped here: a log holds \d+ \.\.\.\]\n")


def inert(data: bytes) -> bytes:
    """Output in which no control character is left to act on the terminal of who reads the log.

    They are shown as `cat -v` does: `^[` is an escape, which of its 8-bit forms is the first half.
    """
    return _CONTROLS.sub(_shown, data)


def _shown(found: re.Match[bytes]) -> bytes:
    code = found[0][-1]
    return b"^[" + bytes([code - 0x40]) if code >= 0x80 else b"^" + bytes([code ^ 0x40])


class BoundedLog:
    """Appends to an open file, and cuts its middle out when it is full.

    Only one process may append to the file at a time. The file may be moved, and written on later by another process:
    how much is missing stands in it.
    """

    def __init__(self, descriptor: int, limit: int = LOG_LIMIT) -> None:
        """Write on where the file ends.

        Args:
            descriptor: of the file, opened for reading and appending.
            limit: largest size in bytes, but for the line that tells what was dropped; at least four times `KEPT`.
        """
        self._file, self._limit, self._head = descriptor, limit, limit // 2

    def write(self, data: bytes) -> None:
        """Append to it.

        Raises:
            OSError: the disk is full.
        """
        size = os.fstat(self._file).st_size
        if size + len(data) > self._limit:
            if size < self._head:
                self._append(data[: self._head - size])
                size, data = self._head, data[self._head - size :]
            start, dropped = self._head, 0
            if found := _FOUND.match(os.pread(self._file, 200, start)):  # what an earlier cut has left there
                start, dropped = start + found.end(), int(found[1])
            last = (os.pread(self._file, KEPT, max(start, size - KEPT)) + data)[-KEPT:]
            dropped += size - start + len(data) - len(last)
            os.ftruncate(self._file, self._head)
            data = _NOTICE.format(dropped, self._limit).encode() + last
        self._append(data)

    def _append(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._file, data) :]
