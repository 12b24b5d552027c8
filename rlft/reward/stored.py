"""Stored rollouts of a run as groups again, so that rewards can score them and advantages can be computed from them.

What a run does not store stays empty: the tokens of the first prompt, how earlier actions of an episode ended and which
adapter made them. Where a run does not store what the environment gave for each action, its sum stands at the last one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any, cast

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

    by_id: Mapping[str, StoredTask]
    """Empty where the run was made by an rlft that kept none."""
    lost: Sequence[str] = field(default=())
    """Names of columns that could not be kept of some task."""

    @property
    def columns(self) -> list[str]:
        """All columns that some task has."""
        return sorted({name for task in self.by_id.values() for name in task.columns})


def read_tasks(run: Path) -> StoredTasks:
    """The tasks that a run has used so far; ValueError if their file is damaged."""
    tasks = {task.task_id: task for task in logs.read_tasks(run, []).rows}
    return StoredTasks(by_id=tasks, lost=sorted({name for task in tasks.values() for name in task.lost}))


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
    if not path.is_file():
        return []
    return list(_step(step, pq.read_table(path, partitioning=None).to_pylist(), tasks).groups)


def parse_sample(text: str) -> tuple[int, str, int]:
    """Step, task id and sample index of `STEP/TASK/INDEX`; ValueError if it is none."""
    first, _, rest = text.partition("/")
    task_id, _, last = rest.rpartition("/")
    if not (first.isdigit() and last.isdigit() and task_id):
        raise ValueError(f"{text!r} names no sample: write STEP/TASK/INDEX, such as 12/train-3/0, as replay shows it")
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
    return isinstance(trajectory.outcome, Failed) and not trajectory.failed_parts


def _step(step: int, rows: Sequence[Mapping[str, Any]], tasks: StoredTasks) -> StoredStep:
    by_group: dict[int, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_group.setdefault(row["group_index"], []).append(row)
    members = list(by_group.values())
    return StoredStep(step=step, groups=[_group(each, tasks) for each in members], rows=members)


def _group(rows: Sequence[Mapping[str, Any]], tasks: StoredTasks) -> Group:
    first = rows[0]
    stored = tasks.by_id.get(first["task_id"])
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
    failed_parts = {name: _failed(failure) for name, failure in failed.items()}
    if row["outcome"] == "failed" and "failed_parts" not in row:  # an older rlft did not say whose failure it is
        failed_parts = {"": _failed({"message": row["failure_message"], "kind": row["failure_kind"]})}
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
        failed_parts=failed_parts,
    )


def _turns(row: Mapping[str, Any], observations: Sequence[tuple[Message, ...]]) -> tuple[Turn, ...]:
    """The actions of a sample, told apart by the tokens that stand between them."""
    tokens = list(zip(row["token_ids"], row["action_mask"], row["logprobs"], strict=True))
    turns: list[Turn] = []
    between: tuple[int, ...] = ()
    for is_action, run in groupby(tokens, key=lambda token: token[1]):
        ids, _, logprobs = zip(*run, strict=True)
        if not is_action:
            between = ids
            continue
        completion = Completion(
            token_ids=ids,
            logprobs=logprobs,
            finish_reason="stop",
            adapter_version=row["adapter_version"],
            adapter_hash=row["adapter_hash"],
        )
        observed = observations[len(turns)] if len(turns) < len(observations) else ()
        turns.append(Turn(prompt_ids=between, completion=completion, observation=observed))
    if not turns:  # the policy wrote no token at all
        empty = Completion(token_ids=(), logprobs=(), finish_reason="stop", adapter_version=-1, adapter_hash="")
        turns = [Turn(prompt_ids=(), completion=empty)]
    ended = replace(turns[-1].completion, finish_reason=row["finish_reason"])
    turns[-1] = replace(turns[-1], completion=ended)
    rewards = json.loads(row["turn_rewards"]) if row.get("turn_rewards") else []
    if len(rewards) != len(turns):
        rewards = [*[None] * (len(turns) - 1), row.get("environment_reward")]
    return tuple(replace(turn, reward=reward) for turn, reward in zip(turns, rewards, strict=True))


def _observations(conversation: Sequence[Message], turns: int) -> list[tuple[Message, ...]]:
    """What the environment answered to each of the last `turns` messages of the assistant."""
    actions = [index for index, message in enumerate(conversation) if message["role"] == "assistant"][-turns:]
    ends = [*actions[1:], len(conversation)]
    return [tuple(conversation[start + 1 : end]) for start, end in zip(actions, ends, strict=True)] if actions else []


def _outcome(row: Mapping[str, Any]) -> Outcome:
    if row["outcome"] == "score":
        turns = json.loads(row["turn_values"]) if row.get("turn_values") else ()
        return Score(value=row["reward"], parts=json.loads(row["parts"]), turns=tuple(turns))
    if row["outcome"] == "abstain":
        return Abstain(reason="abstained")
    named = {"kind": "failure_kind", "message": "failure_message", "reproduce": "reproduce"}
    named |= {"fault": "failure_fault", "where": "failure_where"}
    return _failed({name: row.get(column) for name, column in named.items()})


def _failed(stored: Mapping[str, Any]) -> Failed:
    known = {each.name for each in fields(Failed)}
    given = {name: value for name, value in stored.items() if name in known and value is not None}
    return Failed(**cast("dict[str, Any]", {"kind": "error", "message": "", "reproduce": "", **given}))
