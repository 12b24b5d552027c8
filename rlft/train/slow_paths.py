"""Telling in a run's events why its learner is slower than it could be."""

from __future__ import annotations

from typing import Any, Protocol

from rlft.model.layers.slow_paths import SLOW_PATH
from rlft.run.directory import Run


class HasSlowPaths(Protocol):
    """A learner, in this process or in several."""

    def slow_paths(self) -> list[str]:
        """The reasons as far as they have come up."""
        ...


def tell_slow_paths(run: Run[Any], learner: HasSlowPaths) -> None:
    """Enter an event for each reason that the run's events do not have yet."""
    for reason in learner.slow_paths():
        run.event_once(SLOW_PATH, f"learner: {reason}")
