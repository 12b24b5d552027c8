"""How a plain reward function is called and how its result is read.

A reward is a function; what it wants is read once from the names of its parameters (`plan_call`):

    def exact(completion, answer)             -> float        "sample": called once per trajectory
    def exact(completions, answer, **kwargs)  -> list[float]  "batch": called once per group, with TRL's lists
    def best_of(group)                        -> list[float]  "group": compares the trajectories of one group

Values offered by name:

    sample   prompt (text of the last user message), completion (text), messages (the prompt and the reply),
             answer, task_id, every column of the task, and trajectory
    batch    prompts, completions (lists of message lists: the data is conversational), completion_ids,
             answer, task_id, every column: lists with one entry per trajectory
    group    group, and what its samples share: prompt, answer, task_id, every column
    all      log_metric(name, number): a number for the curves; log_extra(name, values): a note on each sample (on this
             one, where the reward is called per sample) for the rollout table; trainer_state.global_step: the step

The fixed `args` of a spec are passed by name too and win over a column of the same name. A parameter with a
default is left alone when nothing supplies it. `**kwargs` receives all but `trajectory`, `log_metric`, `log_extra` and
`trainer_state`, which have to be named. `async def` is awaited.

A path may also name a class, of which every process makes one object with `args` and calls that (`setup()` runs first
and `close()` last, where it has them), or a function that takes nothing of a sample and makes the reward from `args`:
see `reward.loading.build`.

A result is a number, a dict of named parts, None, or an `Abstain` that says why (`read`). An exception or a wrong value
never becomes a number: it becomes `Failed`. So does a number above `LARGEST` in magnitude.
"""

from __future__ import annotations

import inspect
import math
import re
import reprlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any, Literal, TypeAlias

from rlft.common.by_path import did_you_mean
from rlft.types import Abstain, Failed, FailureKind, Fault, Group, Message, Outcome, RewardSpec, Score, Task, Trajectory

RewardFunction: TypeAlias = Callable[..., Any]
Kind: TypeAlias = Literal["sample", "batch", "group"]

_OFFERED: Mapping[Kind, tuple[str, ...]] = {
    "sample": ("prompt", "completion", "messages", "answer", "task_id", "trajectory"),
    "batch": ("prompts", "completions", "completion_ids", "answer", "task_id"),
    "group": ("group", "prompt", "answer", "task_id"),
}
_NOTES = ("log_extra", "log_metric", "trainer_state")
"""What every kind is offered under the names that TRL gave it."""
OFFERED = frozenset({*_NOTES, *(name for names in _OFFERED.values() for name in names)})
"""Every name that a sample supplies in some kind of call, columns aside."""
_BATCH_MARKS = frozenset({"prompts", "completions", "completion_ids"})
_SAMPLE_MARKS = frozenset({"completion", "messages", "trajectory"})

LARGEST = 1e9
"""Largest magnitude of a reward, of each of its parts and of their weighted sum. Means, variances and float32 tensors
are made of them: the squares of a million such values add up to 1e24, far below what float32 holds (3e38)."""
MESSAGE_LIMIT = 2000
"""Longest failure message in characters; the middle of a longer one is cut out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallPlan:
    """How one reward is called, decided once from its signature; plain data that crosses processes."""

    kind: Kind
    """What one call covers: one trajectory, a group as lists (TRL), or a `Group`."""
    parameters: frozenset[str]
    """Parameters that can be passed by name."""
    required: frozenset[str]
    """Those without a default."""
    takes_any: bool
    """Whether the function has `**kwargs`."""
    is_async: bool
    """Whether calling it gives a coroutine."""

    @property
    def takes_notes(self) -> bool:
        """Whether it names any of `log_extra`, `log_metric` and `trainer_state`."""
        return not self.parameters.isdisjoint(_NOTES)


def plan_call(function: RewardFunction, spec: RewardSpec) -> CallPlan:
    """Read from a reward's signature how to call it.

    Raises:
        ValueError: if it cannot be called by name, mixes the names of two kinds, or does not take what it would get.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ValueError(f"reward {spec.path}: its signature cannot be read; wrap it in a `def`") from error
    parameters = signature.parameters.values()
    for p in parameters:
        if p.kind is p.POSITIONAL_ONLY and p.default is p.empty:
            raise ValueError(f"reward {spec.path}: {p.name!r} is positional-only, but arguments go by name")
    named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    kind = _kind(set(named), spec)
    _check_annotation(named.get("completions"), spec)
    for name in spec.args:
        if name in _OFFERED[kind]:
            raise ValueError(f"reward {spec.path}: args.{name} comes from the sample; remove it from args")
        if name not in named and not takes_any:
            raise ValueError(
                f"reward {spec.path}: args.{name} is not a parameter of it.{did_you_mean(name, named)} "
                f"It has {', '.join(named)}."
            )
    return CallPlan(
        kind=kind,
        parameters=frozenset(named),
        required=frozenset(name for name, p in named.items() if p.default is p.empty),
        takes_any=takes_any,
        is_async=any(map(inspect.iscoroutinefunction, (function, type(function).__call__))),
    )


def _kind(parameters: set[str], spec: RewardSpec) -> Kind:
    comparative, plural = parameters & {"group"}, parameters & _BATCH_MARKS
    singular = parameters & (_SAMPLE_MARKS | {"prompt"} if plural else _SAMPLE_MARKS)
    used = [", ".join(sorted(names)) for names in (singular, plural, comparative) if names]
    if len(used) > 1:
        raise ValueError(
            f"reward {spec.path}: its parameters mix {' with '.join(used)}. Take singular names (prompt, "
            "completion, messages, trajectory) to be called per trajectory, plural ones (prompts, "
            "completions, completion_ids) to be called with lists, `group` to compare a group's trajectories"
        )
    return "group" if comparative else "batch" if plural else "sample"


def _check_annotation(completions: inspect.Parameter | None, spec: RewardSpec) -> None:
    """Refuse `completions: list[str]`: on messages such a function mostly gives one wrong number and no error."""
    wanted = getattr(completions, "annotation", None)
    written = wanted if isinstance(wanted, str) else str(wanted)
    if re.fullmatch(r"([a-z.]+\.)?(list|sequence|iterable)\[str\]", written.lower()):
        raise ValueError(
            f'reward {spec.path}: it wants {written}, but `completions` are messages, [{{"content": ...}}], '
            f"for each sample. Name it trl:{spec.path}, which hands over texts, or annotate what it gets"
        )


def check_columns(plan: CallPlan, spec: RewardSpec, columns: Collection[str]) -> None:
    """Raise ValueError if a required parameter is neither offered by samples, a column, nor in `args`."""
    offered = {*_OFFERED[plan.kind], *_NOTES, *columns, *spec.args}
    for name in sorted(plan.required - offered):
        raise ValueError(
            f"reward {spec.path}: nothing supplies its parameter {name!r}.{did_you_mean(name, offered)} "
            f"Available: {', '.join(sorted(offered - {*_NOTES}))}. Or give it a default, or a value in `args`."
        )


def ignore(*args: Any, **kwargs: Any) -> None:
    """Stands in for `log_extra` and `log_metric` until the reward is called (`reward.worker.run`)."""


def call_arguments(plan: CallPlan, spec: RewardSpec, group: Group, member: int | None, step: int = 0) -> dict[str, Any]:
    """The keyword arguments of one call.

    Args:
        member: which trajectory of the group is scored ("sample"); None when one call covers the whole group.
        step: of training, 0 outside of it.

    Raises:
        ValueError: if this task lacks a column that the reward requires.
    """
    offered = {**_values(plan, group, member), **spec.args}
    if plan.takes_notes:
        offered |= {"trainer_state": SimpleNamespace(global_step=step), "log_extra": ignore, "log_metric": ignore}
    if not plan.required <= offered.keys():
        check_columns(plan, spec, group.task.columns)
    if plan.takes_any:
        by_name_only = {"trajectory", *_NOTES} - plan.parameters
        return {name: value for name, value in offered.items() if name not in by_name_only}
    # In the order of what is offered: that of a set differs from process to process, and `reproduce` shows it.
    return {name: value for name, value in offered.items() if name in plan.parameters}


def _values(plan: CallPlan, group: Group, member: int | None) -> dict[str, Any]:
    task, size = group.task, len(group.trajectories)
    prompt = prompt_text(task)
    shared = {**task.columns, "answer": task.answer, "task_id": task.id}
    if plan.kind == "group":
        return {**shared, "prompt": prompt, "group": group}
    if plan.kind == "batch":
        return {
            **{name: [value] * size for name, value in shared.items()},
            "prompts": [prompt_and_reply(t)[0] for t in group.trajectories],
            "completions": [prompt_and_reply(t)[1] for t in group.trajectories],
            "completion_ids": [list(t.token_ids) for t in group.trajectories],
        }
    assert member is not None
    trajectory = group.trajectories[member]
    messages = [message.copy() for message in trajectory.conversation]
    own = {"completion": trajectory.text, "messages": messages, "trajectory": trajectory}
    return {**shared, "prompt": prompt, **own}


def prompt_text(task: Task) -> str:
    """What a reward gets as `prompt`: the last message of the user; without one, the last message."""
    users = [message["content"] for message in task.messages if message["role"] == "user"]
    return users[-1] if users else task.messages[-1]["content"] if task.messages else ""


def prompt_and_reply(trajectory: Trajectory) -> tuple[list[Message], list[Message]]:
    """(the prompt, the reply) or, of an episode, (what it started with, everything from the first action on).

    The messages are copies: a reward that edits its messages must not edit the task.
    """
    messages = [message.copy() for message in trajectory.conversation]
    replied = sum(1 + len(turn.observation) for turn in trajectory.turns)
    return messages[:-replied], messages[-replied:]


def read(value: Any) -> Outcome:
    """What one trajectory's result means; named parts are in `Score.parts`.

    A number or bool is the value. A dict's value is the sum of its numbers, unless it has the key `score`:
    then that is the value, other numbers are only observed, and what is no number is ignored. With the key
    `turns`, a list with a number for each action of the episode, the value is their sum, and other numbers are
    only observed; beside `score`, a number called `turns` is observed like any other. None abstains; a part that is
    None is left out. Scalars of numpy and torch count as numbers. All else is `Failed`.
    """
    if value is None:
        return Abstain(reason="returned None")
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
