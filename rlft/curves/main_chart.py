"""The large chart of a run: training, held-out measurements and shadow rewards on one y axis, and a rail of events."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlft.curves.charts import PART, Chart, heldout_numbers, is_whole_reward, reward_parts
from rlft.curves.evaluation_sets import EvaluationSet
from rlft.curves.marks import BLUE, GREEN, GREY, ORANGE, VIOLET, Mark, course, level, points
from rlft.curves.reading import ROLLED_BACK, STOPPED_EARLY, Rows
from rlft.curves.series import MANY, Series, alike, series, span
from rlft.curves.shadow import Shadow
from rlft.curves.text import sampled
from rlft.run.records import CHECKPOINTS, Evaluation, Event, numbered, word_for

_RESTARTS = ("resumed", "forked", "worker_restarted", "stopped", ROLLED_BACK, STOPPED_EARLY)
_MOST_MARKS = 300
_LATEST_CHECKPOINTS = 40


def result_charts(
    rows: Rows, evals: Sequence[Evaluation], shadows: Sequence[Shadow], config: Mapping[str, Any]
) -> list[Chart]:
    """The main chart, then those of measures that have another scale than it; empty without any data.

    Where a run trains no reward the margin of its preferences, or the loss, is the course.
    """
    known = [evaluation for evaluation in evals if math.isfinite(evaluation.accuracy.mean)]
    reward = series(rows, "reward/mean")
    if not reward:
        return [*_without_reward(rows, evals), *_alone(known, config)]
    metric = known[-1].metric if known else ""
    parts = reward_parts(rows)
    whole = [part for part in parts if is_whole_reward(rows, part)]
    title = f"Train reward ({whole[0]})" if len(whole) == 1 and len(parts) == 1 else "Train reward"
    marks: list[Mark] = [course(reward, "train reward", BLUE)]
    metrics = ["reward/mean"]
    apart: list[Chart] = []
    fits = _fits(reward, known)
    if fits and metric not in whole and (same := series(rows, PART + metric)):
        marks.append(course(same, f"train {metric}", GREEN, dash=True, plain=True))
        metrics.append(PART + metric)
    for each in shadows:
        if not (values := series(rows, PART + each.name)):
            continue
        shown = course(values, f"{each.name}, shadow", VIOLET, dash=True)
        if alike(span([reward]), span([values])):
            marks.append(shown)
            metrics.append(PART + each.name)
        else:
            hint = f"mean of each step; another scale than the train reward's{_band(values, config)}"
            name = f"{each.name}: shadow (not trained on)"
            apart.append(Chart(title=name, hint=hint, marks=[shown], metrics=(PART + each.name,)))
    hint = f"train: {sampled(config.get('sampling'), 1.0)}, {_tasks_of_step(config)}{_band(reward, config)}"
    if known and fits:
        word = word_for(known)
        title += f" and held-out {word}{f' ({metric})' if metric and metric not in title else ''}"
        hint += f"; held out: {asked(known[-1], config)}, 95 % intervals"
        marks += heldout_marks(known)
    elif known:
        apart += _alone(known, config)
    return [Chart(title=title, hint=hint, marks=marks, metrics=tuple(metrics)), *apart, *_gaps(shadows)]


def of_set(measured: EvaluationSet, config: Mapping[str, Any]) -> list[Chart]:
    """The chart of an evaluation set; none without any measurement."""
    known = [evaluation for evaluation in measured.evals if math.isfinite(evaluation.accuracy.mean)]
    charts = _alone(known, {**config, "evaluation": measured.settings})
    return [Chart(title=f"{measured.name}: {c.title}", hint=c.hint, marks=c.marks) for c in charts]


def rail(run: Path, events: Sequence[Event], alarms: Iterable[Any]) -> list[dict[str, Any]]:
    """What happened at which step, by step: alarms from their onset, restarts, other events, the newest checkpoints."""
    found = [{"step": a.onset, "kind": "alarm", "text": f"{a.severity} alarm: {a.line}"} for a in alarms]
    for event in events:
        if event.step is not None and event.kind != "alarm":
            kind = "restart" if event.kind in _RESTARTS else "event"
            found.append({"step": event.step, "kind": kind, "text": f"{event.kind}: {event.message[:300]}"})
    found = found[:_MOST_MARKS]
    for step, _ in numbered(run / CHECKPOINTS)[-_LATEST_CHECKPOINTS:]:
        found.append({"step": step, "kind": "checkpoint", "text": f"checkpoint of step {step}"})
    return sorted(found, key=lambda each: (each["step"], each["kind"]))


def heldout_marks(known: Sequence[Evaluation]) -> list[Mark]:
    """Points of the base, of the warm start and of the trained policy, and a line at where training began."""
    trained = [e for e in known if not e.is_before]
    before = [e for e in known if e.is_before]
    marks: list[Mark] = []
    if before and trained:
        marks.append(level(before[-1].accuracy.mean, f"{before[-1].label}, held out", GREY))
    for each in before[:-1]:
        marks.append(points([each.step], [each.accuracy], f"{each.label}, held out", GREY, joined=False))
    shown = [*before[-1:], *trained]
    name = "held out" if trained else f"{shown[-1].label}, held out"
    marks.append(points([e.step for e in shown], [e.accuracy for e in shown], name, ORANGE))
    return marks


def asked(evaluation: Evaluation, config: Mapping[str, Any]) -> str:
    """How an evaluation samples, and on what."""
    count = evaluation.accuracy.n
    if evaluation.stage != "RL":
        return f"{count} held-out prompts"
    return f"{sampled(config.get('evaluation'), 0.0)}, {count} held-out tasks"


def _alone(known: Sequence[Evaluation], config: Mapping[str, Any]) -> list[Chart]:
    if not known:
        return []
    metric = known[-1].metric
    title = f"Held-out {word_for(known)}{f' ({metric})' if metric else ''}"
    return [Chart(title=title, hint=f"{asked(known[-1], config)}; 95 % intervals", marks=heldout_marks(known))]


def _without_reward(rows: Rows, evals: Sequence[Evaluation]) -> list[Chart]:
    for metric, title in (("preference/margin", "Margin"), ("sft/loss", "Loss, nats per token")):
        if values := series(rows, metric):
            marks = [course(values, "train", BLUE), *heldout_numbers(evals, metric.partition("/")[2])]
            return [Chart(title=title, hint=f"mean of each step{_band(values, {})}", marks=marks, metrics=(metric,))]
    return []


def _gaps(shadows: Collection[Shadow]) -> list[Chart]:
    charts = []
    for each in shadows:
        if known := [(e.step, moved.gap.interval) for e, moved in each.moved if moved.gap.interval.n]:
            marks = [points([step for step, _ in known], [gap for _, gap in known], "gap", VIOLET), level(0, "", GREY)]
            hint = f"SDs that the trained reward rose more than the shadow since {each.start}; 95 % intervals"
            charts.append(Chart(title=f"Held-out gap to {each.name}", hint=hint, marks=marks))
    return charts


def _fits(reward: Series, known: Sequence[Evaluation]) -> bool:
    return not known or alike(span([reward]), span([], [e.accuracy for e in known]))


def _tasks_of_step(config: Mapping[str, Any]) -> str:
    count = config.get("tasks_per_step")
    return f"{count} training tasks a step" if count else "training tasks"


def _band(values: Series, config: Mapping[str, Any]) -> str:
    """What the band of a train curve speaks of."""
    if len(values.steps) > MANY:
        return "; means of bins of steps with 95 % bands, single steps faint"
    if not any(math.isfinite(low) for low, _ in values.bounds):
        return ""
    order = (config.get("environment") or {}).get("order", "shuffle")
    of = "clustered by task" if order == "shuffle" else f"for exactly the tasks of each step (order: {order})"
    return f"; 95 % band {of}"
