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
from rlft.curves.text import interval_text, number, shortened
from rlft.run.records import Interval

_WIDTH, _LABELS, _ROW = 560, 190, 26  # of the drawings, in pixels


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
        for index, label in enumerate((f"train reward, last {c.courses.width} steps", "train reward, whole run")):
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

    return pages.render(
        "compare.html.j2",
        {"p": p_text},
        c=c,
        style=Markup((pages.FOLDER / "base.css").read_text(encoding="utf-8")),
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
    return shortened(str(value), 60)


def _steps(steps: Sequence[int | None]) -> str:
    return ", ".join("never" if step is None else str(step) for step in steps)


def _forest(c: Comparison) -> dict[str, Any]:
    rows = [c.headline, *c.rows]
    known = [v for r in rows for v in (r.change.low, r.change.mean, r.change.high) if math.isfinite(v)]
    place = _scale([*known, 0.0])
    return {
        "width": _WIDTH,
        "height": _ROW * len(rows) + 24,
        "zero": place(0.0),
        "ticks": [{"x": place(v), "label": f"{v:+.2g}"} for v in {min([*known, 0.0]), 0.0, max([*known, 0.0])}],
        "rows": [
            {
                "label": _cut(row.label),
                "y": _ROW * index + 14,
                "mean": place(row.change.mean),
                "low": place(row.change.low) if row.change.bounded else None,
                "high": place(row.change.high) if row.change.bounded else None,
                "told": row.conclusive,
            }
            for index, row in enumerate(rows)
        ],
    }


def _strip(c: Comparison) -> dict[str, Any]:
    known = [v for side in c.scores for v in side]
    known += [v for i in c.intervals for v in (i.low, i.high) if math.isfinite(v)]
    place = _scale(known)
    return {
        "width": _WIDTH,
        "height": _ROW * 2 + 24,
        "ticks": [{"x": place(value), "label": number(value)} for value in {min(known), max(known)}],
        "rows": [
            {
                "label": _cut(group.label),
                "y": _ROW * index + 14,
                "low": place(interval.low) if interval.bounded else None,
                "high": place(interval.high) if interval.bounded else None,
                "dots": [place(value) for value in scores],
            }
            for index, (group, scores, interval) in enumerate(
                zip((c.before, c.after), c.scores, c.intervals, strict=True)
            )
        ],
    }


def _cut(label: str) -> str:
    """A label that fits beside a drawing; names end in what tells them apart."""
    return label if len(label) <= 28 else f"\N{HORIZONTAL ELLIPSIS}{label[-27:]}"


def _scale(values: Sequence[float]) -> Any:
    """Where a value lies in a drawing, to the right of the labels."""
    low, high = min(values), max(values)
    width = high - low or 1.0
    return lambda value: round(_LABELS + 20 + (value - low) / width * (_WIDTH - _LABELS - 50), 1)
