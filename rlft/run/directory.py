"""A run directory: the source of truth of a run, and the only thing that the curves read.

runs/NAME/
  config.yaml        the resolved config           provenance.json  versions, hardware, code hashes
  metrics.jsonl      one line of numbers per step  events.jsonl     what happened, with times
  rollouts/          step-000012.parquet: every sample, failed ones too
  tasks.jsonl        answer and columns of the tasks, for rewards to be replayed
  evals/             base.json, sft.json, step-000010.json and their rollouts; sets/NAME/: those of `evaluations`
  adapters/          sft, v000012: PEFT folders    checkpoints/     what `rlft resume` starts from
  summary.json       at the end                    logs/            what scoring processes printed
  manifest.json      hashes of all of these        bisect/          evaluations that `rlft bisect` made
  skipped/           batches whose update was not finite
  aside/             records of steps that were made again after a resume
  trackers/          what trackers keep here
"""

from __future__ import annotations

import json
import math
import os
import shlex
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import fields, replace
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, overload

from filelock import FileLock, Timeout
from safetensors.torch import save as save_tensors
from torch import Tensor
from typing_extensions import TypeVar

from rlft import config_file
from rlft.common.files import describe_os_error, naming, write_file
from rlft.common.interrupts import Interrupted
from rlft.config import BaseRunConfig, RunConfig
from rlft.run import logs
from rlft.run.checkpoint import Snapshot, save
from rlft.run.earlier_configs import modernise
from rlft.run.lock import PATIENCE_S
from rlft.run.logs import read_evaluation
from rlft.run.manifest import RecordHashes
from rlft.run.records import (
    CHECKPOINTS,
    CONFIG,
    EVENTS,
    LOCK,
    METRICS,
    PROVENANCE,
    ROLLOUTS,
    SKIPPED,
    SUMMARY,
    TASKS,
    Evaluation,
    Event,
    MetricsLine,
    Provenance,
    evaluations_folder,
    step_name,
)
from rlft.run.rollout_table import to_parquet
from rlft.run.stored_task import StoredTask
from rlft.run.trackers.by_name import refuse_missing
from rlft.run.trackers.mirror import Mirror, numbers_of
from rlft.types import Batch, Group, Metrics, Task

C = TypeVar("C", bound=BaseRunConfig, default=RunConfig)
D = TypeVar("D", bound=BaseRunConfig)

KEPT_CHECKPOINTS = 2
"""Newest snapshots that are kept: the last one, and one before it should that be damaged."""
MAX_SKIPPED = 3
"""Updates in a row that may be skipped for a loss or gradient that is not finite before the run stops."""


def read_config(
    run: Path,
    kind: type[D],
    overrides: Sequence[str] = (),
    *,
    check: Callable[[D], Iterable[config_file.Problem]] | None = None,
) -> D:
    """The config of a run directory, of an earlier rlft too, with `key.sub=value` overrides in the form of today.

    The other arguments and errors are those of `config_file.load`.
    """
    return config_file.load(run / CONFIG, overrides, kind, amend=modernise, check=check)


def kept_checkpoints(config: BaseRunConfig) -> int:
    """How many snapshots stay: `KEPT_CHECKPOINTS`; those of the last third of the steps where an alarm may go back."""
    if not isinstance(config, RunConfig) or not {"stop", "roll_back"} & {*config.guards.alarms.values()}:
        return KEPT_CHECKPOINTS
    return KEPT_CHECKPOINTS + config.steps // (3 * config.checkpoint.every)


def make_output_dir(folder: Path) -> None:
    """Make the folder that runs lie in, if it is not there.

    Raises:
        ValueError: it cannot be made, or nothing can be written there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(folder, os.W_OK | os.X_OK) else "it cannot be written to"
    except OSError as error:
        reason = describe_os_error(error)
    if reason:
        raise ValueError(
            f"output_dir: no run can be made in {folder} ({reason}); name a folder that you may write to, as in "
            "output_dir=runs"
        )


class Run(Generic[C]):
    """An open run directory, with the config of an RL run if nothing else is said. One driver holds it at a time."""

    def __init__(self, config: C, *, path: Path | None = None) -> None:
        """Open the directory and lock it; see `create` and `reopen`.

        Raises:
            ValueError: another driver has it.
        """
        self.config = config
        self.path = path or config.run_dir
        if not self.path.exists():  # a run that is there goes on, though beside it none may be made
            make_output_dir(self.path.parent)
            self.path.mkdir(exist_ok=True)
        self._lock = FileLock(self.path / LOCK)
        self.is_going = False
        """Whether something is done to it, of which an error is its end; a command that is refused leaves no record."""
        self.on_stop: Callable[[Path], object] | None = None
        """Called with its path when it was stopped before its end, once others may work on it."""
        self.sources: Mapping[str, Any] = {}
        """What makes its rewards and tasks, for its rollouts and checkpoints: see `records.SOURCES`."""
        self._told: defaultdict[str, set[str]] | None = None
        self._kept_tasks: dict[str, str] | None = None
        self._hashes = RecordHashes(self.path)
        self._mirror: Mirror | None = None
        try:
            self._lock.acquire(timeout=PATIENCE_S)
        except Timeout:
            raise ValueError(
                f"{self.path} is in use by another rlft process; wait for it, or give this run another name"
            ) from None

    @classmethod
    def create(cls, config: C, *, provenance: Provenance, restart: bool = False) -> Self:
        """A new run.

        Args:
            restart: move an existing run of that name aside instead of refusing.

        Raises:
            ValueError: a run of that name exists, or a tracker's package is missing.
        """
        refuse_missing(config.trackers)
        path = config.run_dir
        if (path / CONFIG).exists():
            if not restart:
                raise ValueError(
                    f"{path} holds a run already: continue it with `rlft resume {shlex.quote(str(path))}`, start over "
                    "with --restart (the old run is moved aside), or choose another name with name=..."
                )
            with cls(config):  # refuses when another driver is at work there
                _move_aside(path)
        run = cls(config)
        try:
            run.write_provenance(provenance)
            write_file(run.path / CONFIG, config_file.dump(config))
        except BaseException:
            run._lock.release()
            raise
        run.is_going = True
        return run

    @overload
    @staticmethod
    def reopen(path: Path) -> Run: ...

    @overload
    @staticmethod
    def reopen(path: Path, kind: type[D]) -> Run[D]: ...

    @staticmethod
    def reopen(path: Path, kind: type[BaseRunConfig] = RunConfig) -> Run[Any]:
        """An existing run, with the config that it was started with, which is of the type `kind`.

        Raises:
            ValueError: there is no run at `path`.
        """
        if not (path / CONFIG).is_file():
            raise ValueError(f"{path} is not a run directory: it has no config.yaml")
        return Run(read_config(path, kind), path=path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and self.is_going:
            what = f"by {error}" if isinstance(error, Interrupted) else f"{type(error).__name__}: {error}"
            self.event("stopped", what)
        try:
            if self._mirror is not None:
                self._tell_trackers(self._mirror.finish())
        finally:
            self._lock.release()
        if error is not None and self.is_going and self.on_stop is not None:
            self.on_stop(self.path)

    def log(self, step: int, metrics: Metrics) -> None:
        """Append a step's numbers, synced; what is not finite is left out and noted as an event."""
        bad = sorted(name for name, value in metrics.items() if not math.isfinite(value))
        if bad:
            self.event("not_finite", f"{', '.join(bad)} not finite, left out of metrics.jsonl", step=step)
        line = MetricsLine(step=step, metrics={name: value for name, value in metrics.items() if name not in bad})
        mirror = self._trackers()  # before the line is there, which it would send twice
        _append(self.path / METRICS, line.line())
        self._tell_trackers(mirror.log(step, line.metrics))

    def _trackers(self) -> Mirror:
        if self._mirror is None:
            self._mirror = Mirror(self.path, self.config)
        return self._mirror

    def _tell_trackers(self, messages: Sequence[str]) -> None:
        for message in messages:
            self.event("tracker", message)
            logs.say(message, None)

    def event(self, kind: str, message: str, *, step: int | None = None) -> None:
        """Append something that happened; with a step it is marked on the curves."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        _append(self.path / EVENTS, Event(time=now, kind=kind, message=message, step=step).line())
        if self._told is not None:
            self._told[kind].add(message)

    def event_once(self, kind: str, message: str) -> None:
        """Append something that is told again and again, unless the run's events have it already."""
        if message not in self.told(kind):
            self.event(kind, message)

    def told(self, kind: str) -> Collection[str]:
        """Messages of the events of this kind, also of those from before the run was resumed."""
        if self._told is None:
            self._told = defaultdict(set)
            for event in logs.read_events(self.path).rows:
                self._told[event.kind].add(event.message)
        return self._told[kind]

    def write_rollouts(
        self,
        step: int,
        groups: Sequence[Group],
        learned: Mapping[str, Sequence[Any]] | None = None,
        *,
        kind: str = "step",
    ) -> None:
        """Keep every sample of a step, and the tasks that are new or have changed.

        Args:
            learned: as `to_parquet` takes it.
            kind: names the file, of samples that are not trained on another one.
        """
        self._keep_tasks(step, groups)
        data = to_parquet(groups, step=step, learned=learned, sources=self.sources)
        write_file(self.path / ROLLOUTS / f"{kind}-{step:06d}.parquet", data)

    def write_batch(self, step: int, batch: Batch) -> Path:
        """Keep a batch whose update was skipped: tensors by field, and its tokens as JSON in the file's metadata."""
        folder = self.path / SKIPPED
        folder.mkdir(exist_ok=True)
        path = folder / f"{step_name(step)}-{len(list(folder.iterdir()))}.safetensors"
        values = {field.name: getattr(batch, field.name) for field in fields(batch)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        rows = {name: json.dumps(value) for name, value in values.items() if isinstance(value, tuple)}
        write_file(path, save_tensors(tensors, metadata=rows))
        return path

    def skip(self, step: int, batch: Batch, reason: str, *, in_a_row: int) -> None:
        """Keep the batch of a skipped update for inspection, and stop when the last `MAX_SKIPPED` were skipped.

        Args:
            reason: why it was skipped, for people.
            in_a_row: how many updates were skipped since the last one that was made.

        Raises:
            RuntimeError: names the folder with the batches.
        """
        path = self.write_batch(step, batch)
        self.event("update_skipped", f"{reason}; parameters unchanged; its batch is {path}", step=step)
        if in_a_row >= MAX_SKIPPED:
            raise RuntimeError(
                f"step {step}: {in_a_row} updates in a row had a loss or gradient that is not finite; the parameters "
                f"are those before them. Their batches are in {path.parent}. Lower learner.lr, use "
                "model.dtype=float32, or look at the batches for very large rewards."
            )

    def write_evaluation(self, evaluation: Evaluation) -> None:
        """Keep an evaluation; one that is there is not made again by `rlft resume`."""
        mirror = self._trackers()
        path = self.path / evaluations_folder(evaluation.set_name) / f"{evaluation.name}.json"
        write_file(path, json.dumps(evaluation.as_dict(), indent=1))
        self._tell_trackers(mirror.log(*numbers_of(evaluation)))

    def write_evaluation_samples(
        self,
        name: str,
        step: int,
        groups: Sequence[Group],
        *,
        set_name: str = "",
        sources: Mapping[str, Any] | None = None,
    ) -> Path:
        """Keep every sample of an evaluation, and its tasks; returns the file.

        Args:
            set_name: the evaluation set, whose tasks are kept beside its samples: they may have the ids of other tasks.
            sources: what made its rewards and tasks, where that is not what made the run's.
        """
        folder = self.path / evaluations_folder(set_name)
        if set_name:
            tasks = [_stored(group.task, step=0) for group in groups]
            write_file(folder / TASKS, "".join(task.line() + "\n" for task in tasks))
        else:
            self._keep_tasks(step, groups)
        path = folder / f"{name}.parquet"
        write_file(path, to_parquet(groups, step=step, sources=sources or self.sources))
        return path

    def _keep_tasks(self, step: int, groups: Sequence[Group]) -> None:
        if self._kept_tasks is None:
            self._kept_tasks = {task.task_id: task.digest for task in logs.read_tasks(self.path).rows}
        tasks = {group.task.id: group.task for group in groups}.values()
        used = [_stored(task, step=step) for task in tasks]
        new = {task.digest: task for task in used if task.digest != self._kept_tasks.get(task.task_id)}
        if not new:
            return
        _append(self.path / TASKS, "\n".join(task.line() for task in new.values()))
        self._kept_tasks |= {task.task_id: digest for digest, task in new.items()}

    def evaluation(self, name: str, set_name: str = "") -> Evaluation | None:
        """An evaluation, perhaps of a set, that was made before, or None. Raises ValueError if its file is damaged."""
        path = self.path / evaluations_folder(set_name) / f"{name}.json"
        return read_evaluation(path) if path.is_file() else None

    def checkpoint(self, snapshot: Snapshot, *, every: int) -> None:
        """Save what `rlft resume` needs; `every` is the schedule, which a stopped run's last checkpoint is not on."""
        if self.sources:
            snapshot = replace(snapshot, state={**snapshot.state, "sources": self.sources})
        save(self.path / CHECKPOINTS, snapshot, keep=kept_checkpoints(self.config), every=every)
        self._hashes.write(snapshot.step)

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """The run's result, with which it has ended."""
        path = self.path / SUMMARY
        self.event("ended", f"after {summary.get('steps', 0)} steps")
        write_file(path, json.dumps(summary, indent=1) + "\n")
        self._hashes.write(int(summary.get("steps", 0)))
        return path

    def change_config(self, config: C) -> None:
        """Go on with other settings than the run was started with; whether it may is `run.resume`'s to say."""
        self.config = config
        write_file(self.path / CONFIG, config_file.dump(config))

    def write_provenance(self, provenance: Provenance) -> None:
        """Keep what makes the run's numbers."""
        write_file(self.path / PROVENANCE, json.dumps(provenance.as_dict(), indent=1))


def _stored(task: Task, *, step: int) -> StoredTask:
    return StoredTask(task_id=task.id, step=step, answer=task.answer, columns=task.columns)


def _append(path: Path, line: str) -> None:
    with naming(path), path.open("a", encoding="utf-8") as file:
        file.write(line + "\n")
        file.flush()
        os.fsync(file.fileno())


def _move_aside(path: Path) -> None:
    stamp = time.strftime("%Y%m%d-%H%M%S", time.localtime((path / CONFIG).stat().st_mtime))
    names = (f"{path.name}.{stamp}{suffix}" for suffix in chain([""], (f"-{n}" for n in count(2))))
    path.rename(next(target for name in names if not (target := path.with_name(name)).exists()))
