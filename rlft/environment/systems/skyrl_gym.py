"""Environment classes written for SkyRL-gym (https://github.com/NovaSky-AI/SkyRL): `BaseTextEnv` and its like.

`Class(env_config, extras)` is made for a row, `init(prompt)` gives the first messages, and `step(action)` a dict with
`observations`, `reward` and `done`. The package need not be installed unless the class imports it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from rlft.common import by_path
from rlft.environment.contract import Environment, Step
from rlft.environment.systems.common import EpisodeRandom, accepted, as_messages, tasks_of
from rlft.types import Message, Task

_TURNS = 32


def load(
    name: str,
    data: str | Sequence[Mapping[str, Any]],
    heldout: float = 0.1,
    seed: int = 0,
    max_turns: int = _TURNS,
    env_config: Mapping[str, Any] | None = None,
) -> Environment:
    """Episodes of the class, `file.py:CLASS` or `package.module:CLASS`.

    Args:
        data: rows, or where they are (a file, a hub id, a function): `prompt`, and what the class takes as `extras`,
            such as `reward_spec`.
        heldout: share of the rows that is held out.
        seed: decides which.
        max_turns: messages of the policy at the most, which the class gets as `extras["max_turns"]` where a row names
            none, as SkyRL's generator tells it.
        env_config: settings, which the class gets as an object with attributes.

    Raises:
        ValueError: there is no such class, or a row has no prompt.
    """
    cls = by_path.import_class(name, shipped="environments")
    train, held_out = tasks_of(data, size=0, heldout=heldout, seed=seed)
    return Environment(
        train=[_task(*pair) for pair in train],
        heldout=[_task(*pair) for pair in held_out],
        episode=lambda: _Episode(cls, SimpleNamespace(**dict(env_config or {})), max_turns),
        max_turns=max_turns,
    )


def _task(row_id: str, row: dict[str, Any]) -> Task:
    if "prompt" not in row:
        raise ValueError(f"data: a row needs the column 'prompt', it has {', '.join(row)}")
    spec = row.get("reward_spec")
    answer = spec.get("ground_truth") if isinstance(spec, Mapping) else None
    extras = {key: value for key, value in row.items() if key != "prompt"}
    return Task(id=row_id, messages=as_messages(row["prompt"], f"row {row_id}"), answer=answer, columns=extras)


class _Episode:
    """An episode of a SkyRL-gym environment; an `Episode`."""

    def __init__(self, cls: Any, config: Any, max_turns: int) -> None:
        self._class, self._config, self._max_turns = cls, config, max_turns

    def start(self, task: Task, seed: int) -> tuple[Message, ...]:
        """Begin with the prompt as the environment's `init` returns it."""
        self._random = EpisodeRandom(seed)
        given = {"env_config": self._config, "extras": {"max_turns": self._max_turns, **task.columns}}
        with self._random:
            self._environment = self._class(**accepted(self._class, given))
            conversation, _ = self._environment.init([dict(message) for message in task.messages])
        return as_messages(conversation, "init()")

    def step(self, message: Message) -> Step:
        """Pass the policy's text to the environment; return its observations and reward."""
        with self._random:
            output = self._environment.step(message["content"])
        return Step(
            messages=as_messages(output["observations"], "step()"),
            reward=float(output["reward"]),
            done=bool(output["done"]),
        )

    def close(self) -> None:
        """End the environment."""
        if hasattr(self, "_environment") and callable(close := getattr(self._environment, "close", None)):
            close()
