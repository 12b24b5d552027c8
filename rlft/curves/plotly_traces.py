"""The pieces that charts are made of: plotly.js traces as plain dicts, and their colours."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

from rlft.curves.series import Series, bins
from rlft.curves.text import interval_text, visible
from rlft.run.records import Event, Interval

Trace: TypeAlias = dict[str, Any]

# Mid-tones that can be read on a light and on a dark page.
BLUE, GREEN, ORANGE, RED, VIOLET, GREY = "#3b82f6", "#1fa971", "#e58a1f", "#e0524d", "#8f6bf2", "#8a94a6"


def curve(
    x: Sequence[float], y: Sequence[float | None], name: str, color: str, *, width: float = 1.6, dash: str = "solid"
) -> Trace:
    """A line; its points are marked while there are few. It is broken where a value is None."""
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(x) <= 40 else "lines",
        "x": list(x),
        "y": list(y),
        "name": plain_text(name),
        "line": {"color": color, "width": width, "dash": dash},
        "marker": {"size": 4, "color": color},
    }


def course(values: Series, name: str, color: str, *, width: float = 1.6) -> list[Trace]:
    """A metric over the steps: its band, its line, which is broken where values are not finite, and a mark there.

    Of many steps the line is that of the means of bins, with their band, and the values of single steps are faint.
    """
    numbers = [value if math.isfinite(value) else None for value in values.values]
    line = curve(values.steps, numbers, name, color, width=width)
    marks = [_not_finite(values.broken, name)] if values.broken else []
    if not (means := bins(values)):
        return [*band(values.steps, values.bounds, color), line, *marks]
    at = [each.step for each in means]
    faint = {**line, "line": {"color": color + "40", "width": 0.8}, "showlegend": False, "hoverinfo": "skip"}
    smooth = curve(at, [each.interval.mean for each in means], name, color, width=max(width, 2))
    return [*band(at, [(e.interval.low, e.interval.high) for e in means], color), faint, smooth, *marks]


def band(steps: Sequence[float], bounds: Sequence[tuple[float, float]], color: str) -> list[Trace]:
    """Two invisible lines with a fill between them, over the steps that have both bounds."""
    known = [(s, low, high) for s, (low, high) in zip(steps, bounds, strict=True) if math.isfinite(low + high)]
    if not known:
        return []
    x = [step for step, _, _ in known]
    shared = {
        "type": "scatter",
        "mode": "lines",
        "x": x,
        "line": {"width": 0, "color": color},
        "showlegend": False,
    }
    return [
        {**shared, "y": [low for _, low, _ in known], "name": "95 % low"},
        {
            **shared,
            "y": [high for _, _, high in known],
            "name": "95 % high",
            "fill": "tonexty",
            "fillcolor": color + "30",
        },
    ]


def _not_finite(steps: Sequence[float], name: str) -> Trace:
    """Crosses along the lower edge."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(steps),
        "y": [0.02] * len(steps),
        "yaxis": "y2",
        "name": "not a number",
        "hovertemplate": f"{plain_text(name)} is not a number<extra></extra>",
        "marker": {"symbol": "x", "size": 9, "color": RED},
    }


def interval_points(steps: Sequence[float], intervals: Sequence[Interval], name: str, color: str) -> Trace:
    """Means as points with error bars, where there are bounds."""
    up = [i.high - i.mean if i.bounded else 0.0 for i in intervals]
    down = [i.mean - i.low if i.bounded else 0.0 for i in intervals]
    trace = curve(steps, [i.mean for i in intervals], name, color)
    error = {
        "type": "data",
        "array": up,
        "arrayminus": down,
        "symmetric": False,
        "thickness": 1.5,
        "width": 4,
    }
    return {
        **trace,
        "mode": "lines+markers",
        "error_y": {**error, "color": color},
        "marker": {"size": 8, "color": color},
        "text": [interval_text(interval) for interval in intervals],
        "hovertemplate": "%{fullData.name}, step %{x}<br>%{text}<extra></extra>",
    }


def event_rail(events: Sequence[Event]) -> Trace:
    """Ticks along the lower edge, one per step with events, with the messages on hover."""
    texts: dict[int, list[str]] = {}
    for event in events:
        if event.step is not None:
            texts.setdefault(event.step, []).append(plain_text(f"{event.kind}: {event.message[:120]}"))
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(texts),
        "y": [0.02] * len(texts),
        "yaxis": "y2",
        "name": "events",
        "text": ["<br>".join(lines[:6]) for lines in texts.values()],
        "hovertemplate": "%{text}<extra></extra>",
        "marker": {"symbol": "triangle-up", "size": 9, "color": ORANGE},
    }


def plain_text(text: str) -> str:
    """Text as plotly.js has to get it: it reads some HTML, and names come from configs, rewards and logs."""
    return html.escape(visible(text))
