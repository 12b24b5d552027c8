"""Counter-based randomness: a sample's seed and the numbers that draw its tokens follow from what the sample is."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def sample_seed(run_seed: int, stream: str, step: int, task_id: str, sample_index: int) -> int:
    """64-bit seed of one sample.

    Args:
        stream: what the sample is for, so that training and evaluation never share randomness.
    """
    return _digest(f"{run_seed}\x1f{stream}\x1f{step}\x1f{task_id}\x1f{sample_index}")


def turn_seed(seed: int, turn: int) -> int:
    """64-bit seed of a sample's later actions; its first action has the sample's own."""
    return seed if turn == 0 else _digest(f"{seed}\x1f{turn}")


def episode_seed(run_seed: int, stream: str, step: int, task_id: str) -> int:
    """64-bit seed of the environment in all episodes of a task: a group's samples start from the same state."""
    return _digest(f"environment\x1f{run_seed}\x1f{stream}\x1f{step}\x1f{task_id}")


def uniforms(seeds: NDArray[np.uint64], count: int) -> NDArray[np.float64]:
    """Uniform numbers in [0, 1), `count` for each seed: SplitMix64 (https://doi.org/10.1145/2714064.2660195).

    Returns:
        (len(seeds), count); row i depends on seeds[i] only.
    """
    with np.errstate(over="ignore"):
        state = seeds[:, None] + _GAMMA * np.arange(1, count + 1, dtype=np.uint64)[None, :]
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")
