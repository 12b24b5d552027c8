"""Stopping the trials of a sweep early that look worse than the others: what they report, and what was decided.

`asha.jsonl` in the sweep's folder has a line for each report with its decision. A sweep that goes on reads it: the
decisions stand, and the scheduler learns again what it knew.
"""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from rlft.common import json_text
from rlft.common.by_path import did_you_mean
from rlft.config import RunConfig
from rlft.run import logs
from rlft.run.records import EVALS, Evaluation, numbered
from rlft.train.sweep.grid import Trial

REPORTS = "asha.jsonl"
FACTOR = 3.0
"""Reduction factor where none is given: about the best third goes on at each rung."""


class Scheduler(Protocol):
    """Decides which runs are stopped."""

    def is_to_stop(self, run: str, step: int, value: float) -> bool:
        """Tell that a run has this value after so many steps, the higher the better; whether it is to be stopped."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """When trials are compared while they train, and by what."""

    metric: str
    """Reward or part on held-out tasks; the config's headline where empty."""
    of_steps: str
    """Metric of steps, such as `reward/mean`, that stands in for it; none where empty."""
    max_steps: int
    """Steps of the longest trial."""
    grace_period: int
    """Steps before which no trial is stopped."""
    factor: float
    """At each rung about one of so many trials goes on."""

    @property
    def by(self) -> str:
        """What trials are compared by, in words."""
        return self.of_steps or f"held-out {self.metric or 'headline'}"

    @property
    def rungs(self) -> list[int]:
        """Steps at which trials are compared."""
        rungs, step = list[int](), float(self.grace_period)
        while step < self.max_steps:
            rungs.append(math.ceil(step))
            step *= self.factor
        return rungs


def plan_of(
    trials: Sequence[Trial], *, metric: str, of_steps: str, grace_period: int | None, factor: float = FACTOR
) -> Plan:
    """When the trials of a sweep are compared, checked against what they measure; arguments as the fields of `Plan`.

    Args:
        grace_period: None divides the length of the longest trial by `factor` twice: rungs at a ninth and at a third.

    Raises:
        ValueError: the trials are no RL runs or measure nothing before their end, or the numbers leave no rung.
    """
    if trials[0].command != "train":
        raise ValueError(
            f"--scheduler asha is for RL runs, whose steps are known before they start; `rlft {trials[0].command}` "
            "has its length from its data. Leave it out; rlft sft stops by itself with evaluation.patience"
        )
    configs = [cast(RunConfig, trial.config) for trial in trials]
    longest = max(config.steps for config in configs)
    if factor <= 1:
        raise ValueError(f"--reduction-factor {factor:g}: it has to be more than 1, such as 3")
    grace = max(1, math.ceil(longest / factor**2)) if grace_period is None else grace_period
    if not 1 <= grace < longest:
        raise ValueError(
            f"--grace-period {grace}: trials end at step {longest}, so it has to be between 1 and {longest - 1}"
        )
    for trial, config in zip(trials, configs, strict=True):
        every = config.evaluation.every
        if not of_steps and not 0 < every < config.steps:
            raise ValueError(
                f"asha compares trials by held-out measurements while they train, and {trial.path.name} makes none "
                f"before its end at step {config.steps} (evaluation.every={every}). Add evaluation.every={grace}, or "
                "compare by a metric of steps: --stop-by reward/mean"
            )
    return Plan(metric=metric, of_steps=of_steps, max_steps=longest, grace_period=grace, factor=factor)


class EarlyStopping:
    """What the trials of a sweep report, and which of them were stopped."""

    def __init__(self, folder: Path, plan: Plan, scheduler: Scheduler) -> None:
        """Read what an earlier start of the sweep in `folder` decided.

        Raises:
            ValueError: that compared by another metric, or its file is damaged.
        """
        self.plan = plan
        self.stopped: dict[str, int] = {}
        """Step at which each trial was stopped that was, by the name of its run directory."""
        self._scheduler = scheduler
        self._file = folder / REPORTS
        self._newest: dict[str, int] = {}
        self._ends: dict[str, int] = defaultdict(int)
        self._values: dict[str, list[float]] = defaultdict(list)
        for row in _rows(self._file):
            if row["by"] != plan.by:
                raise ValueError(
                    f"{self._file}: the trials were compared by {row['by']}, and now it is {plan.by}; keep that, or "
                    "give this sweep another name with --name"
                )
            scheduler.is_to_stop(row["trial"], row["step"], row["value"])
            self._newest[row["trial"]] = row["step"]
            if row["stop"]:
                self.stopped[row["trial"]] = row["step"]

    def step_to_stop(self, trial: Trial) -> int | None:
        """Read what a trial has measured since the last call; the step at which it is to be stopped, if it is.

        Raises:
            ValueError: it measures no such metric, or a record of it is damaged.
        """
        name = trial.path.name
        for step, value in self._of_steps(trial) if self.plan.of_steps else self._held_out(trial):
            if step <= self._newest.get(name, 0) or not math.isfinite(value):
                continue
            self._newest[name] = step
            is_to_stop = self._scheduler.is_to_stop(name, step, value)
            row = {"trial": name, "by": self.plan.by, "step": step, "value": value, "stop": is_to_stop}
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            if is_to_stop:
                self.stopped[name] = step
                return step
        return None

    def _held_out(self, trial: Trial) -> list[tuple[int, float]]:
        newest = self._newest.get(trial.path.name, 0)
        found = [(step, path) for step, path in numbered(trial.path / EVALS) if path.suffix == ".json"]
        new = [(step, path) for step, path in found if step > newest]
        return [(step, _mean(logs.read_evaluation(path), self.plan.metric, path)) for step, path in new]

    def _of_steps(self, trial: Trial) -> list[tuple[int, float]]:
        """Each new step with the mean over the newest ones, as many as the grace period has: one alone is noise."""
        name, metric = trial.path.name, self.plan.of_steps
        lines = logs.read_metrics(trial.path, [], start=self._ends[name])
        self._ends[name] = lines.end
        reported, values = [], self._values[name]
        for line in lines.rows:
            if metric not in line.metrics:
                raise _no_such(metric, line.metrics, f"{trial.path}: step {line.step}")
            values.append(line.metrics[metric])
            newest = values[-self.plan.grace_period :]
            reported.append((line.step, math.fsum(newest) / len(newest)))
        return reported


def stopped_steps(folder: Path) -> dict[str, int]:
    """Step at which each trial of the sweep in `folder` was stopped that was, by the name of its run directory."""
    return {row["trial"]: row["step"] for row in _rows(folder / REPORTS) if row["stop"]}


def _mean(evaluation: Evaluation, metric: str, path: Path) -> float:
    if metric in ("", evaluation.metric):
        return evaluation.accuracy.mean
    if metric not in evaluation.rewards:
        raise _no_such(metric, {**evaluation.rewards, evaluation.metric: None}, str(path))
    return evaluation.rewards[metric].mean


def _no_such(metric: str, known: Any, where: str) -> ValueError:
    names = sorted(name for name in known if not name.startswith("time/"))
    return ValueError(f"{where} has no {metric!r}.{did_you_mean(metric, names)} It has: {', '.join(names)}")


def _rows(file: Path) -> list[dict[str, Any]]:
    """What was reported and decided; half a last line, as a killed sweep leaves it, does not count."""
    if not file.is_file():
        return []
    rows = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            row = json_text.parse(line)
            rows.append({key: row[key] for key in ("trial", "by", "step", "value", "stop")})
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}:{number} is damaged ({error}); delete the line to go on without it") from None
    return rows
