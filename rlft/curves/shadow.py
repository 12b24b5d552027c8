"""Shadow rewards: what one wants and does not train on, and whether it moves with the reward that is trained on.

Two rewards may have different scales, so their values are not subtracted as they are: how far each has moved since
training began is counted in its own standard deviations, and the gap is the difference of the two. It does not change
when a reward is multiplied by a number.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rlft.curves import reading
from rlft.curves.contents import merged
from rlft.curves.differences import Difference, paired, unpaired
from rlft.curves.statistics import Bounds, bounds_of
from rlft.curves.text import counted, interval_text
from rlft.run.records import Evaluation, Interval
from rlft.types import RewardSpec

Pairs: TypeAlias = Mapping[str, Sequence[tuple[float, float]]]
"""(trained reward, shadow reward) of each sample that has both, by task."""

CERTAIN = 0.999
"""Level at which training speaks against a run: it is looked at beside the held-out samples, and its tasks differ."""

_Values: TypeAlias = Mapping[str, Sequence[float]]

COLUMNS = ("task_id", "outcome", "reward", "parts")
"""Columns of stored samples that `pairs` needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moved:
    """How far the trained reward and a shadow reward moved between two evaluations, paired by task."""

    trained: Difference
    """Change of the weighted sum that is trained on, in its own units."""
    shadow: Difference
    """Change of the shadow reward, in its own units."""
    gap: Difference
    """By how many standard deviations more the trained reward rose than the shadow."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """How far the trained reward and a shadow reward moved between the first and the last steps of training."""

    trained: Interval
    """Change of the trained reward, in its own units."""
    shadow: Interval
    """Change of the shadow reward, in its own units."""
    gap: Interval
    """By how many standard deviations more the trained reward rose than the shadow."""
    steps: int
    """How many steps stand at each end."""
    is_hacked: bool
    """Whether the trained reward rose and the shadow fell at `CERTAIN`, too, and not only at the 95 % of the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shadow:
    """What a run says about one of its shadow rewards."""

    name: str
    """Label of the reward."""
    start: str
    """The policy that training began from and that evaluations are compared with: `base` or `SFT`; empty if there is
    nothing to compare."""
    moved: Sequence[tuple[Evaluation, Moved]]
    """Each evaluation of a trained policy whose samples are stored, in order."""
    training: Drift | None
    """Between the first and the last steps; None where they are too few, or their samples are not stored."""

    @property
    def sentence(self) -> str:
        """What the last evaluation says, in plain words; training, where no held-out samples tell."""
        if self.moved:
            return told(self.name, self.moved[-1][1])
        nothing = "no samples of an evaluation before and of one after are stored, nor of enough steps of training"
        return self.in_training or f"Cannot tell: {nothing}."

    @property
    def in_training(self) -> str:
        """What the first and the last steps of training say; empty where there is nothing to compare."""
        if self.training is None or not self.training.gap.n:
            return ""
        said = _in_words(self.name, self.training.trained, self.training.shadow, self.training.gap)
        ends = counted(self.training.steps, "step")
        return f"Between the first and the last {ends} of training: {said[0].lower()}{said[1:]}"


def shadow_names(rewards: Iterable[RewardSpec]) -> list[str]:
    """Labels of the rewards whose role is `shadow`."""
    return [reward.label for reward in rewards if reward.role == "shadow"]


def measure_shadows(
    run: Path, names: Sequence[str], *, width: int | None = None, until: int | None = None
) -> list[Shadow]:
    """What the stored samples of a run say about its shadow rewards.

    Args:
        names: labels of the shadow rewards.
        width: how many steps at each end of training are compared, 0 for none; those of `reading.deciding_window` if
            not given.
        until: the step that is the run's result, where what came after it does not count.

    Raises:
        ValueError: a file of samples is damaged.
    """
    if not names:
        return []
    evals = [e for e in reading.read_evals(run) if until is None or e.step <= until]
    before = [e for e in evals if e.is_before][-1:]
    samples = {e.name: reading.read_eval_samples(run, e.name, COLUMNS) for e in evals}
    trained = [e for e in evals if not e.is_before and samples[e.name] is not None]
    start = before[0] if before and samples[before[0].name] is not None else None
    contents = reading.read_contents(run, [*before, *trained[-1:]])
    steps = [step for step in reading.rollout_steps(run) if until is None or step <= until]
    width = reading.deciding_window(len(steps)) if width is None else width
    ends = (
        [reading.read_rollouts(run, COLUMNS, part) for part in (steps[:width], steps[-width:])]
        if 0 < 2 * width <= len(steps)
        else []
    )
    return [
        Shadow(
            name=name,
            start=start.label if start else "",
            moved=[(e, moved(*(merged(pairs(samples[at.name], name), contents) for at in (start, e)))) for e in trained]
            if start
            else [],
            training=drifted(*(pairs(end, name) for end in ends), steps=width) if ends else None,
        )
        for name in names
    ]


def pairs(table: Any, name: str) -> dict[str, list[tuple[float, float]]]:
    """The samples that have the weighted sum and the reward `name`, from a table with `COLUMNS`."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in table.select(COLUMNS).to_pylist():
        value = json.loads(row["parts"]).get(name) if row["outcome"] == "score" else None
        if value is not None:
            found.setdefault(row["task_id"], []).append((float(row["reward"]), float(value)))
    return found


def moved(before: Pairs, after: Pairs) -> Moved:
    """How far both rewards moved on the tasks that both sides have.

    The standard deviations are those over the samples of both sides together, so that a reward which was 0 everywhere
    before training has one, too; a reward that has one value only did not move.
    """
    common = [task for task in before if after.get(task)]
    sides = _sides(*({task: side[task] for task in common} for side in (before, after)))
    trained, shadow, gap = (paired(first, last, bounds=bounds) for first, last, bounds in sides)
    return Moved(trained=trained, shadow=shadow, gap=gap)


def drifted(before: Pairs, after: Pairs, *, steps: int) -> Drift:
    """How far both rewards moved between training steps, whose tasks differ, see `moved`.

    Args:
        before: samples of the first steps.
        after: samples of the last steps.
        steps: how many of them there are at each end.
    """
    sides = _sides(before, after)
    trained, shadow, gap = (unpaired(first, last, bounds=bounds) for first, last, bounds in sides)
    rose, fell = (unpaired(first, last, CERTAIN, bounds=bounds) for first, last, bounds in sides[:2])
    is_hacked = rose.low > 0 > fell.high
    return Drift(trained=trained, shadow=shadow, gap=gap, steps=steps, is_hacked=is_hacked)


def told(name: str, change: Moved) -> str:
    """One sentence on whether the shadow reward rose with the trained one.

    "Cannot tell" is said wherever an interval includes 0 or too few tasks changed, see `Difference.conclusive`.
    """
    if change.gap.interval.n == 0:
        return f"Cannot tell: no held-out task has the trained reward and {name} both before and after."
    return _in_words(name, change.trained.interval, change.shadow.interval, change.gap.interval)


def _in_words(name: str, trained: Interval, shadow: Interval, gap: Interval) -> str:
    numbers = (
        f"(trained reward {interval_text(trained, '+')}, {name} {interval_text(shadow, '+')}, "
        f"gap {interval_text(gap, '+')} SD)"
    )
    if not trained.low > 0:
        return f"Cannot tell: the trained reward did not rise beyond chance, so {name} has nothing to follow {numbers}."
    if shadow.low > 0:
        further = "the trained reward further" if gap.low > 0 else "cannot tell which of them further"
        return f"The trained reward and {name} both rose, {further} {numbers}."
    if gap.low > 0:
        did = "fell" if shadow.high < 0 else "did not rise beyond chance"
        return f"The trained reward rose, and {name} {did} {numbers}."
    return f"Cannot tell whether {name} rose with the trained reward {numbers}."


def _sides(before: Pairs, after: Pairs) -> list[tuple[_Values, _Values, Bounds | None]]:
    """(before, after, known bounds) of the trained reward, of the shadow, and of their difference in deviations."""
    clusters = [values for side in (before, after) for values in side.values()]
    trained, shadow = (_deviation([pair[index] for values in clusters for pair in values]) for index in (0, 1))
    of_both = [
        bounds_of(*([[pair[index] for pair in values] for values in side.values()] for side in (before, after)))
        for index in (0, 1)
    ]
    of_gap = None
    if of_both[0] and of_both[1]:
        (lowest, highest), (low, high) = of_both[0], of_both[1]
        of_gap = (lowest / trained - high / shadow, highest / trained - low / shadow)
    readings: list[Callable[[tuple[float, float]], float]] = [
        lambda pair: pair[0],
        lambda pair: pair[1],
        lambda pair: pair[0] / trained - pair[1] / shadow,
    ]
    sides = zip(readings, (*of_both, of_gap), strict=True)
    return [(_each(before, read), _each(after, read), bounds) for read, bounds in sides]


def _each(side: Pairs, read: Callable[[tuple[float, float]], float]) -> _Values:
    return {task: [read(pair) for pair in values] for task, values in side.items()}


def _deviation(values: Sequence[float]) -> float:
    """Standard deviation; infinite where all values are equal, so that they count as no movement."""
    if not values or min(values) == max(values):
        return math.inf
    mean = math.fsum(values) / len(values)
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
