"""What is measured of a step's groups. Failed and abstained samples are counted, never averaged in as zeros."""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Sequence

from rlft.config import RunConfig
from rlft.curves.statistics import interval_of_these_tasks, mean_interval
from rlft.environment.contract import SOURCE
from rlft.objectives.signal import has_signal
from rlft.run.records import Interval
from rlft.types import Abstain, Failed, Group, Metrics

_OF_THE_MACHINE = re.compile(r"time/|rollout/worker_rss_mb|reward/logged/[^/]+/(known|drift)$")


def is_of_the_machine(name: str) -> bool:
    """Whether a metric may differ between identical runs: times, memory, how a judge's cache was used."""
    return bool(_OF_THE_MACHINE.match(name))


class Clock:
    """Seconds of a step's parts."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: Metrics = {}

    def lap(self, name: str) -> float:
        """What went by since the last lap belongs to this part; those seconds."""
        now = time.perf_counter()
        seconds, self._last = now - self._last, now
        self.add(name, seconds)
        return seconds

    def add(self, name: str, seconds: float) -> None:
        """A part that lies within others."""
        self._laps[f"time/{name}"] = self._laps.get(f"time/{name}", 0.0) + seconds

    def metrics(self, *, tokens: float) -> Metrics:
        """All parts, the whole step, and its speed."""
        total = time.perf_counter() - self._start
        return {**self._laps, "time/step": total, "time/tokens_per_s": tokens / total}


def describe_step(config: RunConfig, groups: Sequence[Group]) -> Metrics:
    """`describe` of a run's step."""
    environment, by_turn = config.environment, config.algorithm.credits_turns
    return describe(groups, by_turn=by_turn, order=environment.order, mixed=environment.names)


def describe(
    groups: Sequence[Group], *, by_turn: bool = False, order: str = "shuffle", mixed: Sequence[str] = ()
) -> Metrics:
    """Reward, parts, lengths and signal with their 95 % intervals, and outcomes.

    `reward/failed` counts samples without a score, `reward/failed/NAME` those on which the reward NAME failed,
    whatever its weight. `reward/part/NAME` is over all samples that NAME has a value for, scored or not.

    Args:
        by_turn: whether the algorithm judges each turn, see `has_signal`.
        order: `environment.order`; tasks that it draws at random stand for all tasks, so intervals are clustered by
            task; others stand for themselves. The interval of the reward is `reward/low` and `reward/high`, that of
            another metric M `low/M` and `high/M`; it is absent where there is no honest one.
        mixed: names of the environments of a mix, each of which gets `environment/NAME/reward`, `.../with_signal`,
            `.../length` and `.../groups` of its own.
    """
    trajectories = [t for group in groups for t in group.trajectories]
    outcomes = [t.outcome for t in trajectories]
    failed_parts = Counter(name for t in trajectories for name in t.failed_parts)
    lengths = [t.num_actions for t in trajectories]
    metrics: Metrics = {
        "reward/failed": float(sum(isinstance(o, Failed) for o in outcomes)),
        "reward/abstained": float(sum(isinstance(o, Abstain) for o in outcomes)),
        **{f"reward/failed/{name}": float(count) for name, count in sorted(failed_parts.items())},
        "groups/total": float(len(groups)),
        "rollout/length": sum(lengths) / len(lengths),
        "rollout/tokens": float(sum(lengths)),
        "rollout/truncated": sum(t.finish_reason == "length" for t in trajectories) / len(trajectories),
    }
    if any(t.messages for t in trajectories):
        metrics["rollout/turns"] = sum(len(t.turns) for t in trajectories) / len(trajectories)
    scores = [group.scores for group in groups if group.scores]
    measure = mean_interval if order == "shuffle" else interval_of_these_tasks
    length = measure([[float(t.num_actions) for t in group.trajectories] for group in groups])
    cut = measure([[float(t.finish_reason == "length") for t in group.trajectories] for group in groups])
    metrics |= {**_bounds("rollout/length", length), **_bounds("rollout/truncated", cut)}
    if scores:
        interval = measure(scores)
        flat = [score for group in scores for score in group]
        mean = sum(flat) / len(flat)
        signal = mean_interval([[float(has_signal(group, by_turn=by_turn))] for group in groups])
        best, worst = max(flat), min(flat)
        metrics |= {
            "reward/mean": interval.mean,
            "reward/max": best,
            "reward/std": (sum((score - mean) ** 2 for score in flat) / len(flat)) ** 0.5,
            "groups/with_signal": signal.mean,
            **_bounds("groups/with_signal", signal),
        }
        for name, end in (("groups/solved_all", best), ("groups/solved_none", worst)):
            solved = mean_interval([[float(best > worst and set(group.scores) == {end})] for group in groups])
            metrics |= {name: solved.mean, **(_bounds(name, solved) if best > worst else {})}
        if interval.bounded:
            metrics |= {"reward/low": interval.low, "reward/high": interval.high}
    parts: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for index, group in enumerate(groups):
        for trajectory in group.trajectories:
            for name, value in trajectory.parts.items():
                parts[name][index].append(value)
    for name, by_group in sorted(parts.items()):
        interval = measure(list(by_group.values()))
        metrics |= {f"reward/part/{name}": interval.mean, **_bounds(f"reward/part/{name}", interval)}
    for name in mixed:
        own = [group for group in groups if group.task.columns.get(SOURCE) == name]
        metrics |= _of_environment(f"environment/{name}", own, by_turn=by_turn, order=order)
    return metrics


def _of_environment(prefix: str, groups: Sequence[Group], *, by_turn: bool, order: str) -> Metrics:
    metrics: Metrics = {f"{prefix}/groups": float(len(groups))}
    if not groups:
        return metrics
    whole = describe(groups, by_turn=by_turn, order=order)
    for name, metric in (
        ("reward", "reward/mean"),
        ("with_signal", "groups/with_signal"),
        ("length", "rollout/length"),
    ):
        if metric not in whole:
            continue
        low, high = ("reward/low", "reward/high") if name == "reward" else (f"low/{metric}", f"high/{metric}")
        metrics[f"{prefix}/{name}"] = whole[metric]
        if low in whole:
            metrics |= {f"low/{prefix}/{name}": whole[low], f"high/{prefix}/{name}": whole[high]}
    return metrics


def _bounds(name: str, interval: Interval) -> Metrics:
    return {f"low/{name}": interval.low, f"high/{name}": interval.high} if interval.bounded else {}


def describe_staleness(groups: Sequence[Group], version: int) -> Metrics:
    """How many versions the samples are behind the policy `version` that learns from them: mean, maximum, and the share
    of each value. A sample of several turns counts as its oldest one."""
    behind = [
        version - min(turn.completion.adapter_version for turn in trajectory.turns)
        for group in groups
        for trajectory in group.trajectories
        if trajectory.turns
    ]
    if not behind:
        return {}
    counts = Counter(behind)
    return {
        "rollout/staleness_mean": sum(behind) / len(behind),
        "rollout/staleness_max": float(max(behind)),
        **{f"rollout/staleness/{value}": count / len(behind) for value, count in sorted(counts.items())},
    }


def describe_dropped(used: Sequence[Group], unused: Sequence[Group]) -> Metrics:
    """Samples that nothing is learnt from, by cause, and whether they are longer than the others.

    A cause that drops long samples more often biases the policy towards short ones, and the mean reward does not show
    it. What a correction masks is counted by the learner (`policy/masked`).
    """
    dropped: dict[str, list[int]] = {"failed": [], "abstained": [], "unused": []}
    kept: list[int] = []
    for groups, is_used in ((used, True), (unused, False)):
        for trajectory in (t for group in groups for t in group.trajectories):
            match trajectory.outcome:
                case Failed():
                    lengths = dropped["failed"]
                case Abstain():
                    lengths = dropped["abstained"]
                case _:
                    lengths = kept if is_used else dropped["unused"]
            lengths.append(trajectory.num_actions)
    metrics: Metrics = {f"rollout/dropped/{cause}": float(len(lengths)) for cause, lengths in dropped.items()}
    gone = [length for lengths in dropped.values() for length in lengths]
    for name, lengths in (("dropped", gone), ("kept", kept)):
        if lengths:
            metrics[f"rollout/length_{name}"] = sum(lengths) / len(lengths)
    return metrics
