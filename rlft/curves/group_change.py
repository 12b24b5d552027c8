"""Change of a mean over groups from one window of steps to another, with its interval: groups count alike."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TypeAlias

from rlft.curves.differences import paired, unpaired
from rlft.curves.statistics import bounds_of
from rlft.run.records import Interval

Groups: TypeAlias = Mapping[tuple[int, int, str], Sequence[float]]
"""Values of the samples of each group, by step, index and task."""


def interval_of_groups(before: Groups, after: Groups, *, is_paired: bool) -> Interval:
    """Change of the mean over groups with its 95 % interval: paired by task, or between groups of different tasks.

    A task that was asked several times is one cluster, of the means of its groups. Where tasks were asked differently
    often, the interval lies around the change of the mean over groups, and is wider by what that costs (Kish's design
    effect): a few tasks that are asked most decide more.

    Args:
        before: groups of the first window.
        after: groups of the second one.
        is_paired: whether both have the same tasks.
    """
    if not is_paired:
        return unpaired([*before.values()], [*after.values()])
    samples: list[dict[str, list[float]]] = [{}, {}]
    means: list[dict[str, list[float]]] = [{}, {}]
    for at, side in enumerate((before, after)):
        for (_, _, task), values in side.items():
            samples[at].setdefault(task, []).extend(values)
            means[at].setdefault(task, []).append(math.fsum(values) / len(values))
    bounds = bounds_of(*([*side.values()] for side in samples))
    found = paired(means[0], means[1], bounds=bounds).interval
    if all(len({len(each) for each in side.values()}) == 1 for side in means):
        return found
    change, wider = _mean(means[1]) - _mean(means[0]), math.sqrt(max(map(_design_effect, means)))
    below, above = wider * (found.mean - found.low), wider * (found.high - found.mean)
    return Interval(change, change - below, change + above, found.n)


def _mean(side: Mapping[str, Sequence[float]]) -> float:
    flat = [value for each in side.values() for value in each]
    return math.fsum(flat) / len(flat)


def _design_effect(side: Mapping[str, Sequence[float]]) -> float:
    counts = [len(each) for each in side.values()]
    return len(counts) * sum(count**2 for count in counts) / sum(counts) ** 2
