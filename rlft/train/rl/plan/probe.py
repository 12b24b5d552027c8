"""The probe: the first steps of the run itself, in a process of its own and a folder that is thrown away.

What it takes is what a run takes, since it is one: with the config's model, engine, workers, rewards and batches, fewer
steps and fewer held-out tasks. Times are those of the run's own stages, memory is looked at from outside.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from multiprocessing.connection import Connection, wait
from statistics import fmean
from typing import Any

import psutil

from rlft.common.by_path import describe_error
from rlft.common.child_process import ChildProcess
from rlft.config import RunConfig
from rlft.curves import reading
from rlft.curves.live_panel import View
from rlft.train.rl.launch import train
from rlft.train.rl.plan.arithmetic import Lengths

GROUPS = 32
"""Groups that the probe samples at least, for the share that gives signal."""
MOST_STEPS = 8
"""Steps of the probe at most, however few groups one has."""
SFT_UPDATES = 48
"""Updates of the warm start that the probe makes at most."""
LOOK_S = 0.2
"""Seconds between two looks at memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """Something that the probe began or ended."""

    kind: str
    """`stage`, `progress`, `note`, `step`, or `end`."""
    text: str
    """Of the stage or note."""
    at: float
    """Seconds since the probe was started."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Of a step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What the probe saw."""

    config: RunConfig
    """What it ran."""
    marks: list[Mark]
    """In order."""
    seconds: float
    """From the start of its process to the end."""
    peaks: dict[str, tuple[int, float]]
    """(how many processes there are of a role, resident bytes of the largest one at its peak), by role."""
    peak: float
    """Resident bytes of all processes together at their peak."""
    lengths: Lengths
    """Of its rollouts."""

    @property
    def steps(self) -> list[Mark]:
        """The marks of its steps."""
        return [mark for mark in self.marks if mark.kind == "step"]


def probe_config(config: RunConfig, folder: str) -> RunConfig:
    """The config of the probe: the run's, with fewer steps, held-out tasks and updates of the warm start."""
    steps = max(2 + config.max_staleness, min(MOST_STEPS, math.ceil(GROUPS / config.tasks_per_step)))
    # As many held-out tasks as one chunk for each worker has, so that a part takes its share of the whole's time.
    rows = config.rollout.workers * config.rollout.tasks_per_chunk * config.samples_per_task
    changes: dict[str, Any] = {
        "name": "probe",
        "output_dir": folder,
        "steps": min(config.steps, steps),
        "evaluation": _cut(config.evaluation, rows),
        "evaluations": tuple(_cut(each, rows) for each in config.evaluations),
        "checkpoint": config.checkpoint.model_copy(update={"every": 1}),
        "trackers": (),  # what is thrown away is nobody's run
    }
    if config.sft is not None:
        examples = max(config.sft.batch_size, math.ceil(SFT_UPDATES * config.sft.batch_size / config.sft.epochs))
        changes["sft"] = config.sft.model_copy(update={"examples": min(config.sft.examples, examples)})
    return config.model_copy(update=changes)


def probe(config: RunConfig, *, on_mark: Callable[[str], None] = lambda text: None) -> Probed:
    """Run the first steps of a config and throw away what they made.

    Args:
        on_mark: told what goes on.

    Raises:
        ValueError: the run cannot start or go on, in the words that it has for that.
    """
    with tempfile.TemporaryDirectory(prefix="rlft-plan-") as folder:
        short = probe_config(config, folder)
        began = time.monotonic()
        child = ChildProcess(_serve)
        memory = Memory(child.pid)
        try:
            child.send(short)
            answer, marks = "", list[Mark]()
            while not answer:
                memory.look()
                if not wait(child.handles, LOOK_S) and not child.has_more:
                    continue
                try:
                    told = json.loads(child.receive_bytes())
                except EOFError:
                    raise ValueError(f"the probe {child.kill()}:\n{child.printed()}") from None
                answer = told.get("answer", "")
                if "mark" in told:
                    mark = Mark(**{**told["mark"], "at": told["mark"]["at"] - began})
                    marks.append(mark)
                    if mark.kind in ("stage", "note"):
                        on_mark(mark.text)
            child.wait(60)
            seconds = time.monotonic() - began
        finally:
            child.kill()
        if answer != "done":
            raise ValueError(f"the run would stop: {answer}")
        rows = reading.read_rollouts(short.run_dir, ("prompt_tokens", "token_ids")).to_pylist()
        lengths = Lengths(
            prompt=fmean(row["prompt_tokens"] for row in rows),
            completion=fmean(len(row["token_ids"]) for row in rows),
            is_measured=True,
        )
        return Probed(config=short, marks=marks, seconds=seconds, peaks=memory.peaks, peak=memory.peak, lengths=lengths)


class Memory:
    """The resident memory of a run's processes, looked at from outside."""

    def __init__(self, pid: int) -> None:
        """Begin with the process and its descendants."""
        self._pid = pid
        self._roles: dict[int, str] = {}
        self._highest: dict[int, float] = {}
        self.peak = 0.0
        """Bytes of all together at their peak."""

    @property
    def peaks(self) -> dict[str, tuple[int, float]]:
        """(processes, bytes of the largest at its peak), by role; tiny ones (guards) are not counted."""
        found: dict[str, list[float]] = {}
        for pid, size in self._highest.items():
            found.setdefault(self._roles[pid], []).append(size)
        return {role: (sum(size > max(sizes) / 10 for size in sizes), max(sizes)) for role, sizes in found.items()}

    def look(self) -> None:
        """Look once."""
        total = 0.0
        with suppress(psutil.NoSuchProcess):
            whole = psutil.Process(self._pid)
            for process in (whole, *whole.children(recursive=True)):
                with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
                    size = float(process.memory_info().rss)
                    role = _role(" ".join(process.cmdline()))
                    if role or process.pid not in self._roles:
                        self._roles[process.pid] = role or "others"
                    self._highest[process.pid] = max(size, self._highest.get(process.pid, 0.0))
                    total += size
        self.peak = max(self.peak, total)


ROLES = {
    "ray::WorkerProcess": "rollout worker",
    "ray::LearnerWorker": "learner process",
    "rlft.reward.process": "scoring process",
    "rlft.train.rl.plan.probe": "driver",
    "-m rlft train": "driver",
    "/rlft train": "driver",
    "ray::": "Ray",
    "/ray/": "Ray",
}
"""What a process is, by what stands in its command line; the first one counts."""


def _role(command: str) -> str:
    return next((role for part, role in ROLES.items() if part in command), "")


class _MarkedView(View):
    """The view of the probe: it tells the parent what begins and ends, and when."""

    def __init__(self, tell: Callable[[dict[str, Any]], None], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._tell = tell

    def _mark(self, kind: str, text: str = "", **more: Any) -> None:
        self._tell({"mark": {"kind": kind, "text": text, "at": time.monotonic(), **more}})

    def stage(self, name: str, total: int | None = None) -> None:
        super().stage(name, total)
        self._mark("stage", name)

    def progress(self, done: int, total: int) -> None:
        super().progress(done, total)
        self._mark("progress", f"{done}/{total}")

    def note(self, text: str) -> None:
        super().note(text)
        self._mark("note", text)

    def step(self, step: int, metrics: Any) -> None:
        super().step(step, metrics)
        self._mark("step", str(step), metrics=dict(metrics))


def _serve(connection: Connection) -> None:
    """Run in the child: train as the config says."""

    def tell(what: dict[str, Any]) -> None:
        connection.send_bytes(json.dumps(what).encode())

    config = connection.recv()
    try:
        train(config, make_view=partial(_MarkedView, tell))
    except Exception as error:  # the parent tells it
        text = str(error) if isinstance(error, (ValueError, RuntimeError)) else describe_error(error)
        tell({"answer": text or repr(error)})
    else:
        tell({"answer": "done"})


def _cut(measured: Any, rows: int) -> Any:
    tasks = max(1, rows // measured.samples_per_task)
    return measured.model_copy(update={"tasks": min(measured.tasks, tasks), "every": 0})
