"""Which tasks a step works on: a pure function of the seed and the step, so that resuming needs no cursor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")


def num_updates(rows: int, *, batch_size: int, epochs: float) -> int:
    """Updates of a training that goes `epochs` times through so many rows (1 or more), at least 1.

    What does not fill the last update of a pass is left out of it; fewer rows than `batch_size` are one update.
    """
    return max(1, round(epochs * (rows // min(batch_size, rows))))


def tasks_of_step(
    tasks: Sequence[T],
    *,
    step: int,
    count: int,
    seed: int,
    round_number: int = 0,
    order: Literal["shuffle", "listed", "easy_first"] = "shuffle",
    of: str = "",
) -> list[T]:
    """The tasks (or rows) of a step, counted from 1. No step holds a task twice.

    Each epoch is a new permutation, cut into full steps; every further round of a step, which refills it, goes through
    permutations of its own. What does not fill a step is left out of the epoch, each time something else.

    Args:
        order: `easy_first` sorts each epoch by `Task.columns["difficulty"]`, and equals stay shuffled. `listed` has no
            epochs: it goes round and round, and a refill takes the tasks that follow.
        of: the environment of a mix that the tasks are of, for errors.

    Raises:
        ValueError: there are fewer tasks than a step needs, or `easy_first` lacks a difficulty.
    """
    refuse_too_few(tasks, count, of)
    if order == "listed":
        first = (step - 1 + round_number) * count
        return [tasks[index % len(tasks)] for index in range(first, first + count)]
    steps = len(tasks) // count
    epoch, position = divmod(step - 1, steps)
    generator = np.random.Generator(np.random.Philox(key=[seed, epoch + (round_number << 32)]))
    indices = generator.permutation(len(tasks))
    if order == "easy_first":
        indices = indices[: steps * count]
        indices = indices[np.argsort(_difficulties(tasks)[indices], kind="stable")]
    return [tasks[index] for index in indices[position * count : (position + 1) * count]]


def refuse_too_few(tasks: Sequence[Any], count: int, of: str = "") -> None:
    """Refuse a step of more tasks than there are.

    Raises:
        ValueError: both numbers.
    """
    if count > len(tasks) and of:
        raise ValueError(
            f"environment.mix: a step takes {count} tasks of {of!r}, which has {len(tasks)}; lower its weight or "
            "tasks_per_step, or add tasks"
        )
    if count > len(tasks):
        raise ValueError(
            f"tasks_per_step is {count}, but the environment has {len(tasks)} training tasks; lower "
            "tasks_per_step or add tasks"
        )


def _difficulties(tasks: Sequence[Any]) -> NDArray[np.float64]:
    values = [_number(task.columns.get("difficulty")) for task in tasks]
    if missing := [task.id for task, value in zip(tasks, values, strict=True) if not math.isfinite(value)]:
        raise ValueError(
            f"environment.order: easy_first needs the difficulty of every training task, and {len(missing)} of "
            f"{len(tasks)} have none (the first is {missing[0]!r}). `rlft env measure CONFIG --out difficulty.jsonl` "
            "measures it; then set environment.args.difficulty_file: difficulty.jsonl"
        )
    return np.array(values)


def _number(value: object) -> float:
    """NaN for what is no number; text in CSV files is one."""
    try:
        return float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        return math.nan
