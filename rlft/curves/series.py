"""A metric over the steps of a run, as a reader should see it: with its gaps, and averaged where steps are many."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rlft.curves.reading import Rows
from rlft.curves.statistics import t_interval
from rlft.run.records import Interval

MANY = 200
"""More steps than this are drawn as means of bins, with the values of each step behind them."""
_BINS = 60

_APART = 4.0
"""Two measures share a y axis unless the range of one is so many times that of the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """The values that a metric has over the steps."""

    steps: Sequence[float]
    """Steps that the metric was logged for, ascending."""
    values: Sequence[float]
    """Its value at each; nan where it was logged and is not finite."""
    bounds: Sequence[tuple[float, float]]
    """Its interval at each; nan where there is none."""

    @property
    def broken(self) -> list[float]:
        """Steps whose value is not finite."""
        return [step for step, value in zip(self.steps, self.values, strict=True) if not math.isfinite(value)]

    @property
    def finite(self) -> list[tuple[float, float]]:
        """(step, value) of the others."""
        return [(s, value) for s, value in zip(self.steps, self.values, strict=True) if math.isfinite(value)]

    def __bool__(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self.finite)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Neighbouring steps."""

    step: float
    """The mean of the steps."""
    interval: Interval
    """The mean of their values with a 95 % interval, see `bins`; n counts the steps."""


def with_solved(rows: Rows) -> Rows:
    """Rows in which `groups/solved_all` is 1 where all samples of a step got the highest reward of the run.

    Of such a step alone nobody knows whether its one reward is the highest or the lowest, so its line says 0.
    """
    top = max((row["reward/max"] for row in rows if "reward/max" in row), default=math.inf)
    if not any(row.get("reward/mean", math.inf) < top for row in rows):
        return rows  # it never had another one

    def is_solved(row: Mapping[str, float]) -> bool:
        spread = row.get("reward/std", math.inf)
        return row.get("reward/max") == top and spread <= 1e-9 * max(1.0, abs(top)) and "groups/solved_all" in row

    return [{**row, "groups/solved_all": 1.0} if is_solved(row) else row for row in rows]


def series(rows: Rows, metric: str) -> Series:
    """A metric over the steps that it was logged for, with its interval where one was logged.

    The interval of `reward/mean` is `reward/low` and `reward/high`, that of another metric M `low/M` and `high/M`.
    """
    low, high = ("reward/low", "reward/high") if metric == "reward/mean" else (f"low/{metric}", f"high/{metric}")
    logged = [row for row in rows if metric in row]
    values = (row[metric] for row in logged)
    return Series(
        steps=[row["step"] for row in logged],
        values=[value if math.isfinite(value) else math.nan for value in values],
        bounds=[(row.get(low, math.nan), row.get(high, math.nan)) for row in logged],
    )


def bins(values: Series) -> list[Bin]:
    """Means of about 60 bins of equally many steps; none where there are few steps.

    The interval is Student's t over the steps of the bin, each of which has tasks and samples of its own, or what the
    intervals of the steps pool to where that is wider: near the ends of a share a few steps agree by chance, and say
    less of each other than the interval of each does. A trend within the bin makes it wider, never narrower.
    """
    if len(values.steps) <= MANY:
        return []
    points = [
        (step, value, (high - low) / 2)
        for step, value, (low, high) in zip(values.steps, values.values, values.bounds, strict=True)
        if math.isfinite(value)
    ]
    size = math.ceil(len(points) / _BINS)
    return [_bin(points[start : start + size]) for start in range(0, len(points), size)]


def binned(values: Series) -> list[tuple[float, float]]:
    """(step, value) of the finite values, or of the means of their bins where there are many."""
    return [(each.step, each.interval.mean) for each in bins(values)] or values.finite


def span(several: Iterable[Series], intervals: Iterable[Interval] = ()) -> tuple[float, float]:
    """The lowest and the highest number that a chart of these series and intervals has to hold; (0, 1) without any."""
    numbers = [0.0]
    for each in several:
        numbers += [number for _, number in each.finite]
        numbers += [bound for bounds in each.bounds for bound in bounds if math.isfinite(bound)]
    for interval in intervals:
        numbers += [n for n in (interval.mean, interval.low, interval.high) if math.isfinite(n)]
    return (min(numbers), max(numbers)) if max(numbers) > min(numbers) else (0.0, 1.0)


def alike(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two ranges, which include 0, can be read on one axis."""
    first, second = sorted((one[1] - one[0], other[1] - other[0]))
    return second <= _APART * first


def _bin(points: Sequence[tuple[float, float, float]]) -> Bin:
    """The bin of some steps from (step, value, half width of its interval, nan where it has none)."""
    steps, values, halves = zip(*points, strict=True)
    interval = t_interval(values)
    pooled = math.sqrt(math.fsum(half**2 for half in halves)) / len(halves)
    if pooled > (interval.high - interval.low) / 2 or (math.isfinite(pooled) and not interval.bounded):
        interval = Interval(interval.mean, interval.mean - pooled, interval.mean + pooled, interval.n)
    return Bin(step=math.fsum(steps) / len(steps), interval=interval)
