"""Stored samples that show what an alarm says: the ones that a person should read first."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from rlft.curves import reading
from rlft.curves.alarms.health import SAMPLES, Sample
from rlft.curves.alarms.seen import Found
from rlft.curves.text import shortened

_COLUMNS = ("step", "task_id", "sample_index", "outcome", "reward", "parts", "completion")
_FURTHER = ("completion_tokens", "finish_reason", "group_index", "advantage")
_LOGPROBS = ("logprobs", "learner_logprobs", "reference_logprobs", "action_mask")
_STEPS = 4
"""Stored steps that samples are taken from: the last ones, where an alarm shows most."""
_AT_ONSET = ("reward_spike", "not_finite", "gradient_spikes")
"""Alarms about single steps: their samples are those of the first one."""
_EXCERPT = 240
"""Characters of a completion that are shown."""

_Row: TypeAlias = Mapping[str, Any]
_Key: TypeAlias = Callable[[_Row, Sequence[_Row]], float]
"""How well a sample shows it, given all samples; nan where it does not."""


def samples_for(run: Path, name: str, found: Found, *, until: int | None = None) -> tuple[Sample, ...]:
    """The stored samples, up to a step, that show an alarm best, at most `SAMPLES`; empty where they do not tell it."""
    stored = [step for step in reading.rollout_steps(run) if until is None or step <= until]
    key = _KEYS.get(name)
    if key is None or not stored:
        return ()
    steps = [step for step in stored if step >= found.onset][-_STEPS:] or stored[-1:]
    if name in _AT_ONSET:
        steps = [step for step in stored if step == found.onset] or steps
    further = (*_FURTHER, *(_LOGPROBS if name in ("kl_without_reward", "mismatch") else ()))
    rows = reading.read_rollouts(run, _COLUMNS, steps, optional=further).to_pylist()
    rows = [{**row, "parts": json.loads(row["parts"] or "{}"), "shown": found.part} for row in rows]
    ranked = [(key(row, rows), row) for row in rows]
    shown = sorted((pair for pair in ranked if math.isfinite(pair[0])), key=lambda pair: -pair[0])
    return tuple(_sample(row) for _, row in shown[:SAMPLES])


def _sample(row: _Row) -> Sample:
    return Sample(
        step=int(row["step"]),
        task=str(row["task_id"]),
        index=int(row["sample_index"]),
        reward=_number(row["reward"]),
        parts={name: float(value) for name, value in row["parts"].items()},
        tokens=int(row.get("completion_tokens") or 0),
        excerpt=shortened(str(row["completion"] or ""), _EXCERPT),
    )


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _long_and_rewarded(row: _Row, rows: Sequence[_Row]) -> float:
    rewards = sorted(_number(each["reward"]) for each in rows if each["reward"] is not None)
    if not rewards or not _number(row["reward"]) >= rewards[len(rewards) // 2]:
        return math.nan
    return _number(row.get("completion_tokens"))


def _part(row: _Row, rows: Sequence[_Row]) -> float:
    """High in the part that rises, low in the others."""
    parts, part = row["parts"], row["shown"]
    others = [float(value) for name, value in parts.items() if name != part]
    return float(parts[part]) - sum(others) / max(1, len(others)) if part in parts else math.nan


def _ahead_of_shadow(row: _Row, rows: Sequence[_Row]) -> float:
    """How much further up it is among all samples by the reward than by the shadow."""
    shadow = row["shown"]
    both = [each for each in rows if each["reward"] is not None and shadow in each["parts"]]
    if row["reward"] is None or shadow not in row["parts"]:
        return math.nan
    above = sum(each["reward"] < row["reward"] for each in both)
    return float(above - sum(each["parts"][shadow] < row["parts"][shadow] for each in both))


def _repeated(row: _Row, rows: Sequence[_Row]) -> float:
    if row["shown"] == "duplicates":
        same = [each for each in rows if each["task_id"] == row["task_id"] and each["completion"] == row["completion"]]
        return float(len(same))
    words = str(row["completion"]).split()
    phrases = list(zip(*(words[i:] for i in range(3)), strict=False))
    return 1 - len(set(phrases)) / len(phrases) if phrases else math.nan


def _cut(row: _Row, rows: Sequence[_Row]) -> float:
    return _number(row.get("completion_tokens")) if row.get("finish_reason") == "length" else math.nan


def _without_signal(row: _Row, rows: Sequence[_Row]) -> float:
    group = [each["reward"] for each in rows if (each["step"], each["task_id"]) == (row["step"], row["task_id"])]
    return 1.0 if len(set(group)) == 1 else math.nan


def _commonest(row: _Row, rows: Sequence[_Row]) -> float:
    return float(Counter(each["completion"] for each in rows)[row["completion"]])


def _lowest(row: _Row, rows: Sequence[_Row]) -> float:
    return -_number(row["reward"])


def _extreme(row: _Row, rows: Sequence[_Row]) -> float:
    known = [_number(each["reward"]) for each in rows if each["reward"] is not None]
    return abs(_number(row["reward"]) - sum(known) / max(1, len(known)))


def _longest(row: _Row, rows: Sequence[_Row]) -> float:
    return _number(row.get("completion_tokens"))


def _moved_most(row: _Row, rows: Sequence[_Row]) -> float:
    """What the update was made of: advantages that are no numbers first, then the largest."""
    advantage = row.get("advantage")
    if advantage is None:
        return math.nan
    return abs(advantage) if math.isfinite(advantage) else sys.float_info.max


def _in_the_batch(row: _Row, rows: Sequence[_Row]) -> float:
    """As `_moved_most`; samples without an advantage come last, since it may be they that are not finite."""
    found = _moved_most(row, rows)
    return -1.0 if math.isnan(found) else found


def _between(one: str, other: str, *, is_signed: bool) -> _Key:
    """Mean difference of two log-probs of its actions."""

    def key(row: _Row, rows: Sequence[_Row]) -> float:
        sides = []
        for name in (one, other):
            values = row.get(name)
            if values is not None and name == "logprobs":  # one for each token, not for each action
                values = [v for v, is_action in zip(values, row.get("action_mask") or (), strict=False) if is_action]
            sides.append(values)
        if not sides[0] or not sides[1]:
            return math.nan
        differences = [a - b for a, b in zip(*sides, strict=False)]
        return sum(d if is_signed else abs(d) for d in differences) / len(differences)

    return key


_KEYS: dict[str, _Key] = {
    "entropy_collapse": _commonest,
    "kl_without_reward": _between("learner_logprobs", "reference_logprobs", is_signed=True),
    "length_with_reward": _long_and_rewarded,
    "part_against_part": _part,
    "shadow_gap": _ahead_of_shadow,
    "repetition": _repeated,
    "truncation": _cut,
    "no_signal": _without_signal,
    "reward_spike": _extreme,
    "reward_collapse": _lowest,
    "mismatch": _between("logprobs", "learner_logprobs", is_signed=False),
    "not_finite": _in_the_batch,
    "gradient_spikes": _moved_most,
    "clip_saturation": _moved_most,
    "critic_diverges": _moved_most,
    "throughput": _longest,
}
"""By the alarm's name."""
