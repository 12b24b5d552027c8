"""The pieces that charts are made of, as plain data that a page draws: courses, points with intervals, bars, areas.

Each mark names its colour; `page/base.css` has their values on a light and on a dark page, COLORS those on paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

from rlft.curves.series import Series, bins
from rlft.curves.text import interval_text
from rlft.run.records import Interval

Mark: TypeAlias = dict[str, Any]
"""`kind` is `course`, `points`, `level`, `bars` or `area`; page/page.schema.json has the fields of each."""

BLUE, GREEN, ORANGE, RED, VIOLET, GREY = "blue", "green", "orange", "red", "violet", "grey"
COLORS = {
    # Okabe and Ito's, which people who see fewer colours tell apart.
    BLUE: "#0072b2",
    GREEN: "#009e73",
    ORANGE: "#d98200",
    RED: "#d55e00",
    VIOLET: "#a4508b",
    GREY: "#6b7280",
}
_DIGITS = 6


def short(value: float | None) -> float | None:
    """A number with the digits that a drawing needs; None where it is not finite."""
    if value is None or not math.isfinite(value):
        return None
    rounded = float(f"{value:.{_DIGITS}g}")
    return int(rounded) if rounded == int(rounded) and abs(rounded) < 2**53 else rounded


def shorts(values: Iterable[float | None]) -> list[float | None]:
    """`short` of each."""
    return [short(value) for value in values]


def course(values: Series, name: str, color: str, *, dash: bool = False, plain: bool = False) -> Mark:
    """A metric over the steps: its line, which is broken where values are not finite, its band, and marks there.

    Of many steps the line is that of the means of bins with their bands, and the values of single steps are faint.

    Args:
        values: the metric.
        name: what the legend calls it.
        color: of line and band.
        dash: whether the line is dashed.
        plain: whether to leave out the band and single steps.
    """
    mark: Mark = {"kind": "course", "name": name, "color": color}
    if dash:
        mark["dash"] = True
    if values.broken:
        mark["broken"] = shorts(values.broken)
    if means := bins(values):
        mark |= {"x": shorts(each.step for each in means), "y": shorts(each.interval.mean for each in means)}
        bounds = [(each.interval.low, each.interval.high) for each in means]
        if not plain:
            mark["faint"] = _faint(values)
    else:
        mark |= {"x": shorts(values.steps), "y": shorts(values.values)}
        bounds = list(values.bounds)
    if not plain and any(math.isfinite(low + high) for low, high in bounds):
        mark |= {"low": shorts(low for low, _ in bounds), "high": shorts(high for _, high in bounds)}
    return mark


def points(
    steps: Sequence[float], intervals: Sequence[Interval], name: str, color: str, *, joined: bool = True
) -> Mark:
    """Means as points with their intervals, where there are bounds, joined by a line unless told otherwise."""
    return {
        "kind": "points",
        "name": name,
        "color": color,
        "joined": joined,
        "x": shorts(steps),
        "y": shorts(i.mean for i in intervals),
        "low": shorts(i.low for i in intervals),
        "high": shorts(i.high for i in intervals),
        "texts": [interval_text(i) for i in intervals],
    }


def level(y: float, name: str, color: str) -> Mark:
    """A dotted line across the chart."""
    return {"kind": "level", "name": name, "color": color, "y": short(y)}


def bars(values: Sequence[tuple[float, float]], name: str, color: str) -> Mark:
    """(step, value) as bars that are stacked on those of the chart's earlier marks."""
    return {"kind": "bars", "name": name, "color": color, **_xy(values)}


def area(values: Sequence[tuple[float, float]], name: str, color: str) -> Mark:
    """(step, value) as an area that is stacked on those of the chart's earlier marks."""
    return {"kind": "area", "name": name, "color": color, **_xy(values)}


def _xy(values: Sequence[tuple[float, float]]) -> dict[str, list[float | None]]:
    return {"x": shorts(x for x, _ in values), "y": shorts(y for _, y in values)}


_MOST_FAINT = 600
"""Single steps that are drawn behind the means; of more, the lowest and the highest of neighbours."""


def _faint(values: Series) -> dict[str, list[float | None]]:
    known = values.finite
    size = math.ceil(2 * len(known) / _MOST_FAINT)
    if size <= 2:
        return _xy(known)
    kept: list[tuple[float, float]] = []
    for start in range(0, len(known), size):
        part = known[start : start + size]
        ends = {min(part, key=lambda each: each[1]), max(part, key=lambda each: each[1])}
        kept += sorted(ends)
    return _xy(kept)
