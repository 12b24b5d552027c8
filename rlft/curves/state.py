"""Whether a run runs, was stopped and why, or has ended, and how long it took: from its events and its lock."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from rlft.curves import reading
from rlft.curves.text import duration
from rlft.run import lock, logs
from rlft.run.records import SUMMARY, Event, Provenance

Kind = Literal["running", "stopped", "killed", "unknown", "ended"]

_TURNS = ("stopped", "resumed", "forked", "ended")
"""Kinds of the events after which a run is in another state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """What a run is doing, and its times."""

    kind: Kind
    """`killed`: no process works on it and none said why; `unknown`: whether one does cannot be seen from here."""
    why: str
    """What stopped it, its first line; empty of others."""
    wall_s: float
    """Seconds on the clock from its start, or from where it was forked, to its end, to when it was stopped, or to now;
    with its pauses. nan where the run directory does not say."""
    paused_s: float
    """Seconds of them between being stopped and being resumed; pauses after a kill are not known and not in it."""
    training_s: float
    """Seconds that its steps took together (`time/step`), those of a run that it was forked from, too."""

    @property
    def is_over(self) -> bool:
        """Whether nothing works on it any more, as far as one can see."""
        return self.kind not in ("running", "unknown")

    @property
    def sentence(self) -> str:
        """The state in words, such as `stopped by SIGTERM`."""
        if self.kind == "stopped":
            return f"stopped {self.why}" if self.why.startswith("by ") else f"stopped: {self.why}"
        return {
            "running": "running",
            "killed": "killed: no process works on it, and none wrote why",
            "unknown": "still running elsewhere, or killed",
            "ended": "ended",
        }[self.kind]

    @property
    def times(self) -> str:
        """Wall time and training time in words."""
        told = []
        if math.isfinite(self.wall_s):
            pauses = f", {duration(self.paused_s)} of it stopped" if self.paused_s else ""
            told.append(f"wall time {duration(self.wall_s)}{pauses}")
        if self.training_s:
            told.append(f"training time {duration(self.training_s)}")
        return "; ".join(told)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        known = self.wall_s if math.isfinite(self.wall_s) else None
        times = {"wall_s": known, "paused_s": self.paused_s, "training_s": self.training_s}
        return {"state": self.kind, "sentence": self.sentence, **times}


def state_of(run: Path, rows: reading.Rows, events: Sequence[Event], provenance: Provenance) -> State:
    """The state of a run directory now.

    Args:
        rows: its metrics by step.
        events: its events, in order.
        provenance: which tells when it was started.
    """
    last = next((event for event in reversed(events) if event.kind in _TURNS), None)
    held = lock.is_held(run)
    kind: Kind
    if (run / SUMMARY).is_file():
        kind = "ended"
    elif held:
        kind = "running"
    elif last is not None and last.kind == "stopped":
        kind = "stopped"
    else:
        kind = "unknown" if held is None else "killed"
    start = _start(events, provenance)
    end = datetime.now(UTC) if kind == "running" else _end(kind, last, events)
    return State(
        kind=kind,
        why=last.message.partition("\n")[0][:200] if last is not None and kind == "stopped" else "",
        wall_s=(end - start).total_seconds() if start and end and end >= start else math.nan,
        paused_s=_paused(events),
        training_s=math.fsum(row["time/step"] for row in rows if math.isfinite(row.get("time/step", math.nan))),
    )


def read_state(run: Path) -> State:
    """The state of a run directory, read from it. Raises ValueError if a file is damaged, but see `damage.left_out`."""
    rows, events = reading.read_metrics(run, []), reading.read_events(run, [])
    return state_of(run, rows, events, logs.read_provenance(run, []))


def _start(events: Sequence[Event], provenance: Provenance) -> datetime | None:
    forked = [event.time for event in events if event.kind == "forked"]
    first = [provenance.started, *(str(each.get("started", "")) for each in provenance.earlier)]
    return _time(forked[-1]) if forked else min(filter(None, map(_time, first)), default=None)


def _end(kind: Kind, last: Event | None, events: Sequence[Event]) -> datetime | None:
    """When the run ended or stopped; of a killed one its last word."""
    if kind in ("ended", "stopped"):
        return _time(last.time) if last is not None and last.kind == kind else None
    return _time(events[-1].time) if events else None


def _paused(events: Sequence[Event]) -> float:
    turns = [event for event in events if event.kind in _TURNS]
    forks = [index for index, event in enumerate(turns) if event.kind == "forked"]
    total = 0.0
    for before, after in zip(
        turns[forks[-1] if forks else 0 :], turns[(forks[-1] if forks else 0) + 1 :], strict=False
    ):
        stop, start = _time(before.time), _time(after.time)
        if before.kind in ("stopped", "ended") and after.kind == "resumed" and stop and start:
            total += max(0.0, (start - stop).total_seconds())
    return total


def _time(text: str) -> datetime | None:
    """A moment of ISO 8601; None where it is none, as in a file that was edited."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
