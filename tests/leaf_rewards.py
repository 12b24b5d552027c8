"""Rewards for tests of settings; a file that imports next to nothing, since scoring processes load it."""

from __future__ import annotations

import asyncio
import os
import time

from rlft.reward.judge_cache import Budget


def stripes(completion: str, scale: float = 1.0) -> float:
    """A reward with an argument."""
    return scale * completion.count("a")


def first(completion: str) -> float:
    """Another reward."""
    return float(completion.startswith("b"))


def in_driver(completion: str, driver: int) -> float:
    """1 where the reward runs in the process `driver`."""
    return float(os.getpid() == driver)


def sees(completion: str, variable: str) -> float:
    """1 where the environment has the variable."""
    return float(variable in os.environ)


def slow(completion: str) -> float:
    """A reward that takes its time."""
    time.sleep(0.5)
    return 1.0


_running = 0


async def crowd(completion: str) -> float:
    """How many calls ran at once when this one began to wait for the others."""
    global _running
    _running += 1
    await asyncio.sleep(0.2)
    together = _running
    await asyncio.sleep(0.2)
    _running -= 1
    return float(together)


def large(completion: str) -> float:
    """A reward that needs 300 MB for a while."""
    memory = bytearray(b"x") * (300 * 2**20)
    time.sleep(2.0)
    return float(memory[-1])


def budget(completion: str) -> dict[str, float]:
    """What a judge may be asked here."""
    here = Budget.here()
    return {"calls": here.calls, "tokens": here.tokens}


def same(completion: str) -> float:
    """One value for every reply."""
    return 0.5
