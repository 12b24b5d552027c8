"""Trackers by the name that a config gives them; a tracker's package is imported when the tracker is made."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from rlft.config import TrackerConfig
from rlft.run.trackers.contract import TrackedRun, Tracker


def refuse_missing(trackers: Sequence[TrackerConfig]) -> None:
    """Refuse trackers whose package is not installed.

    Raises:
        ValueError: names the first one, and how to install it or do without.
    """
    for tracker in trackers:
        if importlib.util.find_spec(tracker.name) is None:
            raise ValueError(
                f"trackers: {tracker.name} is not installed: pip install 'rlft[{tracker.name}]', or leave it out "
                "(trackers=[] on the command line); the run directory has all of the numbers without a tracker"
            )


def make_tracker(name: str, run: TrackedRun) -> Tracker:
    """The tracker of that name, connected. Raises whatever its package raises where that does not work."""
    if name == "tensorboard":
        from rlft.run.trackers.tensorboard import TensorBoard

        return TensorBoard(run)
    if name == "wandb":
        from rlft.run.trackers.wandb import Wandb

        return Wandb(run)
    if name == "mlflow":
        from rlft.run.trackers.mlflow import MLflow

        return MLflow(run)
    from rlft.run.trackers.trackio import Trackio

    return Trackio(run)
