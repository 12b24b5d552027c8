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

A result is a number, a dict of named parts, None, or an `Abstain` that says why (`reward.outcomes.read`). An exception
or a wrong value never becomes a number: it becomes `Failed`. So does a number above `LARGEST` in magnitude. A list may
hold an exception (made, not raised) in place of the value that a sample cannot have: that sample fails alone.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from rlft.common.by_path import did_you_mean
from rlft.types import Group, Message, RewardSpec, Task, Trajectory

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
REPLY_NAMES = frozenset({"completion", "messages", "trajectory", "completions", "completion_ids", "group"})
"""Parameters that differ from reply to reply."""
_BATCH_MARKS = frozenset({"prompts", "completions", "completion_ids"})
_SAMPLE_MARKS = frozenset({"completion", "messages", "trajectory"})


@dataclass(frozen=True)
class TrainerState:
    """What a reward is told of the run, under the name that TRL has for it."""

    global_step: int

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"trainer_state has no {name}, only global_step: a reward is scored in a process without a trainer"
        )


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


def _supplied(plan: CallPlan, spec: RewardSpec, columns: Collection[str]) -> set[str]:
    return {*_OFFERED[plan.kind], *_NOTES, *columns, *spec.args}


def unsupplied(plan: CallPlan, spec: RewardSpec, columns: Collection[str]) -> list[str]:
    """Required parameters that are neither offered by samples, a column, nor in `args`."""
    return sorted(plan.required - _supplied(plan, spec, columns))


def check_columns(plan: CallPlan, spec: RewardSpec, columns: Collection[str]) -> None:
    """Raise ValueError if there is an `unsupplied` parameter."""
    offered = _supplied(plan, spec, columns)
    for name in unsupplied(plan, spec, columns):
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
        offered |= {"trainer_state": TrainerState(step), "log_extra": ignore, "log_metric": ignore}
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


def refuse_untrainable(specs: Sequence[RewardSpec]) -> None:
    """Refuse rewards that cannot be told apart, or of which nothing could be learnt.

    Raises:
        ValueError: two have one name, or none has a weight.
    """
    names = [spec.label for spec in specs]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"two rewards are named {doubled[0]!r}; give one of them another `name`")
    if not any(spec.weight for spec in specs):
        raise ValueError("no reward has a weight other than 0, so there is nothing to train on")
