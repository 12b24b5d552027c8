"""Rollouts as a parquet table: every sample of a step, failed ones too."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from rlft.run.records import ROLLOUT_COLUMNS, SOURCES
from rlft.types import Abstain, Failed, Group, Score, Trajectory, whole_text

_LISTS = {
    "list<int32>": pa.list_(pa.int32()),
    "list<bool>": pa.list_(pa.bool_()),
    "list<float32>": pa.list_(pa.float32()),
}
SCHEMA = pa.schema(
    [(name, _LISTS.get(column.type) or pa.type_for_alias(column.type)) for name, column in ROLLOUT_COLUMNS.items()]
)


def to_parquet(
    groups: Sequence[Group],
    *,
    step: int,
    learned: Mapping[str, Sequence[Any]] | None = None,
    sources: Mapping[str, Any] | None = None,
) -> bytes:
    """The groups of a step as a parquet file.

    Args:
        learned: columns that the learner computed (`advantage`, `learner_logprobs`, `reference_logprobs`, `values`),
            each with the values of the first scored trajectories in order: those of the groups that it learns from.
        sources: what made the scores and the tasks, see `records.SOURCES`.
    """
    learned = learned or {}
    remaining = zip(*learned.values(), strict=True)
    rows = []
    for group_index, group in enumerate(groups):
        for trajectory in group.trajectories:
            values = next(remaining, ()) if isinstance(trajectory.outcome, Score) else ()
            row = _row(trajectory, step=step, group_index=group_index, baseline=group.baseline_score)
            rows.append({**row, **dict(zip(learned, values, strict=False))})
    schema = SCHEMA.with_metadata({SOURCES: json.dumps(sources)}) if sources else SCHEMA
    stream = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), stream, compression="zstd")
    return stream.getvalue()


def _row(trajectory: Trajectory, *, step: int, group_index: int, baseline: float | None) -> dict[str, object]:
    task, outcome, completion = trajectory.task, trajectory.outcome, trajectory.turns[-1].completion
    row: dict[str, object] = {
        "step": step,
        "task_id": task.id,
        "group_index": group_index,
        "sample_index": trajectory.sample_index,
        "seed": trajectory.seed,
        "prompt": task.messages[-1]["content"],
        "messages": json.dumps(list(task.messages), ensure_ascii=False),
        "completion": trajectory.text,
        "conversation": json.dumps(list(trajectory.messages), ensure_ascii=False) if trajectory.messages else None,
        "turns": len(trajectory.turns),
        "action_ends": _action_ends(trajectory),
        "stop_reason": trajectory.stop_reason,
        "environment_reward": trajectory.environment_reward,
        "turn_rewards": None
        if trajectory.environment_reward is None
        else json.dumps([turn.reward for turn in trajectory.turns]),
        "answer": json.dumps(task.answer, ensure_ascii=False, default=str),
        "outcome": _outcome_name(trajectory),
        "reward": outcome.value if isinstance(outcome, Score) else None,
        "parts": json.dumps(dict(trajectory.parts)),
        "turn_values": json.dumps(outcome.turns) if isinstance(outcome, Score) and outcome.turns else None,
        "extras": json.dumps(dict(trajectory.extras), ensure_ascii=False, default=str) if trajectory.extras else None,
        "failure_kind": outcome.kind if isinstance(outcome, Failed) else None,
        "failure_message": outcome.message if isinstance(outcome, Failed) else None,
        "failure_fault": outcome.fault if isinstance(outcome, Failed) else None,
        "failure_where": (outcome.where or None) if isinstance(outcome, Failed) else None,
        "reproduce": outcome.reproduce if isinstance(outcome, Failed) else None,
        "failed_parts": json.dumps({name: _failure(failure) for name, failure in trajectory.failed_parts.items()})
        if trajectory.failed_parts
        else None,
        "baseline": baseline,
        "finish_reason": trajectory.finish_reason,
        "prompt_tokens": len(trajectory.prompt_ids),
        "completion_tokens": trajectory.num_actions,
        "token_ids": list(trajectory.token_ids),
        "action_mask": list(trajectory.action_mask),
        "logprobs": list(trajectory.logprobs),
        "adapter_version": completion.adapter_version,
        "adapter_hash": completion.adapter_hash,
    }
    return {name: whole_text(value) if isinstance(value, str) else value for name, value in row.items()}


def _action_ends(trajectory: Trajectory) -> list[int]:
    """For each turn the number of tokens after the first prompt up to the end of its action."""
    before = [0, *(len(turn.prompt_ids) for turn in trajectory.turns[1:])]
    actions = (len(turn.completion.token_ids) for turn in trajectory.turns)
    return list(accumulate(map(sum, zip(before, actions, strict=True))))


def _failure(failure: Failed) -> dict[str, str]:
    """A reward's own failure, which has no parts of others."""
    return {name: value for name, value in asdict(failure).items() if name != "parts"}


def _outcome_name(trajectory: Trajectory) -> str:
    match trajectory.outcome:
        case Score():
            return "score"
        case Abstain():
            return "abstain"
        case Failed():
            return "failed"
        case None:
            raise ValueError(f"sample {trajectory.sample_index} of task {trajectory.task.id!r} was never scored")
