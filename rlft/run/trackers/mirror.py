"""Sends what a run logs to its trackers, each in a thread of its own, so that none delays or stops a step."""

from __future__ import annotations

import queue
import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from rlft.common.files import write_file
from rlft.config import BaseRunConfig, TrackerConfig
from rlft.run import logs
from rlft.run.records import EVALS, SETS, Evaluation
from rlft.run.trackers.by_name import make_tracker
from rlft.run.trackers.contract import FOLDER, TrackedRun

MAX_ERRORS = 3
"""Errors in a row after which a tracker is tried no more."""
WAITING = 512
"""Most steps that wait for a tracker; further ones are left out."""
PATIENCE_S = 60.0
"""Longest wait at the end of a run for what is still to be sent, for each tracker."""

Numbers = tuple[int, Mapping[str, float]]
"""(step, metrics)."""


class Mirror:
    """The trackers of one run. All methods are called in the driver's thread."""

    def __init__(self, run: Path, config: BaseRunConfig) -> None:
        """Begin; a tracker that has nothing of this run yet gets what the run directory has."""
        self._workers = [_Worker(run, config, tracker) for tracker in config.trackers]

    def log(self, step: int, metrics: Mapping[str, float]) -> list[str]:
        """Hand a step's numbers to all trackers, without waiting; what has gone wrong since the last call."""
        for worker in self._workers:
            worker.take((step, metrics))
        return self._told()

    def finish(self) -> list[str]:
        """Wait until all is sent, as long as `PATIENCE_S`; what has gone wrong since the last call."""
        for worker in self._workers:
            worker.end()
        for worker in self._workers:
            worker.wait()
        return self._told()

    def _told(self) -> list[str]:
        return [message for worker in self._workers for message in worker.messages()]


class _Worker:
    """One tracker and its thread."""

    def __init__(self, run: Path, config: BaseRunConfig, tracker: TrackerConfig) -> None:
        self._path, self._config, self._tracker = run, config, tracker
        self._file = run / FOLDER / f"{tracker.name}.id"
        self._id = self._file.read_text(encoding="utf-8").strip() if self._file.is_file() else ""
        self._earlier = [] if self._id else earlier(run)
        self._items: queue.Queue[Numbers | None] = queue.Queue(WAITING)
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._left_out, self._errors, self._has_given_up = 0, 0, False
        # A daemon: one that hangs does not keep the process.
        self._thread = threading.Thread(target=self._work, name=f"tracker {tracker.name}", daemon=True)
        self._thread.start()

    def take(self, item: Numbers) -> None:
        """Let the thread send it, unless too much waits already."""
        try:
            self._items.put_nowait(item)
        except queue.Full:
            self._left_out += 1

    def end(self) -> None:
        """Nothing follows."""
        try:
            self._items.put(None, timeout=PATIENCE_S)
        except queue.Full:
            return  # `wait` says it

    def wait(self) -> None:
        """Until the thread is done, or patience is."""
        began = time.monotonic()
        self._thread.join(PATIENCE_S)
        if self._thread.is_alive():
            self._messages.put(f"{self._tracker.name}: not done {PATIENCE_S:.0f} s after the run; it was left there")
        elif (waited := time.monotonic() - began) > 5:
            self._messages.put(f"{self._tracker.name}: the run waited {waited:.0f} s for it at its end")
        if self._left_out:
            self._messages.put(f"{self._tracker.name} is slower than the run: {self._left_out} steps were not sent")

    def messages(self) -> list[str]:
        """What is to be said."""
        told = []
        while not self._messages.empty():
            told.append(self._messages.get())
        return told

    def _work(self) -> None:
        made = None
        waiting = list(self._earlier)
        while (item := waiting.pop(0) if waiting else self._items.get()) is not None:
            if self._has_given_up:
                continue
            try:
                if made is None:
                    made = make_tracker(self._tracker.name, self._tracked_run())
                made.log(*item)
                self._keep_id()
                self._errors = 0
            except (Exception, SystemExit) as error:
                self._failed(error, f"step {item[0]}")
        if made is not None and not self._has_given_up:
            try:
                made.finish(self._path)
            except (Exception, SystemExit) as error:
                self._failed(error, "samples and report")

    def _tracked_run(self) -> TrackedRun:
        self._id = self._id or secrets.token_hex(4)
        return TrackedRun(
            path=self._path,
            name=self._config.name,
            id=self._id,
            config=self._config.model_dump(mode="json"),
            project=self._tracker.project,
            to=self._tracker.to,
        )

    def _keep_id(self) -> None:
        if not self._file.is_file():
            self._file.parent.mkdir(exist_ok=True)
            write_file(self._file, self._id + "\n")

    def _failed(self, error: BaseException, what: str) -> None:
        self._errors += 1
        self._has_given_up = self._errors >= MAX_ERRORS
        if self._errors == 1 or self._has_given_up:
            also = "; it is tried no more" if self._has_given_up else ""
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
            self._messages.put(f"{self._tracker.name}: {what} not sent ({reason}){also}")


def numbers_of(evaluation: Evaluation) -> Numbers:
    """A held-out measurement as metrics: `heldout/NAME` and its 95 % interval, `heldout/SET/NAME` of a set."""
    prefix = f"heldout/{evaluation.set_name}/" if evaluation.set_name else "heldout/"
    mean = evaluation.accuracy
    values = {"": mean.mean, "/low": mean.low, "/high": mean.high} if mean.bounded else {"": mean.mean}
    return evaluation.step, {f"{prefix}{evaluation.metric}{end}": value for end, value in values.items()}


def earlier(run: Path) -> Sequence[Numbers]:
    """What a run directory has already, for a tracker that begins in the middle of a run, by step."""
    steps = [(line.step, line.metrics) for line in logs.read_metrics(run).rows]
    files = [*sorted((run / EVALS).glob("*.json")), *sorted((run / SETS).glob("*/*.json"))]
    return sorted([*steps, *(numbers_of(logs.read_evaluation(path)) for path in files)], key=lambda item: item[0])
