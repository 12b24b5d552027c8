"""What comparing two groups of runs gives, as plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from rlft.curves.courses import Courses
from rlft.curves.differences import Difference
from rlft.curves.scored_run import Group
from rlft.curves.seeds import SeedDifference
from rlft.run.records import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured quantity of both groups, and its change."""

    label: str
    before: float
    """Mean of the first group's runs."""
    after: float
    """Mean of the second's."""
    change: Interval
    """After minus before."""
    p: float
    """Two-sided p-value, Holm-adjusted for all but the headline."""
    conclusive: bool
    """Whether the change is no chance, after adjusting."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskChange:
    """A task that got better or worse."""

    task: str
    """Prompt of the task where it is stored, else its id."""
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Detectable:
    """What a comparison of this size can see, and what would be needed to see the smallest change of interest."""

    effect: float
    """Smallest change that is seen in 80 of 100 comparisons like this one; infinite if none can be."""
    wanted: float
    """The smallest change of interest."""
    tasks: int | None
    """Tasks that would show it with these seeds and samples; None where more tasks alone would not."""
    seeds: int | None
    """Seeds on each side that would with these tasks; None where they would not, or with one run on each side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything that `rlft compare` says."""

    verdict: Literal["better", "worse", "same", "cant_tell"]
    """`same`: the change lies within the smallest one of interest, in both directions."""
    sentence: str
    """The verdict in words, with its numbers."""
    reasons: Sequence[str]
    """Why it cannot be told; empty where it can."""
    scope: Literal["recipes", "runs"]
    """Whether it is about ways of training, over seeds, or about two policies only."""
    before: Group
    after: Group
    metric: str
    headline: Row
    rows: Sequence[Row]
    """Everything else, adjusted together."""
    scores: Sequence[Sequence[float]]
    """Held-out mean of each run of both groups, over the common tasks."""
    intervals: Sequence[Interval]
    """t interval of each group's mean over its seeds."""
    seeds: SeedDifference | None
    """The change over seeds alone; None with one run on each side."""
    tasks: Difference
    """The change over tasks alone, paired."""
    iqm: tuple[float, float, Interval] | None
    """Interquartile mean over tasks of both groups, and its change; None where tasks are only right or wrong."""
    worse: Sequence[TaskChange]
    better: Sequence[TaskChange]
    counts: tuple[int, int, int]
    """Tasks that got worse, better, and stayed."""
    detectable: Detectable
    courses: Courses | None
    """The training curves; None where they cannot be compared, see `remarks`."""
    changes: Sequence[tuple[str, Any, Any]]
    """Settings that differ: key, before, after."""
    missing: int
    """Samples that could not be scored, of all runs."""
    unpaired: int
    """Tasks that have a value in some of the runs only, and are left out."""
    remarks: Sequence[str]
    """What a reader should know of the data."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not known is None."""
        return {
            "verdict": self.verdict,
            "sentence": self.sentence,
            "reasons": list(self.reasons),
            "scope": self.scope,
            "metric": self.metric,
            "groups": [
                {"label": g.label, "runs": [str(r.folder) for r in g.runs], "scores": list(s), "mean": i.as_dict()}
                for g, s, i in zip((self.before, self.after), self.scores, self.intervals, strict=True)
            ],
            "effect": {**self.headline.change.as_dict(), "p": self.headline.p},
            "over_seeds": None if self.seeds is None else _plain(self.seeds),
            "over_tasks": self.tasks.interval.as_dict(),
            "others": [
                {"name": r.label, "before": r.before, "after": r.after, "change": r.change.as_dict(), "p_holm": r.p,
                 "conclusive": r.conclusive} for r in self.rows
            ],
            "iqm": None if self.iqm is None else {"before": self.iqm[0], "after": self.iqm[1],
                                                  "change": self.iqm[2].as_dict()},
            "tasks": dict(zip(("worse", "better", "same"), self.counts, strict=True)),
            "worst": [asdict(task) for task in self.worse],
            "best": [asdict(task) for task in self.better],
            "detectable": {k: _finite(v) for k, v in asdict(self.detectable).items()},
            "curves": None if self.courses is None else _plain(self.courses),
            "config": [{"key": k, "before": a, "after": b} for k, a, b in self.changes],
            "missing": self.missing,
            "unpaired": self.unpaired,
            "remarks": list(self.remarks),
        }  # fmt: skip


def _plain(value: Any) -> dict[str, Any]:
    """Fields of a dataclass for JSON."""

    def plain(item: Any) -> Any:
        if isinstance(item, dict):
            return {key: plain(each) for key, each in item.items()}
        if isinstance(item, list | tuple):
            return [plain(each) for each in item]
        return _finite(item)

    return {key: plain(item) for key, item in asdict(value).items()}


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value
