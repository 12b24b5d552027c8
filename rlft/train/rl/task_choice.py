"""Which tasks a step of RL works on, by the config's order; of several environments each gives its share.

All of it follows from the seed, the step and, of `by_signal`, from which groups of earlier steps gave signal. That is
what a checkpoint has of it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlft.config import RunConfig
from rlft.environment.contract import SOURCE
from rlft.environment.mix import interleaved, shares
from rlft.objectives.signal import has_signal
from rlft.train.task_order import refuse_too_few, tasks_of_step
from rlft.types import Group, Task

HALF_LIFE = 32
"""Steps after which what a task's groups showed counts half: the policy has moved on."""
PRIOR = 0.5
"""How many groups the expectation of an unseen task counts for."""
LEAST = 0.15
"""Least expectation of a task, so that each of them keeps a chance."""


class TaskChoice:
    """The tasks of each step of a run."""

    def __init__(self, config: RunConfig, tasks: Sequence[Task]) -> None:
        """Args: tasks: the training tasks, of a mix those of all its environments.

        Raises:
            ValueError: an environment of a mix gives no task to a step.
        """
        self._config = config
        weights = {each.name: each.weight for each in config.environment.mix}
        self.shares = shares(config.tasks_per_step, weights) if weights else {"": config.tasks_per_step}
        """How many tasks of each step come from each environment of a mix; of a single one, all."""
        self._parts = {
            name: [task for task in tasks if not name or task.columns[SOURCE] == name] for name in self.shares
        }
        self._signal: dict[str, SignalRecord] = {}
        if config.environment.order == "by_signal":
            self._signal = {
                name: SignalRecord(config, part, count=self.shares[name], name=name)
                for name, part in self._parts.items()
            }

    @property
    def notes(self) -> tuple[str, ...]:
        """What a run says of it when it starts."""
        of_each = ", ".join(f"{count} of {name}" for name, count in self.shares.items())
        return (f"tasks of each step: {of_each}",) if self._config.environment.mix else ()

    def of_step(self, step: int, round_number: int = 0) -> list[Task]:
        """The tasks of a step, counted from 1, or of a further round that refills it. No round has a task twice.

        Those of a mix are spread evenly: any share of them has about the same of each environment.

        Raises:
            ValueError: see `tasks_of_step`.
        """
        chosen = [self._of_part(name, step, round_number) for name in self._parts]
        return interleaved(chosen, list(self.shares.values()))

    def _of_part(self, name: str, step: int, round_number: int) -> list[Task]:
        if name in self._signal:
            return self._signal[name].choose(step, round_number)
        order = self._config.environment.order
        assert order != "by_signal"
        return tasks_of_step(
            self._parts[name],
            step=step,
            count=self.shares[name],
            seed=self._config.seed,
            round_number=round_number,
            order=order,
            of=name,
        )

    def observe(self, step: int, groups: Sequence[Group]) -> None:
        """Enter all scored groups of a step, those that the algorithm has no use for among them."""
        for name, record in self._signal.items():
            record.observe(step, [group for group in groups if not name or group.task.columns[SOURCE] == name])

    def state(self, step: int) -> dict[str, Any]:
        """What a checkpoint of this step has to hold, as plain data; empty where nothing."""
        return {name: record.state(step) for name, record in self._signal.items()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` gave."""
        for name, record in self._signal.items():
            record.load(state[name])


class SignalRecord:
    """How often each task's groups gave signal, and drawing tasks by it.

    A task is drawn with a probability in proportion to the square of its expected share of groups with signal (the
    share itself gains half as much in `benchmarks/task_order.py`): what its own groups showed, the older the less, and
    beside it what is expected of a task that was never seen. That is what the first groups of others showed or, where
    it has a measured `difficulty`, what follows from that. Weighted drawing without replacement by exponential keys:
    https://doi.org/10.1016/j.ipl.2005.11.003. Preferring tasks of middling success: https://arxiv.org/abs/2504.05520.

    With `max_staleness` a step is submitted before those in front of it are scored. So it knows of the steps up to its
    own number - 1 - `max_staleness`, whenever it is asked.
    """

    def __init__(self, config: RunConfig, tasks: Sequence[Task], *, count: int, name: str = "") -> None:
        """Args: count: tasks that a step takes of them; name: of their environment in a mix."""
        refuse_too_few(tasks, count, of=name)
        self._config, self._tasks, self._count = config, tasks, count
        self._expected = np.array([_expected(task, config.samples_per_task) for task in tasks])  # NaN where unknown
        self._seen: dict[str, tuple[float, float, int]] = {}
        """By task: groups with signal, groups, both as they count at the last of its steps; that step."""
        self._first = (0, 0)
        """First groups of tasks: those with signal, and all."""
        self._recent: dict[int, dict[str, tuple[int, int]]] = {}
        """By step: task -> (groups with signal, groups); the steps that a submitted one may still not know of."""

    def choose(self, step: int, round_number: int = 0) -> list[Task]:
        """As many tasks as a step has, by expectation."""
        seen, first = self._as_of(step - 1 - self._config.max_staleness)
        prior = np.where(np.isnan(self._expected), (first[0] + 1) / (first[1] + 2), self._expected)
        signal, groups = np.zeros(len(self._tasks)), np.zeros(len(self._tasks))
        for index, task in enumerate(self._tasks):
            if task.id in seen:
                with_signal, count, last = seen[task.id]
                left = 0.5 ** ((step - last) / HALF_LIFE)
                signal[index], groups[index] = with_signal * left, count * left
        weights = np.maximum((PRIOR * prior + signal) / (PRIOR + groups), LEAST) ** 2
        generator = np.random.Generator(np.random.Philox(key=[self._config.seed, step + (round_number << 32)]))
        keys = generator.exponential(size=len(self._tasks)) / weights
        return [self._tasks[index] for index in np.argsort(keys, kind="stable")[: self._count]]

    def observe(self, step: int, groups: Sequence[Group]) -> None:
        """Enter a step's groups; one with fewer than two scores says nothing. The same step again replaces them."""
        by_turn = self._config.algorithm.credits_turns
        counts: dict[str, tuple[int, int]] = defaultdict(lambda: (0, 0))
        for group in groups:
            if len(group.scores) > 1:
                with_signal, count = counts[group.task.id]
                counts[group.task.id] = (with_signal + has_signal(group, by_turn=by_turn), count + 1)
        self._recent[step] = dict(counts)
        # A checkpoint of the step before may still be asked for, and goes on with the step that is observed here.
        settled = step - 1 - self._config.max_staleness
        self._seen, self._first = self._as_of(settled)
        self._recent = {each: found for each, found in self._recent.items() if each > settled}

    def state(self, step: int) -> dict[str, Any]:
        """Plain data; what later steps showed is left out."""
        return {
            "seen": {task_id: list(seen) for task_id, seen in self._seen.items()},
            "first": list(self._first),
            "recent": {
                str(each): {task_id: list(counts) for task_id, counts in found.items()}
                for each, found in self._recent.items()
                if each <= step
            },
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self._seen = {task_id: (float(s), float(n), int(step)) for task_id, (s, n, step) in state["seen"].items()}
        with_signal, count = state["first"]
        self._first = (int(with_signal), int(count))
        self._recent = {
            int(step): {task_id: (int(s), int(n)) for task_id, (s, n) in found.items()}
            for step, found in state["recent"].items()
        }

    def _as_of(self, step: int) -> tuple[dict[str, tuple[float, float, int]], tuple[int, int]]:
        """What the steps up to this one showed."""
        seen, (first_signal, first_count) = dict(self._seen), self._first
        for each in sorted(number for number in self._recent if number <= step):
            for task_id, (with_signal, count) in self._recent[each].items():
                if (before := seen.get(task_id)) is None:
                    first_signal, first_count = first_signal + (with_signal > 0), first_count + 1
                    seen[task_id] = (float(with_signal), float(count), each)
                else:
                    left = 0.5 ** ((each - before[2]) / HALF_LIFE)
                    seen[task_id] = (before[0] * left + with_signal, before[1] * left + count, each)
        return seen, (first_signal, first_count)


def _expected(task: Task, samples: int) -> float:
    """The chance that a group of this size differs within, of a task with a measured `difficulty`; else NaN.

    The difficulty is taken for the share of samples that fail, each by itself: 1 - d^G - (1 - d)^G.
    """
    value: Any = task.columns.get("difficulty")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        return math.nan
    return 1.0 - value**samples - (1.0 - value) ** samples
