"""Training curves compared: where they end, what lies under them, when they reach a level, and where they part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeAlias

from rlft.curves.seeds import SeedDifference, seed_difference
from rlft.curves.statistics import t_interval
from rlft.run.records import Interval

Course: TypeAlias = Sequence[tuple[int, float]]
"""(step, mean reward of the step), by ascending step."""

BINS, STEPS_PER_BIN = 20, 6
"""Most stretches that curves are cut into to see where they part, and fewest steps of each."""
GAINED = 0.8
"""Share of the first group's gain that makes the level whose reaching is timed, unless one is given."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reached:
    """When each run reaches a reward and stays there on average over a window."""

    threshold: float
    """The reward."""
    before: Sequence[int | None]
    """First step of each run of the first group; None where it never does."""
    after: Sequence[int | None]
    """Likewise of the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Courses:
    """Two groups of training curves."""

    width: int
    """Steps that the final window averages."""
    before: Sequence[tuple[float, float]]
    """(mean of the final window, mean over all steps) of each run of the first group."""
    after: Sequence[tuple[float, float]]
    """Likewise of the second."""
    final: SeedDifference
    """Difference of the final windows over seeds."""
    area: SeedDifference
    """Difference of the means over all steps, which is the area under the curve by step."""
    reached: Reached | None
    """None where the first group gained nothing and no level was given."""
    parted: int | None
    """First step from which on, to the end, the curves stay apart; None where they do not."""
    can_part: str
    """Why it cannot be said where they part; empty where it can."""


def compare_courses(
    before: Sequence[Course], after: Sequence[Course], *, threshold: float | None = None, level: float = 0.95
) -> Courses | None:
    """Compare training curves over the steps that all of them have; None without common steps.

    The curves are parted from the first stretch of steps on after which every stretch to the end, at least two of
    them, has a difference whose interval excludes 0 on the same side: over seeds, or with one run on each side over the
    steps of the stretch, paired. As the last stretch is one of them, equal curves part at most as often as the level
    says.
    """
    common = sorted(set.intersection(*({step for step, _ in course} for course in (*before, *after))))
    if not common:
        return None
    sides = [[[dict(course)[step] for step in common] for course in side] for side in (before, after)]
    width = max(1, min(20, len(common) // 10))
    numbers = [[(_mean(values[-width:]), _mean(values)) for values in side] for side in sides]
    final, area = (
        seed_difference([run[index] for run in numbers[0]], [run[index] for run in numbers[1]], level)
        for index in (0, 1)
    )
    parted, why_not = _parted(common, sides[0], sides[1], level)
    return Courses(
        width=width,
        before=numbers[0],
        after=numbers[1],
        final=final,
        area=area,
        reached=_reached(common, sides[0], sides[1], width, threshold),
        parted=parted,
        can_part=why_not,
    )


def first_at(steps: Sequence[int], values: Sequence[float], threshold: float, width: int) -> int | None:
    """First step at which the mean of the last `width` steps is at least the threshold; None if it never is."""
    for index in range(width - 1, len(values)):
        if _mean(values[index - width + 1 : index + 1]) >= threshold:
            return steps[index]
    return None


def _reached(
    steps: Sequence[int],
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    width: int,
    threshold: float | None,
) -> Reached | None:
    if threshold is None:
        start = _mean([_mean(values[:width]) for values in before])
        gained = _mean([_mean(values[-width:]) for values in before]) - start
        if gained <= 0:
            return None
        threshold = start + GAINED * gained
    found = [[first_at(steps, values, threshold, width) for values in side] for side in (before, after)]
    return Reached(threshold=threshold, before=found[0], after=found[1])


def _parted(
    steps: Sequence[int], before: Sequence[Sequence[float]], after: Sequence[Sequence[float]], level: float
) -> tuple[int | None, str]:
    stretches = min(BINS, len(steps) // STEPS_PER_BIN)
    if stretches < 2:
        return None, f"{len(steps)} common steps are too few; {2 * STEPS_PER_BIN} are needed"
    edges = [round(index * len(steps) / stretches) for index in range(stretches + 1)]
    parted, side = None, 0
    count = 0
    for low, high in reversed(list(pairwise(edges))):
        if len(before) == len(after) == 1:
            apart = [b - a for a, b in zip(before[0][low:high], after[0][low:high], strict=True)]
            interval = t_interval(apart, level)
            if len(set(apart)) == 1:  # steps that are all as far apart leave no doubt about the side
                interval = Interval(apart[0], apart[0], apart[0], len(apart))
        else:
            means = [[_mean(values[low:high]) for values in group] for group in (before, after)]
            interval = seed_difference(means[0], means[1], level).interval
        sign = (interval.low > 0) - (interval.high < 0)
        if not sign or (side and sign != side):
            break
        parted, side, count = steps[low], sign, count + 1
    return (parted if count >= 2 else None), ""


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
