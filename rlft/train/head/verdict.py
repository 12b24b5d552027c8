"""Whether a head is better than the bag of words: paired by text, in a sentence."""

from __future__ import annotations

from typing import Literal

import numpy as np

from rlft.curves.differences import Difference, paired
from rlft.curves.text import number
from rlft.train.head.config import Task
from rlft.train.head.measure import by_text

Kind = Literal["better", "worse", "cannot_tell"]
_WORDS = {
    "classification": "the share of texts that get the right label is {} {}",
    "multilabel": "the share of labels that are decided rightly is {} {}",
    "regression": "the mean squared error is {} {}",
}


def difference(task: Task, baseline: np.ndarray, head: np.ndarray, targets: np.ndarray) -> Difference:
    """How much better the head is, over held-out texts: positive is better, also where the measure is an error."""
    sign = -1.0 if task == "regression" else 1.0
    sides = [
        {str(row): [sign * float(value)] for row, value in enumerate(by_text(task, values, targets))}
        for values in (baseline, head)
    ]
    return paired(sides[0], sides[1], bounds=None if task == "regression" else (0.0, 1.0))


def verdict(task: Task, change: Difference) -> tuple[Kind, str]:
    """(what it is, the same in a sentence with the numbers)."""
    found, is_error = change.interval, task == "regression"
    if not found.bounded:
        return "cannot_tell", f"Whether the head beats the bag of words cannot be told: {change.why_none}."
    bounds = sorted((abs(found.low), abs(found.high)))
    among = f"on {found.n} held-out texts, paired"
    if change.conclusive:
        is_better = found.low > 0
        direction = "higher" if is_better != is_error else "lower"
        show = number if is_error else "{:.3f}".format
        size = f"by {show(abs(found.mean))} (95 % interval {show(bounds[0])} to {show(bounds[1])}, {among})"
        says = _WORDS[task].format(direction, size)
        if is_better:
            return "better", f"The head beats the bag of words: {says}."
        return "worse", f"The head does NOT beat the bag of words, it is worse: {says}. Use the bag of words."
    sign = -1 if is_error else 1
    low, high = sorted((sign * found.low, sign * found.high))
    says = _WORDS[task].format("changed by", f"{sign * found.mean:+.3g} (95 % interval {low:+.3g} to {high:+.3g}")
    return "cannot_tell", (
        f"The head does NOT beat the bag of words, as far as can be told: {says}, {among}). More held-out texts tell "
        "more; more training texts, other trunk_layers or an adapter may help."
    )
