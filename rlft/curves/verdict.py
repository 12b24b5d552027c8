"""The verdict on a run: SHIP, DON'T or CAN'T TELL, with the reasons.

What decides is the paired change on the held-out tasks between the policy that training began with and the last
evaluation, not the best one: picking the best of several is picking the luckiest. It is SHIP only if the whole interval
of the change lies above the smallest effect of interest (`evaluation.min_effect`) and nothing else leaves it in doubt
(`doubts`). If training changed nothing, SHIP is said in at most 2.5 % of the runs, however many evaluations they have
(`looks`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from rlft.curves import doubts, looks, reading
from rlft.curves.contents import counted_once, merged, repeated, told
from rlft.curves.differences import Difference, paired
from rlft.curves.doubts import Reason
from rlft.curves.evaluation_sets import EvaluationSet, bounds_of_stage, read_sets, worse
from rlft.curves.shadow import Shadow, measure_shadows, shadow_names
from rlft.curves.text import counted, interval_text, number
from rlft.run import damage, logs
from rlft.run.records import SUMMARY, Evaluation, word_for

if TYPE_CHECKING:
    from rlft.curves.alarms import Health

MIN_EFFECT = 0.01
"""The smallest effect of interest where the config does not name one."""
WORDS = {"ship": "SHIP", "dont": "DON'T", "cant_tell": "CAN'T TELL"}
"""How a verdict is written for people."""

Kind = Literal["ship", "dont", "cant_tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Effect:
    """The change on the held-out tasks that a verdict rests on."""

    before: Evaluation
    """The policy that training began with: after SFT, else the base."""
    after: Evaluation
    """The last evaluation."""
    change: Difference
    """Paired by task, at the level of this look."""
    look: looks.Look
    """Which of the run's evaluations the last one is."""
    min_effect: float
    """The smallest change that matters, in units of the metric."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """Whether the last evaluated policy is better than the one that training began with."""

    kind: Kind
    """What to do."""
    sentence: str
    """The result in plain words, with the numbers."""
    reasons: Sequence[Reason]
    """Why, the weightiest first."""
    effect: Effect | None = None
    """What it rests on; None where there is nothing to compare."""
    sets: Sequence[EvaluationSet] = ()
    """The evaluation sets that were looked at."""
    shadows: Sequence[Shadow] = ()
    """What is known of the shadow rewards, up to the step that is the result."""
    health: Health | None = None
    """What the alarms say, of all steps; None where no run directory was read."""
    of_result: Health | None = None
    """What of it concerns the adapter that is the result: all, unless the run was rolled back."""

    @property
    def word(self) -> str:
        """The verdict for people."""
        return WORDS[self.kind]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        reasons = [{"code": each.code, "weight": each.weight, "says": each.says} for each in self.reasons]
        found: dict[str, Any] = {"verdict": self.kind, "sentence": self.sentence, "reasons": reasons, "effect": None}
        if self.effect is not None:
            effect = self.effect
            found["effect"] = {
                "metric": effect.after.metric,
                "before": {"name": effect.before.name, **effect.before.accuracy.as_dict()},
                "after": {"name": effect.after.name, **effect.after.accuracy.as_dict()},
                **effect.change.interval.as_dict(),
                "level": effect.change.level,
                "changed_tasks": effect.change.changed,
                "look": effect.look.number,
                "planned_looks": effect.look.planned,
                "min_effect": effect.min_effect,
            }
        return found


def verdict_of(run: Path) -> Verdict:
    """The verdict on a run directory, whether the run is over or goes on.

    A file that is damaged is left out, which is among the reasons and makes it CAN'T TELL at best.

    Raises:
        ValueError: it is not a run directory, or its config is damaged.
    """
    from rlft.curves.alarms import alarms_of, alarms_until  # needs numpy, which a report that is only imported does not

    config = reading.read_config(run)
    with damage.left_out():  # events that are damaged are told by what is read below
        back = reading.rolled_back_to(run)
    with damage.left_out() as besides:
        health = of_result = alarms_of(run)
        if back is not None:
            of_result = alarms_until(run, health, back)
    with damage.left_out() as damaged:
        found = _read(run, config, of_result, back)
    remarks = [*found.pop("remarks"), *doubts.damaged(damaged, besides)]
    return replace(judge(**found, remarks=remarks), health=health, of_result=of_result)


def _read(run: Path, config: Mapping[str, Any], health: Health, back: int | None) -> dict[str, Any]:
    """The arguments of `judge`, from a run directory."""
    evals, rows = reading.evals_of_result(run), reading.read_metrics(run, [])
    rewards = reading.reward_specs(config)
    last = next((e for e in reversed(evals) if not e.is_before), None)
    gone = doubts.lost(last, rows, logs.read_json(run / SUMMARY), run / SUMMARY)
    if back is not None:  # what came after the step that is the result is on record, and not what would be shipped
        rows = [row for row in rows if row["step"] <= back]
    shadows = measure_shadows(run, shadow_names(rewards), until=back)
    unwatched = [each.label for each in rewards if each.weight == 0 and each.role != "shadow"]
    contents = reading.read_contents(run, reading.compared(evals))
    observed = observed_changes(run, evals, unwatched, contents)
    blind = [each.name for each in shadows if not each.moved and each.training is None]
    remarks = [
        *([gone] if gone else []),
        *doubts.observed_in_training(rows, [name for name in [*unwatched, *blind] if name not in observed]),
        *doubts.alarms(health, doubts.shadows(shadows, _order(config))),
        *([doubts.rolled_back(back, config)] if back is not None else []),
    ]
    return {
        "config": config,
        "rows": rows,
        "evals": evals,
        "shadows": shadows,
        "observed": observed,
        "remarks": remarks,
        "sets": read_sets(run, config),
        "contents": contents,
    }


def judge(
    config: Mapping[str, Any],
    rows: Sequence[Mapping[str, float]],
    evals: Sequence[Evaluation],
    *,
    shadows: Sequence[Shadow] = (),
    observed: Mapping[str, Difference] | None = None,
    remarks: Iterable[Reason] = (),
    sets: Sequence[EvaluationSet] = (),
    contents: Mapping[str, str] | None = None,
) -> Verdict:
    """The verdict from what was read of a run.

    Args:
        config: the resolved config.
        rows: metrics by step.
        evals: all evaluations in order.
        shadows: what is known of the shadow rewards.
        observed: paired change of each reward of weight 0, as `observed_changes` gives it.
        remarks: further reasons, such as what the run's alarms say (`doubts.alarms`).
        sets: the evaluation sets, which never decide alone.
        contents: content of each held-out task by id; those of equal content are one cluster.
    """
    contents = contents or {}
    evals = [counted_once(each, contents, bounds_of_stage(each)) for each in evals]
    before, trained = [e for e in evals if e.is_before], [e for e in evals if not e.is_before]
    order = _order(config)
    if not before or not trained:
        says = _nothing_to_compare(before, trained, rows)
        nothing = Reason(code="open", weight="doubt", says=says)
        decided = _decided(says, [nothing, *doubts.shadows(shadows, order), *remarks])
        return replace(decided, sets=sets, shadows=shadows)
    start, last, settings = before[-1], trained[-1], config.get("evaluation") or {}
    look = looks.look_at(config, trained)
    effect = Effect(
        before=start,
        after=last,
        change=_paired(start, last, contents, look.level),
        look=look,
        min_effect=float(settings.get("min_effect", MIN_EFFECT)),
    )
    measured = _measured(effect)
    found: list[Reason | None] = [
        measured,
        doubts.fell_since(last, rows, order),
        doubts.age(last, rows, int(settings.get("every") or 0)),
        doubts.missing(start, last, look.level, effect.min_effect, measured.weight == "for", contents),
        doubts.truncation(last),
        *doubts.shadows(shadows, order),
        *doubts.observed(observed or {}),
        *worse(sets),
        *remarks,
        doubts.longer(start, last),
        doubts.unmeasured(last, rows),
        _same_tasks(last, contents),
        _best_of(trained, contents),
    ]
    decided = _decided(_sentence(effect, before[0] if len(before) > 1 else None, contents), found, effect)
    return replace(decided, sets=sets, shadows=shadows)


def _order(config: Mapping[str, Any]) -> str:
    return str((config.get("environment") or {}).get("order", "shuffle"))


def _decided(sentence: str, found: Iterable[Reason | None], effect: Effect | None = None) -> Verdict:
    """The verdict that follows from the weightiest of its reasons."""
    weights = ("against", "doubt", "for", "note")
    reasons = sorted((each for each in found if each), key=lambda each: weights.index(each.weight))
    kinds: dict[str, Kind] = {"against": "dont", "doubt": "cant_tell"}
    kind = kinds.get(reasons[0].weight, "ship")
    return Verdict(kind=kind, sentence=sentence, reasons=reasons, effect=effect)


def _paired(before: Evaluation, after: Evaluation, contents: Mapping[str, str], level: float) -> Difference:
    first, last = (merged(each.by_task, contents) for each in (before, after))
    return paired(first, last, level, bounds=bounds_of_stage(after))


def _same_tasks(last: Evaluation, contents: Mapping[str, str]) -> Reason | None:
    count = repeated(last.by_task, contents)
    return Reason(code="repeated", weight="note", says=f"{told(count)}.") if count else None


def observed_changes(
    run: Path, evals: Sequence[Evaluation], names: Sequence[str], contents: Mapping[str, str]
) -> dict[str, Difference]:
    """Paired change of rewards between the policy before training and the last evaluation, from the stored samples.

    A reward that has no values on both sides, or an evaluation whose samples are not stored, is left out.

    Args:
        run: run directory.
        evals: all evaluations in order.
        names: of the rewards.
        contents: content of each held-out task by id; those of equal content are one cluster.

    Raises:
        ValueError: a file of samples is damaged.
    """
    before, trained = [e for e in evals if e.is_before], [e for e in evals if not e.is_before]
    if not names or not before or not trained:
        return {}
    first, last = (reading.read_eval_parts(run, e.name) for e in (before[-1], trained[-1]))
    changes = {
        name: paired(merged(first.get(name, {}), contents), merged(last.get(name, {}), contents)) for name in names
    }
    return {name: change for name, change in changes.items() if change.interval.n}


def _measured(effect: Effect) -> Reason:
    """What the held-out change alone says."""
    change, least = effect.change.interval, effect.min_effect
    trainer, at = effect.after.stage, f"{100 * effect.change.level:.4g} % interval"
    if change.n == 0:
        return Reason(
            code="effect",
            weight="doubt",
            says="The evaluations before and after training have no scored task in common, so they cannot be paired.",
        )
    if not change.bounded:
        return Reason(code="effect", weight="doubt", says=f"No interval of the change: {effect.change.why_none}.")
    shown = f"{interval_text(change, '+')} ({at}, {counted(change.n, 'task')}, {effect.change.changed} of them changed)"
    if change.low > least:
        says = f"The whole interval lies above the {least:g} that matters (evaluation.min_effect)."
        return Reason(code="effect", weight="for", says=says)
    if change.high < 0:
        return Reason(code="effect", weight="against", says=f"{trainer} made it worse: {shown}.")
    if change.high < least:
        return Reason(
            code="effect",
            weight="against",
            says=f"The change is smaller than the {least:g} that matters (evaluation.min_effect): {shown}.",
        )
    return Reason(
        code="effect",
        weight="doubt",
        says=f"The change may be less than the {least:g} that matters and may be more: {shown}. "
        + (effect.change.how_skewed or "More held-out tasks or samples narrow the interval: rlft power")
        + ".",
    )


def _sentence(effect: Effect, base: Evaluation | None, contents: Mapping[str, str]) -> str:
    start, last, change = effect.before, effect.after, effect.change.interval
    origin = _with_label(start) if base is None else f"{_with_label(base)} over {_with_label(start)}"
    word = word_for([start, last, *([base] if base else [])])
    says = f"Held-out {word} went from {origin} to {_with_label(last)}."
    if change.n == 0:
        return says
    says += f" Paired over {counted(change.n, 'task')}, {last.stage} changed it by {interval_text(change, '+')}"
    if effect.look.planned > 1:
        says += f" ({100 * effect.change.level:.4g} %: {effect.look})"
    if base is not None:
        whole = _paired(base, last, contents, effect.change.level).interval
        at = f" ({100 * effect.change.level:.4g} %, too)" if effect.look.planned > 1 else ""
        says += f" against {start.label}; the whole run changed it by {interval_text(whole, '+')}{at}"
    return f"{says}."


def _best_of(trained: Sequence[Evaluation], contents: Mapping[str, str]) -> Reason | None:
    """Says where an earlier evaluation looks better than the last one."""
    best = looks.picked(trained, contents)
    if best is None or best.evaluation is trained[-1]:
        return None
    return Reason(
        code="picked",
        weight="note",
        says=f"The best of {best.of} evaluations is that of step {best.evaluation.step} "
        f"({interval_text(best.evaluation.accuracy)}); as a picked one it flatters itself by about "
        f"{number(best.optimism)}. The verdict is on the last.",
    )


def _nothing_to_compare(
    before: Sequence[Evaluation], trained: Sequence[Evaluation], rows: Sequence[Mapping[str, float]]
) -> str:
    if trained:
        says = f"Held-out {trained[-1].word} is {_with_label(trained[-1])}"
        return f"{says}; nothing was evaluated before {trained[-1].stage} to compare with."
    says = ""
    if before:
        known = " and ".join(map(_with_label, before))
        says = f"Held-out {word_for(before)} is {known}; nothing has been evaluated after {before[0].stage} yet."
    courses = {
        what: [row[metric] for row in rows if math.isfinite(row.get(metric, math.nan))]
        for what, metric in (("reward", "reward/mean"), ("margin", "preference/margin"), ("loss", "sft/loss"))
    }
    what, values = next(((what, values) for what, values in courses.items() if values), ("", []))
    if not values:
        return says or "No step has finished and nothing has been evaluated yet."
    width = reading.window(rows)
    ends = [math.fsum(part) / len(part) for part in (values[:width], values[-width:])]
    went = f"Train {what} went from {number(ends[0])} to {number(ends[1])} in {counted(len(rows), 'step')}."
    if len(rows) == 1:
        went = f"Train {what} of its one step is {number(ends[0])}."
    return f"{says or 'There is no held-out evaluation.'} {went}"


def _with_label(evaluation: Evaluation) -> str:
    missing = f"; {evaluation.missing} and are missing" if evaluation.missing else ""
    return f"{interval_text(evaluation.accuracy)} ({evaluation.label}{missing})"
