"""`rlft compare`: two groups of runs, and whether the second one is better than the first.

One question is answered with a stated error rate: does the held-out mean of the headline differ? Everything else that
is tested (other rewards and parts, ends and areas of the training curves) is adjusted together by Holm, so that one
false answer among all of them is as rare. With equal runs the headline is called different in at most 5 of 100
comparisons; `make compare-rates` simulates it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlft.curves.compare_verdict import judge, measured_row, score, sentence_of
from rlft.curves.comparison import Comparison, Detectable, Row, TaskChange
from rlft.curves.courses import Courses, compare_courses
from rlft.curves.differences import Difference
from rlft.curves.power import POWER, Noise, Size, seeds_needed, smallest_effect, tasks_needed
from rlft.curves.reading import read_eval_samples
from rlft.curves.scored_run import Group, ScoredRun, config_changes
from rlft.curves.seeds import GroupDifference, SeedDifference, holm, least_p
from rlft.curves.statistics import t_interval
from rlft.curves.text import counted
from rlft.run.logs import read_provenance
from rlft.run.provenance import changed_computing, changed_numbers
from rlft.run.records import BEFORE_TRAINING, Interval

MIN_EFFECT = 0.01
"""Smallest change of interest where neither the command nor the config has one."""
LEVEL = 0.95
_SHOWN_TASKS = 5
_NAMES = ("name", "output_dir", "trackers")


def compare(
    before: Group,
    after: Group,
    *,
    min_effect: float = MIN_EFFECT,
    threshold: float | None = None,
    level: float = LEVEL,
    remarks: Sequence[str] = (),
) -> Comparison:
    """Compare two groups of runs whose tasks have the same names.

    Args:
        before: the first group.
        after: the second one.
        min_effect: the smallest change of interest.
        threshold: train reward whose reaching is timed; None takes one that the first group reaches.
        level: how often intervals hold the true difference.
        remarks: what reading has already found.

    Raises:
        ValueError: no task was scored by all runs, or `min_effect` is not above 0.
    """
    if not min_effect > 0:
        raise ValueError(f"the smallest change of interest must be above 0, for example 0.02, not {min_effect}")
    runs = [*before.runs, *after.runs]
    common = [t for t in runs[0].values if all(run.values.get(t) for run in runs)]
    if not common:
        raise ValueError(f"no task has a value of {runs[0].metric} in all of the {len(runs)} runs")
    told = list(remarks)
    values = [[{t: run.values[t] for t in common} for run in group.runs] for group in (before, after)]
    scores = [[score(run) for run in side] for side in values]
    difference, row = measured_row(runs[0].metric, values[0], values[1], level)
    grouped = difference if isinstance(difference, GroupDifference) else None
    tasks = difference.tasks if isinstance(difference, GroupDifference) else difference
    others = _parts(before, after, level)
    courses = _courses(before, after, threshold, level, told)
    if courses is not None and grouped:
        for label, index, seeds in (("train reward, final window", 0, courses.final),
                                    ("train reward, whole run", 1, courses.area)):  # fmt: skip
            ends = [_mean([run[index] for run in side]) for side in (courses.before, courses.after)]
            p = max(seeds.p, _p_of(seeds))
            others.append(Row(label=label, before=ends[0], after=ends[1], change=seeds.interval, p=p, conclusive=False))
    adjusted = holm([other.p for other in others])
    others = [_adjusted(other, p, level) for other, p in zip(others, adjusted, strict=True)]
    missing = sum(run.missing for run in runs)
    unpaired = len({task for run in runs for task, known in run.values.items() if known}) - len(common)
    if missing:
        told.append(f"{counted(missing, 'sample')} could not be scored")
    if unpaired:
        told.append(f"{counted(unpaired, 'task')} {'has' if unpaired == 1 else 'have'} scores in some runs only")
    told += _same_run_twice(before, after, common)
    detectable = _detectable(difference, before, after, len(common), min_effect, level)
    verdict, reasons = judge(row, difference, tasks, before, after, min_effect, level)
    means = [{t: _mean([_mean(run[t]) for run in side]) for t in common} for side in values]
    worse, better, counts = _changed_tasks(means[0], means[1], runs)
    return Comparison(
        verdict=verdict,
        sentence=sentence_of(verdict, reasons, row, before, after, runs, min_effect, len(common)),
        reasons=reasons,
        scope="recipes" if grouped else "runs",
        before=before,
        after=after,
        metric=runs[0].metric,
        headline=row,
        rows=others,
        scores=scores,
        intervals=[t_interval(side, level) for side in scores],
        seeds=grouped.seeds if grouped else None,
        tasks=tasks,
        iqm=interquartile_change(list(means[0].values()), list(means[1].values()), level),
        worse=worse,
        better=better,
        counts=counts,
        detectable=detectable,
        courses=courses,
        changes=config_changes(before.runs[0], after.runs[0]),
        missing=missing,
        unpaired=unpaired,
        remarks=told,
    )


def _same_run_twice(before: Group, after: Group, common: Sequence[str]) -> list[str]:
    """Says so where two runs have one config and one seed, and what else differs where they have other results."""
    one, other = before.runs[0], after.runs[0]
    is_single = len(before.runs) == len(after.runs) == 1
    is_same = one.seed is not None and one.seed == other.seed and one.evaluation == other.evaluation
    if not (is_single and is_same) or config_changes(one, other):
        return []
    differ = sum(list(one.values[task]) != list(other.values[task]) for task in common)
    if not differ:
        return [
            f"same config, same seed {one.seed}, and the same scores on {counted(len(common), 'task')}: these are one "
            f"run made twice{_to_the_letter(one, other)}"
        ]
    read = [read_provenance(run.folder) for run in (one, other)]
    then, now = (replace(p, config={k: v for k, v in p.config.items() if k not in _NAMES}) for p in read)
    known = [*changed_numbers(then, now), *changed_computing(then, now)]
    unknown = "their provenance.json files say the same, so something else differs"
    if not (then.packages and now.packages):
        unknown = "without provenance.json nothing says why"
    why = "; ".join(known) or unknown
    return [
        f"same config and same seed {one.seed}, so these are one run made twice, and yet the scores of "
        f"{counted(differ, 'task')} differ: {why}"
    ]


def _to_the_letter(one: ScoredRun, other: ScoredRun) -> str:
    """Whether the samples of two runs are the same, too; empty where they are not stored."""
    columns = ("task_id", "completion")
    sides = [read_eval_samples(run.folder, run.evaluation, columns) for run in (one, other)]
    if any(side is None for side in sides):
        return ""
    return ", sample for sample" if sides[0].equals(sides[1]) else ", though their samples differ"


def _parts(before: Group, after: Group, level: float) -> list[Row]:
    """A row for every further reward and part that all runs measured on a common task."""
    runs = [*before.runs, *after.runs]
    rows = []
    for name in runs[0].parts:
        if not all(name in run.parts for run in runs):
            continue
        common = [t for t in runs[0].parts[name] if all(run.parts[name].get(t) for run in runs)]
        if not common:
            continue
        sides = [[{t: run.parts[name][t] for t in common} for run in group.runs] for group in (before, after)]
        rows.append(measured_row(name, sides[0], sides[1], level)[1])
    return rows


def _adjusted(row: Row, p: float, level: float) -> Row:
    excludes_zero = row.change.low > 0 or row.change.high < 0
    return replace(row, p=p, conclusive=excludes_zero and p < 1 - level)


def _courses(before: Group, after: Group, threshold: float | None, level: float, told: list[str]) -> Courses | None:
    runs = [*before.runs, *after.runs]
    if any(run.evaluation in BEFORE_TRAINING for run in runs):
        return None
    if before.runs[0].config.get("rewards") != after.runs[0].config.get("rewards"):
        told.append("train rewards are not compared: the configs' rewards differ, so they are not on one scale")
        return None
    courses = compare_courses(
        [run.curve for run in before.runs], [run.curve for run in after.runs], threshold=threshold, level=level
    )
    if courses is None:
        told.append("train rewards are not compared: the runs have no step in common")
    return courses


def _changed_tasks(
    before: Mapping[str, float], after: Mapping[str, float], runs: Sequence[ScoredRun]
) -> tuple[list[TaskChange], list[TaskChange], tuple[int, int, int]]:
    prompts: dict[str, str] = {}
    for run in runs:
        prompts |= run.prompts
    moved = sorted((after[task] - value, task) for task, value in before.items())
    shown = [TaskChange(task=prompts.get(t) or t, before=before[t], after=after[t]) for _, t in moved]
    worse, better = sum(change < 0 for change, _ in moved), sum(change > 0 for change, _ in moved)
    top = shown[: min(worse, _SHOWN_TASKS)], shown[::-1][: min(better, _SHOWN_TASKS)]
    return top[0], top[1], (worse, better, len(moved) - worse - better)


def interquartile_change(
    before: Sequence[float], after: Sequence[float], level: float
) -> tuple[float, float, Interval] | None:
    """Mean of the middle half of the tasks, with a bootstrap over tasks, which are paired; 20 tasks at least."""
    import numpy as np

    if len(before) < 20 or len({*before, *after}) < 4:
        return None
    pairs = np.array([before, after])
    picks = np.random.default_rng(0).integers(0, len(before), size=(1000, len(before)))
    (first, last), drawn = interquartile_mean(pairs), interquartile_mean(pairs[:, picks])
    low, high = np.quantile(drawn[1] - drawn[0], [(1 - level) / 2, (1 + level) / 2])
    return float(first), float(last), Interval(float(last - first), float(low), float(high), len(before))


def min_effect_of(group: Group) -> float:
    """The smallest change of interest of a group's config, `evaluation.min_effect`; `MIN_EFFECT` without one."""
    given = group.runs[0].config.get("evaluation.min_effect")
    return float(given) if isinstance(given, int | float) and given > 0 else MIN_EFFECT


def interquartile_mean(values: Any) -> Any:
    """Mean of the middle half of an array's last axis: `scipy.stats.trim_mean(values, 0.25)`, whose import takes a
    second."""
    import numpy as np

    cut = values.shape[-1] // 4
    return np.sort(values, axis=-1)[..., cut : values.shape[-1] - cut].mean(axis=-1)


def _detectable(
    difference: Difference | GroupDifference,
    before: Group,
    after: Group,
    count: int,
    min_effect: float,
    level: float,
) -> Detectable:
    """From the spreads that this comparison of `count` tasks has seen."""
    tasks = difference.tasks if isinstance(difference, GroupDifference) else difference
    if not tasks.interval.bounded or count < 2:
        return Detectable(effect=math.inf, wanted=min_effect, tasks=None, seeds=None)
    if isinstance(difference, Difference):
        size = Size(tasks=count)
        noise = Noise(within=_spread_of(tasks, level) / 2, effect_sd=0.0, seed_sd=0.0, is_share=False)
    else:
        runs = [*before.runs, *after.runs]
        n, m = len(before.runs), len(after.runs)
        # Groups of different sizes are as good as two of the harmonic mean of their sizes.
        size = Size(seeds=max(2, round(2 / (1 / n + 1 / m))) if least_p(n, m) <= 1 - level else 2, tasks=count)
        noise = Noise(
            within=difference.noise_variance * count,  # of a task's mean, so that it counts as one sample
            effect_sd=math.sqrt(difference.task_variance),
            seed_sd=math.sqrt(difference.seed_variance),
            is_share=all(0 <= v <= 1 for run in runs for values in run.values.values() for v in values),
        )
    return Detectable(
        effect=smallest_effect(noise, size, POWER, level),
        wanted=min_effect,
        tasks=tasks_needed(noise, min_effect, size, POWER, level),
        seeds=seeds_needed(noise, min_effect, size, POWER, level) if size.seeds > 1 else None,
    )


def _spread_of(tasks: Difference, level: float) -> float:
    """Variance over tasks of their change, as the width of its interval says it."""
    from scipy.special import stdtrit

    interval = tasks.interval
    half = (interval.high - interval.low) / 2
    return (half / float(stdtrit(interval.n + 1, 0.5 + level / 2))) ** 2 * (interval.n + 2)


def _p_of(seeds: SeedDifference) -> float:
    from scipy.special import stdtr

    if not seeds.error > 0:
        return 1.0
    return 2 * float(stdtr(seeds.freedom, -abs(seeds.interval.mean) / seeds.error))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
