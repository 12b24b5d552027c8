"""The environment's own reward, for episodes whose environment scores its actions."""

from __future__ import annotations

from rlft.types import Trajectory


def environment_reward(trajectory: Trajectory) -> float | None:
    """Sum of what the environment gave for the actions; abstains where it gave nothing."""
    return trajectory.environment_reward
