"""What all calls of a scoring gave, and the trajectories' outcomes that follow from it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rlft.environment.contract import SOURCE
from rlft.reward.answers import Result
from rlft.reward.outcomes import combine, failed_rewards
from rlft.types import Abstain, Failed, Group, Outcome, RewardSpec


def applies(spec: RewardSpec, group: Group) -> bool:
    """Whether a reward is asked about a task: one with `only` just about those of some environments of a mix."""
    return not spec.only or group.task.columns.get(SOURCE) in spec.only


class ResultTable:
    """The results of all calls of a scoring."""

    def __init__(
        self, specs: Sequence[RewardSpec], groups: Sequence[Group], *, of: Sequence[Group], max_failed: float
    ) -> None:
        """Args: of: all groups that `max_failed` is a share of, with what had failed before it came here."""
        whole = [trajectory for group in of for trajectory in group.trajectories]
        self._specs, self._max_failed, self._total = specs, max_failed, len(whole)
        self._failed_before = sum(isinstance(trajectory.outcome, Failed) for trajectory in whole)
        self._outcomes: dict[tuple[int, int, int], Outcome] = {}  # by group, trajectory, reward
        self._extras: dict[tuple[int, int], dict[str, Any]] = defaultdict(dict)
        self._logged: dict[str, list[float]] = defaultdict(list)
        self._failed: set[tuple[int, int]] = set()

    def enter(self, group: int, members: range, reward: int, result: Result) -> None:
        """Enter what one call of a reward gave for some trajectories of a group."""
        spec = self._specs[reward]
        for index, (member, outcome) in enumerate(zip(members, result.outcomes, strict=True)):
            self._outcomes[group, member, reward] = outcome
            if spec.weight and isinstance(outcome, Failed):
                self._failed.add((group, member))
            for name, values in result.extras.items():
                self._extras[group, member][f"{spec.label}/{name}"] = values[index]
        for name, value in result.metrics.items():
            self._logged[f"{spec.label}/{name}"].append(value)

    @property
    def has_too_many_failed(self) -> bool:
        """Whether more trajectories have failed than may."""
        return self._failed_before + len(self._failed) > self._max_failed * self._total

    def logged(self) -> dict[str, float]:
        """Means of what the rewards logged."""
        return {name: sum(values) / len(values) for name, values in sorted(self._logged.items())}

    def scored(self, index: int, group: Group) -> Group:
        """The group with all outcomes."""
        count = self._failed_before + len(self._failed)
        text = (
            f"not called: {count} of {self._total} samples had failed by then, more than "
            f"scoring.max_failed={self._max_failed:g} allows"
        )
        not_run = Failed(kind="not_run", message=text, reproduce=f"raise SystemExit({text!r})")
        missing: list[Outcome] = [not_run if applies(spec, group) else _elsewhere(spec) for spec in self._specs]
        scored = []
        for member, trajectory in enumerate(group.trajectories):
            outcomes = [self._outcomes.get((index, member, r), otherwise) for r, otherwise in enumerate(missing)]
            scored.append(
                replace(
                    trajectory,
                    outcome=combine(self._specs, outcomes),
                    failed_parts=failed_rewards(self._specs, outcomes),
                    extras=self._extras.get((index, member), {}),
                )
            )
        return replace(group, trajectories=tuple(scored))


def _elsewhere(spec: RewardSpec) -> Abstain:
    return Abstain(reason=f"it is only for {', '.join(spec.only)}")
