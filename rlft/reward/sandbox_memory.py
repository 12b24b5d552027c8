"""How much memory a sandbox uses as a whole, read from outside."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

INODE = 1024
"""Bytes that a file costs the kernel, however little is in it."""


def memory_inside(init: int, limit: int) -> int:
    """Bytes that the processes of a PID namespace and the files in its /tmp take; 0 where nothing can be seen (yet).

    Pages of a program's file are not counted: the system can drop them. Pages that processes share are counted once,
    which takes a slower look: only where the sum is above `limit` otherwise.

    Args:
        init: the namespace's first process, as this process sees it; it has a root and a /proc of its own.
    """
    root = Path(f"/proc/{init}/root")
    # Until it has its own, this is the /proc of this process, which finds itself there.
    if (root / "proc" / "self").exists():
        return 0
    try:
        processes = [root / "proc" / pid for pid in filter(str.isdigit, os.listdir(root / "proc"))]
        disk = os.statvfs(root / "tmp")
    except OSError:
        return 0
    files = (disk.f_blocks - disk.f_bfree) * disk.f_frsize + (disk.f_files - disk.f_ffree) * INODE
    used = files + sum(map(_resident, processes))
    if used > limit:
        used = files + sum(_share(process) or _resident(process) for process in processes)
    return used


def _resident(process: Path) -> int:
    """Bytes that a process has in memory, whether others have them, too; 0 of one that ends."""
    return _field(process / "status", "RssAnon", "RssShmem", "VmSwap")


def _share(process: Path) -> int:
    """The same with each page divided by the number of processes that have it; 0 where this must not be read."""
    return _field(process / "smaps_rollup", "Pss_Anon", "Pss_Shmem", "SwapPss")


def _field(file: Path, *names: str) -> int:
    """Bytes that some rows of a file in /proc add up to; 0 where it cannot be read."""
    total = 0
    with suppress(OSError):
        for row in file.read_text().splitlines():
            name, _, value = row.partition(":")
            if name in names:
                total += int(value.split()[0]) * 1024
    return total
