"""Differences between two ways of training, each run with several seeds and measured on the same held-out tasks.

Two things could have come out otherwise: the seeds that were run and the tasks that were asked. A difference that
would be there with other seeds and other tasks has to stand out from both, so the interval holds both spreads
(two-way clustering, https://doi.org/10.1198/jbes.2010.07136). Over seeds it is Student's t, which keeps its level with
two or three runs, where a percentile bootstrap does not; and because so few values cannot show that they are normal,
an exact permutation test has to agree.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from math import comb
from typing import TYPE_CHECKING, Any

from rlft.curves.differences import Difference, paired
from rlft.run.records import Interval

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

MAX_EXACT = 200_000
"""Most ways of dealing out the seeds that are all tried; beyond, so many are drawn with a fixed seed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SeedDifference:
    """How much the score of a run changes from one group of seeds to another, on tasks that stay the same."""

    interval: Interval
    """Difference of the groups' means with Welch's t interval; n is the number of runs of the smaller group."""
    error: float
    """Standard error of the difference; nan with one run on each side."""
    freedom: float
    """Degrees of freedom of the interval."""
    p: float
    """Two-sided p-value of the permutation test."""
    least_p: float
    """The smallest p-value that so few runs can give."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupDifference:
    """The change between two groups of runs, over seeds, over tasks, and over both."""

    seeds: SeedDifference
    """Over seeds, for these tasks."""
    tasks: Difference
    """Over tasks, for these runs: paired by task, each task's mean over the seeds."""
    interval: Interval
    """Over seeds and tasks; n counts the tasks."""
    p: float
    """The larger one of the p-value of this interval and of the permutation test over seeds."""
    conclusive: bool
    """Whether the interval excludes 0 and the permutation test agrees."""
    seed_variance: float
    """Variance of a run's score from seed to seed, its own sampling noise taken off."""
    noise_variance: float
    """Variance of a run's score that comes from its own samples and from what a seed does to single tasks."""
    task_variance: float
    """Variance over tasks of the effect of the change, noise taken off."""


def least_p(before: int, after: int) -> float:
    """The smallest two-sided p-value that a permutation test can give for two groups of runs: 0.1 for 3 and 3."""
    return min(1.0, 2 / comb(before + after, after))


def seeds_needed(level: float = 0.95) -> int:
    """Fewest runs of each of two groups whose permutation test can be significant: 4 at 95 %."""
    return next(n for n in range(2, 100) if least_p(n, n) <= 1 - level)


def permutation_p(before: Sequence[float], after: Sequence[float]) -> float:
    """Two-sided p-value of the difference of means, over all ways of dealing the values out to the two groups.

    Twice the smaller tail, so that groups of different sizes are treated alike on both sides. Above `MAX_EXACT` ways,
    so many are drawn, the given one among them, from a fixed seed.
    """
    import numpy as np

    values = np.array([*before, *after], dtype=np.float64)
    values -= values.mean()
    # Values whose sums are equal must count as equal, whatever the order of adding them rounded.
    slack = 1e-12 * (np.abs(values).max() or 1.0) * len(values)
    if comb(len(values), len(after)) <= MAX_EXACT:
        sums = values[_choices(len(values), len(after))].sum(axis=1)
    else:
        rng = np.random.default_rng(0)
        draws = rng.permuted(np.tile(values, (20_000, 1)), axis=1)[:, : len(after)].sum(axis=1)
        sums = np.append(draws, values[len(before) :].sum())
    seen = values[len(before) :].sum()
    tails = (sums >= seen - slack).mean(), (sums <= seen + slack).mean()
    return float(min(1.0, 2 * min(tails)))


def seed_difference(before: Sequence[float], after: Sequence[float], level: float = 0.95) -> SeedDifference:
    """Difference of two groups of runs, each run being one number, with Welch's t interval and a permutation test.

    Where one side is a single run, its spread is taken to be that of the other side. Bounds are nan with one run on
    each side.
    """
    from scipy.special import stdtrit

    change = math.fsum(after) / len(after) - math.fsum(before) / len(before)
    n, m = len(before), len(after)
    known = [(_variance(side), len(side)) for side in (before, after) if len(side) > 1]
    test = {"p": permutation_p(before, after), "least_p": least_p(n, m)}
    if not known:
        bare = Interval(change, math.nan, math.nan, 1)
        return SeedDifference(interval=bare, error=math.nan, freedom=math.nan, **test)
    if len(known) == 1:
        variance, count = known[0]
        squared, freedom = variance * (1 / n + 1 / m), count - 1.0
    else:
        shares = [variance / count for variance, count in known]
        squared = sum(shares)
        below = sum(share**2 / (count - 1) for share, (_, count) in zip(shares, known, strict=True))
        freedom = squared**2 / below if below > 0 else float(n + m - 2)
    error = math.sqrt(squared)
    half = float(stdtrit(freedom, 0.5 + level / 2)) * error
    interval = Interval(change, change - half, change + half, min(n, m))
    return SeedDifference(interval=interval, error=error, freedom=freedom, **test)


def group_difference(
    before: Sequence[Mapping[str, Sequence[float]]], after: Sequence[Mapping[str, Sequence[float]]], level: float = 0.95
) -> GroupDifference:
    """Change between two groups of runs, at least one of which has two, over the tasks that all runs scored.

    Args:
        before: values by task of each run of the first group.
        after: likewise of the second.
        level: how often the interval holds the true difference.

    Raises:
        ValueError: there is one run on each side, which is a matter for `differences.paired`, or no common task.
    """
    import numpy as np
    from scipy.special import stdtr, stdtrit

    if len(before) < 2 and len(after) < 2:
        raise ValueError("one run on each side says nothing about seeds; pair them by task with differences.paired")
    common = [t for t in before[0] if all(run.get(t) for run in (*before, *after))]
    if not common:
        raise ValueError("no task was scored by all of the runs that are compared")
    # [runs, tasks]: mean of each run's samples
    first, last = (np.array([[math.fsum(run[t]) / len(run[t]) for t in common] for run in s]) for s in (before, after))
    seeds = seed_difference(list(first.mean(axis=1)), list(last.mean(axis=1)), level)
    columns = [{t: list(side[:, i]) for i, t in enumerate(common)} for side in (first, last)]
    tasks = paired(columns[0], columns[1], level)
    count = len(common)
    noise = _noise(first, last)
    residual = noise * (1 / len(first) + 1 / len(last)) / count
    by_tasks = _squared_error(tasks, level)
    of_tasks = max(0.0, by_tasks - residual) if math.isfinite(by_tasks) else math.inf
    whole = seeds.error**2 + of_tasks
    change = seeds.interval.mean
    interval, p = Interval(change, math.nan, math.nan, count), 1.0
    if whole == 0:
        interval = Interval(change, change, change, count)
    elif math.isfinite(whole):
        freedom = whole**2 / (seeds.error**4 / seeds.freedom + of_tasks**2 / max(1, count - 1))
        half = float(stdtrit(freedom, 0.5 + level / 2)) * math.sqrt(whole)
        interval = Interval(change, change - half, change + half, count)
        p = max(2 * float(stdtr(freedom, -abs(change) / math.sqrt(whole))), seeds.p)
    of_change = float((last.mean(axis=0) - first.mean(axis=0)).var(ddof=1)) if count > 1 else math.nan
    return GroupDifference(
        seeds=seeds,
        tasks=tasks,
        interval=interval,
        p=p,
        conclusive=p < 1 - level,
        seed_variance=max(0.0, seeds.error**2 / (1 / len(first) + 1 / len(last)) - noise / count),
        noise_variance=noise / count,
        task_variance=max(0.0, of_change - residual * count),
    )


def paired_p(difference: Difference) -> float:
    """The p-value that belongs to the interval of `differences.paired`: 1 minus the level at which it would reach 0."""
    from scipy.special import stdtr

    squared = _squared_error(difference, difference.level)
    if not math.isfinite(squared) or squared == 0:
        return 1.0
    center = sum(difference.uncut) / 2
    return 2 * float(stdtr(difference.interval.n + 1, -abs(center) / math.sqrt(squared)))


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values of several questions adjusted so that a single false answer among them stays as rare as the level says
    (Holm, https://www.jstor.org/stable/4615733)."""
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _squared_error(difference: Difference, level: float) -> float:
    """Squared standard error behind a paired interval; infinite where there is none."""
    from scipy.special import stdtrit

    low, high = difference.uncut
    if not math.isfinite(high - low):
        return math.inf
    return ((high - low) / 2 / float(stdtrit(difference.interval.n + 1, 0.5 + level / 2))) ** 2


def _noise(first: Floats, last: Floats) -> float:
    """Variance of a run's value on a task beyond what task and run have in common with the others, over both groups."""
    squares, freedom = 0.0, 0
    for side in (first, last):
        if len(side) > 1 and side.shape[1] > 1:
            rest = side - side.mean(axis=1, keepdims=True) - side.mean(axis=0, keepdims=True) + side.mean()
            squares += float((rest**2).sum())
            freedom += (side.shape[0] - 1) * (side.shape[1] - 1)
    return squares / freedom if freedom else 0.0


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


@lru_cache(maxsize=8)
def _choices(total: int, chosen: int) -> Any:
    """[ways, chosen] indices of all ways to choose; kept, because groups of the same sizes are compared many times."""
    import numpy as np

    return np.array(list(combinations(range(total), chosen)), dtype=np.int64)
