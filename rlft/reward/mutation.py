"""Whether a reward changes what it is given: rewards that call another one, and count what it changed.

Each call gets copies of its own, so that such a reward does no harm here; where functions share their arguments, as in
other trainers, the next one sees the changes.
"""

from __future__ import annotations

import functools
import inspect
import json
import pickle
from collections.abc import Mapping
from typing import Any

from rlft.reward.contract import CallPlan, RewardFunction, plan_call
from rlft.reward.loading import build, load
from rlft.types import Group, RewardSpec, Trajectory


async def sample(
    completion: str, trajectory: Trajectory, watched: str, watched_args: Mapping[str, Any], **columns: Any
) -> dict[str, float] | None:
    """Number of arguments that the reward at `watched` changed, and 1 for each by name; None if it raised."""
    return await _changed(watched, watched_args, {**columns, "completion": completion, "trajectory": trajectory})


async def batch(
    completions: list[Any], watched: str, watched_args: Mapping[str, Any], **columns: Any
) -> list[dict[str, float] | None]:
    """Number of arguments that a reward which takes lists changed, see `sample`, for each sample."""
    return [await _changed(watched, watched_args, {**columns, "completions": completions})] * len(completions)


async def group(
    group: Group, watched: str, watched_args: Mapping[str, Any], **columns: Any
) -> list[dict[str, float] | None]:
    """Number of arguments that a reward which compares a group changed, see `sample`, for each sample."""
    return [await _changed(watched, watched_args, {**columns, "group": group})] * len(group.trajectories)


async def _changed(path: str, args: Mapping[str, Any], offered: Mapping[str, Any]) -> dict[str, float] | None:
    try:
        function, plan, is_built = _opened(path, json.dumps(dict(args), sort_keys=True))
    except (TypeError, ValueError):  # not plain data, or an object with a `setup`: it is not looked at
        return None
    given = offered if is_built else {**offered, **args}
    arguments = {name: value for name, value in given.items() if plan.takes_any or name in plan.parameters}
    before = {name: pickle.dumps(value) for name, value in arguments.items()}
    copies = {name: pickle.loads(value) for name, value in before.items()}
    try:
        result = function(**copies)
        if inspect.isawaitable(result):
            await result
    except Exception:  # that it fails is found where it is called itself
        return None
    changed = [name for name in before if pickle.dumps(copies[name]) != pickle.dumps(pickle.loads(before[name]))]
    return {"score": float(len(changed)), **dict.fromkeys(changed, 1.0)}


@functools.cache
def _opened(path: str, args: str) -> tuple[RewardFunction, CallPlan, bool]:
    function, is_built = build(load(path), path, json.loads(args))
    if hasattr(function, "setup"):
        raise ValueError(f"{path} has a setup, which may start what should not run twice")
    return function, plan_call(function, RewardSpec(path=path)), is_built
