"""Which groups of rollouts a page in one file shows: those that tell something, and a stratified draw of the others."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, zip_longest
from typing import Any

from rlft.curves.samples import GroupKey

SAMPLES = 400
"""How many rollouts a page in one file shows at most."""
OF_GROUP = 8
"""How many of a group."""
_STRETCHES = 12
"""Into so many stretches of steps a run is cut to draw from each."""
_LAST_STEPS = 3
"""Best and worst are those of so many of the last stored steps."""
_ENDS = 3
"""Best, worst and latest failed groups that are always there."""
_TASKS, _TIMES = 3, 6
"""So many tasks are shown at so many steps, where tasks come again."""


@dataclass(slots=True)
class Chosen:
    """Groups to show, and why each."""

    keys: dict[GroupKey, list[str]] = field(default_factory=dict)
    """Reasons by group, in the order in which they were chosen."""
    samples: int = 0
    """How many rollouts that are."""

    def add(self, groups: Groups, at: int, why: str, limit: int) -> None:
        """Add a group, or a further reason, where there is room."""
        key = groups.key(at)
        if key in self.keys:
            if why and why not in self.keys[key]:
                self.keys[key].append(why)
        elif self.samples + (count := min(OF_GROUP, int(groups.size[at]))) <= limit:
            self.keys[key] = [why] if why else []
            self.samples += count


@dataclass(frozen=True, slots=True)
class Groups:
    """Arrays with a value for each group, by step and index."""

    step: Any
    index: Any
    task: Any
    size: Any
    """Rollouts."""
    best: Any
    """Highest reward; -inf without one."""
    worst: Any
    """Lowest reward; inf without one."""
    failed: Any
    """Rollouts that could not be scored."""

    def key(self, at: int) -> GroupKey:
        return int(self.step[at]), int(self.index[at])


def choose(light: Any, marked: Collection[tuple[int, str, str]] = (), limit: int = SAMPLES) -> Chosen:
    """The groups of a table with `samples.LIGHT` columns that are worth reading, at most `limit` rollouts.

    First come what an alarm shows, the best, the worst and the failed groups of the last steps, and some tasks through
    time; then a draw in turn from each stretch of the run and each kind of group (all alike, different, failed), every
    time the same.

    Args:
        light: the rollouts.
        marked: (step, task, why) of samples that are to be there.
        limit: how many rollouts.
    """
    import numpy as np

    if not len(light):
        return Chosen()
    groups = groups_of(light)
    chosen = Chosen()
    at_task = {(int(step), str(task)): at for at, (step, task) in enumerate(zip(groups.step, groups.task, strict=True))}
    for step, task, why in marked:
        if (step, task) in at_task:
            chosen.add(groups, at_task[step, task], why, limit // 2)
    for why, order in _ends(groups):
        for at in order:
            chosen.add(groups, at, why, limit // 2)
    for at in _through_time(groups):
        chosen.add(groups, at, "same task through time", limit * 3 // 4)
    generator = np.random.default_rng(0)
    for at in _in_turn(_strata(groups), generator):
        chosen.add(groups, at, "", limit)
        if chosen.samples >= limit:
            break
    return chosen


def groups_of(light: Any) -> Groups:
    """The groups of a table with `samples.LIGHT` columns."""
    import numpy as np
    import pyarrow.compute as pc

    step, index = (light[name].to_numpy().astype(np.int64) for name in ("step", "group_index"))
    keys = step * (index.max() + 1) + index
    _, first, group, size = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    group = group.reshape(-1)
    reward = light["reward"].to_numpy().astype(np.float64)
    scored = np.isfinite(reward)
    best, worst = np.full(len(size), -np.inf), np.full(len(size), np.inf)
    np.maximum.at(best, group[scored], reward[scored])
    np.minimum.at(worst, group[scored], reward[scored])
    failed = np.zeros(len(size), np.int64)
    np.add.at(failed, group[pc.equal(light["outcome"], "failed").to_numpy()], 1)
    task = np.asarray(light["task_id"].take(first).to_pylist(), dtype=object)
    return Groups(step[first], index[first], task, size, best, worst, failed)


def _ends(groups: Groups) -> Iterator[tuple[str, Sequence[int]]]:
    """Best, worst and failed, each with a reason, each of other tasks."""
    import numpy as np

    steps = np.unique(groups.step)[-_LAST_STEPS:]
    last = np.flatnonzero(groups.step >= steps[0])
    scored = last[np.isfinite(groups.best[last])]
    best = scored[np.argsort(-groups.best[scored], kind="stable")]
    worst = scored[np.argsort(groups.worst[scored], kind="stable")]
    yield "best of the last steps", _other_tasks(groups, best)
    yield "worst of the last steps", _other_tasks(groups, worst)
    yield "failed", _other_tasks(groups, np.flatnonzero(groups.failed > 0)[::-1])


def _other_tasks(groups: Groups, order: Iterable[int]) -> list[int]:
    found: dict[str, int] = {}
    for at in order:
        found.setdefault(groups.task[at], int(at))
        if len(found) == _ENDS:
            break
    return list(found.values())


def _through_time(groups: Groups) -> list[int]:
    """Groups of the tasks that come at most steps, spread over them."""
    at_steps: dict[str, dict[int, int]] = {}
    for at, (task, step) in enumerate(zip(groups.task, groups.step, strict=True)):
        at_steps.setdefault(task, {}).setdefault(int(step), at)
    often = sorted((each for each in at_steps.values() if len(each) > 1), key=lambda each: -len(each))[:_TASKS]
    found = []
    for each in often:
        ats = list(each.values())
        count = min(_TIMES, len(ats))
        found += [ats[round(i * (len(ats) - 1) / (count - 1))] for i in range(count)]
    return found


def _strata(groups: Groups) -> list[Any]:
    """Groups of each stretch of steps and each kind."""
    import numpy as np

    steps = np.unique(groups.step)
    kinds = np.where(groups.failed > 0, 2, np.where(groups.best > groups.worst, 1, 0))
    found = []
    for stretch in np.array_split(steps, min(_STRETCHES, len(steps))):
        within = (groups.step >= stretch[0]) & (groups.step <= stretch[-1])
        found += [np.flatnonzero(within & (kinds == kind)) for kind in (1, 0, 2)]
    return [each for each in found if len(each)]


def _in_turn(strata: Sequence[Any], generator: Any) -> Iterator[int]:
    drawn = [generator.permutation(each) for each in strata]
    for at in chain.from_iterable(zip_longest(*drawn)):
        if at is not None:
            yield int(at)
