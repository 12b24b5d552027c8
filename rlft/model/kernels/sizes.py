"""Sizes of products on a CPU, rounded up so that few different ones occur.

oneDNN makes a kernel for every shape that it meets and keeps the last thousands of them. Packed rows have another
length in every step: unrounded, kernels took a tenth of an update and grew by 50 to 200 MB with each, up to 1.3 GB.
"""

from __future__ import annotations

TOKENS = 32
"""Step of the number of tokens in a row, and of rows that are projected to the vocabulary."""
SEQUENCES = 4
"""Step of the number of sequences in a block of attention, but for one that is alone."""
LENGTH = 8
"""Step of their length, and of that of their prompts."""


def rounded_up(size: int, step: int) -> int:
    """The next multiple."""
    return -(-size // step) * step


def slices(count: int, size: int) -> list[slice]:
    """0 to `count` in slices of at most `size`."""
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]
