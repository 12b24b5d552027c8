"""What speaks against a run's result, or leaves it in doubt, whatever the held-out effect is.

Each function looks at one thing and gives a `Reason`, or None where nothing is the matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from rlft.curves.contents import merged
from rlft.curves.differences import Difference, paired
from rlft.curves.reading import FEWEST_STEPS, Rows, deciding_window
from rlft.curves.shadow import CERTAIN, Drift, Shadow
from rlft.curves.statistics import welch_half_width
from rlft.curves.text import counted, interval_text, number, percent
from rlft.curves.worst_case import Scores, ends, filled
from rlft.run import damage
from rlft.run.records import Evaluation, Interval

if TYPE_CHECKING:
    from rlft.curves.alarms import Health


Weight: TypeAlias = Literal["for", "against", "doubt", "note"]

MAX_MISSING = 0.2
"""Largest share of samples without a score with which an evaluation can still tell something."""
MAX_TRUNCATED = 0.2
"""Share of completions cut at the length limit from which an evaluation measures the limit."""

OF_HACKING = ("shadow_gap", "length_with_reward", "part_against_part", "repetition")
"""Alarms that say that the reward may be earned without what is wanted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """Why a verdict is what it is."""

    code: str
    """Short name, for programs."""
    weight: Weight
    """`against` makes it DON'T, `doubt` CAN'T TELL at best; `for` and `note` decide nothing alone."""
    says: str
    """One or two sentences for people."""


def age(last: Evaluation, rows: Rows, every: int) -> Reason | None:
    """Whether training went on for longer after the last evaluation than the config plans between two."""
    step = int(rows[-1]["step"]) if rows else last.step
    behind = step - last.step
    if behind <= max(every, step // 10):
        return None
    return Reason(
        code="age",
        weight="doubt",
        says=f"The last evaluation is of step {last.step}, and the run is at step {step}: {counted(behind, 'step')} "
        f"{'is' if behind == 1 else 'are'} not measured. Evaluate the last adapter: rlft evaluate RUN.",
    )


def unmeasured(last: Evaluation, rows: Rows) -> Reason | None:
    """Says which adapter the last evaluation measured, where the run has steps after it."""
    step = int(rows[-1]["step"]) if rows else last.step
    if step <= last.step:
        return None
    later = f"step {step}, which came after, was" if step == last.step + 1 else f"steps {last.step + 1} to {step} were"
    return Reason(
        code="measured", weight="note", says=f"What was measured is the adapter of step {last.step}; {later} not."
    )


def lost(last: Evaluation | None, rows: Rows, summary: Mapping[str, Any], file: Path) -> Reason | None:
    """Whether a run that has ended has its last step and the evaluation after it, as its summary tells of them.

    Raises ValueError if the summary is no such record, but see `damage.left_out`.

    Args:
        last: the last evaluation of the policy that is the result; None if there is none of a trained one.
        rows: metrics by step, those after the result, too.
        summary: summary.json; empty while the run goes on.
        file: where it is, for the error.
    """
    told = summary.get("accuracy_rl") or summary.get("accuracy_trained") or {}
    steps = summary.get("steps") or 0
    result = summary.get("result_step") or steps
    wrong = [name for name, value in (("steps", steps), ("result_step", result)) if not _is_count(value)]
    if wrong or not isinstance(told, Mapping):
        name, kind = (wrong[0], "whole number") if wrong else ("the accuracy after training", "mapping")
        damage.refuse(ValueError(f"{file}: {name} is no {kind}; rlft verify finds what else was changed"))
        return None
    if not told or not steps:
        return None
    ended = int(rows[-1]["step"]) if rows else 0
    if ended < steps:
        says = f"summary.json tells of {steps} steps, and metrics.jsonl ends with step {ended}: restore it from a copy."
    elif last is None or last.step < result:
        says = f"summary.json tells of an evaluation after step {result}, which is not there"
        says += f"; the last one is of step {last.step}. Restore it from a copy" if last else ". Restore it from a copy"
        says += "." if "accuracy_trained" in summary else ", or evaluate the last adapter: rlft evaluate RUN."
    elif last.step == result and summary.get("metric") == last.metric and told.get("mean") != last.accuracy.mean:
        says = f"summary.json says {told.get('mean')} of the evaluation after step {result}, and the evaluation "
        says += f"{last.accuracy.mean}: one of them was changed; rlft verify RUN finds which."
    else:
        return None
    return Reason(code="lost", weight="doubt", says=says)


def fell_since(last: Evaluation, rows: Rows, order: str) -> Reason | None:
    """Whether the train reward fell after the last evaluation, beyond chance.

    The steps before the evaluation are compared with as many after it, at most 20, by Welch's t at 99.9 %. Where more
    than half of what the reward had gained by then is gone, this speaks against the run.

    Args:
        order: the config's `environment.order`; where it is not `shuffle` the tasks of later steps may be harder, so a
            fall is a doubt at most.
    """
    values = [(row["step"], row["reward/mean"]) for row in rows if math.isfinite(row.get("reward/mean", math.nan))]
    since = [value for step, value in values if step > last.step][-20:]
    until = [value for step, value in values if step <= last.step]
    before = until[-20:]
    if min(len(since), len(before)) < FEWEST_STEPS:
        return None
    gone = _mean(before) - _mean(since)
    if gone <= 0 or not _differ(before, since):
        return None
    gained = _mean(before) - _mean(until[: len(before)])
    is_lost = gone > max(gained, 0.0) / 2 and order == "shuffle"
    return Reason(
        code="collapse",
        weight="against" if is_lost else "doubt",
        says=f"After the last evaluation (step {last.step}) the train reward fell from {number(_mean(before))} to "
        f"{number(_mean(since))} (means of {len(before)} and {len(since)} steps): what was measured is not what "
        "the run ends with.",
    )


def truncation(last: Evaluation) -> Reason | None:
    """Whether so many completions were cut that the evaluation measures the limit."""
    if not last.truncated >= 0.05:
        return None
    is_much = last.truncated >= MAX_TRUNCATED
    return Reason(
        code="truncation",
        weight="doubt" if is_much else "note",
        says=f"{percent(last.truncated)} of the held-out completions were cut at the length limit"
        + ("; raise sampling.max_new_tokens before deciding." if is_much else "."),
    )


def missing(
    before: Evaluation,
    after: Evaluation,
    level: float,
    min_effect: float,
    is_gain: bool,
    contents: Mapping[str, str],
) -> Reason | None:
    """What the samples without a score could change: the effect with each of them at its worst.

    A missing sample after training counts as the lowest value seen and one before it as the highest (0 and 1 where all
    values lie within), see `worst_case.filled`.
    """
    lost = [_missing(e) for e in (before, after)]
    if not any(count for count, _ in lost):
        return None
    shares = [count / total for count, total in lost]
    told = f"{lost[0][0]} of {lost[0][1]} samples before and {lost[1][0]} of {lost[1][1]} after have no score"
    if max(shares) > MAX_MISSING:
        return Reason(
            code="missing",
            weight="doubt",
            says=f"{told}, more than {percent(MAX_MISSING)}: the others may be the easy ones. See the failures, mend "
            "the reward and evaluate again.",
        )
    worst = worst_case(before, after, level, contents)
    holds = not is_gain or worst.interval.low > min_effect
    return Reason(
        code="missing",
        weight="note" if holds else "doubt",
        says=f"{told}; with all of them at their worst the change is {interval_text(worst.interval, '+')}"
        + ("." if holds else ", which does not show the effect any more."),
    )


def worst_case(before: Evaluation, after: Evaluation, level: float, contents: Mapping[str, str]) -> Difference:
    """The paired change with every missing sample at its worst, see `missing`; tasks of equal content are one."""
    sides = [Scores(e.by_task, e.failed) for e in (before, after)]
    low, high = ends(sides)
    first, last = (merged(each, contents) for each in filled(sides, (high, low)))
    return paired(first, last, level)


def shadows(measured: Sequence[Shadow], order: str) -> list[Reason]:
    """What the shadow rewards say about a rise of the trained reward: at the last evaluation, or else in training.

    Training is a second look, so it speaks against a run at `shadow.CERTAIN` only; at 95 % it leaves doubt.

    Args:
        order: the config's `environment.order`; where it is not `shuffle` the tasks of later steps may be harder, so a
            fall in training is a doubt at most, and only beside a rise of the trained reward.
    """
    found = []
    for shadow in measured:
        weight: Weight = "note"
        if shadow.moved:
            moved = shadow.moved[-1][1]
            weight = _weight(moved.trained.interval, moved.shadow.interval, moved.gap.interval)
            found.append(Reason(code="shadow", weight=weight, says=f"Shadow reward {shadow.name}: {shadow.sentence}"))
        if shadow.training is None or not shadow.in_training or weight != "note":
            continue
        weight, why = _weight_in_training(shadow.training, order)
        if not shadow.moved or weight in ("against", "doubt"):
            says = f"Shadow reward {shadow.name}. {shadow.in_training}{why}"
            found.append(Reason(code="shadow", weight=weight, says=says))
    return found


def _weight_in_training(drift: Drift, order: str) -> tuple[Weight, str]:
    """What the first and the last steps of training say, and why that is less than it looks."""
    weight = _weight(drift.trained, drift.shadow, drift.gap)
    if order != "shuffle" and weight != "for":
        is_apart = weight == "against" or drift.trained.low > 0 < drift.gap.low
        return ("doubt" if is_apart else "note"), ""
    if weight == "against" and not drift.is_hacked:
        return "doubt", f" At 95 %, and not at the {100 * CERTAIN:g} % that speaks against a run."
    return weight, ""


def _weight(trained: Interval, shadow: Interval, gap: Interval) -> Weight:
    """What the changes of the trained reward and of a shadow reward, and the gap between them, say of a run."""
    if shadow.high < 0:
        return "against" if trained.low > 0 else "doubt"
    if not trained.low > 0:
        return "note"
    return "for" if shadow.low > 0 else "doubt" if gap.low > 0 else "note"


def observed(changes: Mapping[str, Difference]) -> list[Reason]:
    """Rewards of weight 0 that fell on held-out tasks while another was trained.

    Args:
        changes: paired change of each between the evaluation before training and the last one.
    """
    return [
        Reason(
            code="observed",
            weight="doubt",
            says=f"{name}, which is observed and not trained on, fell by {interval_text(change.interval, '+')} on the "
            "held-out tasks. If it is what you want, this is reward hacking; give it role: shadow to have it watched.",
        )
        for name, change in changes.items()
        if change.interval.high < 0
    ]


def observed_in_training(rows: Rows, names: Sequence[str]) -> list[Reason]:
    """Rewards of weight 0 that fell during training, for runs whose held-out samples do not tell.

    The first and the last steps (`reading.deciding_window`) are compared by Welch's t at 99.9 %.

    Args:
        names: of the rewards.
    """
    found = []
    for name in names:
        metric = f"reward/part/{name}"
        values = [row[metric] for row in rows if math.isfinite(row.get(metric, math.nan))]
        width = deciding_window(len(values))
        if not width:
            continue
        first, last = values[:width], values[-width:]
        if _mean(last) < _mean(first) and _differ(first, last):
            says = (
                f"{name}, which is observed and not trained on, fell from {number(_mean(first))} to "
                f"{number(_mean(last))} in training (means of {width} steps each; held-out samples are not stored). "
                "If it is what you want, this is reward hacking."
            )
            found.append(Reason(code="observed", weight="doubt", says=says))
    return found


def rolled_back(step: int, config: Mapping[str, Any]) -> Reason:
    """Says that an earlier adapter than the last one is the result."""
    why = "Training was stopped early" if config.get("kind") == "sft" else "An alarm rolled the run back"
    says = f"{why}: its result is the adapter of step {step}, and what came after does not count."
    return Reason(code="rolled_back", weight="note", says=says)


def alarms(health: Health, watching: Sequence[Reason] = ()) -> list[Reason]:
    """What the alarms of a run say; critical ones leave doubt, whatever the last evaluation measured.

    So do warnings that the reward may be hacked (`OF_HACKING`), unless a reward that is not trained on rose with it.

    Args:
        watching: what rewards that are not trained on say, as `shadows` and `observed` give it.
    """
    is_cleared = any(reason.weight == "for" for reason in watching)
    return [
        Reason(
            code="alarm",
            weight="doubt" if alarm.severity == "critical" or (alarm.name in OF_HACKING and not is_cleared) else "note",
            says=f"{alarm.severity.capitalize()} alarm: {alarm.line}",
        )
        for alarm in health.alarms
    ]


def damaged(deciding: Sequence[str], besides: Sequence[str]) -> list[Reason]:
    """What could not be read: a doubt where the verdict would rest on it, else a note.

    Args:
        deciding: what was left out of evaluations, metrics and events, a text for each.
        besides: what was left out where only the evidence of alarms was read.
    """
    only_besides = [note for note in besides if note not in deciding]
    return [
        *(Reason(code="damaged", weight="doubt", says=f"{note[:1].upper()}{note[1:]}.") for note in deciding),
        *(Reason(code="damaged", weight="note", says=f"{note[:1].upper()}{note[1:]}.") for note in only_besides),
    ]


def longer(before: Evaluation, after: Evaluation) -> Reason | None:
    """Whether completions grew to twice their length or more."""
    if not (before.length > 0 and after.length >= 2 * before.length):
        return None
    return Reason(
        code="length",
        weight="note",
        says=f"Held-out completions grew from {number(before.length)} to {number(after.length)} tokens.",
    )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _missing(evaluation: Evaluation) -> tuple[int, int]:
    """(samples without a score, samples), of tasks."""
    scored = sum(map(len, evaluation.by_task.values()))
    total = evaluation.samples or max(len(evaluation.by_task) * _per_task(evaluation), scored + evaluation.failed)
    return max(total - scored, evaluation.failed), max(total, 1)


def _per_task(evaluation: Evaluation) -> int:
    return max(map(len, evaluation.by_task.values()), default=0)


def _differ(first: Sequence[float], second: Sequence[float]) -> bool:
    """Welch's t test at 99.9 %; values without any spread differ where they are not equal."""
    return abs(_mean(first) - _mean(second)) > welch_half_width((first, second), 0.999)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
