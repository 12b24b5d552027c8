"""Early stopping that asks whether a measurement is better than the best one beyond chance, not whether it is lower.

Held-out numbers jitter, and whoever stops at the first one that is not lower stops by luck. Here every measurement is
compared with the best one before it, paired by row (`differences.paired`), at the level of its look (`looks.Look`): if
training changed nothing, any of them is taken for better in at most 2.5 % of the runs, however often is looked.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlft.curves.differences import paired
from rlft.curves.looks import Look
from rlft.curves.statistics import MIN_TASKS


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """What the measurements of a run so far say."""

    best: int
    """Position of the last one that was shown to be better than the best before it; 0 is that before training."""
    since: int
    """How many measurements came after it, none of which was shown to be better."""

    def is_over(self, patience: int) -> bool:
        """Whether to stop; `patience` 0 never does."""
        return 0 < patience <= self.since


def standing(measured: Sequence[Mapping[str, Sequence[float]]], *, planned: int) -> Standing:
    """Compare each measurement with the best one before it.

    Args:
        measured: the held-out values by row, higher is better; the first is that before training.
        planned: how many measurements follow the first one if the run is not stopped.
    """
    best = 0
    for at in range(1, len(measured)):
        level = Look(number=at, planned=planned).level
        if paired(measured[best], measured[at], level).interval.low > 0:
            best = at
    return Standing(best=best, since=len(measured) - 1 - best)


def refuse_few(rows: int) -> None:
    """Refuse to stop early by so few held-out rows that no difference has an interval.

    Raises:
        ValueError: both numbers, and what to do.
    """
    if rows < MIN_TASKS:
        raise ValueError(
            f"evaluation.patience decides by an interval over held-out prompts, which needs {MIN_TASKS} of them, and "
            f"there are {rows}; raise data.heldout, or set evaluation.patience=0"
        )
