"""What an environment is: tasks to train on, held-out tasks to measure on, demonstrations to warm-start from.

A single-turn environment is data. The function that a config names returns an `Environment`; the same arguments must
give the same tasks in the same order, since the run's curve depends on nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlft.types import Message, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The tasks of a single-turn environment."""

    train: Sequence[Task]
    """Tasks that rollouts are made of."""
    heldout: Sequence[Task]
    """Tasks that are only measured on; none of them asks what a training task asks."""
    demonstrations: Sequence[tuple[Message, ...]] = field(default_factory=tuple)
    """Conversations that end with the assistant's wanted reply, for the SFT stage; may be empty."""


def check(environment: Environment) -> None:
    """Refuse what would make a run or its measurement meaningless.

    Raises:
        ValueError: no tasks, an empty or misshapen prompt, a duplicate id, or a prompt that stands in the held-out
        set and
            also in the training tasks or the demonstrations; names the task.
    """
    if not environment.train:
        raise ValueError("the environment has no training tasks")
    seen: set[str] = set()
    for split in ("train", "heldout"):
        for row, task in enumerate(getattr(environment, split)):
            where = f"{split} task {row} (id {task.id!r})"
            check_messages(task.messages, where)
            if task.messages[-1]["role"] == "assistant":
                raise ValueError(f"{where}: the prompt ends with an assistant message; end it with the user's")
            if task.id in seen:
                raise ValueError(f"{where}: the id stands twice; ids name tasks in seeds and metrics, make them unique")
            seen.add(task.id)
    heldout = {_key(task.messages): task.id for task in environment.heldout}
    for task in environment.train:
        if twin := heldout.get(_key(task.messages)):
            raise ValueError(f"training task {task.id!r} asks the same as held-out task {twin!r}; split by problem")
    for row, messages in enumerate(environment.demonstrations):
        check_messages(messages, f"demonstration {row}")
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise ValueError(f"demonstration {row}: expected a prompt and, last, the assistant's reply")
        if twin := heldout.get(_key(messages[:-1])):
            raise ValueError(f"demonstration {row} answers held-out task {twin!r}; split by problem")


def check_messages(messages: Sequence[Message], where: str) -> None:
    """Refuse a prompt that is empty or not a list of chat messages.

    Raises:
        ValueError: says which message of `where` is wrong.
    """
    if not messages:
        raise ValueError(f"{where}: the prompt has no messages")
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise ValueError(f"{where}: message {index} needs the keys 'role' and 'content', got {message!r}")
        if not isinstance(message["content"], str):
            raise ValueError(f"{where}: message {index}: content must be text, got {type(message['content']).__name__}")
    if not messages[-1]["content"].strip():
        raise ValueError(f"{where}: the prompt is empty")


def _key(messages: Sequence[Message]) -> str:
    return json.dumps(list(messages), sort_keys=True)
