"""What follows from a run's own rollouts by arithmetic: advantages, metrics of a step, evaluations, the result.

No model and no reward is needed, so all of it is checked, whatever the share.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlft.config import RunConfig
from rlft.curves.reading import rolled_back_to
from rlft.environment.contract import Environment
from rlft.reward.recompute import recompute, used_groups
from rlft.reward.stored import StoredStep, StoredTasks
from rlft.run.logs import read_evaluation, read_json
from rlft.run.records import SUMMARY, Evaluation, step_name
from rlft.run.stored_task import StoredTask
from rlft.train.rl.evaluate import evaluation, values_of
from rlft.train.rl.metrics import describe_dropped, describe_staleness, describe_step, is_of_the_machine
from rlft.train.rl.repetition import describe_repetition
from rlft.train.rl.verify.findings import Check
from rlft.train.rl.verify.material import Here, Material
from rlft.types import Adapter, Group, Metrics, Task

CLOSE = 1e-5
"""Largest difference of two advantages, relative where they are above 1, on another machine than the run's."""
_FROM_ROLLOUTS = ("reward/", "groups/", "rollout/", "environment/", "low/", "high/")
_NOT_FROM_ROLLOUTS = ("reward/logged/", "reward/overlong_penalty")


def check_advantages(
    material: Material, here: Here, file: str, stored: StoredStep, greedy: Sequence[Group], check: Check
) -> None:
    """The stored advantages are those of the stored rewards, to the bit where the machine is the run's."""
    config, step = material.config, stored.step
    is_after_all = step > max(material.metrics, default=0)
    if is_after_all and all(row["advantage"] is None for rows in stored.rows for row in rows):
        check.skip(f"advantages of step {step}: the run stopped before it had any", sum(map(len, stored.rows)))
        return
    if greedy:
        baselines = {group.task.id: group.scores[0] if group.scores else None for group in greedy}
        for group in stored.groups:
            if group.baseline_score != baselines.get(group.task.id):
                found = f"baseline is {group.baseline_score}, its greedy answer has {baselines.get(group.task.id)}"
                check.differ(f"{file}, {step}/{group.task.id}", found)
    again = recompute(config, stored.groups, stored.rows, kl_coef=material.kl_coefs.get(step, 0.0))
    if again.reason:
        check.skip(f"advantages cannot be computed again: {again.reason}", sum(map(len, stored.rows)))
        return
    for index, rows in enumerate(stored.rows):
        for member, row in enumerate(rows):
            known, own = row["advantage"], again.advantages.get((index, member))
            if known is None and own is None:
                continue
            if known is None or own is None or not _is_close(known, own, exact=not here.inexact):
                where = f"{file}, {step}/{row['task_id']}/{row['sample_index']}"
                check.differ(where, f"advantage is {known}, computed again {own}")
            else:
                check.agree()


def check_metrics(material: Material, file: str, stored: StoredStep, check: Check) -> None:
    """The step's line of metrics says what its rollouts say, of all that follows from them."""
    step = stored.step
    line = material.metrics.get(step)
    if line is None:
        if step > max(material.metrics, default=0):
            check.skip("the run ended before the step's line was written", 0)
        else:
            check.differ("metrics.jsonl", f"step {step} is missing, and {file} is there")
        return
    expected = expected_metrics(material.config, stored)
    beside = {n for n in line if n.startswith(_FROM_ROLLOUTS) and not n.startswith(_NOT_FROM_ROLLOUTS)}
    known = {name for other in material.metrics.values() for name in other}
    for name in sorted({*expected, *(n for n in beside if not is_of_the_machine(n))}):
        if name not in known:
            check.skip("numbers that this rlft computes and the run's did not")
            continue
        check.compare(f"metrics.jsonl, step {step}", name, line.get(name), expected.get(name))


def expected_metrics(config: RunConfig, stored: StoredStep) -> Metrics:
    """The metrics of a step that follow from its rollouts alone, as the loop logs them."""
    groups = stored.groups
    used = set(used_groups(config.algorithm, groups))
    metrics = describe_step(config, groups) | {"groups/used": float(len(used))}
    metrics |= describe_repetition(groups)
    if config.max_staleness:
        learnt = [group for index, group in enumerate(groups) if index in used]
        others = [group for index, group in enumerate(groups) if index not in used]
        metrics |= describe_staleness(groups, version=stored.step - 1) | describe_dropped(learnt, others)
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def learners_numbers(material: Material) -> int:
    """How many numbers of the metrics do not follow from the rollouts, times and memory left out."""
    return sum(
        not is_of_the_machine(name) and (not name.startswith(_FROM_ROLLOUTS) or name.startswith(_NOT_FROM_ROLLOUTS))
        for line in material.metrics.values()
        for name in line
    )


def check_lines(material: Material, check: Check) -> None:
    """Every step of the metrics has its rollouts."""
    have = set(material.steps)
    for step in sorted(set(material.metrics) - have):
        check.differ("metrics.jsonl", f"step {step} has no rollouts")
    last = max(material.metrics, default=0)
    for step in sorted(set(range(1, last + 1)) - set(material.metrics) - have):
        check.differ("metrics.jsonl", f"step {step} is missing")


def check_evaluation(
    config: RunConfig, path: Path, file: str, groups: Sequence[Group], check: Check, *, set_name: str = ""
) -> None:
    """An evaluation's numbers are those of its samples.

    Args:
        set_name: the evaluation set that it is of, whose config `config` is.

    Raises:
        ValueError: the evaluation's file cannot be read.
    """
    stored = read_evaluation(path)
    adapter = Adapter(version=stored.adapter_version, hash=stored.adapter_hash, tensors={})
    try:
        again = evaluation(
            config,
            groups,
            adapter=adapter,
            name=stored.name,
            step=stored.step,
            samples_file=None,
            set_name=set_name,
            is_by_id=not stored.same,
        )
    except RuntimeError as error:
        check.differ(file, f"its samples make no evaluation: {error}")
        return
    expected, known = json.loads(json.dumps(again.as_dict())), json.loads(path.read_text(encoding="utf-8"))
    where = f"{file}, step {stored.step}"
    if stored.same:  # without it an earlier rlft measured, or no two tasks are alike
        check.compare(where, "same", stored.same, again.same)
        expected.pop("same", None)
    for name in expected:
        if name == "by_task":
            _check_values(where, known.get(name), groups, again.metric, check)
        else:
            _check_tree(where, name, known.get(name), expected[name], check)
    names = {"base": 0, "sft": 0}
    check.compare(file, "step", stored.step, names.get(stored.name, stored.step))
    check.compare(file, "name", stored.name, path.stem if path.stem in names else step_name(stored.step))
    made_by = {
        (t.turns[-1].completion.adapter_version, t.turns[-1].completion.adapter_hash)
        for group in groups
        for t in group.trajectories
    }
    check.compare(file, "adapter", {(stored.adapter_version, stored.adapter_hash)}, made_by)


def _check_tree(where: str, name: str, known: Any, again: Any, check: Check) -> None:
    """A number, or each number of a mapping by its dotted name."""
    if not (isinstance(known, Mapping) and isinstance(again, Mapping) and again):
        check.compare(where, name, known, again)
        return
    for key in sorted({*known, *again}):
        _check_tree(where, f"{name}.{key}", known.get(key), again.get(key), check)


def _check_values(where: str, known: Any, groups: Sequence[Group], metric: str, check: Check) -> None:
    """The values of an evaluation by task, each compared with that of its sample."""
    known = known if isinstance(known, Mapping) else {}
    for group in groups:
        task = group.task.id
        indices = [t.sample_index for t in group.trajectories if metric in t.parts]
        own, stored = json.loads(json.dumps(values_of(group, metric))), known.get(task)
        if not isinstance(stored, list) or len(stored) != len(own):
            check.differ(f"{where}, task {task}", f"its values are {stored}, computed again {own}")
            continue
        for index, one, other in zip(indices, stored, own, strict=True):
            check.compare(f"{where}, task {task}, sample {index}", metric, one, other)
    for task in sorted({*known} - {group.task.id for group in groups}):
        check.differ(f"{where}, task {task}", f"its values are {known[task]}, and there is no sample of it")


def check_summary(run: Path, config: RunConfig, evaluations: Mapping[str, Evaluation], check: Check) -> None:
    """summary.json says what the evaluations say.

    Raises:
        ValueError: it cannot be read.
    """
    summary = read_json(run / SUMMARY)
    if not summary:
        check.skip("the run has no summary.json: it has not ended", 0)
        return
    back = rolled_back_to(run)
    steps = config.steps if back is None else back
    stages = {"base": "base", "sft": "sft", "rl": step_name(steps)}
    check.compare(SUMMARY, "steps", summary.get("steps"), steps)
    for key, name in stages.items():
        found = evaluations.get(name)
        rewards = {each: mean.as_dict() for each, mean in found.rewards.items()} if found else None
        check.compare(SUMMARY, f"accuracy_{key}", summary.get(f"accuracy_{key}"), found and found.accuracy.as_dict())
        check.compare(SUMMARY, f"rewards_{key}", summary.get(f"rewards_{key}"), rewards)
        check.compare(SUMMARY, f"failed_{key}", summary.get(f"failed_{key}"), found and found.failed)


def check_tasks(
    environment: Environment, tasks: StoredTasks, asked: Mapping[str, tuple[str, Any]], check: Check
) -> None:
    """Prompts, answers and columns of the stored tasks are the environment's.

    Args:
        asked: by task id, a file that asks it and the messages there.
    """
    known = {task.id: task for task in (*environment.train, *environment.heldout)}
    for task_id, (file, messages) in asked.items():
        if task_id not in known:
            check.differ(f"{file}, {task_id}", "the environment has no such task")
            continue
        task = known[task_id]
        if _plain(messages) != _plain(task.messages):
            check.differ(f"{file}, {task_id}", "its prompt is not the environment's")
        elif (lines := tasks.lines.get(task_id)) and lines[-1].digest != _digest(task):
            check.differ(f"tasks.jsonl, {task_id}", "its answer or its columns are not the environment's")
        else:
            check.agree()


def _digest(task: Task) -> str:
    return StoredTask(task_id=task.id, step=0, answer=task.answer, columns=task.columns).digest


def _plain(messages: Any) -> Any:
    return json.loads(json.dumps(list(messages)))


def _is_close(known: float, own: float, *, exact: bool) -> bool:
    return known == own or (not exact and abs(known - own) <= CLOSE * max(1.0, abs(own)))
