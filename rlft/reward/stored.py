"""Stored rollouts of a run as groups again, so that rewards can score them and advantages can be computed from them.

What a run does not store stays empty: the tokens of the first prompt, how earlier actions of an episode ended and which
adapter made them. Where a run does not store what the environment gave for each action, its sum stands at the last one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq

from rlft.curves.reading import read_rollouts
from rlft.run import logs
from rlft.run.records import ROLLOUTS
from rlft.run.stored_task import StoredTask
from rlft.types import Abstain, Completion, Failed, Group, Message, Outcome, Score, Task, Trajectory, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredStep:
    """The rollouts of a step as they were scored and learnt from."""

    step: int
    groups: Sequence[Group]
    """In the order of the file: those that were learnt from come first."""
    rows: Sequence[Sequence[Mapping[str, Any]]]
    """The stored row of each trajectory, by group."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTasks:
    """What a run keeps of its tasks."""

    lines: Mapping[str, Sequence[StoredTask]]
    """By task id, in the order in which they were written: several where the task has changed. Empty where the run was
    made by an rlft that kept none."""
    lost: Sequence[str] = field(default=())
    """Names of columns that could not be kept of some task."""

    @property
    def columns(self) -> list[str]:
        """All columns that some task has."""
        return sorted({name for lines in self.lines.values() for task in lines for name in task.columns})

    def of_step(self, task_id: str, step: int) -> StoredTask | None:
        """The task as the rollouts of a step had it; None if it is not kept."""
        return next((task for task in reversed(self.lines.get(task_id, ())) if task.step <= step), None)


def read_tasks(run: Path) -> StoredTasks:
    """The tasks that a run has used so far; ValueError if their file is damaged."""
    lines: dict[str, list[StoredTask]] = {}
    for task in logs.read_tasks(run, []).rows:
        lines.setdefault(task.task_id, []).append(task)
    lost = {name for each in lines.values() for task in each for name in task.lost}
    return StoredTasks(lines=lines, lost=sorted(lost))


def read_step(run: Path, step: int, tasks: StoredTasks) -> StoredStep:
    """The stored rollouts of a step.

    Raises:
        ValueError: there are none, or their file is broken.
    """
    rows = read_rollouts(run, steps=[step]).to_pylist()
    return _step(step, rows, tasks)


def read_greedy(run: Path, step: int, tasks: StoredTasks) -> list[Group]:
    """The greedy answers that are the step's baseline; empty where the algorithm asks for none."""
    path = run / ROLLOUTS / f"greedy-{step:06d}.parquet"
    return list(read_samples(path, step, tasks).groups) if path.is_file() else []


def read_samples(path: Path, step: int, tasks: StoredTasks) -> StoredStep:
    """The samples in a file of a step or of an evaluation; ValueError if it is broken."""
    try:
        rows = pq.read_table(path, partitioning=None).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read ({error}); restore it from a copy") from error
    return _step(step, rows, tasks)


def parse_sample(text: str) -> tuple[int, str, int]:
    """Step, task id and sample index of a sample.

    Args:
        text: `STEP/TASK/INDEX`, or `step-000012/TASK/INDEX` as `rlft health` shows it.

    Raises:
        ValueError: it is neither.
    """
    first, _, rest = text.partition("/")
    first = first.removeprefix("step-")
    task_id, _, last = rest.rpartition("/")
    if not (first.isdigit() and last.isdigit() and task_id):
        raise ValueError(
            f"{text!r} names no sample: write STEP/TASK/INDEX, such as 12/train-3/0, as replay shows it, or as health "
            "does: step-000012/train-3/0"
        )
    return int(first), task_id, int(last)


def find_sample(stored: StoredStep, task_id: str, sample_index: int) -> tuple[int, int]:
    """Positions of a sample's group and of the sample in it; ValueError says which samples there are."""
    groups = stored.groups
    for index, group in enumerate(groups):
        if group.task.id != task_id:
            continue
        for member, trajectory in enumerate(group.trajectories):
            if trajectory.sample_index == sample_index:
                return index, member
        raise ValueError(f"task {task_id!r} of step {stored.step} has samples 0 to {len(group.trajectories) - 1}")
    tasks = list(dict.fromkeys(group.task.id for group in groups))
    more = f" and {len(tasks) - 10} more" if len(tasks) > 10 else ""
    raise ValueError(f"step {stored.step} has no task {task_id!r}; it has {', '.join(tasks[:10])}{more}")


def unscored(group: Group) -> Group:
    """The group as before it was scored; what the environment failed on stays failed."""
    trajectories = [
        each if is_environments_failure(each) else replace(each, outcome=None, extras={}, failed_parts={})
        for each in group.trajectories
    ]
    return replace(group, trajectories=tuple(trajectories))


def is_environments_failure(trajectory: Trajectory) -> bool:
    """Whether the episode failed before any reward saw it."""
    return isinstance(trajectory.outcome, Failed) and trajectory.outcome.fault == "environment"


def _step(step: int, rows: Sequence[Mapping[str, Any]], tasks: StoredTasks) -> StoredStep:
    by_group: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_group.setdefault(row["group_index"], []).append(row)
    members = list(by_group.values())
    return StoredStep(step=step, groups=[_group(each, tasks, step) for each in members], rows=members)


def _group(rows: Sequence[Mapping[str, Any]], tasks: StoredTasks, step: int) -> Group:
    first = rows[0]
    stored = tasks.of_step(first["task_id"], step)
    task = Task(
        id=first["task_id"],
        messages=tuple(json.loads(first["messages"])),
        answer=json.loads(first["answer"]) if stored is None or "answer" in stored.lost else stored.answer,
        columns={} if stored is None else stored.columns,
    )
    baseline = first.get("baseline")
    return Group(task=task, trajectories=tuple(_trajectory(row, task) for row in rows), baseline_score=baseline)


def _trajectory(row: Mapping[str, Any], task: Task) -> Trajectory:
    conversation = json.loads(row["conversation"]) if row.get("conversation") else []
    failed = json.loads(row["failed_parts"]) if row.get("failed_parts") else {}
    return Trajectory(
        task=task,
        sample_index=row["sample_index"],
        seed=row["seed"],
        turns=_turns(row, _observations(conversation, row.get("turns") or 1)),
        text=row["completion"],
        messages=tuple(conversation),
        stop_reason=row.get("stop_reason") or "done",
        extras=json.loads(row["extras"]) if row.get("extras") else {},
        outcome=_outcome(row),
        failed_parts={name: _failed(failure) for name, failure in failed.items()},
    )


def _turns(row: Mapping[str, Any], observations: Sequence[tuple[Message, ...]]) -> tuple[Turn, ...]:
    """The actions of a sample, and the tokens that stand between them."""
    ends = _action_ends(row)
    rewards = json.loads(row["turn_rewards"]) if row.get("turn_rewards") else []
    if len(rewards) != len(ends):
        rewards = [*[None] * (len(ends) - 1), row.get("environment_reward")]
    turns: list[Turn] = []
    for start, end, reward in zip([0, *ends], ends, rewards, strict=False):
        first = start + list(row["action_mask"][start:end]).count(False)
        completion = Completion(
            token_ids=tuple(row["token_ids"][first:end]),
            logprobs=tuple(row["logprobs"][first:end]),
            finish_reason=row["finish_reason"] if len(turns) == len(ends) - 1 else "stop",
            adapter_version=row["adapter_version"],
            adapter_hash=row["adapter_hash"],
        )
        observed = observations[len(turns)] if len(turns) < len(observations) else ()
        between = tuple(row["token_ids"][start:first])
        turns.append(Turn(prompt_ids=between, completion=completion, observation=observed, reward=reward))
    return tuple(turns)


def _action_ends(row: Mapping[str, Any]) -> list[int]:
    """Tokens up to the end of each action.

    An older rlft stored only which tokens are actions: there each run of them is one, and what is missing of the number
    of actions (empty ones, and those that follow one another without a token between) stands empty at the end.
    """
    if row.get("action_ends") is not None:
        return list(row["action_ends"])
    mask = row["action_mask"]
    ends = [end for end, is_action in enumerate(mask, start=1) if is_action and (end == len(mask) or not mask[end])]
    return [*ends, *[len(mask)] * ((row.get("turns") or 1) - len(ends))]


def _observations(conversation: Sequence[Message], turns: int) -> list[tuple[Message, ...]]:
    """What the environment answered to each of the last `turns` messages of the assistant."""
    actions = [index for index, message in enumerate(conversation) if message["role"] == "assistant"][-turns:]
    ends = [*actions[1:], len(conversation)]
    return [tuple(conversation[start + 1 : end]) for start, end in zip(actions, ends, strict=True)] if actions else []


def _outcome(row: Mapping[str, Any]) -> Outcome:
    parts = json.loads(row["parts"])
    if row["outcome"] == "score":
        turns = json.loads(row["turn_values"]) if row.get("turn_values") else ()
        return Score(value=row["reward"], parts=parts, turns=tuple(turns))
    if row["outcome"] == "abstain":
        return Abstain(reason="abstained", parts=parts)
    named = {"kind": "failure_kind", "message": "failure_message", "reproduce": "reproduce"}
    named |= {"fault": "failure_fault", "where": "failure_where"}
    failure = _failed({**{name: row.get(column) for name, column in named.items()}, "parts": parts})
    if "failure_fault" in row or "failed_parts" not in row or row["failed_parts"]:
        return failure
    return replace(failure, fault="environment")  # an older rlft did not say whose failure it is, but no reward's


def _failed(stored: Mapping[str, Any]) -> Failed:
    known = {each.name for each in fields(Failed)}
    given = {name: value for name, value in stored.items() if name in known and value is not None}
    return Failed(**cast("dict[str, Any]", {"kind": "error", "message": "", "reproduce": "", **given}))
