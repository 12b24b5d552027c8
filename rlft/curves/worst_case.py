"""What samples without a score can change at most: one rule for the report of a run and for a comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlft.curves.statistics import Bounds


@dataclass(frozen=True, slots=True)
class Scores:
    """What one evaluation scored, and how much of it failed."""

    by_task: Mapping[str, Sequence[float]]
    """Scored samples of each task; empty where all of them failed, or the reward did not apply to the task."""
    failed: int
    """Samples that have no score because a reward failed."""

    @property
    def per_task(self) -> int:
        """Samples of a task."""
        return max(map(len, self.by_task.values()), default=0)


def ends(several: Sequence[Scores]) -> Bounds:
    """The worst and the best that a missing sample could be: 0 and 1 where all values lie within, else those seen."""
    flat = [value for each in several for values in each.by_task.values() for value in values] or [0.0]
    return (0.0, 1.0) if 0 <= min(flat) <= max(flat) <= 1 else (min(flat), max(flat))


def filled(several: Sequence[Scores], fills: Sequence[float]) -> list[dict[str, list[float]]]:
    """The values of the tasks that all evaluations had, with a value in place of every missing sample.

    A task that none of them scored failed in all, or does not apply and is nobody's loss. A file tells only how many
    samples failed, so as many such tasks count as these can have been, and the others are left out.

    Args:
        several: the evaluations.
        fills: what a missing sample of each counts as.
    """
    tasks = [task for task in several[0].by_task if all(task in each.by_task for each in several)]
    unscored = [task for task in tasks if not any(each.by_task[task] for each in several)]
    most = max(each.per_task for each in several) or 1
    gone = max(math.ceil(each.failed / (each.per_task or most)) for each in several)
    left_out = {*unscored[gone:]}
    return [
        {
            task: [*each.by_task[task], *[fill] * ((each.per_task or most) - len(each.by_task[task]))]
            for task in tasks
            if task not in left_out
        }
        for each, fill in zip(several, fills, strict=True)
    ]
