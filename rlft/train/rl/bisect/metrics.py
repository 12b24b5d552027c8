"""Names of what `rlft bisect` can follow, known from a run's config and records before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from rlft.common.by_path import did_you_mean
from rlft.curves.reading import read_evals, read_metrics

LENGTH, TRUNCATED, ENTROPY, REWARD = "rollout/length", "rollout/truncated", "policy/entropy", "reward/mean"
SHORT = {"length": LENGTH, "truncated": TRUNCATED, "entropy": ENTROPY, "reward": REWARD}
"""Other names of these."""
_PART = "reward/part/"


def metric_name(rewards: Sequence[str], parts: Collection[str], metric: str) -> str:
    """The name of a metric as `measure.Measured` takes it.

    Args:
        rewards: names of the config's rewards.
        parts: what `stored_parts` gives; empty where nobody knows.

    Raises:
        ValueError: the run has no such reward or part, and it is none of the others.
    """
    name = SHORT.get(metric, metric).removeprefix(_PART)
    known = [*dict.fromkeys([*rewards, *sorted(parts)]), *SHORT]
    reward, is_part, _ = name.partition("/")
    if name in (*SHORT.values(), *rewards) or (is_part and reward in rewards and (not parts or name in parts)):
        return name
    what = "part" if is_part and reward in rewards else "reward"
    more = "" if parts else "; of a reward's parts NAME/PART"
    raise ValueError(
        f"--metric {metric!r}: no {what} is named so.{did_you_mean(name, known)} There are: {', '.join(known)}{more}"
    )


def stored_parts(run: Path) -> set[str]:
    """Names of rewards and of their parts that a run has measured in training or on held-out tasks."""
    trained = {name.removeprefix(_PART) for row in read_metrics(run) for name in row if name.startswith(_PART)}
    return trained | {name for evaluation in read_evals(run) for name in evaluation.rewards}
