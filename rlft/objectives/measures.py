"""Metrics that can be combined: those of microbatches into an update's, those of updates into a step's.

A measure is a metric together with what it takes to combine it with the same metric of other data. Its class says how
it is combined, and is chosen where the metric is measured, so that no metric is without a rule:

    Mean                 of tokens, sequences or pairs: sums are added, counts are added
    Weighted             a mean that is known as such: weighted by the data behind it
    Largest, Last        the largest value, the latest one
    EffectiveShare       sums of weights and of their squares are added
    ExplainedVariance    moments of values and returns are pooled
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeAlias

from torch import Tensor

from rlft.types import Metrics


class Measure(Protocol):
    """A metric of some data, which can be combined with that of further data."""

    @property
    def value(self) -> float | None:
        """The metric; None where there was nothing to measure."""

    def joined(self, later: Self) -> Self:
        """The measure of these data and of later ones together."""


Measures: TypeAlias = Mapping[str, Measure]
"""Measures by the metric's name, `group/name`."""


@dataclass(frozen=True, slots=True)
class Mean:
    """A mean over things that are counted, such as tokens."""

    total: float
    count: float

    @classmethod
    def of(cls, values: Tensor) -> Mean:
        """The mean of a tensor's elements."""
        return cls(float(values.sum()), values.numel())

    @property
    def value(self) -> float | None:
        """The mean; None if nothing was counted."""
        return self.total / self.count if self.count else None

    def joined(self, later: Mean) -> Mean:
        """The mean over the things of both."""
        return Mean(self.total + later.total, self.count + later.count)


@dataclass(frozen=True, slots=True)
class Weighted:
    """A mean that is known as such, with the weight of the data behind it."""

    value: float
    weight: float

    def joined(self, later: Weighted) -> Weighted:
        """The weighted mean of both."""
        weight = self.weight + later.weight
        return Weighted((self.value * self.weight + later.value * later.weight) / weight, weight)


@dataclass(frozen=True, slots=True)
class Largest:
    """The largest of some values."""

    value: float

    def joined(self, later: Largest) -> Largest:
        """The larger of both."""
        return Largest(max(self.value, later.value))


@dataclass(frozen=True, slots=True)
class Last:
    """A setting that changes between updates, such as the learning rate."""

    value: float

    def joined(self, later: Last) -> Last:
        """The later of both."""
        return later


@dataclass(frozen=True, slots=True)
class EffectiveShare:
    """Effective sample size as a share of the samples: (sum w)^2 / (n sum w^2), 1 for equal weights."""

    total: float
    squares: float
    count: float

    @property
    def value(self) -> float:
        """The share, 0 to 1."""
        return self.total**2 / max(self.count * self.squares, 1e-30)

    def joined(self, later: EffectiveShare) -> EffectiveShare:
        """The share of the samples of both."""
        return EffectiveShare(self.total + later.total, self.squares + later.squares, self.count + later.count)


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and variance of some numbers; the variance is divided by their count."""

    mean: float
    variance: float
    count: int

    @classmethod
    def of(cls, numbers: Tensor) -> Moments:
        """Mean and variance of a tensor with at least one number."""
        return cls(float(numbers.mean()), float(numbers.var(unbiased=False)), numbers.numel())

    def joined(self, other: Moments) -> Moments:
        """Mean and variance of the numbers of both together."""
        count = self.count + other.count
        mean = (self.mean * self.count + other.mean * other.count) / count
        squares = sum(m.count * (m.variance + (m.mean - mean) ** 2) for m in (self, other))
        return Moments(mean, squares / count, count)


@dataclass(frozen=True, slots=True)
class ExplainedVariance:
    """1 - Var(returns - values) / Var(returns); 1 is a perfect critic, 0 one that knows only the mean."""

    value: float
    """The share; 0 where all returns are equal, so that there is nothing to explain."""
    residuals: Moments
    returns: Moments

    @classmethod
    def of(cls, values: Tensor, returns: Tensor) -> ExplainedVariance:
        """The share of the variance of returns, (A,), that a critic's values, (A,), explain."""
        residuals = returns - values
        share = _explained(residuals.var(unbiased=False), returns.var(unbiased=False))
        return cls(share, Moments.of(residuals), Moments.of(returns))

    def joined(self, later: ExplainedVariance) -> ExplainedVariance:
        """The explained share of the returns of both together."""
        residuals, returns = self.residuals.joined(later.residuals), self.returns.joined(later.returns)
        return ExplainedVariance(_explained(residuals.variance, returns.variance), residuals, returns)


def _explained(unexplained: Tensor | float, variance: Tensor | float) -> float:
    return 0.0 if variance == 0 else float(1 - unexplained / variance)


def join(parts: Sequence[Measures]) -> dict[str, Measure]:
    """Combine the measures of all parts, given in the order in which the data came."""
    whole: dict[str, Measure] = {}
    for part in parts:
        for name, measure in part.items():
            whole[name] = whole[name].joined(measure) if name in whole else measure
    return whole


def numbers(measures: Measures) -> Metrics:
    """Make plain metrics of measures; one that had nothing to measure is absent."""
    return {name: value for name, measure in measures.items() if (value := measure.value) is not None}
