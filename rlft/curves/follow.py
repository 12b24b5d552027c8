"""Following a run directory while it grows: each look reads only what is new."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from rlft.curves import reading
from rlft.curves.reading import rollout_steps
from rlft.curves.state import State, state_of
from rlft.run import damage, logs
from rlft.run.logs import Lines
from rlft.run.records import CONFIG, EVALS, EVENTS, METRICS, PROVENANCE, Evaluation, Event, Provenance

if TYPE_CHECKING:
    from rlft.curves.verdict import Verdict

R = TypeVar("R")


class Followed:
    """A run directory as it was at the last `look`. It is only read, and need not be there yet."""

    def __init__(self, run: Path) -> None:
        """Nothing is read before the first look."""
        self.run = run
        self.config: Mapping[str, Any] = {}
        """The resolved config; empty while there is none."""
        self.rows: list[dict[str, float]] = []
        """Metrics by step, ascending, each with its `step`."""
        self.events: list[Event] = []
        """In the order in which they were written."""
        self.evals: list[Evaluation] = []
        """Base, SFT, then by step."""
        self.sample: Mapping[str, Any] | None = None
        """A rollout of the newest step: the first of its first group."""
        self.state: State | None = None
        """None while there is no run."""
        self.notes: list[str] = []
        """What is damaged and left out."""
        self.verdict: Verdict | None = None
        """As of the last `decide`."""
        self._decided: tuple[Any, ...] = ()
        self._metrics = _Log(run / METRICS, logs.read_metrics)
        self._events = _Log(run / EVENTS, logs.read_events)
        self._evals: dict[Path, tuple[tuple[int, int], Evaluation | None]] = {}
        self._config, self._provenance = _Whole(run / CONFIG), _Whole(run / PROVENANCE)
        self._known = Provenance()
        self._sampled = 0

    def look(self) -> None:
        """Read what is new.

        Raises:
            ValueError: the config is damaged; other damage is left out, see `notes`.
        """
        if not (self.run / CONFIG).is_file():
            self.state = None
            return
        if self._config.has_changed():
            self.config = reading.read_config(self.run)
        with damage.left_out() as damaged:
            if self._provenance.has_changed():
                self._known = logs.read_provenance(self.run, [])
            self._read_metrics()
            self._read_events()
            self._read_evals()
            self._read_sample()
            self.state = state_of(self.run, self.rows, self.events, self._known)
        self.notes += [note for note in damaged if note not in self.notes]

    @property
    def is_undecided(self) -> bool:
        """Whether there is an evaluation that the verdict does not know, or the run has ended since."""
        return self.state is not None and self._decided != self._deciding()

    def decide(self) -> None:
        """Find the verdict anew. It reads the files of the whole run, so `look` does not do it.

        Raises:
            ValueError: the config is damaged.
        """
        from rlft.curves.verdict import verdict_of  # takes a second to import, and nothing else here needs it

        self._decided = self._deciding()
        self.verdict = verdict_of(self.run)

    def _deciding(self) -> tuple[Any, ...]:
        """What a verdict changes with: the evaluations, and whether the run goes on."""
        assert self.state is not None
        return (*sorted((str(path), key) for path, (key, _) in self._evals.items()), self.state.is_over)

    @property
    def alarms(self) -> list[str]:
        """What the run itself has told to go wrong in it, a line each; `rlft health` looks again."""
        return [event.message for event in self.events if event.kind == reading.ALARM]

    def _read_metrics(self) -> None:
        new, is_again = self._metrics.read(self.run)
        if is_again:
            self.rows = []
        for line in new:
            row = {"step": line.step, **line.metrics}
            while self.rows and self.rows[-1]["step"] >= line.step:  # steps that were made again after a resume
                self.rows.pop()
            self.rows.append(row)

    def _read_events(self) -> None:
        new, is_again = self._events.read(self.run)
        self.events = [*([] if is_again else self.events), *new]

    def _read_evals(self) -> None:
        found = {}
        for path in (self.run / EVALS).glob("*.json"):
            status = path.stat()
            key = (status.st_mtime_ns, status.st_size)
            known = self._evals.get(path)
            found[path] = known if known and known[0] == key else (key, _evaluation(path))
        self._evals = found
        self.evals = reading.in_order(each for _, each in found.values() if each is not None)

    def _read_sample(self) -> None:
        stored = rollout_steps(self.run)
        if not stored or stored[-1] == self._sampled:
            return
        columns = ("step", "task_id", "prompt", "completion", "outcome", "reward", "failure_kind")
        rows = reading.read_rollouts(self.run, columns, stored[-1:]).slice(0, 1).to_pylist()
        self._sampled, self.sample = stored[-1], rows[0] if rows else self.sample


class _Log(Generic[R]):
    """A log that is read on from where the last reading stopped."""

    def __init__(self, path: Path, read: Callable[..., Lines[R]]) -> None:
        self._path, self._read = path, read
        self._end, self._file = 0, 0

    def read(self, run: Path) -> tuple[list[R], bool]:
        """(records that are new, whether the file is another one, or shorter, so that those before do not count)."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            again, self._end, self._file = self._end > 0, 0, 0
            return [], again
        again = bool(self._end) and (status.st_ino != self._file or status.st_size < self._end)
        start = 0 if again else self._end
        self._file = status.st_ino
        if status.st_size == start:
            self._end = start
            return [], again
        lines = self._read(run, [], start=start)  # a torn last line is being written
        self._end = lines.end
        return lines.rows, again


class _Whole:
    """A file that is read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None

    def has_changed(self) -> bool:
        if not self._path.is_file():
            return False
        status = self._path.stat()
        seen = (status.st_ino, status.st_mtime_ns, status.st_size)
        before, self._seen = self._seen, seen
        return seen != before


def _evaluation(path: Path) -> Evaluation | None:
    try:
        return logs.read_evaluation(path)
    except ValueError as error:
        damage.refuse(error)
        return None
