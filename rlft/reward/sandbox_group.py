"""A control group of a sandbox's own, which bounds its memory without gaps, where this process may make one.

Looking at a sandbox from outside (`sandbox_memory.py`) leaves it free between two looks, and does not see what the
kernel needs for its pipes and sockets. A control group has neither gap, but root or a delegated group is needed to
make one: https://docs.kernel.org/admin-guide/cgroup-v2.html#delegation. Both of their versions are used.

A group ends with its sandbox. One whose maker was killed is empty, costs nothing, and is removed by the next process
that makes some.
"""

from __future__ import annotations

import functools
import itertools
import os
import re
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from rlft.common.machine import CGROUPS, OWN_CGROUPS, group_folders

KERNEL_MB = 32
"""What the kernel and the interpreter's start may take besides: the looks from outside bound the code itself."""
PATIENCE_S = 2.0
"""How long the last process of a group may take to leave it."""
_NAME = "rlft-sandbox"
_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class Group:
    """A group with a bound."""

    folder: Path

    @property
    def entering(self) -> list[str]:
        """What a command has to begin with in order to run inside."""
        return ["/bin/sh", "-c", 'echo 0 > "$0" && exec "$@"', str(self.folder / "cgroup.procs")]

    @property
    def has_overrun(self) -> bool:
        """Whether the kernel has killed something inside because the group was full."""
        kills = 0
        for name in ("memory.events", "memory.oom_control"):
            with suppress(OSError):
                found = re.search(r"^oom_kill (\d+)$", (self.folder / name).read_text(), re.MULTILINE)
                kills += int(found[1]) if found else 0
        return kills > 0


@contextmanager
def memory_group(memory_mb: int) -> Iterator[Group | None]:
    """A group whose processes get so much memory together, and `KERNEL_MB`; None where none can be made.

    Raises:
        OSError: groups could be made before, and this one cannot.
    """
    if (parent := where()) is None:
        yield None
        return
    folder = parent / f"{_NAME}-{os.getpid()}-{next(_NUMBERS)}"
    _make(folder, (memory_mb + KERNEL_MB) * 2**20)
    try:
        yield Group(folder)
    finally:
        _remove(folder)


@functools.cache
def where(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> Path | None:
    """The group below which this process may make groups with a bound on memory, None if there is none; tried once.

    Args:
        root: where control groups are mounted.
        own: the file that names this process's groups.
    """
    for parent in group_folders(root, own, "memory"):
        folder = parent / f"{_NAME}-{os.getpid()}-{next(_NUMBERS)}"
        try:
            _make(folder, 2**30)
            # Which group a process may be moved to depends on all groups between: only a try tells.
            subprocess.run([*Group(folder).entering, "true"], check=True, stderr=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError):
            with suppress(OSError):
                folder.rmdir()
            continue
        _remove(folder)
        _remove_left_behind(parent)
        return parent
    return None


def _make(folder: Path, limit: int) -> None:
    """Make a group; version 2 has files of its own for the same."""
    folder.mkdir()
    if (folder / "memory.max").exists():
        _write(folder / "memory.max", str(limit))
        _write(folder / "memory.oom.group", "1")
        swap = folder / "memory.swap.max"
        if swap.exists():
            _write(swap, "0")
    else:
        _write(folder / "memory.limit_in_bytes", str(limit))
        both = folder / "memory.memsw.limit_in_bytes"
        if both.exists():
            _write(both, str(limit))


def _write(file: Path, text: str) -> None:
    # Never made: where this is no control group, a file of that name would be an ordinary one.
    with file.open("r+", encoding="ascii") as open_file:
        open_file.write(text)


def _remove(folder: Path) -> None:
    """Remove a group as soon as it is empty."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            folder.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.002)
        else:
            return


def _remove_left_behind(parent: Path) -> None:
    """Remove groups whose maker is gone."""
    for folder in parent.glob(f"{_NAME}-*-*"):
        maker = folder.name.split("-")[2]
        if maker.isdigit() and not Path(f"/proc/{maker}").exists():
            with suppress(OSError):  # something inside is still about to end, or another process was faster
                folder.rmdir()
