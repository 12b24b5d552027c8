"""What is measured of a step's groups. Failed and abstained samples are counted, never averaged in as zeros."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from rlft.curves.statistics import mean_interval
from rlft.types import Abstain, Failed, Group, Metrics, Score


def describe(groups: Sequence[Group]) -> Metrics:
    """Reward with its interval clustered by task, parts, outcomes, signal, lengths."""
    trajectories = [t for group in groups for t in group.trajectories]
    outcomes = [t.outcome for t in trajectories]
    lengths = [t.num_actions for t in trajectories]
    metrics: Metrics = {
        "reward/failed": float(sum(isinstance(o, Failed) for o in outcomes)),
        "reward/abstained": float(sum(isinstance(o, Abstain) for o in outcomes)),
        "groups/total": float(len(groups)),
        "rollout/length": sum(lengths) / len(lengths),
        "rollout/tokens": float(sum(lengths)),
        "rollout/truncated": sum(t.finish_reason == "length" for t in trajectories) / len(trajectories),
    }
    scores = [group.scores for group in groups if group.scores]
    if scores:
        interval = mean_interval(scores)
        flat = [score for group in scores for score in group]
        mean = sum(flat) / len(flat)
        best, worst = max(flat), min(flat)
        metrics |= {
            "reward/mean": interval.mean,
            "reward/std": (sum((score - mean) ** 2 for score in flat) / len(flat)) ** 0.5,
            "groups/with_signal": sum(has_signal(group) for group in groups) / len(groups),
            "groups/solved_all": sum(set(group) == {best} for group in scores if best > worst) / len(groups),
            "groups/solved_none": sum(set(group) == {worst} for group in scores if best > worst) / len(groups),
        }
        if interval.low == interval.low:  # one group alone has no interval
            metrics |= {"reward/low": interval.low, "reward/high": interval.high}
    parts: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for index, group in enumerate(groups):
        for trajectory in group.trajectories:
            if isinstance(trajectory.outcome, Score):
                for name, value in trajectory.outcome.parts.items():
                    parts[name][index].append(value)
    metrics |= {
        f"reward/part/{name}": mean_interval(list(by_group.values())).mean for name, by_group in sorted(parts.items())
    }
    return metrics


def has_signal(group: Group) -> bool:
    """Whether the group's scores differ, so that a group-relative baseline leaves something."""
    return len(set(group.scores)) > 1
