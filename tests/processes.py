"""Processes that tests watch."""

from __future__ import annotations

import time

import psutil


def gone(pid: int, limit_s: float = 5.0) -> bool:
    """Whether a process ends within the limit."""
    until = time.monotonic() + limit_s
    while time.monotonic() < until:
        try:
            if psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
                return True
        except psutil.NoSuchProcess:
            return True
        time.sleep(0.02)
    return False
