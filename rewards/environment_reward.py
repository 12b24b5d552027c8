"""The environment's own reward, for episodes whose environment scores its actions."""

from __future__ import annotations

from typing import Any

from rlft.types import Trajectory


def environment_reward(trajectory: Trajectory, unfinished: float | None = None) -> dict[str, Any] | float | None:
    """Sum of what the environment gave for the actions, with the value of each; abstains where it gave nothing.

    It is as hard to cheat as the environment: what the policy writes is not read here. Cheated can be one that pays for
    each action, by actions without end, or `unfinished`, where that is more than a bad end costs: keep it below.

    Args:
        unfinished: instead of abstaining, for an episode that a budget of tokens or turns cut before its environment
            gave anything, as those do that only score the end.
    """
    if trajectory.environment_reward is None:
        return unfinished if trajectory.stop_reason != "done" else None
    return {"turns": [turn.reward or 0.0 for turn in trajectory.turns]}
