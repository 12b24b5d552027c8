"""Countdown: the reply's expression is computed, and may use each number once."""

from __future__ import annotations

from collections import Counter

from rlft.common.arithmetic import evaluate
from rlft.reward.extract import tagged


def countdown(completion: str, numbers: list[int], target: int) -> dict[str, float]:
    """1 for an expression in the only `<answer>` tags that makes the target; 0.1 for another that keeps the rules.

    The rules: numbers, + - * /, brackets, and no number more often than it was given. The target itself is no way
    around them, and tags that hold different expressions earn nothing.
    """
    try:
        value, used = evaluate(tagged(completion) or "")
    except ValueError:
        return {"right": 0.0, "legal": 0.0}
    is_legal = bool(used) and Counter(used) <= Counter(numbers)
    is_right = is_legal and value == target
    return {"right": 0.9 * is_right, "legal": 0.1 * is_legal}
