"""The small charts of a run's health, the most surprising first, and its alarms."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlft.curves import reading
from rlft.curves.charts import Chart, Section
from rlft.curves.statistics import welch_half_width
from rlft.curves.text import number

if TYPE_CHECKING:
    from rlft.curves.alarms import Health

ABOUT = {
    "entropy_collapse": ("policy/entropy",),
    "kl_without_reward": ("policy/kl_ref",),
    "length_with_reward": ("rollout/length",),
    "truncation": ("rollout/truncated",),
    "no_signal": ("groups/with_signal",),
    "gradient_spikes": ("policy/grad_norm",),
    "clip_saturation": ("policy/clip_fraction",),
    "critic_diverges": ("critic/explained_variance", "critic/loss"),
    "mismatch": ("policy/mismatch", "policy/mismatch_kl"),
    "throughput": ("time/tokens_per_s", "time/rollout"),
    "repetition": ("rollout/repetition", "rollout/duplicates"),
}
"""Metrics that an alarm is about, each of which has a chart below; the others are about the reward and its parts."""
_MOST = 99.0


def health(
    found: Health,
    sections: Sequence[Section],
    rows: Sequence[Mapping[str, float]],
    *,
    besides: Collection[tuple[str, ...]] = (),
) -> dict[str, Any]:
    """Alarms, what could not be told, and the charts: those that an alarm is about first, then by surprise.

    A chart's surprise is how far its metric moved between the first and the last steps of the run (`reading.window`, at
    least three) in half widths of the 95 % interval of that difference (Welch): above 1 it is more than chance. Charts
    of the metrics `besides` stand elsewhere on the page.
    """
    alarmed: dict[str, str] = {}
    for alarm in found.alarms:
        for metric in ABOUT.get(alarm.name, ()):
            alarmed.setdefault(metric, alarm.name)
    charts = [
        _told(chart, section.title, alarmed, rows)
        for section in sections
        for chart in section.charts
        if chart.metrics not in besides
    ]
    charts.sort(key=lambda chart: ("alarm" not in chart, -chart["surprise"]))
    return {
        "state": found.state,
        "alarms": [_alarm(alarm) for alarm in found.alarms],
        "unable": [[each.name, each.reason] for each in found.unable],
        "charts": charts,
    }


def moved(rows: Sequence[Mapping[str, float]], metric: str) -> tuple[float, float, float]:
    """(mean of the first steps, mean of the last ones, surprise) of a metric; nan without values."""
    values = [row[metric] for row in rows if math.isfinite(row.get(metric, math.nan))]
    width = max(3, reading.window(rows))
    if len(values) < 2 * width:
        return (values[0], values[-1], 0.0) if values else (math.nan, math.nan, 0.0)
    first, last = values[:width], values[-width:]
    start, end = math.fsum(first) / width, math.fsum(last) / width
    chance = welch_half_width((first, last), 0.95)
    away = abs(end - start)
    return start, end, 0.0 if away == 0 else min(_MOST, away / chance) if chance > 0 else _MOST


def _told(
    chart: Chart, section: str, alarmed: Mapping[str, str], rows: Sequence[Mapping[str, float]]
) -> dict[str, Any]:
    told: dict[str, Any] = {**chart.as_dict(), "section": section, "surprise": 0.0}
    if chart.metrics:
        start, end, surprise = max((moved(rows, metric) for metric in chart.metrics), key=lambda each: each[2])
        told["surprise"] = round(surprise, 2)
        if math.isfinite(start) and len(chart.metrics) == 1:
            told["went"] = f"{number(start)} \N{RIGHTWARDS ARROW} {number(end)}"
    if name := next((alarmed[metric] for metric in chart.metrics if metric in alarmed), ""):
        told["alarm"] = name
    return told


def _alarm(alarm: Any) -> dict[str, Any]:
    kept: Collection[str] = ("name", "severity", "onset", "evidence", "meaning", "advice")
    samples = [
        {"id": each.id, "step": each.step, "task": each.task, "index": each.index, "tokens": each.tokens,
         "reward": each.reward if math.isfinite(each.reward) else None, "text": each.excerpt}
        for each in alarm.samples
    ]  # fmt: skip
    return {**{name: getattr(alarm, name) for name in kept}, "samples": samples}
