"""Lenient: the last number of the reply is the answer, as for worked solutions that end with their result."""

from __future__ import annotations

from typing import Any

from rlft.reward.extract import last_number as last
from rlft.reward.extract import number, same_number


def last_number(completion: str, answer: Any) -> float | None:
    """1 if the reply's last number equals the answer, else 0; abstains when the answer is not a number.

    Only one number counts, so a list of guesses is no better than its last; a number that is denied ("it is not 42"),
    one of several joined by "or", or the end of a range counts as none. What stays possible: a number that stands last
    by chance, as in "I give up after 42 steps". `rewards.exact_answer` leaves nothing to chance.
    """
    if number(str(answer)) is None:
        return None
    found = last(completion)
    return float(found is not None and same_number(found, str(answer)))
