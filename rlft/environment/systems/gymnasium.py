"""Environments of Gymnasium (https://gymnasium.farama.org) whose actions can be written: discrete ones and text.

A task is a seed of `reset`. The policy reads observations as text and answers with an action's name or number; the last
one that its message mentions counts. Every step's reward is the turn's.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlft.common.by_path import did_you_mean
from rlft.environment.contract import Environment, Step
from rlft.environment.systems.common import EpisodeRandom, require, task_seeds
from rlft.environment.systems.gymnasium_words import GAMES, Words
from rlft.types import Message, Task

EXTRA = "environments"
_TURNS = 32
"""Turns of an episode whose environment sets no limit."""
_LARGEST = 64
"""Numbers of an observation that can still be read; an image is not text."""
_COLOURED = re.compile(r"\x1b\[[\d;]*m(.*?)\x1b\[0m")


def load(
    name: str,
    size: int = 500,
    heldout: int = 100,
    seed: int = 0,
    max_turns: int | None = None,
    tries: int = 3,
    invalid_reward: float = 0.0,
    instructions: str = "",
    actions: Sequence[str] = (),
    render: bool | None = None,
    options: Mapping[str, Any] | None = None,
) -> Environment:
    """Episodes of the registered environment `name`, one task for each seed; `module:ID` imports the module first.

    Args:
        size: training tasks.
        heldout: held-out tasks; their seeds are others.
        seed: decides the tasks' seeds.
        max_turns: actions of an episode; None takes the environment's own limit.
        tries: messages in a row without an action that end the episode.
        invalid_reward: for each such message.
        instructions: what the policy is told first; "" takes the known rules of Gymnasium's text games.
        actions: names of the discrete actions in order; () takes the known names, or numbers.
        render: show the environment's own text picture; None does where it has one.
        options: of `gymnasium.make`, such as `is_slippery`.

    Raises:
        ValueError: no such environment, or its spaces cannot be written as text.
    """
    gymnasium = require("gymnasium", EXTRA)
    module, _, name = name.rpartition(":")
    if module:
        require(module, EXTRA)  # registers what it has
    make = functools.partial(_make, gymnasium, name, render, dict(options or {}))
    env = make()
    known = GAMES.get(env.spec.id.rpartition("-v")[0], Words())
    words = Words(
        rules=instructions or known.rules,
        actions=tuple(actions) or known.actions,
        describe=known.describe,
    )
    _check(gymnasium.spaces, name, env, words)

    def episode() -> _Episode:
        return _Episode(make(), words, tries=tries, invalid_reward=invalid_reward)

    first = _Episode(env, words, tries=tries, invalid_reward=invalid_reward)
    tasks = [
        Task(id=f"{name}-{number}", messages=tuple(first.reset(number)), columns={"seed": number})
        for number in task_seeds(seed, heldout + size)
    ]
    limit = max_turns or env.spec.max_episode_steps or _TURNS
    first.close()
    return Environment(train=tasks[heldout:], heldout=tasks[:heldout], episode=episode, max_turns=limit)


class _Episode:
    """An episode of a Gymnasium environment; an `Episode`."""

    def __init__(self, env: Any, words: Words, *, tries: int, invalid_reward: float) -> None:
        self._env, self._words, self._tries, self._invalid_reward = env, words, tries, invalid_reward
        self._invalid = 0

    def start(self, task: Task, seed: int) -> list[Message]:
        """Begin with the rules and the first observation.

        They follow from the task's own seed, not from the sample's, so that they are what the task's prompt says.
        """
        return self.reset(task.columns["seed"])

    def reset(self, seed: int) -> list[Message]:
        self._random = EpisodeRandom(seed)
        with self._random:
            observation, _ = self._env.reset(seed=seed)
            text = self._text(observation)
        opening = [self._words.rules, f"Answer with one action: {self._choices()}.", text]
        return [Message(role="user", content="\n\n".join(filter(None, opening)))]

    def step(self, message: Message) -> Step:
        """Take the action that the message names."""
        action = self._action(message["content"])
        if action is None:
            self._invalid += 1
            if self._invalid >= self._tries:
                return Step(reward=self._invalid_reward, done=True)
            content = f"That names no action. Answer with one action: {self._choices()}."
            return Step(messages=(Message(role="user", content=content),), reward=self._invalid_reward)
        self._invalid = 0
        with self._random:
            observation, reward, terminated, truncated, _ = self._env.step(action)
            text = self._text(observation)
        answer = Message(role="user", content=text)
        return Step(messages=(answer,), reward=float(reward), done=bool(terminated or truncated))

    def close(self) -> None:
        """End the environment."""
        self._env.close()

    def _choices(self) -> str:
        space = self._env.action_space
        if not hasattr(space, "n"):
            return f"a text of at most {space.max_length} characters"
        return ", ".join(self._names().keys() if self._words.actions else map(str, self._names().values()))

    def _names(self) -> dict[str, int]:
        space = self._env.action_space
        numbers = range(int(space.start), int(space.start) + int(space.n))
        return dict(zip(self._words.actions or map(str, numbers), numbers, strict=True))

    def _action(self, text: str) -> Any:
        """The action that a message names last; None where it names none."""
        space = self._env.action_space
        if not hasattr(space, "n"):
            return text.strip() if space.contains(text.strip()) else None
        names = {name.lower(): number for name, number in self._names().items()}
        names |= {str(number): number for number in names.values()}
        # The longest first, so that "pick up" is not read as "up".
        pattern = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))
        found = re.findall(rf"(?<![\w.-])(?:{pattern})(?!\w|\.\d)", text.lower())
        return names[found[-1]] if found else None

    def _text(self, observation: Any) -> str:
        describe = self._words.describe
        said = describe(self._env, observation) if describe else _describe(self._env.observation_space, observation)
        if self._env.render_mode != "ansi":
            return said
        picture = _COLOURED.sub(r"[\1]", str(self._env.render())).strip("\n")
        return f"{picture}\n{said}"


def _make(gymnasium: Any, name: str, render: bool | None, options: dict[str, Any]) -> Any:
    try:
        spec = gymnasium.spec(name)
    except gymnasium.error.Error as error:
        raise ValueError(f"{error}{did_you_mean(name, gymnasium.registry)}") from None
    if render is None or render:
        creator = spec.entry_point
        if isinstance(creator, str):
            creator = gymnasium.envs.registration.load_env_creator(creator)
        if "ansi" in getattr(creator, "metadata", {}).get("render_modes", ()):
            options = {"render_mode": "ansi", **options}
        elif render:
            raise ValueError(f"render: {name} has no text picture (render mode 'ansi'); leave it out")
    return gymnasium.make(name, disable_env_checker=True, **options)


def _check(spaces: Any, name: str, env: Any, words: Words) -> None:
    if not isinstance(env.action_space, spaces.Discrete | spaces.Text):
        raise ValueError(
            f"gymnasium:{name} takes actions of {env.action_space}; only discrete actions and text can be written"
        )
    if words.actions and len(words.actions) != getattr(env.action_space, "n", 0):
        raise ValueError(
            f"actions: {name} has the action space {env.action_space}, but {len(words.actions)} names are given"
        )
    if words.describe is None:
        _describe(env.observation_space, env.observation_space.sample())


def _describe(space: Any, observation: Any) -> str:
    """An observation as text.

    Raises:
        ValueError: it is too large to be read.
    """
    if isinstance(observation, str):
        return observation
    if isinstance(observation, dict):
        return "\n".join(f"{key}: {_describe(space[key], value)}" for key, value in observation.items())
    if isinstance(observation, tuple):
        return ", ".join(_describe(part, value) for part, value in zip(space, observation, strict=True))
    if not hasattr(observation, "shape") or observation.shape == ():
        return str(observation)
    if observation.size > _LARGEST:
        raise ValueError(
            f"an observation of {space} has {observation.size} numbers, too many to read as text; wrap the environment "
            "so that it observes less"
        )
    return " ".join(f"{number:.4g}" for number in observation.flatten().tolist())
