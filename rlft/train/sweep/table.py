"""What a sweep shows: held-out scores by configuration over seeds, each compared with the first one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.curves.compare import LEVEL, compare, min_effect_of
from rlft.curves.compare_page import write_page
from rlft.curves.compare_verdict import score
from rlft.curves.comparison import Comparison
from rlft.curves.scored_run import Group, check_seeds_only, paired_groups, read_run
from rlft.curves.seeds import holm, least_p
from rlft.curves.statistics import t_interval
from rlft.run.records import Interval
from rlft.train.sweep.grid import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One configuration of a sweep."""

    label: str
    scores: Sequence[float]
    """Held-out mean of each seed's run, over the run's own tasks."""
    mean: Interval
    """Their mean with Student's t interval over seeds; unbounded with one seed."""
    comparison: Comparison | None
    """With the first configuration; None for that one itself."""
    p: float
    """The comparison's p-value, Holm-adjusted for the number of configurations; nan for the first one."""
    verdict: str
    """`better`, `worse`, `same` or `cannot tell`, of training so over seeds; empty for the first one."""
    page: Path | None
    """The comparison as a page, with the curves."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "configuration": self.label,
            "scores": list(self.scores),
            "mean": self.mean.as_dict(),
            "verdict": self.verdict or None,
            "p_holm": self.p if math.isfinite(self.p) else None,
            "change": self.comparison.headline.change.as_dict() if self.comparison else None,
            "page": str(self.page) if self.page else None,
        }


def table_of(trials: Sequence[Trial], metric: str, folder: Path) -> list[Line]:
    """A line for each configuration of the trials, which are done, in their order; writes the comparisons' pages.

    Each configuration is compared with the first one as `rlft compare` does it, over seeds and tasks. As the first
    one is the same for all and the p-values are adjusted together, at most 5 of 100 sweeps whose configurations are all
    alike call any of them different.

    Args:
        metric: reward or part to compare; the config's headline where empty.
        folder: of the sweep.

    Raises:
        ValueError: a run lacks the metric, or two configurations were measured on different tasks.
    """
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.label, []).append(trial)
    read = [Group(label=label, runs=[read_run(each.path, "", metric) for each in own]) for label, own in groups.items()]
    for group in read:
        check_seeds_only(group.runs)
    compared: list[Comparison] = []
    for other in read[1:]:
        before, after, remarks = paired_groups(read[0], other)
        compared.append(compare(before, after, min_effect=min_effect_of(before), remarks=remarks))
    adjusted = [math.nan, *holm([each.headline.p for each in compared])]
    lines = []
    for number, (group, found, p) in enumerate(zip(read, [None, *compared], adjusted, strict=True)):
        scores = [score(run.values) for run in group.runs]
        page = None
        if found is not None:
            page = folder / f"compare-{number}.html"
            write_page(found, page)
        line = Line(
            label=group.label,
            scores=scores,
            mean=t_interval(scores, LEVEL),
            comparison=found,
            p=p,
            verdict=_verdict(found, p) if found is not None else "",
            page=page,
        )
        lines.append(line)
    return lines


def too_few(lines: Sequence[Line]) -> str:
    """Why no configuration of a sweep can be called different, and how many seeds can; empty where one can."""
    others = len(lines) - 1
    if others < 1:
        return ""
    first, largest = len(lines[0].scores), max(len(line.scores) for line in lines[1:])
    least = 1.0 if first < 2 and largest < 2 else least_p(first, largest)
    if least * others <= 1 - LEVEL:
        return ""
    needed = next(n for n in range(2, 100) if least_p(n, n) * others <= 1 - LEVEL)
    return (
        f"{first} and {largest} seeds are too few to tell any configuration from the first one: with {others} compared "
        f"it takes at least {needed} seeds each, such as seed=0..{needed - 1}"
    )


def _verdict(found: Comparison, p: float) -> str:
    """Of the way of training: what a single seed on each side shows is about two policies only."""
    if found.scope == "runs" or found.verdict == "cant_tell":
        return "cannot tell"
    return found.verdict if found.verdict == "same" or p < 1 - LEVEL else "cannot tell"
