"""What this machine gives to a process: processors and memory, as far as the system and its control groups allow."""

from __future__ import annotations

import os
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

CGROUPS = Path("/sys/fs/cgroup")
"""Where control groups are mounted."""
OWN_CGROUPS = Path("/proc/self/cgroup")
"""The file that names this process's groups."""
_UNLIMITED = 2**60
"""Version 1 of control groups writes about 2**63 where there is no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Bytes of memory that processes here may use."""

    total: int
    """Of the machine."""
    limit: int | None
    """Of the control group (a container, a job of a scheduler); None where it sets no limit below `total`."""
    available: int
    """What can be taken now without swapping, within `limit`; what a group's file cache holds counts as taken."""

    @property
    def usable(self) -> int:
        """The smaller one of `total` and `limit`."""
        return self.total if self.limit is None else self.limit


def processor_name() -> str:
    """The processor's own name, as `AMD EPYC 9654 96-Core Processor`."""
    with suppress(OSError):
        if named := re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return named[1].strip()
    return platform.processor()


def usable_cpus(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> float:
    """Processors that this process may use at once: those it may be scheduled on, or less by its control group's quota.

    Args:
        root: where control groups are mounted.
        own: the file that names this process's groups.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = [float(allowed)]
    for folder in group_folders(root, own, "cpu"):
        quota, _, period = _read(folder / "cpu.max").partition(" ")
        if not quota:
            quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(period):
            shares.append(int(quota) / int(period))
    return min(shares)


def memory(root: Path = CGROUPS, own: Path = OWN_CGROUPS) -> Memory:
    """The memory of this machine and of this process's control group; arguments as of `usable_cpus`."""
    machine = psutil.virtual_memory()
    limit, available = None, machine.available
    for folder in group_folders(root, own, "memory"):
        allowed = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        if not allowed.isdigit() or int(allowed) >= min(machine.total, _UNLIMITED):
            continue
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        limit = int(allowed) if limit is None else min(limit, int(allowed))
        if used.isdigit():
            available = min(available, max(int(allowed) - int(used), 0))
    return Memory(total=machine.total, limit=limit, available=available)


def group_folders(root: Path, own: Path, controller: str) -> list[Path]:
    """Folders of this process's control group and of those around it, whose limits all hold."""
    folders = []
    for line in _read(own).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / controller if controllers else root
        inner = top / path.lstrip("/")
        folders += [inner, *(parent for parent in inner.parents if parent.is_relative_to(top))]
    return folders


def _read(path: Path) -> str:
    """A small file's text; empty where there is none or it may not be read."""
    try:
        return path.read_text().strip()
    except OSError:
        return ""
