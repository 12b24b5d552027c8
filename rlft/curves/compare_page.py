"""A comparison as text lines and as one HTML file, which works offline and runs no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlft.curves import pages
from rlft.curves.comparison import Comparison
from rlft.curves.courses import Courses
from rlft.curves.scored_run import Group
from rlft.curves.seeds import SeedDifference
from rlft.curves.text import counted, interval_text, number, shortened
from rlft.run.records import Interval

STYLES = ("base.css", "compare.css")
"""Style sheets of the page."""
_EDGE, _APART = 5, 12  # of the drawings, in percent: air at the ends, and between two labels


def facts(c: Comparison) -> list[str]:
    """Sentences about what was compared, what it could see, and what the training curves did."""
    told = [_group(c.before), _group(c.after)]
    if c.changes:
        shown = [f"{key} {_value(a)} -> {_value(b)}" for key, a, b in c.changes[:8]]
        more = f", and {len(c.changes) - 8} more settings" if len(c.changes) > 8 else ""
        told.append(f"settings that differ: {', '.join(shown)}{more}")
    else:
        told.append("settings that differ: none")
    worse, better, same = c.counts
    told.append(f"tasks: {worse} got worse, {better} got better, {same} stayed; a single task moves by chance, too")
    if c.seeds is not None:
        told += _over_seeds(c, c.seeds)
    told.append(detectable(c))
    return told + (_course_facts(c, c.courses) if c.courses else [])


def _over_seeds(c: Comparison, seeds: SeedDifference) -> list[str]:
    """The two spreads that the interval holds, each alone, and what so few seeds cannot tell."""
    whole, alone = c.headline.change, (seeds.interval, c.tasks.interval)
    told = (
        f"over seeds alone, for these tasks: {_bounds(alone[0])}, exact permutation p = {seeds.p:.3f} (so many seeds "
        f"can give {seeds.least_p:.2g} at best); over tasks alone, for these runs: {_bounds(alone[1])}"
    )
    widths = [each.high - each.low for each in (whole, *alone) if each.bounded]
    if len(widths) == 3 and widths[0] < max(widths[1:]):
        told += (
            ". The interval over both is narrower than one of these because the noise of the samples is in each of "
            "these two and counts once in it, and because few seeds alone have few degrees of freedom"
        )
    rows = len(c.rows)
    if seeds.least_p <= 1 - c.tasks.level < seeds.least_p * rows:
        return [
            told,
            f"so few seeds can tell the headline, but none of the {rows} other rows: adjusted for so many, the "
            f"smallest p is {seeds.least_p * rows:.2f}",
        ]
    return [told]


def _bounds(interval: Interval) -> str:
    """The bounds alone; the mean is the headline's."""
    shown = interval_text(interval, "+")
    return shown[shown.index("[") :] if interval.bounded else "no interval"


def detectable(c: Comparison) -> str:
    """What a comparison like this one can see, and what would be needed for the smallest change of interest."""
    known = c.detectable
    sees = "no change, however large," if math.isinf(known.effect) else f"changes from {number(known.effect)} on"
    told = f"a comparison like this one sees {sees} in 80 of 100 cases"
    if known.effect <= known.wanted:
        return told
    ways = [f"{known.tasks:,} tasks"] if known.tasks else []
    ways += [f"{known.seeds} seeds on each side"] if known.seeds else []
    if not ways:
        both = "more tasks and more seeds together" if c.scope == "recipes" else "no number of tasks that can be made"
        return f"{told}; for {known.wanted:g}: {both} (`rlft power` says how many)"
    return f"{told}; for {known.wanted:g}: {' or '.join(ways)}"


def more_rows(c: Comparison) -> list[tuple[str, str, str, str]]:
    """(label, before, after, change) of what is shown without a test."""
    rows = []
    if c.iqm is not None:
        label = f"{c.metric}, middle half of the tasks (IQM; bootstrap)"
        rows.append((label, number(c.iqm[0]), number(c.iqm[1]), interval_text(c.iqm[2], "+")))
    if c.courses is not None and c.seeds is None:
        for index, label in enumerate(
            (f"train reward, last {counted(c.courses.width, 'step')}", "train reward, whole run")
        ):
            first, last = c.courses.before[0][index], c.courses.after[0][index]
            rows.append((label, number(first), number(last), f"{last - first:+.3g}, one run each"))
    if c.courses is not None and (reached := c.courses.reached):
        label = f"step that reaches train reward {number(reached.threshold)}"
        rows.append((label, _steps(reached.before), _steps(reached.after), ""))
    return rows


def write_page(c: Comparison, path: Path) -> None:
    """Write the HTML file. Raises OSError if it cannot be written."""
    path.write_bytes(compare_page(c))


def compare_page(c: Comparison) -> bytes:
    """The HTML of a comparison."""
    from markupsafe import Markup

    style = pages.styles(*STYLES)
    return pages.render(
        "compare.html.j2",
        {"p": p_text},
        c=c,
        style=Markup(style),
        style_hash=pages.source_hash(style),
        forest=_forest(c),
        strip=_strip(c),
        more=more_rows(c),
        facts=facts(c),
    )


def p_text(p: float) -> str:
    """A p-value with three decimals."""
    return "<0.001" if p < 0.001 else f"{p:.3f}"


def _group(group: Group) -> str:
    runs = group.runs
    names = ", ".join(str(run.folder) for run in runs[:4]) + (f", ... ({len(runs)} runs)" if len(runs) > 4 else "")
    seeds = ", ".join(str(run.seed) for run in runs)
    return f"{group.label}: {names}; seed{'s' if len(runs) > 1 else ''} {seeds}; evaluation {runs[0].evaluation}"


def _course_facts(c: Comparison, courses: Courses) -> list[str]:
    if courses.can_part:
        return [f"where the training curves part cannot be said: {courses.can_part}"]
    if courses.parted is None:
        return ["the training curves do not part for good"]
    spread = "over seeds" if c.scope == "recipes" else "over steps, for these two runs"
    return [f"the training curves part at step {courses.parted} and stay apart to the end (95 % intervals {spread})"]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return shortened(str(value), 60)


def _steps(steps: Sequence[int | None]) -> str:
    return ", ".join("never" if step is None else str(step) for step in steps)


def _forest(c: Comparison) -> dict[str, Any]:
    rows = [c.headline, *c.rows]
    known = [v for r in rows for v in (r.change.low, r.change.mean, r.change.high) if math.isfinite(v)]
    place = _scale([*known, 0.0])
    return {
        "zero": place(0.0),
        "ticks": _ticks(place, [0.0, min(known, default=0.0), max(known, default=0.0)], "+.2g"),
        "rows": [_drawn(place, row.label, row.change, [row.change.mean], is_told=row.conclusive) for row in rows],
    }


def _strip(c: Comparison) -> dict[str, Any]:
    known = [v for side in c.scores for v in side]
    known += [v for i in c.intervals for v in (i.low, i.high) if math.isfinite(v)]
    place = _scale(known)
    sides = zip((c.before, c.after), c.scores, c.intervals, strict=True)
    return {
        "zero": None,
        "ticks": _ticks(place, [min(known), max(known)], ".3g"),
        "rows": [_drawn(place, group.label, interval, scores) for group, scores, interval in sides],
    }


def _drawn(
    place: Any, label: str, interval: Interval, dots: Sequence[float], *, is_told: bool = False
) -> dict[str, Any]:
    """A row of a drawing: an interval where there is one, and dots."""
    ends = (interval.low, interval.high) if interval.bounded else (None, None)
    low, high = (None if end is None else place(end) for end in ends)
    told = {"label": shortened(label, 80), "told": f"{shortened(label, 80)}: {interval_text(interval)}"}
    return {**told, "low": low, "high": high, "dots": [place(v) for v in dots if math.isfinite(v)], "is_told": is_told}


def _ticks(place: Any, values: Sequence[float], form: str) -> list[dict[str, Any]]:
    """Labels below a drawing; one that would touch an earlier one is left out."""
    found: list[dict[str, Any]] = []
    for value in values:
        x = place(value)
        if all(abs(x - other["x"]) >= _APART for other in found):
            found.append({"x": x, "label": format(value, form) if value else "0"})
    return found


def _scale(values: Sequence[float]) -> Any:
    """Where a value lies in a drawing, in percent of its width."""
    low, high = min(values), max(values)
    width = high - low or 1.0
    return lambda value: round(_EDGE + (value - low) / width * (100 - 2 * _EDGE), 2)
