"""Environment classes written for TRL's GRPOTrainer (`environment_factory`, https://huggingface.co/docs/trl/openenv).

`reset(**row)` starts an episode and may return text that is appended to the prompt; the public methods are the tools;
`get_reward()`, where there is one, is the reward when the policy has answered without calling a tool. TRL itself need
not be able to run the model: only the class is used.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlft.common import by_path
from rlft.environment.contract import Environment, Step
from rlft.environment.systems.common import EpisodeRandom, accepted, as_messages, tasks_of
from rlft.environment.tools import Tool, answer, make_tools, read_calls, schemas
from rlft.types import Message, Task

_CALL_S = 60.0
"""Seconds that a tool may take; TRL itself waits for ever, so these environments may be slow."""


def load(
    name: str,
    data: str | Sequence[Mapping[str, Any]] | None = None,
    size: int = 200,
    heldout: float = 0.1,
    seed: int = 0,
    max_turns: int = 10,
    prompt: str = "",
) -> Environment:
    """Episodes of the class, or of a function that makes its objects, `file.py:NAME`.

    Args:
        data: rows, or where they are (a file, a hub id, a function); `reset` gets their columns, and `prompt` is their
            prompt. None makes `size` rows that hold a `seed`, for an environment that makes its own tasks.
        size: rows without data.
        heldout: share of the rows that is held out.
        seed: decides which.
        max_turns: messages of the policy at the most; with the last one the episode is scored as it stands.
        prompt: of rows that have none.

    Raises:
        ValueError: there is no such class, it has no `reset`, or a public method lacks types or descriptions.
    """
    factory: Any = by_path.import_object(name, shipped="environments", kind="class")
    if not callable(factory):
        raise ValueError(f"{name} is neither a class nor a function that makes environments")
    if inspect.isclass(factory) and not callable(getattr(factory, "reset", None)):
        raise ValueError(f"{name} has no method reset(**row), which starts an episode")
    tools = _tools(factory())

    def episode() -> _Episode:
        return _Episode(factory(), prompt, max_turns)

    def task(row_id: str, row: dict[str, Any]) -> Task:
        written = row.get("prompt") or prompt
        # A row without a prompt has the one that `reset` returns.
        messages = as_messages(written, f"row {row_id}") if written else tuple(episode().open(row, 0))
        return Task(id=row_id, messages=messages, answer=row.get("answer"), columns=_columns(row))

    train, held_out = tasks_of(data, size=size, heldout=heldout, seed=seed)
    return Environment(
        train=[task(*pair) for pair in train],
        heldout=[task(*pair) for pair in held_out],
        episode=episode,
        max_turns=max_turns,
        tools=schemas(tools),
    )


class _Episode:
    """An episode of a TRL environment; an `Episode`."""

    def __init__(self, environment: Any, prompt: str, turns: int) -> None:
        self._environment, self._prompt, self._left = environment, prompt, turns
        self._tools = _tools(environment)

    def start(self, task: Task, seed: int) -> list[Message]:
        """Begin with the prompt and what `reset` returned."""
        row = {**task.columns, "answer": task.answer} if task.answer is not None else dict(task.columns)
        return self.open(row, seed)

    def open(self, row: Mapping[str, Any], seed: int) -> list[Message]:
        self._random = EpisodeRandom(row.get("seed", seed))
        with self._random:
            told = self._environment.reset(**accepted(self._environment.reset, row))
        if told is not None and not isinstance(told, str):
            raise ValueError(f"reset() returned {type(told).__name__}; only text can be read here")
        written = row.get("prompt") or self._prompt
        if not written:
            if not told:
                raise ValueError(
                    "there is no prompt: give rows with a `prompt`, the argument `prompt`, or a reset() with text"
                )
            return [Message(role="user", content=told)]
        *before, last = as_messages(written, "prompt")
        return [*before, {**last, "content": last["content"] + (told or "")}]

    async def step(self, message: Message) -> Step:
        """Answer the message's tool calls; a message without a call ends the episode, with `get_reward()`."""
        self._left -= 1
        return await self._random.run(self._step(message["content"]))

    async def _step(self, text: str) -> Step:
        calls = read_calls(text, [tool.name for tool in self._tools])
        answers = tuple([await answer(self._tools, call, deadline_s=_CALL_S) for call in calls])
        if answers and self._left:
            return Step(messages=answers)
        return Step(messages=answers, reward=await self._reward(), done=True)

    async def _reward(self) -> float | None:
        get_reward: Callable[[], Any] | None = getattr(self._environment, "get_reward", None)
        if get_reward is None:
            return None
        reward = get_reward()
        reward = await reward if inspect.isawaitable(reward) else reward
        return None if reward is None else float(reward)


def _tools(environment: Any) -> tuple[Tool, ...]:
    # Listed on the class: on the object, properties would be run.
    names = [name for name, _ in inspect.getmembers(type(environment), inspect.isfunction)]
    own = [name for name in names if not name.startswith("_") and name not in ("reset", "get_reward")]
    return make_tools(*(getattr(environment, name) for name in own))


def _columns(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "answer"}
