"""Several evaluations of one run: who looks often finds something, so the looks share one error.

Without a correction some evaluation of a run in which nothing changes is conclusive at 95 % in 13 % of the runs with 3
evaluations and in half of those with 30. Here the 5 % are spent over the evaluations that the config plans: half on the
last one, which decides, and half on all before it together (Bonferroni's inequality, so any dependence is allowed).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlft.curves.contents import merged
from rlft.run.records import Evaluation

ERROR = 0.05
"""How often any evaluation of a run in which nothing changed may be conclusive."""
_SPLITS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """Which of a run's evaluations one is."""

    number: int
    """Counted from 1."""
    planned: int
    """How many the config plans; more if more were made."""

    @property
    def level(self) -> float:
        """Level of its interval."""
        if self.planned == 1:
            return 1 - ERROR
        return 1 - ERROR / 2 / (1 if self.number == self.planned else self.planned - 1)

    def __str__(self) -> str:
        """`look 3 of 4`."""
        return f"look {self.number} of {self.planned}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Picked:
    """The best of several evaluations, and by how much its number flatters it."""

    evaluation: Evaluation
    """The one with the highest mean; the last one where none is above it, and of other equals the earliest."""
    of: int
    """Among how many."""
    optimism: float
    """By how much the best mean exceeds, on average, what the same choice gives on tasks that did not choose."""


def look_at(config: Mapping[str, Any], trained: Sequence[Evaluation], index: int = -1) -> Look:
    """Which look an evaluation is.

    Args:
        config: the run's resolved config; its `steps` and `evaluation.every` say how many are planned.
        trained: evaluations of the trained policy, in order.
        index: which of them.
    """
    steps, every = config.get("steps"), (config.get("evaluation") or {}).get("every", 0)
    planned = math.ceil(steps / every) if isinstance(steps, int) and isinstance(every, int) and every > 0 else 1
    number = range(len(trained))[index] + 1
    is_over = isinstance(steps, int) and trained[index].step >= steps
    planned = max(planned, len(trained))
    return Look(number=planned if is_over else number, planned=planned)


def picked(trained: Sequence[Evaluation], contents: Mapping[str, str] | None = None, seed: int = 0) -> Picked | None:
    """The best of several evaluations with its optimism, from 200 random halves of the tasks: one half chooses the
    best evaluation, the other says how good it is. None with fewer than two evaluations or eight common tasks.

    Tasks of equal content (`contents` by id; if not given, as the evaluations say) are one: else a task would tell of a
    choice that it made itself.
    """
    import numpy as np

    values = [merged(e.by_task, e.same if contents is None else contents) for e in trained]
    tasks = [task for task in (values[0] if values else {}) if all(each.get(task) for each in values)]
    if len(trained) < 2 or len(tasks) < 8:
        return None
    means = np.array([[math.fsum(each[task]) / len(each[task]) for task in tasks] for each in values])
    generator = np.random.default_rng(seed)
    excess = []
    for _ in range(_SPLITS):
        order = generator.permutation(len(tasks))
        chooses, tells = (means[:, half].mean(axis=1) for half in np.array_split(order, 2))
        best = int(chooses.argmax())
        excess.append(chooses[best] - tells[best])
    # Half of the tasks choose with sqrt(2) times the noise that all of them choose with.
    optimism = max(0.0, float(np.mean(excess)) / math.sqrt(2))
    whole = means.mean(axis=1)
    is_above_last = whole.max() > whole[-1] + 1e-12  # by more than what sums round
    chosen = trained[int(whole.argmax())] if is_above_last else trained[-1]
    return Picked(evaluation=chosen, of=len(trained), optimism=optimism)
