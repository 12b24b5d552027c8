"""Successive halving of runs that go on at the same time, as Ray Tune decides it (ASHA).

Only the decisions are Tune's: who starts, watches and stops the runs is not its business here. So this needs no
cluster, and what it knows is made again from the reports that it was given.
"""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

from rlft.common.cluster import asha_scheduler


class Asha:
    """ASHA of Ray Tune (https://arxiv.org/abs/1810.05934): the worse part of the runs is stopped at each rung."""

    def __init__(self, *, max_steps: int, grace_period: int, reduction_factor: float) -> None:
        """Rungs are at `grace_period` steps and at that times each power of `reduction_factor`, below `max_steps`.

        Raises:
            ValueError: a number is out of its range, or Ray Tune lacks a package.
        """
        if not 1 <= grace_period <= max_steps:
            raise ValueError(f"the grace period is {grace_period} steps; it has to be between 1 and {max_steps}")
        if reduction_factor <= 1:
            raise ValueError(f"the reduction factor is {reduction_factor:g}; it has to be more than 1, such as 3")
        # Nothing here starts a cluster, so none has to be protected; a token that was made up now would be inherited
        # by runs that join a cluster with another one.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            scheduler = asha_scheduler()
        except ImportError as error:
            raise ValueError(f"Ray Tune lacks a package ({error}): pip install 'ray[tune]'") from error
        self._scheduler: Any = scheduler(
            time_attr="step",
            metric="value",
            mode="max",
            max_t=max_steps,
            grace_period=grace_period,
            reduction_factor=reduction_factor,
        )
        self._max_steps = max_steps
        self._trials: dict[str, Any] = {}

    def is_to_stop(self, run: str, step: int, value: float) -> bool:
        """Tell that a run has this value after so many steps, the higher the better; whether it is to be stopped.

        A run that has reached its last step is never to be stopped.
        """
        if step >= self._max_steps:
            return False
        if run not in self._trials:
            self._trials[run] = SimpleNamespace(trial_id=run)
            self._scheduler.on_trial_add(None, self._trials[run])
        decision = self._scheduler.on_trial_result(None, self._trials[run], {"step": step, "value": value})
        return bool(decision == self._scheduler.STOP)
