"""What a run says in a few numbers: the trends, and which rollout tokens taught something."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlft.curves import reading
from rlft.curves.text import number, percent

WASTE_COLUMNS = ("step", "group_index", "outcome", "reward", "advantage", "completion_tokens")
"""Columns of the rollouts that `waste` needs."""

_TRENDS = (
    ("Train reward", "reward/mean", "number"),
    ("Training loss, nats per token", "sft/loss", "number"),
    ("Preference loss", "preference/loss", "number"),
    ("Margin", "preference/margin", "number"),
    ("Preferences on the right side", "preference/accuracy", "share"),
    ("KL to the reference, nats per token", "policy/kl_ref", "number"),
    ("Entropy, nats per token", "policy/entropy", "number"),
    ("Completion length, tokens", "rollout/length", "number"),
    ("Completions cut at the limit", "rollout/truncated", "share"),
    ("Groups with signal", "groups/with_signal", "share"),
    ("Throughput, tokens per second", "time/tokens_per_s", "number"),
)


@dataclass(frozen=True, slots=True)
class Trend:
    """A metric at the start and at the end of the run."""

    label: str
    start: str
    """Mean of the first steps, formatted."""
    end: str
    """Mean of the last steps, formatted."""


@dataclass(frozen=True, slots=True)
class Waste:
    """Where the rollout tokens went."""

    tokens: int
    """All sampled tokens."""
    causes: Mapping[str, int]
    """Tokens that gave no gradient, by cause in words; causes without tokens are absent."""

    @property
    def share(self) -> float:
        """Share of tokens that gave no gradient; nan without tokens."""
        return sum(self.causes.values()) / self.tokens if self.tokens else math.nan


def trends(rows: Sequence[Mapping[str, float]]) -> list[Trend]:
    """Start and end of the metrics that a reader asks for first; those that were never logged are absent."""
    width = reading.window(rows)
    result = []
    for label, metric, style in _TRENDS:
        values = [row[metric] for row in rows if math.isfinite(row.get(metric, math.nan))]
        if values:
            show = percent if style == "share" else number
            result.append(Trend(label, show(_mean(values[:width])), show(_mean(values[-width:]))))
    return result


def waste(rollouts: Any) -> Waste:
    """Which tokens gave the policy no gradient from the reward, and why; takes a table with `WASTE_COLUMNS`.

    A sample teaches if its advantage is stored and not zero. Where a run stores no advantages at all, it
    teaches if its group's rewards differ.
    """
    import numpy as np

    if not len(rollouts):
        return Waste(0, {})
    column = {name: rollouts[name].to_numpy() for name in WASTE_COLUMNS}
    tokens = column["completion_tokens"].astype(np.int64)
    advantage, reward = (column[name].astype(np.float64) for name in ("advantage", "reward"))
    scored = column["outcome"] == "score"
    step, index = (column[name].astype(np.int64) for name in ("step", "group_index"))
    group = np.unique(step * (index.max() + 1) + index, return_inverse=True)[1].reshape(-1)
    highest, lowest = np.full(group.max() + 1, -np.inf), np.full(group.max() + 1, np.inf)
    np.maximum.at(highest, group[scored], reward[scored])
    np.minimum.at(lowest, group[scored], reward[scored])
    flat = (highest <= lowest)[group]
    stored = np.isfinite(advantage)
    teaches = scored & ((stored & (advantage != 0)) if stored.any() else ~flat)
    idle = {
        "the whole group got the same reward": scored & flat & ~teaches,
        "reward failed": column["outcome"] == "failed",
        "reward abstained": column["outcome"] == "abstain",
        "advantage was zero or the sample was left out": scored & ~flat & ~teaches,
    }
    causes = {cause: int(tokens[mask].sum()) for cause, mask in idle.items()}
    return Waste(int(tokens.sum()), {cause: count for cause, count in causes.items() if count})


def sampled_tokens(rows: reading.Rows, waste: Waste) -> int:
    """All tokens that were sampled: as the metrics count them where each step has its own, else those stored."""
    logged = [row["rollout/tokens"] for row in rows if math.isfinite(row.get("rollout/tokens", math.nan))]
    return max(int(math.fsum(logged)) if len(logged) == len(rows) else 0, waste.tokens)


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
