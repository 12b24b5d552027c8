"""Where along an ordered list of policies a measured behaviour changes, when each look at one of them is noisy.

Every look says `before`, `after` or `unclear`, and its error rate is divided by the number of looks that there may be,
so that all of them together are wrong in at most 5 % of the searches. What is unclear is not guessed: then the answer
is the narrowest range whose two ends are clear.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, TypeAlias

from rlft.curves.statistics import interval_of_means
from rlft.run.records import Interval

ERROR_RATE = 0.05
"""Largest share of searches in which some look may be wrong."""

Side: TypeAlias = Literal["before", "after", "unclear"]
Values: TypeAlias = Mapping[str, Sequence[float]]
"""Values of a metric by task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """Which change is looked for."""

    kind: Literal["above", "below", "by", "halfway"]
    """The mean crosses a bound upwards or downwards; it has moved by so much since the first; or by half of the way."""
    bound: float = 0.0
    """Of `above` and `below` the bound, of `by` the distance."""

    @property
    def words(self) -> str:
        """What is asked, for people."""
        return {
            "above": f"rises above {self.bound:g}",
            "below": f"falls below {self.bound:g}",
            "by": f"has moved by {self.bound:g}",
            "halfway": "has moved half of the way from the first to the last",
        }[self.kind]


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """What one policy says."""

    side: Side
    margin: Interval
    """How far the mean is beyond what is asked; its bounds leave out 0 where the side is clear."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The end of a search: positions in the list."""

    last_before: int | None
    """The last that is clearly before; None where the ends do not differ clearly."""
    first_after: int | None
    """The first after it that is clearly after."""
    unclear: Sequence[int] = ()
    """Those between them that were looked at and cannot be told from noise."""
    reason: str = ""
    """Why there is none; empty where there is one."""


def looks_at_most(count: int, known: Collection[int] = ()) -> int:
    """How many policies a search among `count` may look at, of which those at `known` come first."""
    inner = sorted({index for index in known if 0 < index < count - 1})
    widest = max((b - a for a, b in pairwise([0, *inner, count - 1])), default=0)
    return min(count, 2 + 2 * (_halvings(len(inner) + 1) + _halvings(widest)))


def _halvings(count: int) -> int:
    """How often a range of so many places is halved until one is left."""
    return math.ceil(math.log2(max(1, count)))


def look(question: Question, values: Values, *, first: Values, last: Values, looks: int) -> Look:
    """On which side of the asked change a policy is.

    Args:
        values: of the policy. first, last: of the two ends, for what is asked in relation to them; tasks are paired.
        looks: how many there may be in the search, which share `ERROR_RATE`.
    """
    if question.kind == "by" and values is first:  # which has moved by nothing, whatever the noise
        distance = -question.bound
        return Look(side="before", margin=Interval(distance, distance, distance, len(values)))
    margins = _margins(question, values, first, last)
    everything = [value for side in (values, first, last) for each in side.values() for value in each]
    interval = _interval(question, margins, everything, 1 - ERROR_RATE / looks)
    side: Side = "unclear"
    if interval.bounded and (interval.low > 0 or interval.high < 0):
        side = "after" if interval.low > 0 else "before"
    return Look(side=side, margin=interval)


def search(count: int, look_at: Callable[[int], Look], known: Collection[int] = ()) -> Found:
    """Find where the side changes between the first and the last of `count` policies.

    A behaviour that came and went has several such places; this is one of them.

    Args:
        known: those whose values are there already: the range is halved at them before others are looked at.
    """
    seen: dict[int, Side] = {}

    def side(index: int) -> Side:
        if index not in seen:
            seen[index] = look_at(index).side
        return seen[index]

    def between(low: int, high: int) -> int:
        inner = sorted(index for index in known if low < index < high)
        return inner[len(inner) // 2] if inner else (low + high) // 2

    start, end = side(0), side(count - 1)
    if "unclear" in (start, end) or start == end:
        return Found(last_before=None, first_after=None, reason=_why_none(start, end))
    low, high = 0, count - 1
    while high - low > 1:  # the last that is clearly as the first
        middle = between(low, high)
        low, high = (middle, high) if side(middle) == start else (low, middle)
    below, high = high, min(index for index, found in seen.items() if found == end and index > low)
    while seen[below] != end and high - below > 1:  # the first behind it that is clearly as the last
        middle = between(below, high)
        below, high = (below, middle) if side(middle) == end else (middle, high)
    unclear = sorted(index for index, found in seen.items() if low < index < high and found == "unclear")
    return Found(last_before=low, first_after=high, unclear=unclear)


def _why_none(start: Side, end: Side) -> str:
    ends = {"the first policy": start, "the last policy": end}
    if unclear := [name for name, side in ends.items() if side == "unclear"]:
        return f"{' and '.join(unclear)} cannot be told from it: the interval of the distance holds 0, or there is none"
    return f"the first and the last policy are both {'beyond it' if start == 'after' else 'short of it'}"


def _margins(question: Question, values: Values, first: Values, last: Values) -> list[list[float]]:
    """By task, how far a policy is beyond what is asked."""
    if question.kind in ("above", "below"):
        sign = 1.0 if question.kind == "above" else -1.0
        return [[sign * (value - question.bound) for value in each] for each in values.values() if each]
    means = [{task: math.fsum(v) / len(v) for task, v in side.items() if v} for side in (values, first, last)]
    own, start, end = means
    paired = [task for task in own if task in start and task in end]
    if not paired:
        return []
    sign = 1.0 if math.fsum(end[task] - start[task] for task in paired) >= 0 else -1.0
    if question.kind == "by":
        return [[sign * (own[task] - start[task]) - question.bound] for task in paired]
    return [[sign * (own[task] - (start[task] + end[task]) / 2)] for task in paired]


def _interval(
    question: Question, margins: Sequence[Sequence[float]], values: Sequence[float], level: float
) -> Interval:
    """Interval of the mean margin; its bounds are nan where there is no honest one."""
    if not margins:
        return Interval(math.nan, math.nan, math.nan, 0)
    means = [math.fsum(each) / len(each) for each in margins]
    known = None
    if all(0 <= value <= 1 for value in values):  # a share, whose margin is bounded, too
        bound = question.bound
        known = {"above": (-bound, 1 - bound), "below": (bound - 1, bound), "by": (-1 - bound, 1 - bound)}.get(
            question.kind, (-1.0, 1.0)
        )
    return interval_of_means(means, level, known=known, seen=(min(means), max(means)))
