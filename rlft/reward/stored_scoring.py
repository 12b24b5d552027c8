"""Scoring stored rollouts again: a scorer for them, and stored scores in place of reward models that are not here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rlft.config import RunConfig
from rlft.reward.scoring import Scorer
from rlft.reward.stored import StoredTasks
from rlft.types import Group, RewardSpec


class StoredScores:
    """Scores of reward models on the run's own base: those that were stored, since no learner is there."""

    def __init__(self, rewards: Sequence[RewardSpec]) -> None:
        self.labels = [spec.label for spec in rewards if spec.folder]
        self._parts: list[dict[int, Mapping[str, float]]] = []

    def bind(self, groups: Sequence[Group]) -> None:
        """The stored groups that are scored next."""
        self._parts = [
            {trajectory.sample_index: trajectory.parts for trajectory in group.trajectories} for group in groups
        ]

    def __call__(self, groups: Sequence[Group]) -> list[list[list[float]]]:
        """By reward, group and trajectory; nan, which becomes a failure, where none was stored."""
        return [
            [
                [parts.get(t.sample_index, {}).get(label, float("nan")) for t in group.trajectories]
                for group, parts in zip(groups, self._parts, strict=True)
            ]
            for label in self.labels
        ]


def stored_scorer(
    config: RunConfig, rewards: Sequence[RewardSpec], tasks: StoredTasks, scores: StoredScores, *, workers: int
) -> Scorer:
    """Start scoring processes for stored rollouts; those of reward models on the learner's base come from `scores`.

    Raises:
        ValueError: a reward cannot be loaded, or lacks a parameter that the run has not kept.
    """
    try:
        return Scorer(
            rewards,
            workers=workers,
            deadline_s=config.scoring.deadline_s,
            log_dir=None,
            environment=config.scoring.environment,
            columns=tasks.columns,
            learner=scores if scores.labels else None,
            max_concurrent=config.scoring.max_concurrent,
            memory_mb=config.scoring.memory_mb,
        )
    except ValueError as error:
        if "nothing supplies" not in str(error):
            raise
        why = f"{', '.join(tasks.lost)} could not be kept" if tasks.lost else "the tasks' columns are not among them"
        raise ValueError(f"{error} Of the rollouts of this run {why}.") from error
