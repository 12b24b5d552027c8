"""The environment's own reward, for episodes whose environment scores its actions."""

from __future__ import annotations

from rlft.types import Trajectory


def environment_reward(trajectory: Trajectory, unfinished: float | None = None) -> float | None:
    """Sum of what the environment gave for the actions; abstains where it gave nothing.

    Args:
        unfinished: instead of abstaining, for an episode that a budget of tokens or turns cut before its environment
            gave anything, as those do that only score the end.
    """
    reward = trajectory.environment_reward
    return unfinished if reward is None and trajectory.stop_reason != "done" else reward
