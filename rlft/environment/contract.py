"""What an environment is: tasks to train on, held-out tasks to measure on, demonstrations to warm-start from.

A single-turn environment is data. A multi-turn one also makes an `Episode` for every sample, which answers the policy's
messages and never sees a token id:

    class Guess:
        def start(self, task: Task, seed: int) -> list[Message]:
            self.number = random.Random(seed).randint(1, 9)
            return [{"role": "user", "content": "Guess my number between 1 and 9."}]

        def step(self, message: Message) -> Step:
            if message["content"].strip() == str(self.number):
                return Step(reward=1.0, done=True)
            return Step(messages=({"role": "user", "content": "No. Try again."},), reward=0.0)

The function that a config names returns an `Environment`; the same arguments must give the same tasks in the same
order, since the run's curve depends on nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlft.common.rows import canonical_text
from rlft.types import Message, Task

SOURCE = "environment"
"""Column of a mix's tasks with the name of the environment that each comes from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """An environment's answer to one action."""

    messages: tuple[Message, ...] = ()
    """What the policy reads next; may only be empty when the episode is over."""
    reward: float | None = None
    """For this action; the episode's reward is the sum (`rewards.environment_reward:environment_reward`)."""
    done: bool = False
    """Whether the episode is over."""


class Episode(Protocol):
    """One sample's conversation with the environment: made for it, used once.

    It is driven in a rollout worker. `close()` is called at the end where there is one.
    """

    def start(self, task: Task, seed: int) -> Sequence[Message]:
        """Begin the episode and return its first messages; the same task and seed give the same messages."""
        ...

    def step(self, message: Message) -> Step | Awaitable[Step]:
        """Answer the policy's message; with `async def` the episodes of a chunk wait together."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The tasks of an environment, and how an episode about one of them goes on after the policy's first answer."""

    train: Sequence[Task]
    """Tasks that rollouts are made of."""
    heldout: Sequence[Task]
    """Tasks that are only measured on; none of them asks what a training task asks."""
    demonstrations: Sequence[tuple[Message, ...]] = field(default_factory=tuple)
    """Conversations that end with the assistant's wanted reply, for the SFT stage; may be empty."""
    episode: Callable[[], Episode] | None = None
    """Makes one sample's episode; None for a single-turn environment, whose tasks are asked once."""
    max_turns: int = 8
    """Actions of an episode at the most."""
    max_tokens: int | None = None
    """Tokens of an episode after its first prompt, actions and observations, at the most; None leaves it to the model's
    context."""
    step_deadline_s: float | None = 300.0
    """Seconds that `step` may take until its episode fails; None leaves it to the deadline of the rollout worker. An
    `async` step is cancelled, another one interrupted as far as that works (`rlft.common.overrun`)."""
    notes: tuple[str, ...] = ()
    """What a run says about the data when it starts, such as how many rows were left out."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of tools (see `tools.schemas`): shown by the chat template, or in the system message where it takes
    none; empty where the prompt itself describes what can be called."""
    sources: Mapping[str, Environment] = field(default_factory=dict)
    """Of a mix (`environment.mix`) the environments that it is made of, by name; else empty."""
    shown_by: Sequence[str] = ()
    """Of a mix the name of the environment that each demonstration comes from; else empty."""

    def of(self, task: Task) -> Environment:
        """The environment that a task comes from: of a mix one of its sources, else this one."""
        return self.sources[task.columns[SOURCE]] if self.sources else self

    @property
    def tools_shown(self) -> list[tuple[Mapping[str, Any], ...]]:
        """The tools that the prompt of each demonstration shows."""
        if self.sources:
            return [self.sources[name].tools for name in self.shown_by]
        return [self.tools] * len(self.demonstrations)


def check(environment: Environment) -> None:
    """Refuse what would make a run or its measurement meaningless.

    Raises:
        ValueError: no tasks, an empty or misshapen prompt, a duplicate id, or a prompt (of episodes: a prompt
            with the same answer and columns) that stands in the held-out set and also in the training tasks or the
            demonstrations; names the task.
    """
    if not environment.train:
        raise ValueError("the environment has no training tasks")
    if environment.step_deadline_s is not None and not environment.step_deadline_s > 0:
        raise ValueError(f"step_deadline_s must be more than 0 seconds, or None, got {environment.step_deadline_s}")
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

    for row, messages in enumerate(environment.demonstrations):
        check_messages(messages, f"demonstration {row}")
        if messages[-1]["role"] != "assistant" or len(messages) < 2:
            raise ValueError(f"demonstration {row}: expected a prompt and, last, the assistant's reply")
    refuse_overlap(environment, environment.heldout, are_episodes=environment.episode is not None)


def refuse_overlap(environment: Environment, heldout: Sequence[Task], *, are_episodes: bool) -> None:
    """Refuse held-out tasks that a run trains on.

    Args:
        environment: whose training tasks and demonstrations the run learns from.
        heldout: tasks that it is measured on, of this environment or another one.
        are_episodes: whether tasks of either are episodes. Those may all open alike and go on differently, as games do:
            then the answer and the columns tell them apart, too.

    Raises:
        ValueError: names a held-out task and the training task or the demonstration that asks the same.
    """
    tasks, rows = asking_the_same(environment, heldout, are_episodes=are_episodes)
    for task_id, twin in tasks.items():
        raise ValueError(f"training task {task_id!r} asks the same as held-out task {twin!r}; split by problem")
    for row, twin in rows.items():
        raise ValueError(f"demonstration {row} answers held-out task {twin!r}; split by problem")


def asking_the_same(
    environment: Environment, heldout: Sequence[Task], *, are_episodes: bool
) -> tuple[dict[str, str], dict[int, str]]:
    """What a run would learn from and be measured on; arguments as of `refuse_overlap`.

    Returns:
        (training tasks by id, demonstrations by row), each with the id of the held-out task that asks the same
    """

    def asked(task: Task) -> str:
        return _key(task.messages, are_episodes and [task.answer, dict(task.columns)])

    twins = {asked(task): task.id for task in heldout}
    prompts = {_key(task.messages): task.id for task in heldout}
    tasks = {task.id: twin for task in environment.train if (twin := twins.get(asked(task)))}
    shown = enumerate(environment.demonstrations)
    return tasks, {row: twin for row, messages in shown if (twin := prompts.get(_key(messages[:-1])))}


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


def _key(messages: Sequence[Message], rest: Any = None) -> str:
    """A text that is the same for two prompts that read the same, and differs otherwise."""
    read = [{**message, "content": canonical_text(message["content"])} for message in messages]
    return json.dumps([read, rest], sort_keys=True, default=str)
