"""What a reward returned, read: a score with its parts, no opinion, or a typed failure.

`contract.py` says what a reward may return; here its result becomes an `Outcome`, and the outcomes of several rewards
one.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from rlft.types import Abstain, Failed, FailureKind, Fault, Outcome, RewardSpec, Score

LARGEST = 1e9
"""Largest magnitude of a reward, of each of its parts and of their weighted sum. Means, variances and float32 tensors
are made of them: the squares of a million such values add up to 1e24, far below what float32 holds (3e38)."""
MESSAGE_LIMIT = 2000
"""Longest failure message in characters; the middle of a longer one is cut out."""


def read(value: Any) -> Outcome:
    """What one trajectory's result means; named parts are in `Score.parts`.

    A number or bool is the value. A dict's value is the sum of its numbers, unless it has the key `score`:
    then that is the value, other numbers are only observed, and what is no number is ignored. With the key
    `turns`, a list with a number for each action of the episode, the value is their sum, and other numbers are
    only observed; beside `score`, a number called `turns` is observed like any other. None abstains; a part that is
    None is left out. Scalars of numpy and torch count as numbers. All else is `Failed`, an exception with its text.
    """
    if value is None:
        return Abstain(reason="returned None")
    if isinstance(value, Exception):
        return failed("error", f"{type(value).__name__}: {value}")
    if isinstance(value, Abstain):  # which says why
        return Abstain(reason=value.reason[:MESSAGE_LIMIT])
    if isinstance(value, Mapping):
        return _read_parts(value)
    return number if isinstance(number := checked_number(value), Failed) else Score(value=number)


def _read_parts(value: Mapping[Any, Any]) -> Outcome:
    if "turns" in value and not ("score" in value and _is_single(value["turns"])):
        return _read_turns(value["turns"], {name: part for name, part in value.items() if name != "turns"})
    parts: dict[str, float] = {}
    for name, part in value.items():
        if not isinstance(name, str):
            return failed("type", f"names of parts must be text, got {_show(name)}")
        if part is None:
            continue
        number = checked_number(part)
        if not isinstance(number, Failed):
            parts[str(name)] = number
        elif number.kind != "type" or name == "score" or "score" not in value:
            return replace(number, message=f"part {name!r}: {number.message}")
    if not value:
        return failed("type", "returned an empty dict; return None to abstain")
    if not parts or ("score" in value and "score" not in parts):
        return Abstain(reason=f"returned None for {'its score' if 'score' in value else 'every part'}")
    total = parts.pop("score") if "score" in parts else sum(parts.values())
    return _refused(total, "its parts add up to") or Score(value=total, parts=parts)


def _is_single(value: Any) -> bool:
    """Whether a value is no list or array of several."""
    return value is None or isinstance(value, float | int | str) or getattr(value, "shape", None) == ()


def _read_turns(turns: Any, others: Mapping[Any, Any]) -> Outcome:
    if "score" in others:
        return failed("type", "returned both `turns` and `score`; the score is the sum of the turns, so leave it out")
    if not isinstance(turns, list | tuple) or not turns:
        return failed("type", f"turns: expected a list with a number for each action, got {_show(turns)}")
    values: list[float] = []
    for index, turn in enumerate(turns):
        if isinstance(number := checked_number(turn), Failed):
            return replace(number, message=f"turns[{index}]: {number.message}")
        values.append(number)
    observed = _read_parts({**others, "score": sum(values)})
    return replace(observed, turns=tuple(values)) if isinstance(observed, Score) else observed


def checked_number(value: Any) -> float | Failed:
    """A result as a number that a reward can be, or why it is none."""
    # Scalars of numpy and torch, told by their shape so that neither is imported. An array of one element is
    # refused: it is a batched result in the wrong place.
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    if not isinstance(value, float | int):
        return failed("type", f"expected a number, a dict of numbers or None, got {_show(value)}")
    try:
        number = float(value)
    except OverflowError:
        return failed("too_large", "returned an integer too large for a float")
    return _refused(number, "returned") or number


def _refused(number: float, said: str) -> Failed | None:
    """Why a number can be no reward; None if it can."""
    if not math.isfinite(number):
        return failed("not_finite", f"{said} {number}")
    if abs(number) > LARGEST:
        return failed("too_large", f"{said} {number:g}, beyond what a reward may be (-{LARGEST:g} to {LARGEST:g})")
    return None


def read_many(values: Any, size: int) -> list[Outcome]:
    """What a batched or comparative result means; all trajectories are `Failed` if their number is wrong."""
    if len(getattr(values, "shape", ())) == 1 and hasattr(values, "tolist"):
        values = values.tolist()  # an array or tensor with one dimension
    if not isinstance(values, list | tuple):
        return [failed("type", f"expected a list of {size} values, got {_show(values)}")] * size
    if len(values) != size:
        return [
            failed("length", f"expected {size} value{'s' * (size != 1)}, got {len(values)}: {_show(values)}")
        ] * size
    return [read(value) for value in values]


def combine(specs: Sequence[RewardSpec], outcomes: Sequence[Outcome]) -> Outcome:
    """One trajectory's outcome from what each reward gave: the weighted sum.

    A failure of a reward with a weight fails the trajectory. A failure of an observing reward (weight 0)
    leaves its part out; `failed_rewards` has it. Rewards that abstain contribute nothing; if all that have a weight
    abstain, so does the trajectory. The parts of any outcome have what could be computed. Where a reward says what each
    action adds, what the others give is added to the last action.
    """
    parts: dict[str, float] = {}
    weighted: list[tuple[float, Score]] = []
    reasons: list[str] = []
    failure: Failed | None = None
    value: float = 0
    for spec, outcome in zip(specs, outcomes, strict=True):
        label, weight = spec.label, spec.weight
        if isinstance(outcome, Score):
            parts[label] = outcome.value
            for part, number in outcome.parts.items():
                parts[f"{label}/{part}"] = number
            value += weight * outcome.value
            if weight:
                weighted.append((weight, outcome))
        elif weight and isinstance(outcome, Failed):
            failure = failure or replace(outcome, message=f"{label}: {outcome.message}")
        elif weight and isinstance(outcome, Abstain):
            reasons.append(f"{label}: {outcome.reason}")
    if failure:
        return replace(failure, parts=parts)
    if not weighted:
        return Abstain(reason="; ".join(reasons) or "no reward has a weight", parts=parts)
    if refused := _refused(value, "is"):
        terms = " + ".join(f"{weight} * {score.value}" for weight, score in weighted)
        message = f"weighted sum {terms} {refused.message}"
        return replace(refused, message=message, reproduce=f"print({terms})", parts=parts)
    turns = _sum_of_turns(weighted)
    for index, total in enumerate(turns):  # large ones may cancel out in the value
        if refused := _refused(total, f"turns[{index}] of the weighted sum is"):
            added = (f"{weight} * {_turns_of(score, len(turns))[index]}" for weight, score in weighted)
            return replace(refused, reproduce=f"print({' + '.join(added)})", parts=parts)
    return Score(value=value, parts=parts, turns=turns)


def _sum_of_turns(weighted: Sequence[tuple[float, Score]]) -> tuple[float, ...]:
    """What each action adds to a weighted sum; empty where no reward says so."""
    if not any(score.turns for _, score in weighted):
        return ()
    count = max(len(score.turns) for _, score in weighted)
    totals = [0.0] * count
    for weight, score in weighted:
        for index, turn in enumerate(_turns_of(score, count)):
            totals[index] += weight * turn
    return tuple(totals)


def _turns_of(score: Score, count: int) -> tuple[float, ...]:
    """What each of `count` actions adds to a score: all of it the last one, where its reward does not say."""
    return score.turns or (*[0.0] * (count - 1), score.value)


def check_turns(outcome: Outcome, actions: int) -> Outcome:
    """The outcome, or a failure where it has values for another number of actions than the episode."""
    if isinstance(outcome, Score) and outcome.turns and len(outcome.turns) != actions:
        return failed("length", f"turns: expected a number for each of {actions} actions, got {len(outcome.turns)}")
    return outcome


def first_cause(failures: Sequence[Failed]) -> Failed:
    """The first failure that is not the consequence of others."""
    return next((failure for failure in failures if failure.kind != "not_run"), failures[0])


def failed_rewards(specs: Sequence[RewardSpec], outcomes: Sequence[Outcome]) -> dict[str, Failed]:
    """The rewards that failed on one trajectory, by name, whatever their weight."""
    return {spec.label: outcome for spec, outcome in zip(specs, outcomes, strict=True) if isinstance(outcome, Failed)}


def failed(kind: FailureKind, message: str, *, fault: Fault = "reward", where: str = "") -> Failed:
    """A failure with `reproduce` left to the caller, who knows the reward's path; a long message is cut."""
    if len(message) > MESSAGE_LIMIT:
        half = MESSAGE_LIMIT // 2
        message = f"{message[:half]} [... {len(message) - 2 * half} characters ...] {message[-half:]}"
    return Failed(kind=kind, message=message, reproduce="", fault=fault, where=where[-MESSAGE_LIMIT:])


def _show(value: Any) -> str:
    return f"{type(value).__name__} {reprlib.repr(value)}"
