"""Which stored rollouts are worth reading: the best, the worst, those that could not be scored, and where an observed
reward failed."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.common import json_text
from rlft.curves.reading import read_rollouts, rollout_steps

LAST_STEPS = 3
"""Best and worst are chosen from this many of the last stored steps."""

_COLUMNS = (
    *(
        "step",
        "task_id",
        "group_index",
        "sample_index",
        "prompt",
        "messages",
        "completion",
        "answer",
        "outcome",
    ),
    *("reward", "parts", "failure_kind", "failure_message", "reproduce", "advantage", "finish_reason"),
    *("completion_tokens", "adapter_version", "adapter_hash"),
)
_OF_EPISODES = ("conversation", "turns", "stop_reason", "environment_reward")
"""Columns that tell of episodes of several turns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One stored rollout, as a report shows it."""

    step: int
    """RL step that it was sampled for."""
    task_id: str
    """Task it answers."""
    group_index: int
    """Its group within the step."""
    sample_index: int
    """Its position within the group."""
    prompt: str
    """Last user message."""
    messages: tuple[tuple[str, str], ...]
    """The whole prompt as (role, content)."""
    conversation: tuple[tuple[str, str], ...]
    """An episode of several turns from its first message to its last; empty for a single-turn task."""
    turns: int
    """Actions of the policy."""
    stop_reason: str
    """Why the episode ended; empty in runs that did not say."""
    environment_reward: float | None
    """What the environment gave, summed; None where it gave nothing."""
    completion: str
    """What the policy wrote."""
    answer: str
    """The task's answer: text as it is, anything else as JSON."""
    outcome: str
    """`score`, `abstain` or `failed`."""
    reward: float | None
    """None unless scored."""
    parts: Mapping[str, Any]
    """Unweighted value of each reward part."""
    failure_kind: str
    """Empty unless failed."""
    failure_message: str
    """Why there is no score; empty if there is one."""
    reproduce: str
    """Python that calls the same reward on the same sample; empty unless failed."""
    advantage: float | None
    """Mean over the tokens; None if the sample was not used."""
    truncated: bool
    """Cut at the length limit."""
    completion_tokens: int
    """Length of the completion."""
    adapter_version: int
    """Version of the adapter that made it."""
    adapter_hash: str
    """Content hash of that adapter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Showcase:
    """The rollouts that a report shows."""

    steps: tuple[int, ...]
    """Steps that best and worst were chosen from."""
    best: tuple[Sample, ...]
    """Highest rewards, best first, each of another task."""
    worst: tuple[Sample, ...]
    """Lowest rewards, worst first, each of another task; none that is already among the best."""
    failed: tuple[Sample, ...]
    """The latest samples of the whole run that could not be scored."""
    failures: Mapping[str, int]
    """Number of such samples in the whole run by kind, most frequent first."""


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


def observed_failures(run: Path, rewards: Collection[str]) -> list[ObservedFailure]:
    """How often each of `rewards` failed in the stored rollouts, and its first failure; in the order of the names.

    Rollouts of runs that did not store such failures have none. Raises ValueError as `read_rollouts` does.
    """
    rows = read_rollouts(run, ("step", "task_id"), optional=("failed_parts",)).to_pylist()
    failures: dict[str, list[tuple[int, str, Mapping[str, Any]]]] = {}
    for row in rows:
        parts = _json(row.get("failed_parts"))
        for name, failure in parts.items() if isinstance(parts, dict) else ():
            if name in rewards and isinstance(failure, dict):
                failures.setdefault(name, []).append((row["step"], row["task_id"], failure))
    return [
        ObservedFailure(
            reward=name,
            failed=len(found),
            rollouts=len(rows),
            first_step=found[0][0],
            first_task=found[0][1],
            **{key: str(found[0][2].get(key, "")) for key in ("kind", "message", "reproduce")},
        )
        for name, found in sorted(failures.items())
    ]


def showcase(run: Path, count: int = 3) -> Showcase:
    """Choose up to `count` best, worst and failed rollouts. Raises ValueError as `read_rollouts` does."""
    steps = rollout_steps(run)[-LAST_STEPS:]
    last = [_sample(row) for row in read_rollouts(run, _COLUMNS, steps, optional=_OF_EPISODES).to_pylist()]
    scored = [sample for sample in last if sample.reward is not None and math.isfinite(sample.reward)]
    # Among equal rewards the larger advantage is the rarer one in its group, so the one that tells more.
    ranked = sorted(scored, key=lambda s: (-(s.reward or 0.0), -(s.advantage or 0.0), -s.step, s.completion_tokens))
    best = _other_tasks(ranked, count)
    worst = _other_tasks([sample for sample in reversed(ranked) if sample not in best], count)
    failed, failures = _failed(run, count)
    return Showcase(steps=tuple(steps), best=best, worst=worst, failed=failed, failures=failures)


def _failed(run: Path, count: int) -> tuple[tuple[Sample, ...], dict[str, int]]:
    """The latest failed samples, and how many there are of each kind in the whole run."""
    light = read_rollouts(run, ("step", "outcome", "failure_kind")).to_pylist()
    failed = [row for row in light if row["outcome"] == "failed"]
    failures = Counter(str(row["failure_kind"] or "unknown") for row in failed)
    steps = sorted({row["step"] for row in failed})[-count:]
    rows = read_rollouts(run, _COLUMNS, steps, optional=_OF_EPISODES).to_pylist() if steps else []
    latest = [_sample(row) for row in rows if row["outcome"] == "failed"][-count:]
    return tuple(reversed(latest)), dict(failures.most_common())


def _other_tasks(ranked: Sequence[Sample], count: int) -> tuple[Sample, ...]:
    chosen: dict[str, Sample] = {}
    for sample in ranked:
        chosen.setdefault(sample.task_id, sample)
    return tuple(list(chosen.values())[:count])


def _sample(row: Mapping[str, Any]) -> Sample:
    parts = _json(row["parts"])
    answer = _json(row["answer"])
    return Sample(
        step=row["step"],
        task_id=row["task_id"],
        group_index=row["group_index"],
        sample_index=row["sample_index"],
        prompt=row["prompt"] or "",
        messages=_messages(row["messages"]),
        conversation=_messages(row.get("conversation")),
        turns=row.get("turns") or 1,
        stop_reason=row.get("stop_reason") or "",
        environment_reward=row.get("environment_reward"),
        completion=row["completion"] or "",
        answer=answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False),
        outcome=row["outcome"],
        reward=row["reward"],
        parts=parts if isinstance(parts, dict) else {},
        failure_kind=row["failure_kind"] or "",
        failure_message=row["failure_message"] or "",
        reproduce=row["reproduce"] or "",
        advantage=row["advantage"],
        truncated=row["finish_reason"] == "length",
        completion_tokens=row["completion_tokens"],
        adapter_version=row["adapter_version"],
        adapter_hash=row["adapter_hash"] or "",
    )


def _messages(text: str | None) -> tuple[tuple[str, str], ...]:
    """(role, content) of each message."""
    messages = _json(text)
    return tuple(
        (str(message.get("role", "")), str(message.get("content", "")))
        for message in (messages if isinstance(messages, list) else [])
        if isinstance(message, dict)
    )


def _json(text: str | None) -> Any:
    """Decoded JSON; the text itself where it is none, for it is only shown."""
    try:
        return json_text.parse(text) if text else None
    except ValueError:
        return text
