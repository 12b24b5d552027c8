"""Repetition: a penalty for saying the same again, by the share of word groups that are not new."""

from __future__ import annotations

import re

_PIECE = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w{1,12}|[^\w\s]")


def repetition(completion: str, n: int = 3, most: float = 1.0, free: float = 0.1) -> float:
    """0 if no more than a share `free` of the groups of `n` words occurred before, down to `-most` if all did.

    The n-gram penalty of https://arxiv.org/abs/2502.03373. Words are compared without case; a word counts as one for
    each 12 characters, and so does each Chinese or Japanese character, so that repetition without spaces is seen, too.

    It is a penalty: a reply of fewer than `n` words has none, so it stands beside a reward for the content. Saying the
    same in other words goes unseen. `free` leaves room for what has to recur, as names and formulas do.

    Raises:
        ValueError: `n` is below 1, or `free` not from 0 to below 1.
    """
    if n < 1 or not 0 <= free < 1:
        raise ValueError(f"n must be at least 1 and free from 0 to below 1, got n={n}, free={free}")
    words = _PIECE.findall(completion.casefold())
    groups = list(zip(*(words[i:] for i in range(n)), strict=False))
    if not groups:
        return 0.0
    again = 1 - len(set(groups)) / len(groups)
    return -most * max(0.0, again - free) / (1 - free)
