"""Differences between two sets of values: paired by task, or between different tasks.

A difference is conclusive where its interval excludes 0. How often that happens when there is none is simulated by
`make intervals`: at most as often as the level says.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlft.curves.statistics import (
    BEYOND,
    Bounds,
    Clusters,
    bounds_of,
    check_level,
    clusters_of,
    how_skewed,
    interval_of_means,
    uncut_interval,
    welch_half_width,
    why_none,
)
from rlft.run.records import Interval


@dataclass(frozen=True, slots=True)
class Difference:
    """How much the mean per task changed between two evaluations of the same tasks."""

    interval: Interval
    """Mean of (after - before) over the tasks that both have; n counts those tasks."""
    changed: int
    """Tasks whose mean is not the same before and after."""
    level: float
    """How often the interval holds the true difference."""
    why_none: str = ""
    """Why there is no interval, in words; empty where there is one."""
    how_skewed: str = ""
    """Why the interval is a wide one, in words; empty where it is not."""
    uncut: tuple[float, float] = (math.nan, math.nan)
    """Bounds of the interval before they were cut to what differences can be, as what is computed from its width needs
    them; nan where there is no interval."""

    @property
    def conclusive(self) -> bool:
        """Whether the interval excludes 0."""
        return self.interval.low > 0 or self.interval.high < 0


def paired(
    before: Mapping[str, Sequence[float]],
    after: Mapping[str, Sequence[float]],
    level: float = 0.95,
    *,
    bounds: Bounds | None = None,
) -> Difference:
    """Change of the mean per task between two evaluations, over the tasks that both scored.

    Pairing removes the difficulty of the tasks from the noise, which is most of it. The interval is that of
    `statistics.mean_interval` over the differences of the tasks, whose bounds are -1 and 1 for shares: six tasks of 0/1
    values that all changed for the better are the fewest that are conclusive at 95 %, as in the exact test that flips
    signs. For other values the smallest and the largest difference seen stand in for the bounds; the interval is a wide
    one where `statistics.how_skewed` says why, and there is none where `statistics.why_none` does.

    Args:
        before: values of each task.
        after: the same after the change.
        level: how often the interval is to hold the true change.
        bounds: the lowest and the highest value that there can be, where they are known.

    Raises:
        ValueError: a value is not finite, or the level is not within (0, 1).
    """
    check_level(level)
    common = [task for task, values in before.items() if values and after.get(task)]
    sides = [clusters_of([side[task] for task in common]) for side in (before, after)]
    # math.fsum rounds once, so equal samples in another order give a difference of exactly 0.
    first, last = ([math.fsum(values) / len(values) for values in side] for side in sides)
    differences = [b - a for a, b in zip(first, last, strict=True)]
    of_values = bounds or bounds_of(*sides)
    known = None if of_values is None else (of_values[0] - of_values[1], of_values[1] - of_values[0])
    seen = (min(differences, default=0.0), max(differences, default=0.0))
    interval = interval_of_means(differences, level, known=known, seen=seen)
    reason = ""
    if len(common) < 2:
        reason = "one task has no interval" if common else "no task was scored on both sides"
    elif known is None:
        reason = why_none(differences)
    skewed = how_skewed(differences) if known is None and not reason else ""
    changed = sum(difference != 0 for difference in differences)
    uncut = uncut_interval(differences, level, known=known, seen=seen)
    return Difference(interval, changed, level, reason, skewed, uncut)


def unpaired(before: Clusters, after: Clusters, level: float = 0.95, *, bounds: Bounds | None = None) -> Interval:
    """Change of the mean per task between samples of different tasks, with Welch's t interval over the task means.

    Each side counts one task more at each end of what it can be, as `statistics.mean_interval` does (Agresti and
    Caffo, https://doi.org/10.1080/00031305.2000.10474560).

    Returns:
        The change with its interval; n is the number of tasks of the smaller side. Bounds are nan where a side
        has fewer than two tasks, or values without bounds and no honest interval.

    Raises:
        ValueError: as `paired`.
    """
    check_level(level)
    sides = [clusters_of(before), clusters_of(after)]
    means = [[math.fsum(values) / len(values) for values in side] for side in sides]
    n = min(len(side) for side in means)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan, 0)
    change = math.fsum(means[1]) / len(means[1]) - math.fsum(means[0]) / len(means[0])
    flat = [value for side in sides for values in side for value in values]
    known = bounds or bounds_of(*sides)
    if n == 1 or (known is None and any(why_none(side) for side in means)):
        return Interval(change, math.nan, math.nan, n)
    seen, width = (min(flat), max(flat)), max(flat) - min(flat)
    if any(how_skewed(side) for side in means):
        seen = (seen[0] - BEYOND * width, seen[1] + BEYOND * width)
    full = [[*side, *(known or seen)] for side in means]
    half = welch_half_width(full, level)
    center = math.fsum(full[1]) / len(full[1]) - math.fsum(full[0]) / len(full[0])
    limit = math.inf if known is None else known[1] - known[0]
    return Interval(change, max(center - half, -limit), min(center + half, limit), n)
