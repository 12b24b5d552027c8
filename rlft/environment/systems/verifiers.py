"""Environments of verifiers (https://github.com/PrimeIntellect-ai/verifiers): single-turn, multi-turn, with tools.

An environment runs its own rollout, in which the model is a client that waits for the policy's messages: setup,
answers, stop conditions, and the rubric are its own. The rubric's reward is the last turn's. `verifiers_tasksets` has
the newer kind of environment, a `Taskset`.
"""

from __future__ import annotations

import functools
import inspect
import json
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any

from rlft.common import by_path
from rlft.environment.contract import Environment, Step
from rlft.environment.systems import verifiers_tasksets
from rlft.environment.systems.background import Conversation
from rlft.environment.systems.common import as_messages, keeping_signal_handlers, require, split_rows
from rlft.environment.systems.tool_text import read_tool_calls
from rlft.types import Message, Task

EXTRA = "verifiers"
_TURNS = 32
"""Turns of an environment that sets no limit."""
_ERRORS: ContextVar[list[Exception]] = ContextVar("errors")
"""What reward functions raised in the rollout that is being scored."""


def load(
    name: str,
    size: int | None = None,
    heldout: float = 0.1,
    seed: int = 0,
    max_turns: int | None = None,
    env_args: Mapping[str, Any] | None = None,
) -> Environment:
    """The environment `name`: an installed one's id, or `file.py:load_environment`, or a `Taskset` class.

    Args:
        size: rows of its data set at the most; None takes all.
        heldout: share of its training rows that is held out, where it has no evaluation data of its own.
        seed: decides which.
        max_turns: sets the environment's own limit.
        env_args: arguments of its `load_environment`, or the config of its taskset.

    Raises:
        ValueError: there is no such environment, its rubric compares the samples of a group, or a prompt is not text.
    """
    vf = require("verifiers", EXTRA)
    with keeping_signal_handlers():
        env = _make(vf, name, dict(env_args or {}))
    if verifiers_tasksets.is_taskset(env):
        return verifiers_tasksets.load(env, size=size, heldout=heldout, seed=seed)
    if env.rubric.has_group_rewards:
        raise ValueError(
            f"verifiers:{name} has reward functions over a group; rlft scores episodes one by one: write those as a "
            "reward with the parameter `group`"
        )
    for rubric in _rubrics(env):
        rubric.funcs = [_loud(function) for function in rubric.funcs]
    if max_turns is not None:
        env.max_turns = max_turns
    train, held_out = _rows(env, size=size, heldout=heldout, seed=seed)
    rows = dict([*train, *held_out])
    limit = getattr(env, "max_turns", -1)
    return Environment(
        train=[_task(row_id, row) for row_id, row in train],
        heldout=[_task(row_id, row) for row_id, row in held_out],
        episode=lambda: _Episode(env, rows),
        max_turns=limit if limit > 0 else _TURNS,
        tools=tuple(_schema(tool) for tool in env.tool_defs or ()),
    )


class _Episode:
    """An episode of a verifiers environment; an `Episode`."""

    def __init__(self, env: Any, rows: Mapping[str, dict[str, Any]]) -> None:
        self._env, self._rows = env, rows
        self._known: list[Any] = []
        self._tools: dict[str, str] = {}

    def start(self, task: Task, seed: int) -> tuple[Message, ...]:
        """Set the environment up and begin with its first prompt."""
        self._conversation = Conversation(lambda ask: self._run(self._rows[task.id], ask), seed)
        prompt = self._conversation.start()
        if prompt is None:
            raise ValueError("the environment ended before the policy's first message")
        self._known = list(prompt)
        return tuple(_message(message, self._tools) for message in prompt)

    async def step(self, message: Message) -> Step:
        """Pass the policy's message on; return the environment's answer, and at the end the rubric's reward."""
        from verifiers.types import AssistantMessage, ToolCall

        names = [tool.name for tool in self._env.tool_defs or ()]
        text, calls = read_tool_calls(message["content"], names) if names else (message["content"], ())
        called = [ToolCall(id=f"call-{len(self._tools) + n}", name=c, arguments=a) for n, (c, a) in enumerate(calls)]
        self._tools |= {call.id: call.name for call in called}
        reply = AssistantMessage(content=text, tool_calls=called or None)
        prompt = await self._conversation.reply(reply)
        if prompt is None:
            return Step(reward=float(self._conversation.result["reward"]), done=True)
        seen = len(self._known) + 1
        if [m.role for m in prompt[:seen]] != [*(m.role for m in self._known), "assistant"] or len(prompt) <= seen:
            raise ValueError(
                "the environment asks the model about something else than the conversation so far with its answer; "
                "an episode can only go on"
            )
        self._known = list(prompt)
        return Step(messages=tuple(_message(m, self._tools) for m in prompt[seen:]))

    def close(self) -> None:
        """Stop the environment's rollout where it still waits."""
        if hasattr(self, "_conversation"):
            self._conversation.close()

    async def _run(self, row: dict[str, Any], ask: Callable[[Any], Any]) -> Any:
        """The environment's own rollout and its score.

        Raises:
            Exception: what the environment or one of its reward functions raised, which verifiers makes a reward of 0.
        """
        state = await self._env.rollout(row, _client(ask), "policy", {})
        if state.get("error") is not None:
            raise state["error"]
        errors: list[Exception] = []
        _ERRORS.set(errors)
        await self._env.rubric.score_rollout(state)
        await self._env.rubric.cleanup(state)
        if errors:
            raise errors[0]
        return state


def _make(vf: Any, name: str, args: dict[str, Any]) -> Any:
    if ":" in name:
        found = by_path.import_object(name, shipped="environments")
        if verifiers_tasksets.is_taskset_class(found):
            return verifiers_tasksets.make(found, args)
        return by_path.import_function(name, shipped="environments")(**args)
    if not hasattr(vf, "load_environment"):
        raise ValueError(
            f"verifiers {vf.__version__} has no load_environment any more: install 'rlft[verifiers]' for {name}, or "
            "name a taskset, file.py:CLASS"
        )
    return vf.load_environment(name, **args)


def _rubrics(env: Any) -> Iterator[Any]:
    """All rubrics of an environment, those of groups of rubrics and of environments included."""
    waiting = [env.rubric, *(part.rubric for part in getattr(env, "envs", ()))]
    while waiting:
        rubric = waiting.pop()
        waiting += getattr(rubric, "rubrics", ())
        yield rubric


def _loud(function: Callable[..., Any]) -> Callable[..., Any]:
    """A reward function whose error is kept: a rubric logs it and takes 0."""

    @functools.wraps(function)
    async def call(*args: Any, **kwargs: Any) -> float:
        try:
            value = function(*args, **kwargs)
            return float(await value if inspect.isawaitable(value) else value)
        except Exception as error:
            _ERRORS.get().append(error)
            raise

    return call


def _client(ask: Callable[[Any], Any]) -> Any:
    """A client of verifiers that asks the policy."""
    from verifiers.clients import Client
    from verifiers.types import Response, ResponseMessage

    class Policy(Client):
        async def get_response(self, prompt: Any, model: str, sampling_args: Any, tools: Any = None, **_: Any) -> Any:
            reply = await ask(prompt)
            message = ResponseMessage(
                content=reply.content, tool_calls=reply.tool_calls, finish_reason="stop", is_truncated=False
            )
            return Response(id=uuid.uuid4().hex, created=0, model=model, message=message)

    Policy.__abstractmethods__ = frozenset()  # the others are about a provider's requests, and there is no provider
    return Policy(None)


def _rows(env: Any, *, size: int | None, heldout: float, seed: int) -> tuple[list[Any], list[Any]]:
    count = -1 if size is None else size
    train = env.get_dataset(n=count).to_list()
    if env.eval_dataset is None and env.eval_dataset_source is None:
        return split_rows(train, heldout=heldout, seed=seed)
    held_out = env.get_eval_dataset(n=count).to_list()
    return [(f"train-{row['example_id']}", row) for row in train], [
        (f"eval-{row['example_id']}", row) for row in held_out
    ]


def _task(row_id: str, row: Mapping[str, Any]) -> Task:
    own = {key: value for key, value in row.items() if key not in ("prompt", "answer", "example_id")}
    return Task(id=row_id, messages=as_messages(row["prompt"], row_id), answer=row.get("answer"), columns=own)


def _message(message: Any, tools: Mapping[str, str]) -> Message:
    if not isinstance(message.content, str):
        raise ValueError(f"the environment's message is not text: {message.content!r}")
    if message.role == "tool":
        name = tools.get(message.tool_call_id, "")
        answer = Message(role="tool", content=message.content or "(no output)")
        return Message(**answer, name=name) if name else answer
    return Message(role=message.role, content=message.content)


def _schema(tool: Any) -> dict[str, Any]:
    function = {"name": tool.name, "description": tool.description, "parameters": dict(tool.parameters)}
    return {"type": "function", "function": json.loads(json.dumps(function))}
