"""Advantages of stored rollouts, computed again as the learner did: to the bit for the rewards that they were learnt
from, and what they would have been for others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from rlft.config import RunConfig
from rlft.learner.batch import collate
from rlft.objectives.algorithm import Algorithm, PolicyObjective
from rlft.objectives.batch_advantages import batch_advantages, sequence_means
from rlft.objectives.signal import has_signal
from rlft.types import Abstain, Batch, Group, Score, Trajectory

_NEEDED = {
    "learner_logprobs": "old_logprobs",
    "reference_logprobs": "ref_logprobs",
    "values": "values",
}
"""Columns of the rollout table, and the fields of a batch that they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recomputed:
    """The advantages of a step."""

    batch: Batch | None
    """What the learner got, annotated; None where nothing can be learnt or computed."""
    places: Sequence[tuple[int, int]]
    """(group, trajectory) of each sequence of the batch."""
    advantages: Mapping[tuple[int, int], float]
    """Mean over the actions, by (group, trajectory), as the rollout table has it."""
    left_out: int = 0
    """Scored samples without what the learner would have had to compute of them, since it did not learn from them."""
    reason: str = ""
    """Why there are none; empty where there are."""


def recompute(
    config: RunConfig, groups: Sequence[Group], rows: Sequence[Sequence[Mapping[str, Any]]], *, kl_coef: float
) -> Recomputed:
    """The advantages of a step's groups, whose outcomes may be those of any reward.

    Args:
        groups: in the order of the rollout table.
        rows: of each trajectory, with what the learner computed.
        kl_coef: weight of a KL in the reward before this step.
    """
    algorithm = config.algorithm
    needed = _needed_columns(algorithm)
    kept: list[Group] = []
    places: list[tuple[int, int]] = []
    left_out = 0
    for index in used_groups(algorithm, groups):
        trajectories: list[Trajectory] = []
        for member, trajectory in enumerate(groups[index].trajectories):
            has_all = all(rows[index][member].get(name) is not None for name in needed)
            if isinstance(trajectory.outcome, Score) and has_all:
                places.append((index, member))
            elif isinstance(trajectory.outcome, Score):
                left_out += 1
                trajectory = replace(trajectory, outcome=Abstain(reason="not annotated"))
            trajectories.append(trajectory)
        kept.append(replace(groups[index], trajectories=tuple(trajectories)))
    if not places:
        missing = f"the rollouts lack {' and '.join(needed)}, which the algorithm needs" if left_out else ""
        reason = missing or "no sample has a score"
        return Recomputed(batch=None, places=(), advantages={}, left_out=left_out, reason=reason)
    batch = _annotated(collate(kept), [rows[g][m] for g, m in places])
    try:
        advantages, returns = batch_advantages(
            algorithm, batch, kl_coef=kl_coef, max_new_tokens=config.sampling.max_new_tokens
        )
    except ValueError as error:  # the algorithm cannot take such rewards
        return Recomputed(batch=None, places=(), advantages={}, left_out=left_out, reason=str(error))
    means = sequence_means(advantages, batch.sequence_index, batch.num_sequences)
    return Recomputed(
        batch=replace(batch, advantages=advantages, returns=returns),
        places=places,
        advantages=dict(zip(places, means, strict=True)),
        left_out=left_out,
    )


def used_groups(algorithm: Algorithm, groups: Sequence[Group]) -> list[int]:
    """Positions of the groups that the learner gets, as `train.rl.rollouts` chooses them."""
    if algorithm.max_refills:
        by_turn = algorithm.credits_turns
        useful = [index for index, group in enumerate(groups) if has_signal(group, by_turn=by_turn)]
        return useful or list(range(len(groups)))
    if algorithm.needs_greedy:
        return [index for index, group in enumerate(groups) if group.baseline_score is not None]
    return list(range(len(groups)))


def kl_coefs(config: RunConfig, metrics: Sequence[Mapping[str, float]]) -> dict[int, float]:
    """Weight of the KL before each step, by step: the configured one, or what `kl_target` has steered it to."""
    algorithm = config.algorithm
    coef = algorithm.kl_coef if isinstance(algorithm, PolicyObjective) else 0.0
    found = {}
    for row in metrics:
        found[int(row["step"])] = coef
        coef = row.get("policy/kl_coef", coef)
    return found


def _needed_columns(algorithm: Algorithm) -> list[str]:
    needed = ["learner_logprobs", "reference_logprobs"] if algorithm.has_kl_in_reward else []
    return [*needed, "values"] if algorithm.needs_critic else needed


def _annotated(batch: Batch, rows: Sequence[Mapping[str, Any]]) -> Batch:
    """The batch with what the learner computed of its sequences, as far as all of them have it."""
    known: dict[str, Any] = {}
    for column, name in _NEEDED.items():
        values = [row.get(column) for row in rows]
        if all(value is not None for value in values):
            known[name] = torch.tensor([each for value in values for each in value or ()], dtype=torch.float32)
    return replace(batch, **known)
