"""Several environments as one, whose tasks say where they come from: the config's `environment.mix`.

A task's id begins with the name of its environment and a slash, and its column `environment` is that name, which
rewards may take like any other. Rollouts hand each task to its own environment (`Environment.of`), so that episodes,
tools and budgets stay what they are there.
"""

from __future__ import annotations

import heapq
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rlft.environment.contract import SOURCE, Environment, Episode, Step, asking_the_same
from rlft.types import Message, Task

T = TypeVar("T")


def mix(environments: Mapping[str, Environment], weights: Mapping[str, float]) -> Environment:
    """One environment of them all.

    Training tasks, held-out tasks and demonstrations are each in an order in which every stretch has of each
    environment what its weight says, until it runs out. What one environment trains on or shows and another one holds
    out is left out of the training, and said in the notes.

    Args:
        environments: by name, each checked by itself (`contract.check`).
        weights: of each, above 0.

    Raises:
        ValueError: a task has a column of its own that is called `environment`, or nothing is left to train on.
    """
    are_episodes = any(each.episode is not None for each in environments.values())
    heldout = [task for each in environments.values() for task in each.heldout]
    parts: dict[str, Environment] = {}
    notes: list[str] = []
    for name, environment in environments.items():
        tasks, rows = asking_the_same(environment, heldout, are_episodes=are_episodes)
        kept = replace(
            environment,
            train=[task for task in environment.train if task.id not in tasks],
            demonstrations=[shown for row, shown in enumerate(environment.demonstrations) if row not in rows],
        )
        if not kept.train:
            raise ValueError(f"environment.mix: all training tasks of {name!r} are held out by the others")
        if tasks or rows:
            left_out = f"{len(tasks)} training tasks and {len(rows)} demonstrations"
            notes.append(f"{name}: left out {left_out} that ask what another environment of the mix holds out")
        notes += [f"{name}: {note}" for note in environment.notes]
        parts[name] = _named(name, kept)
    of_each = [weights[name] for name in parts]
    tools = {repr(each.tools): each.tools for each in parts.values()}
    return Environment(
        train=interleaved([each.train for each in parts.values()], of_each),
        heldout=interleaved([each.heldout for each in parts.values()], of_each),
        demonstrations=interleaved([each.demonstrations for each in parts.values()], of_each),
        shown_by=interleaved([[name] * len(each.demonstrations) for name, each in parts.items()], of_each),
        episode=(lambda: _Routed(parts)) if are_episodes else None,
        max_turns=max(each.max_turns for each in parts.values()),
        notes=tuple(notes),
        tools=next(iter(tools.values())) if len(tools) == 1 else (),
        sources=parts,
    )


def interleaved(lists: Sequence[Sequence[T]], weights: Sequence[float]) -> list[T]:
    """One list of several, in which every stretch has of each what its weight says; the order of each is kept."""

    def placed(number: int) -> list[tuple[float, int, int]]:
        return [((row + 0.5) / weights[number], number, row) for row in range(len(lists[number]))]

    return [lists[number][row] for _, number, row in heapq.merge(*map(placed, range(len(lists))))]


def shares(count: int, weights: Mapping[str, float]) -> dict[str, int]:
    """How many of `count` tasks each environment gives: its weight's part, rounded so that they add up.

    Raises:
        ValueError: one would give none; says from how many tasks on it gives one.
    """
    total = sum(weights.values())
    exact = {name: count * weight / total for name, weight in weights.items()}
    found = {name: int(share) for name, share in exact.items()}
    by_remainder = sorted(exact, key=lambda name: found[name] - exact[name])
    for name in by_remainder[: count - sum(found.values())]:
        found[name] += 1
    if absent := [name for name, number in found.items() if not number]:
        name = absent[0]
        raise ValueError(
            f"environment.mix: of {count} tasks a step {name!r} gives none with the weight {weights[name]:g} of "
            f"{total:g}; use tasks_per_step={int(-(-total // weights[name]))}, or a larger weight"
        )
    return found


def _named(name: str, environment: Environment) -> Environment:
    """An environment whose tasks say its name; its episodes get them as they were."""

    def named(task: Task) -> Task:
        if SOURCE in task.columns:
            raise ValueError(
                f"environment.mix: the tasks of {name!r} have a column {SOURCE!r}, which in a mix is the environment's "
                "name; rename it"
            )
        return replace(task, id=f"{name}/{task.id}", columns={**task.columns, SOURCE: name})

    make = environment.episode
    return replace(
        environment,
        train=list(map(named, environment.train)),
        heldout=list(map(named, environment.heldout)),
        episode=(lambda: _Own(make())) if make is not None else None,
    )


class _Own:
    """An episode that gets its environment's own task."""

    def __init__(self, episode: Episode) -> None:
        self._episode = episode

    def start(self, task: Task, seed: int) -> Sequence[Message]:
        columns = {column: value for column, value in task.columns.items() if column != SOURCE}
        own = replace(task, id=task.id.removeprefix(f"{task.columns[SOURCE]}/"), columns=columns)
        return self._episode.start(own, seed)

    def step(self, message: Message) -> Step | Awaitable[Step]:
        return self._episode.step(message)

    def __getattr__(self, name: str) -> Any:  # close, where it has one
        return getattr(self._episode, name)


class _Routed:
    """An episode of whichever environment its task comes from; a single-turn task is over after the reply."""

    def __init__(self, parts: Mapping[str, Environment]) -> None:
        self._parts = parts

    def start(self, task: Task, seed: int) -> Sequence[Message]:
        make = self._parts[task.columns[SOURCE]].episode
        self._episode: Episode = make() if make is not None else _Asked()
        return self._episode.start(task, seed)

    def step(self, message: Message) -> Step | Awaitable[Step]:
        return self._episode.step(message)

    def __getattr__(self, name: str) -> Any:  # close, where it has one
        return getattr(self.__dict__.get("_episode"), name)


class _Asked:
    """A single-turn task as an episode."""

    def start(self, task: Task, seed: int) -> Sequence[Message]:
        return task.messages

    def step(self, message: Message) -> Step:
        return Step(done=True)
