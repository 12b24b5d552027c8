"""With which probability a verification finds a change of the records, by what it checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np

from rlft.train.rl.verify.findings import Odds


@dataclass(frozen=True, slots=True, kw_only=True)
class Coverage:
    """How much of a run a verification looks at."""

    groups: int
    """Stored groups, of steps and evaluations."""
    scored: int
    """Those that are scored again."""
    samples: int
    """Stored samples."""
    checkable: Sequence[tuple[int, int]]
    """(adapter version, samples) of each chunk that can be generated again."""
    generated: int
    """How many of those chunks are."""
    adapters: Sequence[int]
    """Versions of the stored adapters."""
    named: Sequence[int]
    """Those of them whose hash a sample or an evaluation names."""
    lines: float
    """Share of the steps with rollouts that have their line of metrics."""
    learners: int
    """Numbers of the metrics that only the learner knows."""
    repeats_updates: bool
    """Whether the learner's updates are made again."""
    is_exact: bool
    """Whether samples have to be the same to the bit."""

    @property
    def of_groups(self) -> float:
        """Probability that a group is scored again."""
        return self.scored / self.groups if self.groups else 0.0

    @property
    def of_samples(self) -> float:
        """Probability that a sample is generated again."""
        if not self.samples or not self.checkable:
            return 0.0
        within = sum(samples for _, samples in self.checkable) / self.samples
        return within * self.generated / len(self.checkable)

    def of_version(self, version: int) -> float:
        """Probability that a chunk of an adapter is generated again."""
        total = len(self.checkable)
        others = sum(own != version for own, _ in self.checkable)
        return 1.0 - comb(others, self.generated) / comb(total, self.generated) if total else 0.0


def odds_of(coverage: Coverage) -> list[Odds]:
    """The probabilities for one change of each kind, wherever in the run it is."""
    adapters = coverage.adapters
    restamped = sum(map(coverage.of_version, adapters)) / len(adapters) if adapters else 0.0
    if coverage.repeats_updates and adapters:
        restamped = 1.0
    of_learner = float(coverage.repeats_updates)
    found = [
        Odds(change="the reward of one sample", alone=coverage.lines, fitted=coverage.of_groups),
        Odds(
            change="one number of a metrics line that follows from rollouts",
            alone=coverage.lines,
            fitted=coverage.of_groups,
        ),
        Odds(change="one number of an evaluation", alone=1.0, fitted=coverage.of_groups),
        Odds(change="one sample: tokens, text and reward", alone=coverage.of_samples, fitted=coverage.of_samples),
    ]
    if coverage.learners:
        change = "one number of a metrics line that only the learner knows"
        found.append(Odds(change=change, alone=of_learner, fitted=of_learner))
    if adapters:
        named = len(set(coverage.named) & set(adapters)) / len(adapters)
        # Elsewhere than on the run's machine a byte's effect is far below what rounding may do.
        fitted = restamped if coverage.is_exact else 0.0
        found.append(Odds(change="one byte of an adapter's tensors", alone=named, fitted=fitted))
    return found


def choose(count: int, share: float, seed: int, stream: int) -> list[int]:
    """Positions of a random share of `count` things, ascending: at least one, if there is one."""
    if not count:
        return []
    wanted = min(count, max(1, round(share * count)))
    generator = np.random.default_rng([seed, stream])
    return sorted(int(index) for index in generator.choice(count, size=wanted, replace=False))
