"""What Ray says when its memory monitor ends a process, in one sentence."""

from __future__ import annotations

import re

_USED = re.compile(r"was ([\d.]+) ?GB(?: used)? / ([\d.]+) ?GB")
_LARGEST = re.compile(r"^PID\s+MEM\(GB\)\s+COMMAND\s+(\d+)\s+([\d.]+)\s+(\S+)", re.MULTILINE)


def describe(told: str) -> str:
    """How much of a machine's memory was used and which process is the largest, without anybody's command line.

    Args:
        told: text of Ray's `OutOfMemoryError`, which lists the largest processes of all users with their arguments.
    """
    used, largest = _USED.search(told), _LARGEST.search(told)
    what = "Ray's memory monitor ended it, as the machine was low on memory"
    if used:
        what += f" ({used[1]} of {used[2]} GB used)"
    if largest:
        what += f"; the largest process was {largest[3].rpartition('/')[2]} (process {largest[1]}, {largest[2]} GB)"
    return what
