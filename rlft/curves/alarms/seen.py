"""What detectors look at and what they answer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from rlft.curves.alarms.course import MIN_STEPS, Course, course_of, shift, trend
from rlft.curves.alarms.health import Severity
from rlft.curves.reading import Rows
from rlft.curves.series import with_solved
from rlft.curves.text import counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What detectors look at."""

    rows: Rows
    """Metrics by step, ascending."""
    shadows: tuple[str, ...] = ()
    """Names of the shadow rewards."""
    _courses: dict[str, Course] = field(default_factory=dict, repr=False)

    def course(self, metric: str) -> Course:
        """The finite values of a metric."""
        if metric not in self._courses:
            rows = with_solved(self.rows) if metric == "groups/solved_all" else self.rows
            self._courses[metric] = course_of(rows, metric)
        return self._courses[metric]

    def missing(self, *metrics: str, steps: int = MIN_STEPS) -> str:
        """Why these metrics say nothing; empty if they do."""
        for metric in metrics:
            if (n := len(self.course(metric))) < steps:
                return f"{metric} has {counted(n, 'step')}; {steps} are needed" if n else f"the run has no {metric}"
        return ""

    def latest(self, metric: str) -> float:
        """The median over the last steps; nan where there are too few."""
        course = self.course(metric)
        return shift(course).now.median if len(course) >= MIN_STEPS else math.nan

    def learns_since(self, step: float, chance: float = 0.05) -> bool:
        """Whether a fifth of all that the run has gained in reward came after a step.

        It counts as gained where the reward still rises, or now lies two standard errors above where it was then: of
        short runs the first test alone sees too little.
        """
        reward = self.course("reward/mean")
        over, whole = trend(reward.since(step)), shift(reward)
        gained = whole.now.median - level_at(reward, step)
        least = 0.2 * abs(whole.by)
        return (over.rises(chance) and over.change > least) or gained > max(least, 2 * whole.error)

    @property
    def is_solved(self) -> bool:
        """Whether all samples of most groups have the highest reward."""
        return self.latest("groups/solved_all") >= 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a detector found."""

    severity: Severity
    onset: int
    evidence: str
    numbers: Mapping[str, float]
    part: str = ""
    """Name of the reward part or shadow that it is about."""


Detector: TypeAlias = Callable[[Seen], Found | str | None]
"""What is wrong; None if nothing is; why it cannot tell."""


def level_at(course: Course, step: float) -> float:
    """The median over the steps around one."""
    at = int(np.searchsorted(course.steps, step))
    width = max(2, min(10, len(course) // 20))
    return float(np.median(course.values[max(0, at - width) : at + width + 1]))


def around(values: np.ndarray, half: int) -> np.ndarray:
    """The running median of the values on both sides of each, without it."""
    padded = np.pad(values, half, mode="reflect")
    views = np.lib.stride_tricks.sliding_window_view(padded, 2 * half + 1)
    medians: np.ndarray = np.median(np.delete(views, half, axis=1), axis=1)
    return medians


def scatter(away: np.ndarray) -> float:
    """Deviation of what lies around a median, without its furthest tenth where most of it is 0."""
    spread = 1.4826 * float(np.median(np.abs(away)))
    kept = np.sort(np.abs(away))[: max(2, math.ceil(0.9 * len(away)))]
    return max(spread, float(np.sqrt(np.mean(kept**2))))
