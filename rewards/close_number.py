"""Numeric closeness: the number that the reply states lies within a tolerance of the answer."""

from __future__ import annotations

from typing import Any

from rlft.reward.extract import last_number, number, same_number, stated_answer


def close_number(completion: str, answer: Any, relative: float = 0.01, absolute: float = 0.0) -> float | None:
    """1 if the stated number is at most `absolute` or `relative` times the answer away from it, else 0.

    Abstains when the answer is no number. Of a reply that states nothing ("Answer: ...", a box, tags) the last number
    counts, as in `rewards.last_number`.

    One number is read, so a list of guesses is worth its last. What can be cheated is the tolerance: where answers lie
    close together, the middle of them is right for all. Keep it below the distance of the answers; for an answer of 0
    only `absolute` helps.
    """
    expected = number(str(answer))
    if expected is None:
        return None
    said = stated_answer(completion)
    marked = "\\boxed" in completion or "<answer>" in completion
    found = last_number(said if said is not None else "" if marked else completion)
    value = None if found is None else number(found)
    if found is None or value is None:
        return 0.0
    return float(same_number(found, str(answer)) or abs(value - expected) <= max(absolute, relative * abs(expected)))
