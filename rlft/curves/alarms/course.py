"""The course of one metric over a run: its beginning, where it is now, whether it rises, and where it left its way.

Everything is robust (medians, rank tests, Theil and Sen's slope), because the noise of a step's mean has outliers, and
counts the noise of whole windows, because neighbouring steps are alike: a run's samples come from a policy that moves
slowly. scipy is imported where it is needed: reading a run directory does without.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from rlft.curves.reading import Rows

Floats: TypeAlias = NDArray[np.float64]

MIN_STEPS = 20
"""Fewest steps with a value from which anything is said of its course."""
_CHANCE = 1e-3
"""Two-sided chance at which a shift counts as none, for one look at one metric."""
_BINS = 48
"""Most pieces that a course is summed up in before knots are placed."""


@dataclass(frozen=True, slots=True)
class Course:
    """The finite values of a metric and their steps."""

    steps: Floats
    """(n,), ascending."""
    values: Floats
    """(n,)."""

    def __len__(self) -> int:
        return len(self.steps)

    def since(self, step: float) -> Course:
        """The part from a step on."""
        return Course(self.steps[self.steps >= step], self.values[self.steps >= step])

    def until(self, step: float) -> Course:
        """The part before a step."""
        return Course(self.steps[self.steps < step], self.values[self.steps < step])

    def log(self, floor: float) -> Course:
        """The logarithm, of values below `floor` that of `floor`."""
        return Course(self.steps, np.log(np.maximum(self.values, floor)))


@dataclass(frozen=True, slots=True)
class Window:
    """Some steps in a row, and the median over them."""

    first: int
    """Step."""
    last: int
    """Step."""
    median: float
    """Of the metric over them."""

    def __str__(self) -> str:
        return f"steps {self.first} to {self.last}"


@dataclass(frozen=True, slots=True)
class Shift:
    """How far a metric is from where it began."""

    begin: Window
    """The run's first steps: a fifth of them, 5 to 50."""
    now: Window
    """The last steps: a tenth of them, 5 to 30."""
    error: float
    """Standard error of the difference of their medians."""
    is_real: bool
    """Whether the difference is beyond chance (`_CHANCE`), with as many degrees of freedom as windows were seen."""

    @property
    def by(self) -> float:
        """The difference."""
        return self.now.median - self.begin.median

    @property
    def ratio(self) -> float:
        """The present level as a multiple of the first one; infinite where that was 0."""
        return self.now.median / self.begin.median if self.begin.median else math.inf


@dataclass(frozen=True, slots=True)
class Trend:
    """Whether a metric rises or falls."""

    change: float
    """Theil and Sen's slope times the steps that it is over."""
    p: float
    """Two-sided p-value of Mann and Kendall's test over means of blocks."""

    def rises(self, chance: float = 0.05) -> bool:
        """Whether it rises beyond chance."""
        return self.change > 0 and self.p < chance

    def falls(self, chance: float = 0.05) -> bool:
        """Whether it falls beyond chance."""
        return self.change < 0 and self.p < chance


def course_of(rows: Rows, metric: str) -> Course:
    """The finite values that rows have of a metric."""
    found = [(row["step"], row[metric]) for row in rows if math.isfinite(row.get(metric, math.nan))]
    pairs = np.array(found, dtype=np.float64).reshape(-1, 2)
    return Course(pairs[:, 0], pairs[:, 1])


def shift(course: Course) -> Shift:
    """How far the course's end is from its beginning. It needs `MIN_STEPS` values."""
    n = len(course)
    first, last = min(max(5, math.ceil(n / 5)), 50), min(max(5, math.ceil(n / 10)), 30)
    error, freedom = _error_of_median(course.values, last)
    # The longer window's median is the surer one.
    error *= math.sqrt(1 + last / first)
    begin, now = window(course, 0, first), window(course, n - last, n)
    is_real = abs(now.median - begin.median) > _quantile(freedom) * error
    return Shift(begin, now, error, bool(is_real))


def window(course: Course, start: int, end: int) -> Window:
    """The values `start` to `end`."""
    steps = course.steps[start:end]
    return Window(int(steps[0]), int(steps[-1]), float(np.median(course.values[start:end])))


def smoothed(course: Course, width: int) -> Course:
    """Running medians over `width` values, each at the middle of its steps; (n - width + 1,)."""
    if len(course) <= width:
        return Course(np.array([np.median(course.steps)]), np.array([np.median(course.values)]))
    views = np.lib.stride_tricks.sliding_window_view(course.values, width)
    middle = (width - 1) // 2
    return Course(course.steps[middle : middle + len(views)], np.median(views, axis=1))


def trend(course: Course, *, block: int = 5) -> Trend:
    """Whether it rises or falls: Mann and Kendall's test, which autocorrelated noise deceives, over means of blocks.

    https://doi.org/10.2307/1907187; blocks of several steps are nearly independent where single steps are not.

    Args:
        block: fewest values in a block where there are enough; 1 for values that are far apart.
    """
    n = len(course)
    if n < 5:
        return Trend(0.0, 1.0)
    from scipy.stats import kendalltau, theilslopes

    pieces = np.array_split(course.values, max(5, min(12, n // block)))
    means = np.array([piece.mean() for piece in pieces])
    found = kendalltau(np.arange(len(means)), means)
    slope = theilslopes(means).slope
    p = float(found.pvalue)
    return Trend(float(slope) * len(means), p if math.isfinite(p) else 1.0)


def noise(values: Floats) -> float:
    """Standard deviation of single values around their local course, from differences of neighbours."""
    if len(values) < 3:
        return math.nan
    differences = np.diff(values)
    spread = 1.4826 * float(np.median(np.abs(differences - np.median(differences))))
    # Where most steps are equal, as with rewards that are mostly 0, the median says nothing.
    trimmed = np.sort(np.abs(differences))[: max(2, math.ceil(0.9 * len(differences)))]
    return max(spread, float(np.sqrt(np.mean(trimmed**2)))) / math.sqrt(2)


def onset(course: Course, direction: float) -> int:
    """The step at which the course began to go where it now is.

    Three straight pieces are fitted to the course, and the knots chosen that leave the smallest squares. The onset is
    the knot from which on it goes in the alarm's direction faster than before. Where it did so from the beginning on,
    nothing marks one: then it is the step at which a tenth of the way was gone.

    Args:
        direction: 1 for a metric that rose, -1 for one that fell.
    """
    pieces = min(_BINS, len(course))
    if pieces < 6:
        return int(course.steps[0])
    levels = direction * np.array([np.median(piece) for piece in np.array_split(course.values, pieces)])
    first_steps = np.array([piece[0] for piece in np.array_split(course.steps, pieces)])
    one, two, fitted = _three_lines(levels)
    start = _steeper(fitted, [0, one, two, pieces - 1])
    if start > max(1, pieces // 10):
        return int(first_steps[start])
    way = smoothed(Course(course.steps, course.values * direction), max(3, len(course) // 20))
    gone = way.values >= levels[0] + 0.1 * (way.values.max() - levels[0])
    return int(way.steps[int(np.argmax(gone))])


def jump(course: Course, direction: float, least: float) -> int | None:
    """The first step of another level, where a course changes at once; None where it goes there by and by.

    Two straight pieces with a gap between them have to fit at least as well as the three without one that `onset` fits.

    Args:
        direction: 1 for a jump upwards, -1 for one downwards.
        least: the smallest height of it.
    """
    n, values = len(course), direction * (course.values - course.values.mean())
    if n < 8:
        return None
    errors = _line_errors(values)[2 : n - 3] + _line_errors(values[::-1])[n - 4 : 1 : -1]  # 3 values on each side
    at = int(np.argmin(errors)) + 3
    height = float(np.median(values[at : at + 5]) - np.median(values[max(0, at - 5) : at]))
    if height < least:
        return None
    pieces = min(_BINS, n)
    one, two, _ = _three_lines(np.array([np.median(piece) for piece in np.array_split(values, pieces)]))
    places = np.arange(n, dtype=np.float64)
    starts = [piece[0] for piece in np.array_split(places, pieces)]
    bends = [np.maximum(0.0, places - starts[knot]) for knot in (one, two)]
    design = np.stack([np.ones(n), places, *bends], axis=1)
    bent = values - design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return int(course.steps[at]) if errors.min() <= float(np.sum(bent**2)) else None


def _line_errors(values: Floats) -> Floats:
    """Squares that the best straight line leaves, of the first value, the first two, and so on; (n,)."""
    x, counts = np.arange(len(values), dtype=np.float64), np.arange(1, len(values) + 1)
    sums = {(i, j): np.cumsum(x**i * values**j) for i, j in ((1, 0), (0, 1), (2, 0), (0, 2), (1, 1))}
    across = sums[2, 0] - sums[1, 0] ** 2 / counts
    along = sums[1, 1] - sums[1, 0] * sums[0, 1] / counts
    left = sums[0, 2] - sums[0, 1] ** 2 / counts - along**2 / np.maximum(across, 1e-12)
    errors: Floats = np.maximum(left, 0.0)
    return errors


def _steeper(fitted: Floats, knots: Sequence[int]) -> int:
    """The knot from which on a course rises faster than before, with a quarter of its whole rise or more."""
    pieces = list(pairwise(knots))
    rises = [float(fitted[end] - fitted[start]) for start, end in pieces]
    slopes = [rise / (end - start) for rise, (start, end) in zip(rises, pieces, strict=True)]
    whole = sum(rise for rise in rises if rise > 0)
    for number, rise in enumerate(rises):
        is_prelude = number < 2 and rises[number + 1] > rise and slopes[number + 1] > 3 * slopes[number]
        if rise < 0.25 * whole or is_prelude:
            continue
        while number and slopes[number - 1] > 0.5 * slopes[number]:
            number -= 1  # one rise that a knot cuts in two
        return knots[number]
    return knots[int(np.argmax(slopes))]


def _three_lines(levels: Floats) -> tuple[int, int, Floats]:
    """The two bins at which three straight pieces that meet there fit best, and the fit."""
    knots, bases = _bases(len(levels))
    explained = np.einsum("mnk,n->mk", bases, levels)
    best = int(np.argmax(np.sum(explained**2, axis=1)))
    fitted: Floats = bases[best] @ explained[best]
    return int(knots[best, 0]), int(knots[best, 1]), fitted


@cache
def _bases(n: int) -> tuple[NDArray[np.int64], Floats]:
    """All pairs of knots, (m, 2), and orthonormal bases of the courses of n bins that bend there only, (m, n, 4)."""
    knots = np.array([(one, two) for one in range(1, n - 3) for two in range(one + 2, n - 1)])
    at = np.arange(n, dtype=np.float64)
    bends = [np.maximum(0.0, at[None, :] - knots[:, [side]]) for side in (0, 1)]
    designs = np.stack([np.ones_like(bends[0]), np.broadcast_to(at, bends[0].shape), *bends], axis=2)
    return knots, np.linalg.qr(designs).Q


def _error_of_median(values: Floats, width: int) -> tuple[float, int]:
    """(standard error of the median of `width` values in a row, degrees of freedom).

    Taken from neighbouring windows, which hold what neighbouring steps share: from how far each is from the middle
    between the ones beside it, so that a course that rises counts as one without noise. At least what independent
    values would have.
    """
    blocks = len(values) // width
    medians = np.median(values[len(values) - blocks * width :].reshape(blocks, width), axis=1)
    bends = np.diff(medians, 2)  # of independent windows with variance v it has the variance 6 v
    spread = 1.4826 * float(np.median(np.abs(bends))) / math.sqrt(6) if len(bends) else 0.0
    independent = 1.2533 * noise(values) / math.sqrt(width)
    return max(spread, independent, 1e-12), max(2, blocks - 2)


@cache
def _quantile(freedom: int) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(freedom, 1 - _CHANCE / 2))
