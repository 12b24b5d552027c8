"""Repetition: within a completion, and among the samples of a task."""

from __future__ import annotations

from collections.abc import Sequence

from rlft.types import Group, Metrics, Trajectory

PHRASE = 6
"""Tokens of a phrase: fewer recur in every text."""


def describe_repetition(groups: Sequence[Group]) -> Metrics:
    """How much completions repeat.

    Returns:
        `rollout/repetition`, the mean over samples of `repeated_share`, and `rollout/duplicates`, the share of samples
        that equal an earlier one of their group, token for token.
    """
    trajectories = [t for group in groups for t in group.trajectories]
    equal = sum(len(g.trajectories) - len({t.token_ids for t in g.trajectories}) for g in groups)
    return {
        "rollout/repetition": sum(map(repeated_share, trajectories)) / len(trajectories),
        "rollout/duplicates": equal / len(trajectories),
    }


def repeated_share(trajectory: Trajectory) -> float:
    """Share of a completion's phrases of `PHRASE` tokens that it has already; of several turns the largest."""
    shares = [0.0]
    for turn in trajectory.turns:
        ids = turn.completion.token_ids
        phrases = len(ids) - PHRASE + 1
        if phrases > 0:
            shares.append(1 - len(set(zip(*(ids[i:] for i in range(PHRASE)), strict=False))) / phrases)
    return max(shares)
