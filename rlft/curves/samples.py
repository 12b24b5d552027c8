"""Stored rollouts as a page shows them: whole groups side by side, a stratified choice of them, and what failed."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rlft.common import json_text
from rlft.curves.reading import read_rollouts, rollout_steps
from rlft.curves.text import shortened

LIGHT = (
    *("step", "task_id", "group_index", "sample_index", "outcome", "reward", "advantage", "completion_tokens"),
    "failure_kind",
)
"""Columns of all rollouts that are read to count, to choose and to filter; texts are read of what is shown."""
LIGHT_OPTIONAL = ("failed_parts",)

COLUMNS = (
    *("step", "task_id", "group_index", "sample_index", "prompt", "messages", "completion", "answer", "outcome"),
    *("reward", "parts", "failure_kind", "failure_message", "reproduce", "advantage", "finish_reason"),
    *("completion_tokens", "adapter_version", "adapter_hash"),
)
OPTIONAL = ("conversation", "turns", "stop_reason", "environment_reward", "failed_parts", "failure_where")
TEXT, PROGRAM = 4000, 20_000
"""Characters of a text, and of a program that repeats a failed call, that are shown."""

GroupKey: TypeAlias = tuple[int, int]
"""(step, index of the group within it)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservedFailure:
    """A reward of weight 0 that failed on some of a run's rollouts, which have a score without it."""

    reward: str
    """Its name."""
    failed: int
    """Rollouts on which it failed."""
    rollouts: int
    """Stored rollouts."""
    first_step: int
    """Step of the first failure."""
    first_task: str
    """Task of the first failure."""
    kind: str
    """What went wrong in it, such as `timeout`."""
    message: str
    """What it says."""
    reproduce: str
    """Python that calls the reward on that rollout."""


def read_light(run: Path) -> Any:
    """All rollouts of a run as a table of `LIGHT` columns; None where none are stored, or all are left out as damaged.

    Raises ValueError if a file is damaged, but see `damage.left_out`.
    """
    table = read_rollouts(run, LIGHT, optional=LIGHT_OPTIONAL) if rollout_steps(run) else None
    return table if table is not None and table.num_rows else None


def observed_failures(light: Any, rewards: Collection[str]) -> list[ObservedFailure]:
    """How often each of `rewards` failed in the rollouts, and its first failure; in the order of the names.

    Rollouts of runs that did not store such failures have none.
    """
    if "failed_parts" not in light.column_names or not rewards:
        return []
    told = light.filter(light["failed_parts"].is_valid())
    failures: dict[str, list[tuple[int, str, Mapping[str, Any]]]] = {}
    for row in told.select(["step", "task_id", "failed_parts"]).to_pylist():
        parts = _json(row["failed_parts"])
        for name, failure in parts.items() if isinstance(parts, dict) else ():
            if name in rewards and isinstance(failure, dict):
                failures.setdefault(name, []).append((row["step"], row["task_id"], failure))
    return [
        ObservedFailure(
            reward=name,
            failed=len(found),
            rollouts=len(light),
            first_step=found[0][0],
            first_task=found[0][1],
            **{key: str(found[0][2].get(key, "")) for key in ("kind", "message", "reproduce")},
        )
        for name, found in sorted(failures.items())
    ]


def failure_kinds(light: Any) -> dict[str, int]:
    """Number of rollouts that could not be scored, by kind, most frequent first."""
    failed = light.filter(_equal(light["outcome"], "failed"))
    kinds = Counter(str(kind or "unknown") for kind in failed["failure_kind"].to_pylist())
    return dict(kinds.most_common())


def read_groups(run: Path, keys: Iterable[GroupKey], *, most: int = 0, only: Collection[str] = ()) -> list[Any]:
    """Groups with their texts, as plain data for the page, in the order of `keys`.

    Args:
        run: run directory.
        keys: which.
        most: samples that are shown of a group, evenly by rank of their rewards; 0 is all of them.
        only: outcomes of the samples to show; all if empty.

    Raises:
        ValueError: as `read_rollouts` does.
    """
    wanted = list(dict.fromkeys(keys))
    by_step: dict[int, set[int]] = {}
    for step, index in wanted:
        by_step.setdefault(step, set()).add(index)
    found: dict[GroupKey, list[Mapping[str, Any]]] = {}
    for step in sorted(by_step):
        for row in read_rollouts(run, COLUMNS, [step], optional=OPTIONAL).to_pylist():
            if row["group_index"] in by_step[step]:
                found.setdefault((step, row["group_index"]), []).append(row)
    return [_group(found[key], most) for key in wanted if key in found]


def _group(rows: Sequence[Mapping[str, Any]], most: int) -> dict[str, Any]:
    first, shown = rows[0], list(rows)
    if most and len(rows) > most:
        ranked = sorted(rows, key=_rank)
        at = sorted({round(i * (len(rows) - 1) / (most - 1)) for i in range(most)})
        shown = [ranked[i] for i in at]
    messages = conversation(first["messages"])
    answer = _json(first["answer"])
    told = {
        "step": first["step"],
        "group": first["group_index"],
        "task": shortened(first["task_id"], 300),
        "prompt": shortened(first["prompt"] or "", TEXT),
        "answer": shortened(answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False), 1000),
        "size": len(rows),
        "samples": [sample(row) for row in shown],
    }
    return {**told, "messages": messages} if len(messages) > 1 else told


def _policy(version: int, adapter_hash: str) -> str:
    """Which policy made a sample, in words; see `types.Adapter.version`."""
    return f"adapter v{version} {adapter_hash[:8]}".strip() if version >= 0 else "base model"


def sample(row: Mapping[str, Any]) -> dict[str, Any]:
    """One sample as plain data; what it has not is absent."""
    parts = _json(row["parts"])
    told = {
        "index": row["sample_index"],
        "outcome": row["outcome"],
        "reward": row["reward"],
        "parts": parts if isinstance(parts, dict) else {},
        "advantage": row.get("advantage"),
        "text": shortened(row["completion"] or "", TEXT),
        "tokens": row["completion_tokens"],
        "cut": row.get("finish_reason") == "length",
        "policy": _policy(row["adapter_version"], row["adapter_hash"] or ""),
    }
    if said := conversation(row.get("conversation")):
        told |= {"conversation": said, "turns": row.get("turns") or 1, "ended": row.get("stop_reason") or ""}
    if row.get("environment_reward") is not None:
        told["environment"] = row["environment_reward"]
    if row.get("failure_message") or row.get("failure_kind"):
        told["failure"] = _failure({key: row.get(f"failure_{key}") for key in ("kind", "message", "where")}, row)
    failed = _json(row.get("failed_parts"))
    if isinstance(failed, dict) and failed and "failure" not in told:
        told["failed_parts"] = {name: _failure(each, each) for name, each in failed.items() if isinstance(each, dict)}
    return {name: value for name, value in told.items() if value is not None and value is not False}


def conversation(text: str | None) -> list[list[str]]:
    """[role, content] of each message of a JSON list."""
    messages = _json(text)
    return [
        [str(message.get("role", ""))[:40], shortened(str(message.get("content", "")), TEXT)]
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict)
    ]


def _failure(told: Mapping[str, Any], row: Mapping[str, Any]) -> dict[str, str]:
    kept = {key: shortened(str(told.get(key) or ""), TEXT) for key in ("kind", "message", "where")}
    kept["reproduce"] = shortened(str(row.get("reproduce") or ""), PROGRAM)
    return {name: text for name, text in kept.items() if text}


def _rank(row: Mapping[str, Any]) -> tuple[float, int]:
    reward = row["reward"]
    return (reward if reward is not None and math.isfinite(reward) else -math.inf, row["sample_index"])


def _equal(column: Any, value: str) -> Any:
    import pyarrow.compute as pc

    return pc.equal(column, value)


def _json(text: str | None) -> Any:
    """Decoded JSON; the text itself where it is none, for it is only shown."""
    try:
        return json_text.parse(text) if text else None
    except ValueError:
        return text
