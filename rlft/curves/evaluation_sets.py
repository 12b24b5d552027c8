"""Evaluation sets, the config's `evaluations`: what each shows, and whether one got worse.

They are measured beside `evaluation`, which alone decides the verdict. One that got worse leaves it in doubt. Where a
run mixes environments, what `evaluation` measured of each is a set, too, of the environment's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlft.curves import looks, reading
from rlft.curves.contents import counted_once, merged
from rlft.curves.differences import Difference, paired
from rlft.curves.doubts import Reason
from rlft.curves.passes import passes
from rlft.curves.statistics import Bounds, mean_interval
from rlft.curves.text import interval_text, sampled
from rlft.run.records import Evaluation, word_for

TASKS = "tasks"
"""Name of the set that a supervised run measures, its `evaluation.tasks`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSet:
    """What was measured of one set."""

    name: str
    """Its name in the config."""
    settings: Mapping[str, Any]
    """Its section of the config."""
    evals: Sequence[Evaluation]
    """Base, SFT, then by step."""
    change: Difference | None = None
    """Paired by task, from the policy that training began with to the last evaluation; None where one is missing."""
    look: looks.Look | None = None
    """Which of the planned evaluations of the set the last one is; None where there is no change."""

    @property
    def shown(self) -> list[Evaluation]:
        """Those from before training and the last one."""
        trained = [e for e in self.evals if not e.is_before]
        return [*(e for e in self.evals if e.is_before), *trained[-1:]]

    @property
    def asked(self) -> str:
        """What is measured, how its answers are sampled, and to what."""
        metric = f"{self.evals[-1].metric}, " if self.evals else ""
        samples = self.settings.get("samples_per_task", 1)
        told = metric + sampled(self.settings, 0.0)
        told += f", {samples} samples of each task" if samples != 1 else ""
        source = self.settings.get("environment")
        return told + (f", tasks of {source['path']}" if source else "")

    @property
    def sentence(self) -> str:
        """What is measured, and by how much it changed."""
        told = f"{self.name}: {self.asked}"
        if self.change is None or not self.change.interval.n:
            return told
        change = interval_text(self.change.interval, "+")
        return f"{told}; changed by {change} ({100 * self.change.level:.4g} % interval, {self.look})"

    @property
    def rows(self) -> list[list[str]]:
        """A line of a table for each policy shown, by `HEADINGS`."""
        return [
            [
                self.name,
                evaluation.label,
                interval_text(evaluation.accuracy),
                str(evaluation.accuracy.n),
                str(evaluation.failed),
                solved[-1].sentence if (solved := passes(evaluation.by_task, evaluation.same)) else "",
            ]
            for evaluation in self.shown
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        change = None
        if self.change is not None and self.look is not None:
            change = {
                **self.change.interval.as_dict(),
                "level": self.change.level,
                "changed_tasks": self.change.changed,
                "conclusive": self.change.conclusive,
                "look": self.look.number,
                "planned_looks": self.look.planned,
            }
        return {
            "name": self.name,
            "settings": {key: value for key, value in self.settings.items() if key != "name"},
            "metric": self.evals[-1].metric if self.evals else None,
            "word": word_for(self.evals),
            "policies": [_policy(each) for each in self.evals],
            "change": change,
        }


HEADINGS = ("set", "policy", "mean [95 %]", "tasks", "not scored", "one and all of k samples right")
"""Of `EvaluationSet.rows`."""


def bounds_of_stage(evaluation: Evaluation) -> Bounds | None:
    """The values that there can be, where the kind of measurement says so: a preference is right, wrong or a tie."""
    return (0.0, 1.0) if evaluation.stage not in ("RL", "SFT") else None


def read_sets(run: Path, config: Mapping[str, Any]) -> list[EvaluationSet]:
    """The evaluation sets of a run in the order of its config, a mix's environments first, up to the run's result.

    The level of a change is that of its look, and what it allows to be conclusive by chance is shared by the sets: if
    training changed nothing, any of them seems to have got worse in at most 2.5 % of the runs.

    Args:
        config: the resolved config.

    Raises:
        ValueError: an evaluation's file is damaged.
    """
    found = [each for each in config.get("evaluations") or () if isinstance(each, dict)]
    if (config.get("evaluation") or {}).get("tasks") and config.get("kind") == "sft":
        stored = reading.read_evals(run, TASKS)
        found = [{"name": TASKS, **(stored[-1].extra.get("settings") or {})}] if stored else []
    mixed = _mixed(config)
    whole = reading.evals_of_result(run) if mixed else []
    contents = reading.read_contents(run, reading.compared(whole))
    parts = [(each, [part for e in whole if (part := _part_of(e, each["name"], contents))]) for each in mixed]
    parts = [(settings, evals) for settings, evals in parts if evals]
    count = len(parts) + len(found)
    measured = [_measured(config, settings, evals, count, contents) for settings, evals in parts]
    for each in found:
        evals = reading.evals_of_result(run, str(each.get("name")))
        measured.append(_measured(config, each, evals, count, reading.read_contents(run, reading.compared(evals))))
    return measured


def worse(sets: Sequence[EvaluationSet]) -> list[Reason]:
    """A doubt for each set whose mean fell, beyond chance, since training began."""
    return [
        Reason(
            code="evaluation_set",
            weight="doubt",
            says=f"Evaluation {each.name} got worse: {interval_text(each.change.interval, '+')} since "
            f"{[e for e in each.evals if e.is_before][-1].label} ({100 * each.change.level:.4g} % interval, "
            f"{each.change.interval.n} tasks, {each.look}; {each.asked}).",
        )
        for each in sets
        if each.change is not None and each.change.interval.high < 0
    ]


def _mixed(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Settings of what `evaluation` measures of each environment of a mix."""
    evaluation, environment = config.get("evaluation") or {}, config.get("environment") or {}
    return [
        {**evaluation, "name": each["name"], "environment": {"path": each["path"], "args": each.get("args") or {}}}
        for each in environment.get("mix") or ()
    ]


def _part_of(evaluation: Evaluation, name: str, contents: Mapping[str, str]) -> Evaluation | None:
    """What an evaluation of a mix says about one environment, whose name its tasks' ids begin with; None if nothing."""
    by_task = {task: values for task, values in evaluation.by_task.items() if task.startswith(f"{name}/")}
    scored = sum(map(len, by_task.values()))
    if not scored:
        return None
    samples = evaluation.samples * len(by_task) // len(evaluation.by_task)
    return replace(
        evaluation,
        by_task=by_task,
        accuracy=mean_interval(merged(by_task, contents)),
        samples=samples,
        failed=min(evaluation.failed, max(0, samples - scored)),
        length=math.nan,
        truncated=math.nan,
        rewards={},
        failed_parts={},
        set_name=name,
    )


def _measured(
    config: Mapping[str, Any],
    settings: Mapping[str, Any],
    evals: Sequence[Evaluation],
    count: int,
    contents: Mapping[str, str],
) -> EvaluationSet:
    name = str(settings.get("name"))
    evals = [counted_once(each, contents, bounds_of_stage(each)) for each in evals]
    before = [e for e in evals if e.is_before]
    trained = [e for e in evals if not e.is_before]
    if not before or not trained:
        return EvaluationSet(name=name, settings=settings, evals=evals)
    look = looks.look_at({**config, "evaluation": settings}, trained)
    first, last = (merged(each.by_task, contents) for each in (before[-1], trained[-1]))
    change = paired(first, last, 1 - (1 - look.level) / count, bounds=bounds_of_stage(trained[-1]))
    return EvaluationSet(name=name, settings=settings, evals=evals, change=change, look=look)


def _policy(evaluation: Evaluation) -> dict[str, Any]:
    return {
        "name": evaluation.name,
        "step": evaluation.step,
        **evaluation.accuracy.as_dict(),
        "samples": evaluation.samples,
        "failed": evaluation.failed,
        "passes": [each.as_dict() for each in passes(evaluation.by_task, evaluation.same)],
    }
