"""How often the intervals of reward curves hold the truth, and how often differences are conclusive without one.

    make intervals

For each kind of values, number of tasks and of samples per task, many data sets are drawn whose true mean is known.
`given` is the share of them with an interval of the mean, `false` the share whose 95 % interval misses it (one that is
not given says nothing false), `conclusive` the share of paired differences that exclude 0 though there is none. Marked
with * is what is false in more than 6 %, or conclusive in more than 5 %, by more than chance.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rlft.curves.differences import paired
from rlft.curves.statistics import mean_interval

Draw: TypeAlias = Callable[[np.random.Generator, int, int], NDArray[np.float64]]
"""(generator, tasks, samples) to values (tasks, samples)."""


class Kind(NamedTuple):
    """A kind of values."""

    name: str
    mean: float
    draw: Draw


def _shares(mean: float, spread: float) -> Draw:
    """0/1 values whose chance differs between tasks; with spread 0 it is the same, with infinity 0 or 1."""

    def draw(rng: np.random.Generator, tasks: int, samples: int) -> NDArray[np.float64]:
        if spread == 0:
            chance = np.full(tasks, mean)
        elif math.isinf(spread):
            chance = (rng.random(tasks) < mean).astype(float)
        else:
            chance = rng.beta(mean / spread, (1 - mean) / spread, tasks)
        return (rng.random((tasks, samples)) < chance[:, None]).astype(float)

    return draw


def _normal(rng: np.random.Generator, tasks: int, samples: int) -> NDArray[np.float64]:
    """Half of the variance lies between tasks and half within them."""
    return rng.standard_normal((tasks, 1)) + rng.standard_normal((tasks, samples))


def _mostly(common: float, rare: float, chance: float) -> Kind:
    """One value mostly, another one rarely."""
    return Kind(
        f"{common:g}, in {100 * chance:g} % {rare:g}",
        common * (1 - chance) + rare * chance,
        lambda rng, tasks, samples: np.where(rng.random((tasks, samples)) < chance, rare, common),
    )


KINDS = (
    *(Kind(f"0/1, {p:g}, alike", p, _shares(p, 0)) for p in (0.01, 0.1, 0.5, 0.97)),
    *(Kind(f"0/1, {p:g}, tasks differ", p, _shares(p, 1.0)) for p in (0.03, 0.1, 0.5)),
    *(Kind(f"0/1, {p:g}, by task", p, _shares(p, math.inf)) for p in (0.03, 0.9)),
    Kind("uniform", 0.5, lambda rng, tasks, samples: rng.random((tasks, samples))),
    Kind("beta(5, 1)", 5 / 6, lambda rng, tasks, samples: rng.beta(5, 1, (tasks, samples))),
    Kind(
        "zero-inflated in [0, 1]",
        0.05,
        lambda rng, tasks, samples: (rng.random((tasks, 1)) < 0.1) * rng.random((tasks, samples)),
    ),
    _mostly(0.5, 0.0, 0.01),
    Kind("normal", 0.0, _normal),
    Kind("exponential", 1.0, lambda rng, tasks, samples: rng.exponential(size=(tasks, samples))),
    Kind(
        "lognormal",
        math.exp(0.5),
        lambda rng, tasks, samples: np.exp(rng.standard_normal((tasks, 1))).repeat(samples, 1),
    ),
    Kind("Student's t, 3", 0.0, lambda rng, tasks, samples: rng.standard_t(3, (tasks, samples))),
    Kind(
        "zero-inflated lognormal",
        0.2 * math.exp(0.5),
        lambda rng, tasks, samples: (
            (rng.random((tasks, samples)) < 0.2) * np.exp(rng.standard_normal((tasks, samples)))
        ),
    ),
    _mostly(0.1, -9.9, 0.01),
)
TASKS, SAMPLES = (4, 8, 16, 50, 250), (1, 8)


class Result(NamedTuple):
    """What was seen of one kind of values."""

    kind: str
    tasks: int
    samples: int
    given: float
    """Share of the data sets with an interval."""
    false: float
    """Share of the data sets with an interval that misses the mean."""
    conclusive: float
    """Share of the pairs that are conclusive without a difference."""
    draws: int

    @property
    def is_wrong(self) -> bool:
        """Whether more is false than may be, by more than three standard errors of the simulation."""
        slack = 3 * math.sqrt(0.05 * 0.95 / self.draws)
        return self.false > 0.06 + slack or self.conclusive > 0.05 + slack


def simulate(kind: Kind, tasks: int, samples: int, draws: int, seed: int = 0) -> Result:
    """Draw data sets with a second set of the same tasks each, and differences that are as skewed as the values."""
    rng = np.random.default_rng([seed, tasks, samples, *kind.name.encode()])
    given = false = conclusive = 0
    for _ in range(draws):
        values = kind.draw(rng, tasks, 2 * samples)
        first, last = values[:, :samples].tolist(), values[:, samples:].tolist()
        interval = mean_interval(first)
        given += interval.bounded
        false += interval.bounded and not interval.low <= kind.mean + 1e-12 <= interval.high + 2e-12
        conclusive += paired(dict(enumerate(first)), dict(enumerate(last))).conclusive  # type: ignore[arg-type]
        skewed = kind.mean - np.asarray(first)
        zero = {task: [0.0] for task in range(tasks)}
        shifted = {task: [float(row.mean())] for task, row in enumerate(skewed)}
        conclusive += paired(zero, shifted).conclusive  # type: ignore[arg-type]
    return Result(kind.name, tasks, samples, given / draws, false / draws, conclusive / (2 * draws), draws)


def table(draws: int) -> Iterator[Result]:
    """All kinds, numbers of tasks and of samples."""
    for kind in KINDS:
        for tasks in TASKS:
            for samples in SAMPLES:
                yield simulate(kind, tasks, samples, draws)


def main() -> int:
    """Print the table; 1 if anything in it is worse than promised."""
    wrong = 0
    print(f"{'values':26} {'tasks':>5} {'samples':>7} {'given':>7} {'false':>7} {'conclusive':>10}")
    for row in table(draws=2000):
        wrong += row.is_wrong
        numbers = f"{row.given:7.3f} {row.false:7.3f} {row.conclusive:10.3f}{' *' if row.is_wrong else ''}"
        print(f"{row.kind:26} {row.tasks:5} {row.samples:7} {numbers}", flush=True)
    print(f"{wrong} of {len(KINDS) * len(TASKS) * len(SAMPLES)} rows are worse than promised")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
