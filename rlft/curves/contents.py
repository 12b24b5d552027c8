"""Tasks of equal content: what says the same to the policy is one task, however many ids it has."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = ("task_id", "messages", "answer")
"""Columns of stored samples that `contents_of` needs."""


def contents_of(table: Any) -> dict[str, str]:
    """Hash of prompt and answer by task id, from a table with `COLUMNS`; empty for None and without them.

    Raises:
        ValueError: a task id stands for two prompts or answers.
    """
    contents: dict[str, str] = {}
    if table is None or not {*COLUMNS} <= {*table.column_names}:
        return contents
    for row in table.select(COLUMNS).to_pylist():
        task = row["task_id"]
        content = hashlib.sha256(json.dumps([row["messages"], row["answer"]]).encode()).hexdigest()
        if contents.setdefault(task, content) != content:
            raise ValueError(f"task {task!r} stands for two different prompts or answers; ids must be unique")
    return contents


def merged(values: Mapping[str, Sequence[float]], contents: Mapping[str, str]) -> dict[str, list[float]]:
    """Values by content: two ids of one content are one task with more samples, so that they count as one cluster."""
    found: dict[str, list[float]] = {}
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
