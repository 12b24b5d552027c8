"""Whether a group of samples tells an algorithm anything."""

from __future__ import annotations

from rlft.types import Group, Score


def has_signal(group: Group, *, by_turn: bool = False) -> bool:
    """Whether the group's scores differ, so that a group-relative baseline leaves something.

    Args:
        by_turn: whether the scores of turns count, too, though their sums are equal.
    """
    if not by_turn:
        return len(set(group.scores)) > 1
    return len({(t.outcome.value, t.outcome.turns) for t in group.trajectories if isinstance(t.outcome, Score)}) > 1
