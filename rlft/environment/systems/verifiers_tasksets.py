"""Tasksets of verifiers 1 (`verifiers.v1.Taskset`) that need neither a harness nor a container.

Their tasks are asked once and scored by the task's own reward functions, as its offline replay does.
"""

from __future__ import annotations

import inspect
import itertools
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rlft.common.private_names import private
from rlft.environment.contract import Environment, Step
from rlft.environment.systems.common import as_messages, split_rows
from rlft.types import Message, Task


def is_taskset_class(found: object) -> bool:
    """Whether an object is a subclass of `verifiers.v1.Taskset`; False where verifiers has none."""
    v1 = sys.modules.get("verifiers.v1")
    return v1 is not None and inspect.isclass(found) and issubclass(found, v1.Taskset)


def is_taskset(found: object) -> bool:
    """Whether an object is a `verifiers.v1.Taskset`."""
    return is_taskset_class(type(found))


def make(cls: Any, config: Mapping[str, Any]) -> Any:
    """A taskset with the settings of its own config class."""
    from verifiers.v1 import TasksetConfig

    own = private("verifiers.v1.utils.generic.concrete_type")(cls, TasksetConfig)
    return cls((own or TasksetConfig)(**config))


def load(taskset: Any, *, size: int | None, heldout: float, seed: int) -> Environment:
    """An environment of a taskset: each task is asked once and scored by the taskset's rewards.

    Raises:
        ValueError: it has no end and no size is given; or a task needs what only a harness has.
    """
    if size is None and not getattr(taskset, "bounded", not taskset.INFINITE):
        raise ValueError("the taskset has no end: give the argument `size`")
    tasks = list(itertools.islice(taskset, size))
    for task in tasks:
        check(task)
    named = {task.key: task for task in tasks}
    rows = [{"key": key, "prompt": _prompt(task.data)} for key, task in named.items()]
    train, held_out = split_rows(rows, heldout=heldout, seed=seed)
    return Environment(
        train=[_task(row, named) for _, row in train],
        heldout=[_task(row, named) for _, row in held_out],
        episode=lambda: _Episode(named),
        max_turns=1,
    )


class _Episode:
    """A task of a verifiers taskset, asked once; an `Episode`."""

    def __init__(self, tasks: Mapping[str, Any]) -> None:
        self._tasks = tasks

    def start(self, task: Task, seed: int) -> tuple[Message, ...]:
        """Begin with the task's prompt."""
        self._task = task
        return task.messages

    async def step(self, message: Message) -> Step:
        """Score the reply with the taskset's rewards; it ends the episode."""
        own = self._tasks[self._task.id]
        trace = trace_of(own, self._task.messages, (message,))
        await own.score(trace)
        return Step(reward=float(trace.reward), done=True)


def trace_of(task: Any, prompt: Sequence[Message], reply: Sequence[Message]) -> Any:
    """A `Trace` of a finished conversation, as a task's rewards read it.

    Raises:
        ValueError: a message is a tool's.
    """
    from verifiers.v1.configs.agent import AgentConfig
    from verifiers.v1.graph import MessageNode
    from verifiers.v1.trace import AgentInfo, Trace, TraceTask
    from verifiers.v1.types import AssistantMessage, SystemMessage, UserMessage

    kinds: dict[str, Any] = {"system": SystemMessage, "user": UserMessage, "assistant": AssistantMessage}
    nodes: list[Any] = []
    for index, each in enumerate([*prompt, *reply]):
        if each["role"] not in kinds:
            raise ValueError(f"a trace of verifiers is made of messages without tools, but one is a {each['role']}'s")
        nodes.append(
            MessageNode(
                parent=index - 1 if index else None,
                message=kinds[each["role"]](content=each["content"]),
                sampled=index >= len(prompt) and each["role"] == "assistant",
            )
        )
    return Trace(
        task=TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
        agent=AgentInfo(config=AgentConfig()),
        nodes=nodes,
        is_completed=True,
        ok=True,
    )


def check(task: Any) -> None:
    """Raise ValueError where a task needs more than a reply to be scored."""
    if task.NEEDS_CONTAINER or type(task).toolsets(task.config) or task.data.image:
        raise ValueError(
            f"tasks of {type(task).__name__} need a container or tool servers, which a harness of verifiers starts; "
            "only tasks that are asked once and scored from the reply run here"
        )
    for function in (*task.hooks("reward"), *task.hooks("metric")):
        runtime = inspect.signature(function).parameters.get("runtime")
        if runtime is not None and runtime.default is inspect.Parameter.empty:
            raise ValueError(f"{type(task).__name__}.{function.__name__} needs a runtime, which a harness starts")


def _prompt(data: Any) -> list[Message]:
    system = [Message(role="system", content=data.system_prompt)] if data.system_prompt else []
    return [*system, *as_messages(data.prompt, f"task {data.idx}")]


def _task(row: Mapping[str, Any], tasks: Mapping[str, Any]) -> Task:
    from verifiers.v1 import TaskData

    own = tasks[row["key"]].data
    data = {key: value for key, value in own.model_dump(mode="json").items() if key not in TaskData.model_fields}
    return Task(
        id=row["key"],
        messages=tuple(row["prompt"]),
        answer=data.get("answer"),
        columns={key: value for key, value in data.items() if key != "answer"},
    )
