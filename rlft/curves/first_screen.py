"""What is seen first of a run in a terminal: the numbers of its last step, its parts, the last evaluation, alarms.

The panel of a training (`live_panel`) and `rlft watch` show it with the same words.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence

from rich.table import Table
from rich.text import Text

from rlft.curves.text import format_accuracy, visible
from rlft.run.records import Evaluation
from rlft.types import Metrics

COURSES = ("reward/mean", "preference/margin", "sft/loss")
"""The first of these that a run logs is drawn."""
NUMBERS = (
    ("reward", "reward/mean", ".3f"),
    ("loss", "preference/loss", ".4f"),
    ("loss", "sft/loss", ".4f"),
    ("accuracy", "preference/accuracy", ".0%"),
    ("margin", "preference/margin", ".3f"),
    ("KL", "policy/kl_ref", ".4f"),
    ("entropy", "policy/entropy", ".3f"),
    ("length", "rollout/length", ".1f"),
    ("turns", "rollout/turns", ".1f"),
    ("signal", "groups/with_signal", ".0%"),
    ("tokens/s", "time/tokens_per_s", ".0f"),
)
"""(label, metric, format) of the numbers of a step."""
MOST_PARTS = 6
"""How many parts of the reward are shown; of the others it is said how many there are."""
_PART = "reward/part/"


def drawn(metrics: Metrics) -> str:
    """The metric that is drawn; empty if there is none."""
    return next((name for name in COURSES if name in metrics), "")


def numbers(metrics: Metrics) -> list[tuple[str, str]]:
    """(label, number) of a step."""
    return [(label, format(metrics[name], form)) for label, name, form in NUMBERS if name in metrics]


def parts(metrics: Metrics, shadows: Collection[str] = ()) -> str:
    """The mean of each reward and named part, such as `right 0.750, brief 0.800`; empty where that is the reward.

    Args:
        shadows: names that are shown elsewhere.
    """
    known = {name.removeprefix(_PART): value for name, value in metrics.items() if name.startswith(_PART)}
    known = {name: value for name, value in known.items() if name not in shadows}
    if not known or list(known.values()) == [metrics.get("reward/mean")]:
        return ""
    told = [f"{name} {value:.3f}" for name, value in list(known.items())[:MOST_PARTS]]
    return ", ".join([*told, *([f"and {len(known) - MOST_PARTS} more"] if len(known) > MOST_PARTS else [])])


def held_out(evaluation: Evaluation) -> str:
    """An evaluation with its interval, such as `0.780 [0.710, 0.840]  n=120, accuracy of SFT`."""
    accuracy = format_accuracy(evaluation.accuracy, evaluation.missing)
    return f"{accuracy}  {evaluation.word} ({evaluation.metric}), {evaluation.label}"


def unscored(rows: Sequence[Metrics]) -> str:
    """How many samples of some steps have no score, as `3 failed, 1 abstained, in 2 of 40 steps`; empty where none."""
    told = []
    for what in ("failed", "abstained"):
        if count := sum(value for row in rows if math.isfinite(value := row.get(f"reward/{what}", 0.0))):
            told.append(f"{count:.0f} {what}")
    steps = sum(1 for row in rows if row.get("reward/failed", 0.0) > 0 or row.get("reward/abstained", 0.0) > 0)
    return ", ".join([*told, *([f"in {steps} of {len(rows)} steps"] if len(rows) > 1 else [])]) if told else ""


def shadow_rows(rows: Iterable[Metrics], shadows: Sequence[str]) -> list[tuple[str, str]]:
    """(name, its mean and how far it and the trained reward moved since it was first logged), of each shadow reward.

    Args:
        rows: metrics by step, each with its `step`; the last one is shown, and a shadow that it lacks is left out.
        shadows: names of the shadow rewards.
    """
    first: dict[str, Metrics] = {}
    last: Metrics = {}
    for last in rows:
        for name in shadows:
            if name not in first and _PART + name in last and "reward/mean" in last:
                first[name] = last
    lines = []
    for name in shadows:
        metric = _PART + name
        if metric not in last or "reward/mean" not in last:
            continue
        begin = first[name]
        moved, trained = last[metric] - begin[metric], last["reward/mean"] - begin["reward/mean"]
        since = f" ({moved:+.3f} since step {begin['step']:.0f}; trained {trained:+.3f})"
        lines.append((name, f"{last[metric]:.3f}{since if begin['step'] < last['step'] else ''}"))
    return lines


def add_rows(
    table: Table,
    metrics: Metrics,
    *,
    evaluation: Evaluation | None,
    alarms: Sequence[str],
    missing: str = "",
    shadows: Sequence[tuple[str, str]] = (),
    course: str = "",
) -> None:
    """Add all of it to a table of two columns. Everything that a model or user wrote goes through `Text`.

    Args:
        evaluation: the last one.
        alarms: a line each.
        missing: samples without a score, as `unscored` tells.
        shadows: (name, what is told of it) of each shadow reward.
        course: a small curve beside the number that is drawn.
    """
    of_course = next((label for label, name, _ in NUMBERS if name == drawn(metrics)), "")
    for label, told in numbers(metrics):
        table.add_row(Text(label, style="dim"), Text(told + (f" {course}" if course and label == of_course else "")))
    if told := parts(metrics, [name for name, _ in shadows]):
        table.add_row(Text("parts", style="dim"), Text(visible(told)))
    for name, told in shadows:
        table.add_row(Text(visible(f"shadow {name}"), style="dim"), Text(told))
    if missing:
        table.add_row(Text("not scored", style="yellow"), Text(missing))
    if evaluation is not None:
        table.add_row(Text("held out", style="dim"), Text(visible(held_out(evaluation))))
    for line in alarms:
        table.add_row(Text("alarm", style="bold red"), Text(visible(line)))


def clock(seconds: float) -> str:
    """`1:02:03` or `2:03`; a dash for nan."""
    if not math.isfinite(seconds):
        return "\N{EN DASH}"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
