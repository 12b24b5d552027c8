"""A curve in a terminal: braille dots over steps, with an axis that does not move while values arrive."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

_BARS = "▁▂▃▄▅▆▇█"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bit of each dot of a braille character, by row and column."""
MARK = "●"
"""A value that is shown as a point."""

Points = Sequence[tuple[float, float]]
"""(step, value), by ascending step."""


def axis(values: Iterable[float]) -> tuple[float, float]:
    """Bounds of a y axis: 0 to 1, and where a value lies beyond one, that one at 1, 2 or 5 times a power of ten.

    So it stays as it is while values arrive, but for one that is out of all proportion to those before.
    """
    known = [value for value in values if math.isfinite(value)]
    highest, lowest = max(known, default=0.0), min(known, default=0.0)
    return (-_round(-lowest) if lowest < 0 else 0.0, _round(highest) if highest > 0 else (0.0 if lowest < 0 else 1.0))


def _round(value: float) -> float:
    """The least of 1, 2, 5, 10, 20 and so on that is not below a positive value."""
    if value <= 1:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= value)


def plot(
    line: Points, marks: Points = (), *, steps: int, bounds: tuple[float, float], width: int = 60, height: int = 8
) -> list[str]:
    """Lines of text: the curve, `marks` on it, the y axis to the left and the steps below.

    Args:
        line: drawn as a line; several steps that fall into one column of dots are averaged, what is not finite is a
            gap.
        marks: drawn as points over it.
        steps: right end of the x axis, that of all steps that are planned; more if there are more.
        bounds: ends of the y axis, see `axis`.
        width: columns of the plot itself.
        height: rows of the plot itself.
    """
    low, high = bounds
    last = max([steps, 1, *(int(step) for step, _ in (*line[-1:], *marks[-1:]))])
    columns, rows = 2 * width, 4 * height

    def column(step: float) -> int:
        return min(columns - 1, max(0, int((step - 0.5) / last * columns)))

    def row(value: float) -> int:
        share = (min(high, max(low, value)) - low) / (high - low)
        return round((1 - share) * (rows - 1))

    cells = [[0] * width for _ in range(height)]
    before: tuple[int, int] | None = None
    for at, value in _means(line, column):
        if not math.isfinite(value):
            before = None
            continue
        here = (at, row(value))
        for x, y in _between(before or here, here):
            cells[y // 4][x // 2] |= _DOTS[y % 4][x % 2]
        before = here
    drawn = [[chr(0x2800 + bits) if bits else " " for bits in each] for each in cells]
    for step, value in marks:
        if math.isfinite(value):
            drawn[row(value) // 4][column(step) // 2] = MARK
    labels = [f"{high:g}", *[""] * (height - 2), f"{low:g}"] if height > 1 else [f"{high:g}"]
    margin = max(map(len, labels))
    told = [f"{label:>{margin}} │{''.join(each)}" for label, each in zip(labels, drawn, strict=True)]
    return [*told, f"{'':>{margin}} └{'─' * width}", f"{'':>{margin}}  1{f'step {last}':>{width - 1}}"]


def sparkline(values: Sequence[float], width: int = 40) -> str:
    """The last `width` values as block characters between their minimum and maximum; a gap where one is not finite."""
    values = values[-width:]
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known, default=0.0), max(known, default=0.0)
    spread = high - low or 1.0
    heights = [round((value - low) / spread * (len(_BARS) - 1)) if math.isfinite(value) else None for value in values]
    return "".join(" " if height is None else _BARS[height] for height in heights)


def _means(line: Points, column: Callable[[float], int]) -> list[tuple[int, float]]:
    """(column of dots, mean of the finite values of its steps, nan if none is), ascending."""
    by_column: dict[int, list[float]] = {}
    for step, value in line:
        by_column.setdefault(column(step), []).append(value)
    means = []
    for at, values in by_column.items():
        known = [value for value in values if math.isfinite(value)]
        means.append((at, math.fsum(known) / len(known) if known else math.nan))
    return means


def _between(start: tuple[int, int], end: tuple[int, int]) -> list[tuple[int, int]]:
    """The dots from one to another."""
    across, down = end[0] - start[0], end[1] - start[1]
    count = max(abs(across), abs(down), 1)
    return [(start[0] + round(across * i / count), start[1] + round(down * i / count)) for i in range(count + 1)]
