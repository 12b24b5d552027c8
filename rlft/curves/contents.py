"""Tasks of equal content: what says the same to the policy is one task, however many ids it has.

Episodes that begin alike are not: what an environment keeps to itself, such as the number to be guessed or its seed,
may differ, and is in no prompt.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from rlft.curves.statistics import Bounds, mean_interval
from rlft.run.records import Evaluation
from rlft.types import Group

V = TypeVar("V")

COLUMNS = ("task_id", "messages", "answer")
"""Columns of stored samples that `contents_of` needs."""
EPISODE = "conversation"
"""Column that tells which samples are episodes; files of older runs may lack it."""


def contents_of(table: Any) -> dict[str, str]:
    """Hash of prompt and answer by task id, from a table with `COLUMNS`; empty for None and without them.

    Raises:
        ValueError: a task id stands for two prompts or answers.
    """
    contents: dict[str, str] = {}
    if table is None or not {*COLUMNS} <= {*table.column_names}:
        return contents
    has_episodes = EPISODE in table.column_names
    are_episodes = table[EPISODE].is_valid().to_pylist() if has_episodes else [False] * table.num_rows
    episodes: set[str] = set()
    for row, is_episode in zip(table.select(COLUMNS).to_pylist(), are_episodes, strict=True):
        task = row["task_id"]
        content = hashlib.sha256(json.dumps([row["messages"], row["answer"]]).encode()).hexdigest()
        if contents.setdefault(task, content) != content:
            raise ValueError(f"task {task!r} stands for two different prompts or answers; ids must be unique")
        if is_episode:
            episodes.add(content)
    ids = Counter(contents.values())
    apart = {content for content in episodes if ids[content] > 1}
    return {task: f"{content} {task}" if content in apart else content for task, content in contents.items()}


def same_tasks(groups: Iterable[Group]) -> dict[str, str]:
    """The id of the first task with the same prompt and answer, by the id of each that has an earlier one."""
    ids: dict[str, list[str]] = {}
    episodes: set[str] = set()
    for group in groups:
        content = json.dumps([list(group.task.messages), group.task.answer], default=str)
        ids.setdefault(content, []).append(group.task.id)
        if any(trajectory.messages for trajectory in group.trajectories):
            episodes.add(content)
    return {
        other: first
        for content, (first, *others) in ids.items()
        if content not in episodes
        for other in others
        if other != first
    }


def counted_once(evaluation: Evaluation, contents: Mapping[str, str], bounds: Bounds | None = None) -> Evaluation:
    """The evaluation with the mean and the interval of different tasks, where an earlier rlft counted each id.

    Args:
        contents: content of each task by id.
        bounds: the lowest and the highest value that there can be, where they are known.
    """
    if evaluation.same or not repeated(evaluation.by_task, contents):
        return evaluation
    return replace(evaluation, accuracy=mean_interval(merged(evaluation.by_task, contents), bounds=bounds))


def merged(values: Mapping[str, Sequence[V]], contents: Mapping[str, str]) -> dict[str, list[V]]:
    """Values by content: two ids of one content are one task with more samples, so that they count as one cluster."""
    found: dict[str, list[V]] = {}
    for task, samples in values.items():
        found.setdefault(contents.get(task, task), []).extend(samples)
    return found


def repeated(values: Mapping[str, Sequence[float]], contents: Mapping[str, str]) -> int:
    """How many of the tasks have the content of another one."""
    return len(values) - len({contents.get(task, task) for task in values})


def told(count: int) -> str:
    """`15 tasks have the content of another one and count once`."""
    if count == 1:
        return "1 task has the content of another one and counts once"
    return f"{count} tasks have the content of another one and count once"
