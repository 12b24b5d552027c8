"""Environment classes of OpenEnv (https://github.com/meta-pytorch/OpenEnv), in this process, without its server.

`reset(seed=...)` and `step(action)` return observations, models of pydantic with `done` and `reward`. The type of the
action is read from `step`: an action of one field takes the whole message, others a JSON object in it.
"""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from rlft.common import by_path
from rlft.environment.contract import Environment, Step
from rlft.environment.systems.common import EpisodeRandom, accepted, tasks_of
from rlft.types import Message, Task

_TURNS = 32
_OWN = {"done", "reward", "metadata"}
"""Fields that every observation has."""


def load(
    name: str,
    data: str | Sequence[Mapping[str, Any]] | None = None,
    size: int = 200,
    heldout: float = 0.1,
    seed: int = 0,
    max_turns: int = _TURNS,
    tries: int = 3,
    invalid_reward: float = 0.0,
    instructions: str = "",
    options: Mapping[str, Any] | None = None,
) -> Environment:
    """Episodes of the class, `file.py:CLASS` or `package.module:CLASS`.

    Args:
        data: rows, or where they are (a file, a hub id, a function), whose columns `reset` gets. None makes `size` rows
            that hold a `seed`.
        size: rows without data.
        heldout: share of the rows that is held out.
        seed: decides which.
        max_turns: messages of the policy at the most.
        tries: messages in a row that are no action and end the episode.
        invalid_reward: for each such message.
        instructions: what the policy is told first.
        options: arguments of the class.

    Raises:
        ValueError: there is no such class, or its actions have no type.
    """
    cls = by_path.import_class(name, shipped="environments")
    action = _action_type(cls)

    def episode() -> _Episode:
        return _Episode(cls(**dict(options or {})), action, instructions, tries, invalid_reward)

    def task(row_id: str, row: dict[str, Any]) -> Task:
        probe = episode()
        try:
            return Task(id=row_id, messages=tuple(probe.open(row, 0)), columns=row)
        finally:
            probe.close()

    train, held_out = tasks_of(data, size=size, heldout=heldout, seed=seed)
    return Environment(
        train=[task(*pair) for pair in train],
        heldout=[task(*pair) for pair in held_out],
        episode=episode,
        max_turns=max_turns,
    )


class _Episode:
    """An episode of an OpenEnv environment; an `Episode`."""

    def __init__(
        self, environment: Any, action: type[BaseModel], instructions: str, tries: int, invalid_reward: float
    ) -> None:
        self._environment, self._action, self._instructions = environment, action, instructions
        self._tries, self._invalid_reward, self._invalid = tries, invalid_reward, 0
        self._field = _only_field(action)

    def start(self, task: Task, seed: int) -> list[Message]:
        """Reset the environment and begin with its first observation."""
        return self.open(task.columns, seed)

    def open(self, row: Mapping[str, Any], seed: int) -> list[Message]:
        given = {"seed": seed, **row}
        self._random = EpisodeRandom(given["seed"])
        with self._random:
            observation = self._environment.reset(**accepted(self._environment.reset, given))
        parts = [
            self._instructions,
            "" if self._field else f"Answer with a JSON object: {self._shape()}.",
            _text(observation),
        ]
        return [Message(role="user", content="\n\n".join(filter(None, parts)))]

    def step(self, message: Message) -> Step:
        """Read the message as an action and take it; return the observation and the reward."""
        try:
            action = self._read(message["content"])
        except (ValidationError, ValueError) as error:
            self._invalid += 1
            if self._invalid >= self._tries:
                return Step(reward=self._invalid_reward, done=True)
            content = f"That is no action: {_reason(error)}. Answer with {self._shape()}."
            return Step(messages=(Message(role="user", content=content),), reward=self._invalid_reward)
        self._invalid = 0
        with self._random:
            observation = self._environment.step(action)
        reward = None if observation.reward is None else float(observation.reward)
        answer = Message(role="user", content=_text(observation) or "(nothing to observe)")
        return Step(messages=(answer,), reward=reward, done=bool(observation.done))

    def close(self) -> None:
        """End the environment."""
        self._environment.close()

    def _read(self, text: str) -> BaseModel:
        if self._field:
            return self._action.model_validate_strings({self._field: text.strip()})
        start = text.find("{")
        if start < 0:
            raise ValueError("it holds no JSON object")
        value, _ = json.JSONDecoder().raw_decode(text[start:])
        return self._action.model_validate(value)

    def _shape(self) -> str:
        if self._field:
            return f"the {self._field} alone"
        fields = {name: field for name, field in self._action.model_fields.items() if name != "metadata"}
        return "{" + ", ".join(f'"{name}": {_kind(field.annotation)}' for name, field in fields.items()) + "}"


def _action_type(cls: type) -> type[BaseModel]:
    hints = typing.get_type_hints(cls.step)  # type: ignore[attr-defined]
    parameters = [name for name in inspect.signature(cls.step).parameters if name != "self"]  # type: ignore[attr-defined]
    action = hints.get(parameters[0]) if parameters else None
    if not (inspect.isclass(action) and issubclass(action, BaseModel)):
        raise ValueError(
            f"{cls.__name__}.step(action) does not say which class its action is; annotate it with a subclass of Action"
        )
    return action


def _only_field(action: type[BaseModel]) -> str:
    """The action's field, if it has only one of a plain type."""
    fields = {name: field for name, field in action.model_fields.items() if name != "metadata"}
    plain = [name for name, field in fields.items() if field.annotation in (str, int, float)]
    return plain[0] if len(fields) == len(plain) == 1 else ""


def _kind(annotation: Any) -> str:
    return annotation.__name__ if inspect.isclass(annotation) else str(annotation).replace("typing.", "")


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return ": ".join(filter(None, [".".join(map(str, first["loc"])), first["msg"]]))
    return str(error)


def _text(observation: BaseModel) -> str:
    """The observation without what every one has: its text, if that is all, else JSON."""
    fields = {key: value for key, value in observation.model_dump(mode="json").items() if key not in _OWN}
    if len(fields) == 1 and isinstance(only := next(iter(fields.values())), str):
        return only
    return json.dumps(fields, ensure_ascii=False) if fields else ""
