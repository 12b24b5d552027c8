"""How often the intervals of reward curves hold the truth, and how often differences are conclusive without one.

    make intervals

For each kind of values, number of tasks and of samples per task, many data sets are drawn whose true mean is known.
`given` is the share of them with an interval of the mean, `false` the share whose 95 % interval misses it (one that is
not given says nothing false), `conclusive` the share of paired differences that exclude 0 though there is none, and
`unpaired` that share where the two sides have different tasks. Further tables have the bands of binned steps, the
interquartile mean, 30 looks at one run, and how wide intervals of shares are beside others. Marked with * is what is
false in more than 6 %, or conclusive in more than 5 % (unpaired: 6 %), by more than chance; of the looks any conclusive
one of a run counts, and 6 % of the runs may have one.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from rlft.curves.compare import interquartile_change
from rlft.curves.differences import paired, unpaired
from rlft.curves.looks import Look
from rlft.curves.series import Series, bins
from rlft.curves.statistics import mean_interval, t_interval

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
    unpaired: float
    """The same of two sides with different tasks."""
    draws: int

    @property
    def is_wrong(self) -> bool:
        """Whether more is false than may be, by more than three standard errors of the simulation."""
        apart = max(self.false, self.unpaired)
        return is_above(apart, 0.06, self.draws) or is_above(self.conclusive, 0.05, self.draws)


def is_above(share: float, most: float, draws: int) -> bool:
    """Whether a share of simulations is above what it may be by more than three of their standard errors."""
    return share > most + 3 * math.sqrt(0.05 * 0.95 / draws)


def simulate(kind: Kind, tasks: int, samples: int, draws: int, seed: int = 0) -> Result:
    """Draw data sets with a second set of the same tasks each, and differences that are as skewed as the values."""
    rng = np.random.default_rng([seed, tasks, samples, *kind.name.encode()])
    other = np.random.default_rng([seed + 1, tasks, samples, *kind.name.encode()])
    given = false = conclusive = apart = 0
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
        change = unpaired(first, kind.draw(other, tasks, samples).tolist())
        apart += change.low > 0 or change.high < 0
    shares = given / draws, false / draws, conclusive / (2 * draws), apart / draws
    return Result(kind.name, tasks, samples, *shares, draws)


def table(draws: int) -> Iterator[Result]:
    """All kinds, numbers of tasks and of samples."""
    for kind in KINDS:
        for tasks in TASKS:
            for samples in SAMPLES:
                yield simulate(kind, tasks, samples, draws)


BIN_MEANS, BIN_STEPS = (0.002, 0.01, 0.03, 0.1, 0.5, 0.9, 0.97), (4, 5, 8, 17)
LOOKS = 30
LOOKED_AT = ("0/1, 0.1, tasks differ", "0/1, 0.5, tasks differ", "Student's t, 3")


def missed_by_bins(mean: float, steps: int, spread: float, draws: int, tasks: int = 16, samples: int = 8) -> float:
    """How often the band of a bin of steps with 0/1 rewards misses their mean, of at least `draws` bins."""
    rng, draw = np.random.default_rng([steps, *repr((mean, spread)).encode()]), _shares(mean, spread)
    missed = seen = 0
    while seen < draws:
        own = [mean_interval(draw(rng, tasks, samples).tolist()) for _ in range(60 * steps)]
        course = Series(
            steps=range(len(own)), values=[each.mean for each in own], bounds=[(each.low, each.high) for each in own]
        )
        intervals = [each.interval for each in bins(course)]
        seen += len(intervals)
        missed += sum(not (each.low <= mean <= each.high) for each in intervals)
    return missed / seen


def moved_middle(kind: Kind, tasks: int, samples: int, draws: int) -> float:
    """How often the change of the interquartile mean between two evaluations of one policy excludes 0."""
    rng = np.random.default_rng([tasks, samples, *kind.name.encode()])
    excludes = 0
    for _ in range(draws):
        values = kind.draw(rng, tasks, 2 * samples)
        found = interquartile_change(values[:, :samples].mean(axis=1), values[:, samples:].mean(axis=1), 0.95)
        excludes += found is not None and not found[2].low <= 0 <= found[2].high
    return excludes / draws


def ever_conclusive(kind: Kind, runs: int, *, is_spent: bool = True, tasks: int = 60) -> float:
    """How many runs in which nothing changes have a conclusive look among 30.

    Args:
        is_spent: whether the looks share one error, as they do in reports, or have 5 % each.
    """
    rng = np.random.default_rng([tasks, runs, *kind.name.encode()])
    ever = 0
    for _ in range(runs):
        values = kind.draw(rng, tasks, LOOKS + 1)
        before, *later = ({f"t{i}": [value] for i, value in enumerate(look)} for look in values.T.tolist())
        levels = [Look(number=i + 1, planned=LOOKS).level if is_spent else 0.95 for i in range(LOOKS)]
        ever += any(paired(before, after, level).conclusive for after, level in zip(later, levels, strict=True))
    return ever / runs


def widths(mean: float, spread: float, draws: int, tasks: int = 16, samples: int = 8) -> dict[str, tuple[float, float]]:
    """Coverage and mean width of ours, plain t and Wilson at the effective size, for 0/1 values of tasks.

    The effective size is the number of independent samples whose mean varies as much as that of the task means does.
    """
    rng, draw = np.random.default_rng([tasks, samples, *repr((mean, spread)).encode()]), _shares(mean, spread)
    held, wide = dict.fromkeys(("ours", "plain t", "Wilson"), 0), dict.fromkeys(("ours", "plain t", "Wilson"), 0.0)
    for _ in range(draws):
        values = draw(rng, tasks, samples)
        means = values.mean(axis=1)
        share, variance = float(means.mean()), float(means.var(ddof=1)) / tasks
        size = share * (1 - share) / variance if variance else float(values.size)
        ours, plain = mean_interval(values.tolist()), t_interval(means.tolist())
        ends = {
            "ours": (ours.low, ours.high),
            "plain t": (plain.low, plain.high) if plain.bounded else (share, share),
            "Wilson": _wilson(share, size),
        }
        for name, (low, high) in ends.items():
            held[name] += low <= mean <= high
            wide[name] += high - low
    return {name: (held[name] / draws, wide[name] / draws) for name in held}


def _wilson(share: float, size: float) -> tuple[float, float]:
    """https://doi.org/10.1080/01621459.1927.10502953."""
    z = 1.959964
    center = (share + z**2 / 2 / size) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * math.sqrt(share * (1 - share) / size + z**2 / 4 / size**2)
    return center - half, center + half


def main() -> int:
    """Print the tables; 1 if anything in them is worse than promised."""
    wrong = rows = 0
    print(f"{'values':26} {'tasks':>5} {'samples':>7} {'given':>7} {'false':>7} {'conclusive':>10} {'unpaired':>9}")
    for row in table(draws=2000):
        wrong, rows = wrong + row.is_wrong, rows + 1
        numbers = f"{row.given:7.3f} {row.false:7.3f} {row.conclusive:10.3f} {row.unpaired:9.3f}"
        print(f"{row.kind:26} {row.tasks:5} {row.samples:7} {numbers}{' *' if row.is_wrong else ''}", flush=True)

    def say(what: str, share: float, most: float, draws: int) -> None:
        nonlocal wrong, rows
        is_wrong = is_above(share, most, draws)
        wrong, rows = wrong + is_wrong, rows + 1
        print(f"{what:60} {share:7.3f}{' *' if is_wrong else ''}", flush=True)

    for spread, how in ((0.0, "alike"), (1.0, "tasks differ")):
        for mean in BIN_MEANS:
            for steps in BIN_STEPS:
                what = f"band of {steps} steps, 16 tasks x 8, 0/1, {mean:g}, {how}"
                say(what, missed_by_bins(mean, steps, spread, 2000), 0.06, 2000)
    for kind in KINDS:
        for tasks in (20, 50, 250):
            what = f"interquartile mean, {tasks} tasks x 8, {kind.name}"
            say(what, moved_middle(kind, tasks, 8, 1000), 0.06, 1000)
    for kind in (each for each in KINDS if each.name in LOOKED_AT):
        for tasks in (60, 250):
            what = f"any of {LOOKS} looks, {tasks} tasks, {kind.name}"
            say(what, ever_conclusive(kind, 1000, tasks=tasks), 0.06, 1000)
    for mean in (0.5, 0.1):
        for spread, how in ((0.0, "alike"), (1.0, "tasks differ")):
            for name, (held, width) in widths(mean, spread, 4000).items():
                print(f"{name:8} 16 tasks x 8, 0/1, {mean:g}, {how:14} holds {held:.3f}, width {width:.3f}", flush=True)
    print(f"{wrong} of {rows} rows are worse than promised")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
