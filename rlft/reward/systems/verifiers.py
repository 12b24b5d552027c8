"""Rewards of verifiers (https://github.com/PrimeIntellect-ai/verifiers): functions, rubrics, and tasks of version 0.4.

What is named can be a reward function (of one sample, or over a group: `completions`, `answers`, ...), a `Rubric`, a
class or function that makes one, an environment, whose rubric is taken, a function or task with `@vf.reward`, or the id
of an installed environment. Functions are called here and not by the rubric, which scores an error 0.
"""

from __future__ import annotations

import asyncio
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, get_origin

from rlft.common import by_path
from rlft.reward.contract import RewardFunction, prompt_and_reply
from rlft.reward.systems import SHIPPED
from rlft.reward.systems.common import (
    accepted,
    adapt,
    build,
    check_args,
    describe,
    find,
    joined,
    required,
    row_of,
    unwrap_single,
)
from rlft.types import Message, Trajectory

_ONE = ("prompt", "completion", "answer", "state", "task", "info")
_MANY = ("prompts", "completions", "answers", "states", "tasks", "infos")


class _Said(dict[str, Any]):
    """A message that can be read as a dict and as an object; verifiers has had both."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Part:
    """One reward function of a rubric."""

    function: Callable[..., Any]
    weight: float = 1.0
    objects: Mapping[str, Any] = field(default_factory=dict)
    """What the rubric offers by name: its parser, a judge."""

    @property
    def is_group(self) -> bool:
        """Whether it compares the samples of a group, as verifiers tells it."""
        signature = inspect.signature(self.function)
        is_list = signature.return_annotation is list or get_origin(signature.return_annotation) is list
        return is_list or bool({*_MANY} & {*signature.parameters})


def load(name: str, args: Mapping[str, Any]) -> RewardFunction:
    """The reward that `name` names.

    Raises:
        ValueError: there is no reward there, or it needs what only a running environment of verifiers has.
    """
    where = f"reward verifiers:{name}"
    if ":" not in name:
        environment = _installed(name, args, where)
        return _of_parts(_parts(environment, where), where, file=_file(name.replace("-", "_")))
    found = find(name)
    parameters = set(inspect.signature(found).parameters) if inspect.isfunction(found) else set()
    if "trace" in parameters or hasattr(found, "_vf_weight"):
        return _of_trace(found, args, where)
    if inspect.isclass(found) and _is_task(found):
        return _of_task(found, args, where)
    if {*_ONE, *_MANY} & parameters and not found.__name__.startswith("load_"):
        check_args(found, args, where)
        objects = dict(args)
        if "parser" in parameters - args.keys():
            objects["parser"] = _parser(where)
        return _of_parts([_Part(function=found, objects=objects)], where, wrapped=found)
    if callable(found):
        found = build(found, args, where)
    elif args:
        raise ValueError(f"{where}: it is made already, so that there is nothing to give `args` to")
    target = by_path.split(name, shipped=SHIPPED)[0]
    return _of_parts(_parts(found, where), where, file=_file(str(target)))


def _installed(name: str, args: Mapping[str, Any], where: str) -> Any:
    from rlft.environment.systems.common import keeping_signal_handlers, require

    vf = require("verifiers", "verifiers")
    if not hasattr(vf, "load_environment"):
        raise ValueError(f"{where}: this verifiers has no load_environment any more; name a task, FILE.py:CLASS")
    with keeping_signal_handlers():
        return vf.load_environment(name, **args)


def _file(target: str) -> str:
    return target if target.endswith(".py") else str(getattr(sys.modules.get(target), "__file__", "") or "")


def _parser(where: str) -> Any:
    """The parser that a rubric without one has."""
    if importlib.util.find_spec("verifiers.legacy") is None:
        raise ValueError(f"{where}: it wants a `parser`, which is a part of verifiers before 0.4: install that")
    import verifiers

    return verifiers.Parser()


def _parts(found: Any, where: str) -> list[_Part]:
    """The functions of a rubric, of an environment's rubric, or of a group of rubrics."""
    found = getattr(found, "rubric", found)
    parts = [part for rubric in _rubrics(found) for part in _own(rubric)]
    if not parts:
        raise ValueError(f"{where}: expected reward functions or a rubric with some, got a {type(found).__name__}")
    return parts


def _rubrics(rubric: Any) -> Iterator[Any]:
    yield rubric
    for each in getattr(rubric, "rubrics", ()):
        yield from _rubrics(each)


def _own(rubric: Any) -> list[_Part]:
    functions, weights = getattr(rubric, "funcs", ()), getattr(rubric, "weights", ())
    objects = dict(getattr(rubric, "class_objects", {}))
    pairs = zip(functions, weights, strict=True)
    return [_Part(function=function, weight=weight, objects=objects) for function, weight in pairs]


def _of_parts(
    parts: Sequence[_Part], where: str, *, wrapped: Callable[..., Any] | None = None, file: str = ""
) -> RewardFunction:
    columns = sorted(
        {name for part in parts for name in required(part.function, (*_ONE, *_MANY, "parser", *part.objects))}
    )
    if "resources" in columns or "client" in columns:
        raise ValueError(f"{where}: a reward function asks for what only a running environment has")

    async def one(**offered: Any) -> Any:
        return (await _score(parts, [offered["trajectory"]]))[0]

    async def many(**offered: Any) -> Any:
        return await _score(parts, offered["group"].trajectories)

    if any(part.is_group for part in parts):
        return describe(many, wrapped, takes=("group", *columns), file=file)
    return describe(one, wrapped, takes=("trajectory", *columns), file=file)


async def _score(parts: Sequence[_Part], trajectories: Sequence[Trajectory]) -> list[dict[str, float]]:
    """Weighted sum and parts of each sample; functions one after the other, samples at the same time."""
    offered = [_offered(trajectory) for trajectory in trajectories]
    totals: list[dict[str, float]] = [{"score": 0.0} for _ in offered]
    for part in parts:
        if part.is_group:
            together = {many: [each[one] for each in offered] for one, many in zip(_ONE, _MANY, strict=True)}
            values = list(await _call(part.function, {**together, **part.objects}))
            if len(values) != len(offered):
                raise ValueError(f"{_name(part)} returned {len(values)} values for {len(offered)} samples")
        else:
            values = await asyncio.gather(*(_call(part.function, {**each, **part.objects}) for each in offered))
        for total, value in zip(totals, values, strict=True):
            total["score"] += part.weight * float(value)
            total[_name(part)] = total.get(_name(part), 0.0) + float(value)
    return totals if len(parts) > 1 else [{"score": total["score"]} for total in totals]


def _name(part: _Part) -> str:
    return str(getattr(part.function, "__name__", type(part.function).__name__))


async def _call(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    value = function(**accepted(function, values))
    return await value if inspect.isawaitable(value) else value


def _offered(trajectory: Trajectory) -> dict[str, Any]:
    """What a reward function of one sample can ask for."""
    prompt, completion = ([_Said(message) for message in half] for half in prompt_and_reply(trajectory))
    row = row_of(trajectory)
    own = {
        "prompt": prompt,
        "completion": completion,
        "answer": trajectory.task.answer if trajectory.task.answer is not None else "",
        "task": row.get("task", "default"),
        "info": row.get("info", {}),
    }
    is_cut = trajectory.finish_reason == "length"
    state = {**row, **own, "input": {**row, **own}, "trajectory": [], "is_completed": True, "is_truncated": is_cut}
    return {**row, **own, "state": {**state, "turn": len(trajectory.turns)}}


def _is_task(found: type) -> bool:
    v1 = sys.modules.get("verifiers.v1")
    return v1 is not None and issubclass(found, v1.Task)


def _row_as_data(kind: Any, trajectory: Trajectory, *, takes_others: bool) -> Any:
    """A task's data of verifiers 0.4: its own fields from the columns and the answer."""
    from verifiers.v1 import TaskData

    prompt, _ = prompt_and_reply(trajectory)
    asked: list[Message] = [message for message in prompt if message["role"] != "system"]
    own = {
        key: value
        for key, value in row_of(trajectory).items()
        if key not in TaskData.model_fields and (takes_others or key in kind.model_fields)
    }
    system = joined(message for message in prompt if message["role"] == "system")
    return kind(prompt=joined(asked), system_prompt=system or None, **own)


def _of_task(cls: Any, args: Mapping[str, Any], where: str) -> RewardFunction:
    from rlft.environment.systems.verifiers_tasksets import check, trace_of

    config = cls.config_type()(**args)
    rewards = [getattr(cls, name) for name in dir(cls) if hasattr(getattr(cls, name, None), "_vf_weight")]
    if not rewards and not config.rewards:
        raise ValueError(f"{where}: no method of this task has @vf.reward")

    async def reward(**offered: Any) -> Any:
        trajectory = offered["trajectory"]
        task = cls(_row_as_data(cls.data_type(), trajectory, takes_others=False), config)
        check(task)
        trace = trace_of(task, *prompt_and_reply(trajectory))
        await task.score(trace)
        given = {name: each.score for name, each in trace.rewards.items() if each is not None}
        return {**trace.metrics, **given, "score": trace.reward}

    return describe(reward, rewards[0] if rewards else None, takes=("trajectory",), file=inspect.getfile(cls))


def _of_trace(function: Any, args: Mapping[str, Any], where: str) -> RewardFunction:
    from rlft.environment.systems.common import require
    from rlft.environment.systems.verifiers_tasksets import trace_of

    check_args(function, args, where)
    if missing := required(function, ("task", "trace", *args)):
        why = "a runtime, which a harness starts" if missing[0] == "runtime" else f"{missing[0]!r}"
        raise ValueError(f"{where}: verifiers gives a plugged reward the task and the trace, but it needs {why}")
    require("verifiers.v1", "verifiers")
    weight = float(getattr(function, "_vf_weight", 1.0))

    def arguments(offered: Mapping[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        from verifiers.v1.task import WireTaskData

        trajectory = offered["trajectory"]
        data = _row_as_data(WireTaskData, trajectory, takes_others=True)
        task = SimpleNamespace(data=data, key=trajectory.task.id, hash=trajectory.task.id)
        return (), accepted(function, {"task": data, "trace": trace_of(task, *prompt_and_reply(trajectory)), **args})

    def result(value: Any) -> Any:
        if isinstance(value, Mapping):
            scores = {str(name): unwrap_single(each) for name, each in value.items()}
            return {**scores, "score": weight * sum(scores.values())}
        return weight * unwrap_single(value)

    return adapt(function, arguments, result, takes=("trajectory",))
