"""What a tracker is: two methods, and what it is told about its run when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Something that a run's numbers are sent to. Both methods are called in one thread and may raise anything."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take a step's numbers, under the names of metrics.jsonl. A step may come again after a resume."""

    def finish(self, run: Path) -> None:
        """Take samples, result and report of the run directory, as far as they are there, and write all out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackedRun:
    """What a tracker is told about the run that it is made for."""

    path: Path
    """The run directory."""
    name: str
    """The run's name."""
    id: str
    """The tracker's run is found again by it when this run is resumed; no other run has it."""
    config: Mapping[str, Any]
    """The resolved config as plain data."""
    project: str
    """`project` of the tracker's settings."""
    to: str
    """`to` of the tracker's settings."""

    @property
    def folder(self) -> Path:
        """Where a tracker may keep files of this run."""
        return self.path / FOLDER


FOLDER = "trackers"
"""Folder of a run directory for what trackers keep there."""
REPORT = "report.html"
"""The page that `rlft report` writes into a run directory."""
