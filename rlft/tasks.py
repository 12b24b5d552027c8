"""Which tasks a step works on: a pure function of the seed and the step, so that resuming needs no cursor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def tasks_of_step(tasks: Sequence[T], *, step: int, count: int, seed: int, round_number: int = 0) -> list[T]:
    """The tasks (or rows) of a step, counted from 1: each epoch is a new permutation, cut into full steps.

    Every further round of a step, which refills it, goes through permutations of its own. The tail of an epoch that
    does not fill a step is left out, so that no step holds a task twice.

    Raises:
        ValueError: there are fewer tasks than a step needs.
    """
    if count > len(tasks):
        raise ValueError(
            f"tasks_per_step is {count}, but the environment has {len(tasks)} training tasks; lower "
            "tasks_per_step or add tasks"
        )
    epoch, position = divmod(step - 1, len(tasks) // count)
    order = np.random.Generator(np.random.Philox(key=[seed, epoch + (round_number << 32)])).permutation(len(tasks))
    return [tasks[index] for index in order[position * count : (position + 1) * count]]
