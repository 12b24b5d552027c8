"""What a run says in a few numbers: the verdict, the trends, and which rollout tokens taught something."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from rlft.curves.statistics import MIN_CHANGED, paired_difference
from rlft.curves.text import interval_text, number, percent
from rlft.run.records import Evaluation, Interval

WASTE_COLUMNS = ("step", "group_index", "outcome", "reward", "advantage", "completion_tokens")
"""Columns of the rollouts that `waste` needs."""

_TRENDS = (
    ("Train reward", "reward/mean", "number"),
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
class Verdict:
    """Whether training helped, judged on the held-out tasks."""

    kind: Literal["improved", "worse", "inconclusive", "open"]
    """`open`: there is nothing to compare yet."""
    sentence: str
    """The same in plain words, with the numbers."""


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


@dataclass(frozen=True, slots=True)
class _Stage:
    label: str
    accuracy: Interval
    missing: str = ""
    by_task: Mapping[str, Sequence[float]] = field(default_factory=dict)
    trainer: str = "RL"
    word: str = "accuracy"


def verdict(evals: Sequence[Evaluation], rows: Sequence[Mapping[str, float]], summary: Mapping[str, Any]) -> Verdict:
    """Compare the last evaluation with the policy that training started from (SFT, else base), paired by task.

    The last evaluation, not the best one: picking the best of several is picking the luckiest. Without stored
    evaluations the accuracies of the summary are compared by whether their intervals overlap.
    """
    stages = _stages(evals, summary)
    trained = stages.pop("rl", None)
    if trained is None or not stages:
        return Verdict("open", _open_sentence([*stages.values()], trained, rows))
    start = stages.get("sft") or stages["base"]
    origin = _with_label(start) if len(stages) == 1 else f"{_with_label(stages['base'])} over {_with_label(start)}"
    kind, comparison = _compare(start, trained, stages.get("base"))
    word = _word([*stages.values(), trained])
    return Verdict(kind, f"Held-out {word} went from {origin} to {_with_label(trained)}{comparison}")


def trends(rows: Sequence[Mapping[str, float]]) -> list[Trend]:
    """Start and end of the metrics that a reader asks for first; those that were never logged are absent."""
    width = window(rows)
    result = []
    for label, metric, style in _TRENDS:
        values = [row[metric] for row in rows if math.isfinite(row.get(metric, math.nan))]
        if values:
            show = percent if style == "share" else number
            result.append(Trend(label, show(_mean(values[:width])), show(_mean(values[-width:]))))
    return result


def window(rows: Sequence[Mapping[str, float]]) -> int:
    """How many steps `trends` averages at each end: a tenth of the run, 1 to 20."""
    return max(1, min(20, len(rows) // 10))


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
    keys = np.stack([column["step"], column["group_index"]]).astype(np.int64)
    group = np.unique(keys, axis=1, return_inverse=True)[1].reshape(-1)
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


def _stages(evals: Sequence[Evaluation], summary: Mapping[str, Any]) -> dict[str, _Stage]:
    stages: dict[str, _Stage] = {}
    for name, label in (("base", "base"), ("sft", "SFT"), ("rl", "RL")):
        if isinstance(stored := summary.get(f"accuracy_{name}"), dict):
            failed = summary.get(f"failed_{name}")
            missing = f"{failed} samples failed" if failed else ""
            stages[name] = _Stage(label, Interval.from_dict(stored), missing, word=str(summary.get("word", "accuracy")))
    for evaluation in evals:  # ordered, so the last step's evaluation is the one that stays
        key = evaluation.name if evaluation.name in ("base", "sft") else "rl"
        stages[key] = _Stage(
            evaluation.label,
            evaluation.accuracy,
            evaluation.missing,
            evaluation.by_task,
            evaluation.stage,
            evaluation.word,
        )
    return stages


def _compare(
    start: _Stage, trained: _Stage, base: _Stage | None
) -> tuple[Literal["improved", "worse", "inconclusive"], str]:
    paired = paired_difference(start.by_task, trained.by_task)
    change = paired.interval
    if change.n == 0:
        return _compare_unpaired(start.accuracy, trained.accuracy)
    text = f". Paired over {change.n} tasks, {trained.trainer} changed it by {interval_text(change, '+')}"
    if base is not None and base is not start:
        whole = paired_difference(base.by_task, trained.by_task).interval
        text += f" against {start.label}; the whole run changed it by {interval_text(whole, '+')}"
    if paired.conclusive:
        better = change.mean > 0
        return (
            "improved" if better else "worse"
        ), f"{text}. {trained.trainer} {'improved it' if better else 'made it worse'}."
    if not change.bounded or change.low <= 0 <= change.high:
        reason = "the interval of the change includes 0" if change.bounded else "one task has no interval"
    else:
        reason = f"only {paired.changed} tasks changed, and fewer than {MIN_CHANGED} can be chance"
    return "inconclusive", f"{text}. Inconclusive: {reason}."


def _compare_unpaired(start: Interval, trained: Interval) -> tuple[Literal["improved", "worse", "inconclusive"], str]:
    if start.bounded and trained.bounded and (trained.low > start.high or trained.high < start.low):
        kind: Literal["improved", "worse"] = "improved" if trained.mean > start.mean else "worse"
        return kind, "; the intervals do not overlap."
    return (
        "inconclusive",
        ". Inconclusive: the intervals overlap or are unknown, and no common tasks are stored.",
    )


def _open_sentence(stages: Sequence[_Stage], trained: _Stage | None, rows: Sequence[Mapping[str, float]]) -> str:
    if trained is not None:
        before = f"nothing was evaluated before {trained.trainer} to compare with"
        return f"Held-out {trained.word} is {_with_label(trained)}; {before}."
    known = " and ".join(_with_label(stage) for stage in stages)
    told = ""
    if known:
        told = f"Held-out {_word(stages)} is {known}; nothing has been evaluated after {stages[0].trainer} yet."
    courses = {
        what: [row[metric] for row in rows if math.isfinite(row.get(metric, math.nan))]
        for what, metric in (("reward", "reward/mean"), ("margin", "preference/margin"))
    }
    what, values = next(((what, values) for what, values in courses.items() if values), ("", []))
    if not values:
        return told or "No step has finished and nothing has been evaluated yet."
    width = window(rows)
    went = f"Train {what} went from {number(_mean(values[:width]))} to {number(_mean(values[-width:]))}"
    return f"{told or 'There is no held-out evaluation.'} {went} in {len(rows)} steps."


def _word(stages: Sequence[_Stage]) -> str:
    return "accuracy" if all(stage.word == "accuracy" for stage in stages) else "mean"


def _with_label(stage: _Stage) -> str:
    missing = f"; {stage.missing} and are missing" if stage.missing else ""
    return f"{interval_text(stage.accuracy)} ({stage.label}{missing})"


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
