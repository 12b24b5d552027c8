"""Rewards of verifiers 0.4: a task with `@vf.reward`, and a function that gets the task and the trace."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

from rlft.reward.contract import RewardFunction, prompt_and_reply
from rlft.reward.systems.common import accepted, adapt, check_args, describe, joined, required, row_of, unwrap_single
from rlft.types import Message, Trajectory


def is_task(found: type) -> bool:
    """Whether a class is a task of verifiers 0.4."""
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


def of_task(cls: Any, args: Mapping[str, Any], where: str) -> RewardFunction:
    """A reward of a task class: its methods with `@vf.reward`, and what its config adds."""
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


def of_trace(function: Any, args: Mapping[str, Any], where: str) -> RewardFunction:
    """A reward of a function that gets the task and the trace."""
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
