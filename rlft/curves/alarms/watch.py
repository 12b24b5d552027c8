"""Alarms of plain metrics and of run directories."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlft.curves import reading
from rlft.curves.alarms.course import MIN_STEPS, course_of, onset
from rlft.curves.alarms.detectors import DETECTORS
from rlft.curves.alarms.evidence import samples_for
from rlft.curves.alarms.health import Alarm, Health, Unable
from rlft.curves.alarms.seen import Found, Seen
from rlft.curves.reading import Rows
from rlft.curves.shadow import Shadow, measure_shadows, shadow_names
from rlft.curves.text import interval_text
from rlft.run import damage
from rlft.run.records import Event

_MIN_TASKS = 30
"""Fewest held-out tasks from which a shadow that is not seen to rise counts as one that did not."""


def alarms_from(rows: Rows, *, shadows: Collection[str] = ()) -> Health:
    """What the metrics of a run's steps say of its health; alarms come without samples.

    Args:
        rows: metrics of each step, ascending, each with its `step`; values may be nan, which is an alarm.
        shadows: names of the rewards that are not trained on, whose means are `reward/part/NAME`.
    """
    return _health(rows, _answers(rows, shadows), {})


def alarms_of(run: Path) -> Health:
    """What a run directory says of its health, ended or not, with samples as evidence.

    A file of samples or an evaluation that is damaged is left out, and the notes say so.

    Raises:
        ValueError: this is no run directory, or its metrics or events are damaged.
    """
    shadows = shadow_names(reading.reward_specs(reading.read_config(run)))
    notes: list[str] = []
    rows = with_not_finite(reading.read_metrics(run, notes), reading.read_events(run, notes))
    answers = _answers(rows, shadows)
    with damage.left_out() as lacking:
        if rows and shadows and not isinstance(answers["shadow_gap"], Found):
            steps = len(reading.rollout_steps(run))
            width = max(3, min(10, steps // 8)) if steps >= MIN_STEPS else 0
            answers["shadow_gap"] = (
                _of_samples(measure_shadows(run, shadows, width=width), rows) or answers["shadow_gap"]
            )
    with damage.left_out() as unshown:
        samples = {name: samples_for(run, name, found) for name, found in answers.items() if isinstance(found, Found)}
    found = _health(rows, answers, samples)
    return replace(found, enough=found.enough and not lacking, notes=tuple(dict.fromkeys([*notes, *lacking, *unshown])))


def alarms_until(run: Path, found: Health, step: int) -> Health:
    """What a run's alarms say of the adapter of an earlier step than its last one, to which it was rolled back.

    Those count that had begun by then. Whether the reward left its shadow behind is asked of the samples and metrics up
    to that step; where these cannot tell, what was seen later of a gap that had begun counts too.

    Args:
        run: the run directory.
        found: what `alarms_of` says of all steps.
        step: the step of the adapter that is the result.
    """
    begun = [alarm for alarm in found.alarms if alarm.onset <= step]
    shadows = shadow_names(reading.reward_specs(reading.read_config(run)))
    rows = [row for row in reading.read_metrics(run, []) if row["step"] <= step]
    if not rows or not shadows:
        return replace(found, alarms=tuple(begun))
    measured = measure_shadows(run, shadows, until=step)
    gap = DETECTORS["shadow_gap"](Seen(rows=rows, shadows=tuple(shadows)))
    gap = gap if isinstance(gap, Found) else _of_samples(measured, rows)
    if gap is not None or any(shadow.moved or shadow.training for shadow in measured):
        begun = [alarm for alarm in begun if alarm.name != "shadow_gap"]
    if gap is not None:
        samples = samples_for(run, "shadow_gap", gap, until=step)
        begun += _health(rows, {"shadow_gap": gap}, {"shadow_gap": samples}).alarms
    return replace(found, alarms=tuple(begun))


def is_looked_at(step: int) -> bool:
    """Whether a run that goes on is looked at after this step: every fifth one, of long runs fewer."""
    return step % max(5, step // 200 * 5) == 0


def lasting(alarms: Iterable[Alarm], before: Collection[str]) -> list[Alarm]:
    """The alarms that were found before, too, and values that are not finite, which no chance makes."""
    return [alarm for alarm in alarms if alarm.name in before or alarm.name == "not_finite"]


def with_not_finite(rows: Rows, events: Sequence[Event]) -> list[dict[str, float]]:
    """The rows with nan where a metric was left out because it was not finite, which an event says."""
    left_out: dict[int, list[str]] = {}
    for event in events:
        if event.kind == "not_finite" and event.step is not None:
            names = re.sub(r" not finite, .*", "", event.message, flags=re.DOTALL).split(", ")
            left_out.setdefault(event.step, []).extend(names)
    return [{**row, **dict.fromkeys(left_out.get(int(row["step"]), ()), math.nan)} for row in rows]


def _answers(rows: Rows, shadows: Collection[str]) -> dict[str, Found | str | None]:
    seen = Seen(rows=rows, shadows=tuple(shadows))
    return {name: detector(seen) for name, detector in DETECTORS.items()} if rows else {}


def _health(rows: Rows, answers: Mapping[str, Found | str | None], samples: Mapping[str, Any]) -> Health:
    last = int(rows[-1]["step"]) if rows else 0
    alarms = [
        Alarm(
            name=name,
            severity=found.severity,
            onset=found.onset,
            seen=last,
            evidence=found.evidence,
            numbers=found.numbers,
            samples=samples.get(name, ()),
        )
        for name, found in answers.items()
        if isinstance(found, Found)
    ]
    return Health(
        steps=len(rows),
        alarms=tuple(sorted(alarms, key=lambda alarm: (alarm.severity != "critical", alarm.onset))),
        unable=tuple(Unable(name=name, reason=reason) for name, reason in answers.items() if isinstance(reason, str)),
        enough=len(rows) >= MIN_STEPS,
    )


def _of_samples(measured: Iterable[Shadow], rows: Rows) -> Found | None:
    """What the stored samples of evaluations, or else of training, say: the reward rose, a shadow did not."""
    for shadow in measured:
        if found := _held_out(shadow, rows) or _in_training(shadow, rows):
            return found
    return None


def _held_out(shadow: Shadow, rows: Rows) -> Found | None:
    if not shadow.moved:
        return None
    evaluation, change = shadow.moved[-1]
    ahead = (
        change.trained.conclusive
        and change.gap.conclusive
        and min(change.trained.interval.low, change.gap.interval.low) > 0
    )
    followed = change.shadow.conclusive and change.shadow.interval.mean > 0
    fell = change.shadow.conclusive and change.shadow.interval.mean < 0
    if not ahead or followed or not (fell or change.shadow.interval.n >= _MIN_TASKS):
        return None
    return Found(
        severity="critical" if fell else "warning",
        onset=_parted(rows, shadow.name, evaluation.step),
        evidence=f"held-out tasks, {evaluation.label} against {shadow.start}: reward "
        f"{interval_text(change.trained.interval, '+')}, {shadow.name} {interval_text(change.shadow.interval, '+')}, "
        f"gap {interval_text(change.gap.interval, '+')} SD",
        numbers={"gap": change.gap.interval.mean, "rose": change.trained.interval.mean},
        part=shadow.name,
    )


def _in_training(shadow: Shadow, rows: Rows) -> Found | None:
    if shadow.moved or shadow.training is None:
        return None
    trained, moved, gap = shadow.training.trained, shadow.training.shadow, shadow.training.gap
    if not (trained.low > 0 and gap.low > 0 and (moved.high < 0 or (moved.low <= 0 and moved.n >= _MIN_TASKS))):
        return None
    return Found(
        severity="critical" if moved.high < 0 else "warning",
        onset=_parted(rows, shadow.name, int(rows[-1]["step"])),
        evidence=f"training samples of the first and the last steps: reward {interval_text(trained, '+')}, "
        f"{shadow.name} {interval_text(moved, '+')}, gap {interval_text(gap, '+')} SD",
        numbers={"gap": gap.mean, "rose": trained.mean},
        part=shadow.name,
    )


def _parted(rows: Rows, name: str, otherwise: int) -> int:
    """The step from which on the reward runs ahead of a shadow, each in the run's own spread."""
    import numpy as np

    both = [row for row in rows if f"reward/part/{name}" in row and "reward/mean" in row]
    if len(both) < MIN_STEPS:
        return otherwise
    reward, shadow = (course_of(both, metric) for metric in ("reward/mean", f"reward/part/{name}"))
    if len(reward) != len(shadow):
        return otherwise
    spreads = [float(np.std(course.values)) or 1.0 for course in (reward, shadow)]
    return onset(type(reward)(reward.steps, reward.values / spreads[0] - shadow.values / spreads[1]), 1)
