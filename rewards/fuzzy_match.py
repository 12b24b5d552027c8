"""Fuzzy match: how much of the answer the reply spells as it should, from 0 to 1."""

from __future__ import annotations

from typing import Any

from rlft.reward.extract import conclusion

LONGEST = 500
"""Characters that are compared at the most: it takes the product of both lengths."""


def fuzzy_match(completion: str, answer: Any, least: float = 0.6) -> float | None:
    """1 minus the share of characters that have to be changed, added or removed; 0 below `least`; abstains without one.

    Of a list of answers the nearest counts. Case and runs of white space do not. Every character besides the answer's
    costs as much as a wrong one, so padding and lists of answers fall below `least`. An answer of one or two characters
    is too short for it, and a wrong one may be near: `1984` and `1985` are alike to three quarters. Use it for names
    and sentences.
    """
    answers = [each for each in (answer if isinstance(answer, list | tuple) else [answer]) if each not in (None, "")]
    if not answers:
        return None
    said = " ".join(conclusion(completion[: 20 * LONGEST]).casefold().split())
    best = max(_likeness(said, " ".join(str(each).casefold().split())[:LONGEST]) for each in answers)
    return best if best >= least else 0.0


def _likeness(said: str, answer: str) -> float:
    longest = max(len(said), len(answer), 1)
    if len(said) > 2 * len(answer) + 10:
        return 0.0
    row = list(range(len(answer) + 1))
    for i, letter in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, wanted in enumerate(answer, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (letter != wanted))
    return 1 - row[-1] / longest
