"""Intervals for means over tasks: how far a number measured on few samples can be trusted.

The samples of one task are not independent: an easy task is easy for all of them. So the unit that is counted is the
task, and the intervals are clustered by task (https://doi.org/10.3368/jhr.50.2.317, and for evaluations of language
models https://arxiv.org/abs/2411.00640).

A sample that could not be scored is absent, never zero; a task without any scored sample is absent, too.

How often each interval holds the true mean is simulated by `make intervals`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

from rlft.run.records import Interval

Clusters: TypeAlias = Mapping[str, Sequence[float]] | Sequence[Sequence[float]]
"""Values by task: a mapping from task id to its values, or just the values of each task."""
Bounds: TypeAlias = tuple[float, float]
"""The lowest and the highest value that there can be."""

MIN_TASKS = 16
"""Fewest tasks from which an interval is given for values that have no known bounds."""
_MANY_TASKS = 50
"""Fewest tasks from which values that were all within 0 and 1 are taken to be always."""
_SKEW = 25.0
"""Tasks that a narrow interval needs, over the squared skewness of their means, where values have no known bounds
(Cochran's rule, Sampling Techniques, 1977, section 2.15)."""
BEYOND = 4.0
"""How far beyond what was seen skewed values may reach, in widths of its range."""


def mean_interval(values_by_cluster: Clusters, level: float = 0.95, *, bounds: Bounds | None = None) -> Interval:
    """Mean over tasks of the mean of each task, with an interval that holds the true mean as often as it says.

    Every task counts once, however many of its samples could be scored: a task whose hard samples time out keeps its
    weight. The interval is Student's t over the means of the tasks and of two more that were not seen, one at the
    lowest and one at the highest value that there can be (`adjusted_interval`). Those two keep it honest where a plain
    t interval is not: near the ends of a share, with few tasks, and for values that are mostly the same.

    Values that look like shares are taken to be within 0 and 1 (`bounds_of`). For others that are not given bounds, the
    range of what was seen stands in for them, nine times as wide where the means are skewed (`how_skewed`), and there
    is no interval for fewer than `MIN_TASKS` tasks and for means that are all the same. No interval of such values
    knows of what is worse than all that was seen and rarer than about 4 in the number of tasks.

    Args:
        values_by_cluster: the values of each task.
        level: how often the interval is to hold the true mean.
        bounds: the lowest and the highest value that there can be, where they are known.

    Returns:
        The mean, its interval and the number of tasks. Bounds are nan where no honest interval exists, and with fewer
        than two tasks.

    Raises:
        ValueError: a value is not finite or not within `bounds`, or a level is not within (0, 1).
    """
    check_level(level)
    clusters = clusters_of(values_by_cluster)
    means = [math.fsum(values) / len(values) for values in clusters]
    seen = (min(map(min, clusters)), max(map(max, clusters))) if clusters else (0.0, 0.0)
    known = bounds or bounds_of(clusters)
    if known and not known[0] <= seen[0] <= seen[1] <= known[1]:
        outside = seen[0] if seen[0] < known[0] else seen[1]
        raise ValueError(f"the value {outside} is not within the bounds {known[0]} to {known[1]} that were given")
    return interval_of_means(means, level, known=known, seen=seen)


def interval_of_these_tasks(values_by_cluster: Clusters, level: float = 0.95) -> Interval:
    """Mean over tasks as `mean_interval` has it, with an interval for exactly these tasks instead of tasks like them.

    It is for tasks that were not drawn at random, such as the easy ones first: what it allows for is that a policy
    answers a task differently each time. All samples count as draws from one distribution, whose variance is at least
    that of draws within the tasks, so it is never too narrow. Raises ValueError as `mean_interval` does.
    """
    clusters = clusters_of(values_by_cluster)
    flat = mean_interval([[value] for values in clusters for value in values], level)
    if not clusters:
        return flat
    mean = math.fsum(math.fsum(values) / len(values) for values in clusters) / len(clusters)
    shift = mean - flat.mean
    return Interval(mean, flat.low + shift, flat.high + shift, len(clusters))


def bounds_of(*sides: Sequence[Sequence[float]]) -> Bounds | None:
    """The bounds that the values of tasks can be taken to have, else None.

    They are 0 and 1 where the values are only 0 and 1, and where many tasks have values within. Few values within 0 and
    1 say little: those of a reward without an upper bound may all be small by chance, or 0 so far. Of a reward with two
    other values, each of which several tasks of one side have, it is these two.

    Args:
        sides: the values of each task; of a comparison those of both sides.
    """
    values = {value for side in sides for cluster in side for value in cluster}
    tasks = min(map(len, sides))
    if not values or (len(values) == 1 and not values <= {0.0, 1.0}):
        return None
    low, high = min(values), max(values)
    if values <= {0.0, 1.0}:
        return (0.0, 1.0) if len(values) == 2 or tasks >= MIN_TASKS else None
    if tasks >= MIN_TASKS and len(values) == 2:
        counts = [Counter(value for cluster in side for value in set(cluster)) for side in sides]
        return (low, high) if any(min(count[low], count[high]) > 1 for count in counts) else None
    return (0.0, 1.0) if tasks >= _MANY_TASKS and 0 <= low <= high <= 1 else None


def reached_bounds(clusters: Sequence[Sequence[float]]) -> Bounds | None:
    """Like `bounds_of`, for values of which more is known than of the tasks in one mean, such as all steps of a run.

    An end of their range that several tasks reach is taken for a bound; 0 and 1 are the bounds of what is within.
    """
    if (known := bounds_of(clusters)) or len(clusters) < MIN_TASKS:
        return known
    counts = Counter(value for cluster in clusters for value in set(cluster))
    low, high = min(counts), max(counts)
    if low == high or min(counts[low], counts[high]) < 2:
        return None
    return (0.0, 1.0) if 0 <= low <= high <= 1 else (low, high)


def interval_of_means(means: Sequence[float], level: float, *, known: Bounds | None, seen: Bounds) -> Interval:
    """The interval of `mean_interval` from the means of the tasks.

    Args:
        known: the bounds that values have; None where they are not known.
        seen: the lowest and the highest value of the samples, which stand in for unknown bounds.
    """
    n = len(means)
    mean = math.fsum(means) / n if n else math.nan
    low, high = uncut_interval(means, level, known=known, seen=seen)
    if known is not None:  # nan stays nan
        low, high = max(low, known[0]), min(high, known[1])
    return Interval(mean, low, high, n)


def uncut_interval(means: Sequence[float], level: float, *, known: Bounds | None, seen: Bounds) -> tuple[float, float]:
    """The bounds of `interval_of_means` before they are cut to those that values have; nan where there are none."""
    if len(means) < 2 or (known is None and why_none(means)):
        return math.nan, math.nan
    if known is None and how_skewed(means):
        width = seen[1] - seen[0]
        seen = (seen[0] - BEYOND * width, seen[1] + BEYOND * width)
    return adjusted_interval(means, known or seen, level)


def adjusted_interval(values: Sequence[float], bounds: Bounds, level: float) -> tuple[float, float]:
    """Student's t interval of the mean of `values` and of two more, one at each of `bounds`.

    For shares this is the adjustment of Agresti and Coull by one success and one failure, for differences of shares
    that of Bonett and Price (https://doi.org/10.1080/00031305.1998.10480550,
    https://doi.org/10.3102/1076998611411915). It always holds the mean of the values themselves.
    """
    from scipy.special import stdtrit  # here, because reading a run directory needs no scipy

    total = len(values) + 2
    center = math.fsum((*values, *bounds)) / total
    spread = math.fsum((value - center) ** 2 for value in (*values, *bounds))
    half = float(stdtrit(total - 1, 0.5 + level / 2)) * math.sqrt(spread / (total - 1) / total)
    return center - half, center + half


def welch_half_width(sides: Sequence[Sequence[float]], level: float) -> float:
    """Half of Welch's t interval of the difference between the means of two sides; 0 where neither has any spread.

    Args:
        sides: values of both sides, two at least on each.
        level: how often the interval is to hold the true difference.
    """
    from scipy.special import stdtrit

    centers = [math.fsum(side) / len(side) for side in sides]
    errors = [
        math.fsum((value - center) ** 2 for value in side) / (len(side) - 1) / len(side)
        for side, center in zip(sides, centers, strict=True)
    ]
    if sum(errors) == 0:
        return 0.0
    freedom = sum(errors) ** 2 / sum(e**2 / (len(side) - 1) for e, side in zip(errors, sides, strict=True))
    return float(stdtrit(freedom, 0.5 + level / 2)) * math.sqrt(sum(errors))


def t_interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Mean of independent values that are close to normal, with Student's t interval.

    This is for the means of whole runs over seeds, each of which is an average over many tasks: the t interval keeps
    its level for two or three of them, where a percentile bootstrap does not (75 % instead of 95 % with three). Bounds
    are nan with fewer than two values, and where all are equal, which says nothing of how much others would differ.
    Raises ValueError as `mean_interval` does.
    """
    from scipy.special import stdtrit

    check_level(level)
    n = len(clusters_of([[value] for value in values]))
    mean = math.fsum(values) / n if n else math.nan
    if n < 2 or min(values) == max(values):
        return Interval(mean, math.nan, math.nan, n)
    error = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * error
    return Interval(mean, mean - half, mean + half, n)


def why_none(means: Sequence[float]) -> str:
    """Why values without known bounds have no honest interval, in words; empty where they have one."""
    n = len(means)
    if n < MIN_TASKS:
        return f"too few tasks: {n}, and values that may lie outside 0 to 1 need {MIN_TASKS}"
    mean = math.fsum(means) / n
    variance = math.fsum((value - mean) ** 2 for value in means) / n
    if variance <= (1e-12 * max(map(abs, means))) ** 2:
        return "no spread was seen, so how much there is cannot be told"
    return ""


def how_skewed(means: Sequence[float]) -> str:
    """Why the interval of values without known bounds has to be a wide one, in words; empty where it has not."""
    n, mean = len(means), math.fsum(means) / len(means)
    variance = math.fsum((value - mean) ** 2 for value in means) / n
    if variance == 0:
        return ""
    skewness = math.fsum((value - mean) ** 3 for value in means) / n / variance**1.5
    if n >= (needed := _SKEW * skewness**2):
        return ""
    return f"too skewed to tell: a skewness of {skewness:.1f} needs {math.ceil(needed):,} tasks, and there are {n}"


def check_level(level: float) -> None:
    """Raise ValueError unless 0 < level < 1."""
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, for example 0.95, not {level}")


def clusters_of(values_by_cluster: Clusters) -> list[list[float]]:
    """The values of each task that has any. Raises ValueError for one that is not finite."""
    groups: Iterable[Sequence[float]] = (
        values_by_cluster.values() if isinstance(values_by_cluster, Mapping) else values_by_cluster
    )
    clusters = [[float(value) for value in values] for values in groups if len(values)]
    for value in (value for values in clusters for value in values):
        if not math.isfinite(value):
            raise ValueError(f"{value} is not a number that can be averaged; leave out samples that failed")
    return clusters
