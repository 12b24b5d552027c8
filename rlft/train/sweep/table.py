"""What a sweep shows: held-out scores by configuration over seeds, compared with the first one, and of the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.curves.compare import LEVEL, compare, min_effect_of
from rlft.curves.compare_page import write_page
from rlft.curves.compare_verdict import score
from rlft.curves.comparison import Comparison
from rlft.curves.contents import merged
from rlft.curves.scored_run import Group, ScoredRun, check_seeds_only, paired_groups, read_run
from rlft.curves.seeds import holm, least_p
from rlft.curves.statistics import mean_interval, t_interval
from rlft.run.records import Interval
from rlft.train.sweep.grid import Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One configuration of a sweep."""

    label: str
    scores: Sequence[float]
    """Held-out mean of each seed's run that came to its end, over the run's own tasks."""
    stopped: Sequence[int] = ()
    """Steps at which the runs of other seeds were stopped early; these have no score."""
    mean: Interval
    """Their mean with Student's t interval over seeds; unbounded with one seed."""
    comparison: Comparison | None
    """With the first configuration; None for that one itself, and where a run of either was stopped early."""
    p: float
    """The comparison's p-value, Holm-adjusted for the number of configurations; nan without one."""
    verdict: str
    """`better`, `worse`, `same` or `cannot tell`, of training so over seeds; `stopped early`; empty for the first."""
    page: Path | None
    """The comparison as a page, with the curves."""
    error: float = math.nan
    """Standard error of the mean of one run over its tasks; nan where they do not tell it."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "configuration": self.label,
            "scores": list(self.scores),
            "stopped_at_steps": list(self.stopped),
            "mean": self.mean.as_dict(),
            "verdict": self.verdict or None,
            "p_holm": self.p if math.isfinite(self.p) else None,
            "change": self.comparison.headline.change.as_dict() if self.comparison else None,
            "page": str(self.page) if self.page else None,
        }


def table_of(
    trials: Sequence[Trial], metric: str, folder: Path, stopped: Mapping[str, int] | None = None
) -> list[Line]:
    """A line for each configuration of the trials, in their order; writes the comparisons' pages.

    Each configuration is compared with the first one as `rlft compare` does it, over seeds and tasks. As the first
    one is the same for all and the p-values are adjusted together, at most 5 of 100 sweeps whose configurations are all
    alike call any of them different. A configuration of which a run was stopped early is not compared: those of its
    seeds that came to their end were chosen by their scores. What is left is: that no run of either was stopped is
    as likely for both where they are alike.

    Args:
        trials: those that have ended, and those that were stopped early.
        metric: reward or part to compare; the config's headline where empty.
        folder: of the sweep.
        stopped: step at which each of the trials was stopped early that was, by the name of its run directory.

    Raises:
        ValueError: a run lacks the metric, or two configurations were measured on different tasks.
    """
    stopped = stopped or {}
    steps: dict[str, list[int]] = {trial.label: [] for trial in trials}
    runs: dict[str, list[ScoredRun]] = {trial.label: [] for trial in trials}
    for trial in trials:
        if trial.path.name in stopped:
            steps[trial.label].append(stopped[trial.path.name])
        else:
            runs[trial.label].append(read_run(trial.path, "", metric))
    groups = [Group(label=label, runs=own) for label, own in runs.items()]
    for group in groups:
        if group.runs:
            check_seeds_only(group.runs)
    compared: dict[str, Comparison] = {}
    for other in groups[1:]:
        if not steps[groups[0].label] and not steps[other.label]:
            before, after, remarks = paired_groups(groups[0], other)
            compared[other.label] = compare(before, after, min_effect=min_effect_of(before), remarks=remarks)
    adjusted = dict(zip(compared, holm([each.headline.p for each in compared.values()]), strict=True))
    lines = []
    for number, group in enumerate(groups):
        found, p = compared.get(group.label), adjusted.get(group.label, math.nan)
        scores = [score(run.values) for run in group.runs]
        page = None
        if found is not None:
            page = folder / f"compare-{number}.html"
            write_page(found, page)
        verdict = _verdict(found, p) if found is not None else "stopped early" if steps[group.label] else ""
        line = Line(
            label=group.label,
            scores=scores,
            stopped=steps[group.label],
            mean=t_interval(scores, LEVEL),
            comparison=found,
            p=p,
            verdict=verdict,
            page=page,
            error=_error(group.runs[0]) if group.runs else math.nan,
        )
        lines.append(line)
    return lines


def of_the_best(lines: Sequence[Line]) -> str:
    """By how much the highest mean of a sweep is too high by chance, as it was picked; empty where nothing was.

    If all configurations were alike, their means would scatter around one value, and the highest of K lies above it by
    the expected maximum of K standard normal numbers, times a mean's standard error.
    """
    done = [line for line in lines if line.scores]
    if not done or len(lines) < 2:
        return ""
    best = max(done, key=lambda line: line.mean.mean)
    head = f"{best.label} has the highest mean of {len(lines)} configurations, and was picked for it"
    again = "measure it again with seeds that are not in this sweep before you believe its number"
    several = [line.scores for line in done if len(line.scores) > 1]
    if several:
        squares = math.fsum(math.fsum((v - math.fsum(own) / len(own)) ** 2 for v in own) for own in several)
        spread = math.sqrt(squares / sum(len(own) - 1 for own in several))
        error, least = spread / math.sqrt(len(best.scores)), "about"
    else:  # one run says nothing of other seeds
        errors = [line.error for line in done if math.isfinite(line.error)]
        error, least = (math.fsum(errors) / len(errors) if errors else math.nan), "at least"
    if not math.isfinite(error):
        return f"{head}: {again}"
    return f"{head}: were all alike, it would still be {least} {error * largest_of(len(lines)):.2g} too high; {again}"


def largest_of(count: int) -> float:
    """Expected maximum of so many independent standard normal numbers: 0 of one, 0.56 of two, 1.54 of ten."""
    from scipy.integrate import quad
    from scipy.stats import norm

    return float(quad(lambda x: x * count * norm.pdf(x) * norm.cdf(x) ** (count - 1), -9.0, 9.0)[0])


def too_few(lines: Sequence[Line]) -> str:
    """Why no configuration of a sweep can be called different, and how many seeds can; empty where one can."""
    compared = [line for line in lines[1:] if line.comparison]
    others = len(compared)
    if others < 1:
        return ""
    first, largest = len(lines[0].scores), max(len(line.scores) for line in compared)
    least = 1.0 if first < 2 and largest < 2 else least_p(first, largest)
    if least * others <= 1 - LEVEL:
        return ""
    needed = next(n for n in range(2, 100) if least_p(n, n) * others <= 1 - LEVEL)
    return (
        f"{first} and {largest} seeds are too few to tell any configuration from the first one: with {others} compared "
        f"it takes at least {needed} seeds each, such as seed=0..{needed - 1}"
    )


def _error(run: ScoredRun) -> float:
    interval = mean_interval(merged(run.values, run.contents), LEVEL)
    return (interval.high - interval.low) / 2 / 1.96 if interval.bounded else math.nan


def _verdict(found: Comparison, p: float) -> str:
    """Of the way of training: what a single seed on each side shows is about two policies only."""
    if found.scope == "runs" or found.verdict == "cant_tell":
        return "cannot tell"
    return found.verdict if found.verdict == "same" or p < 1 - LEVEL else "cannot tell"
