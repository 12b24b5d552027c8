"""How many seeds, tasks and samples a comparison needs to see a change of a given size.

What stands in the way is the noise of a task's samples, tasks that gain more or less than others, and seeds that end
higher or lower. Tasks are paired, so how hard they are does not matter. For a run against a run, the variance of the
difference is (2 within / samples + effect_sd^2) / tasks; for groups of seeds, each run adds a share of seed_sd^2 +
within / (samples * tasks), and the tasks' effect_sd^2 / tasks stays, however many seeds there are.

The numbers are those of the tests that `rlft compare` makes, checked against simulation by `make compare-rates`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations
from typing import Any

from rlft.curves.scored_run import ScoredRun
from rlft.curves.seeds import least_p

PRIOR = (0.8, 0.8)
"""Beta distribution of how often a task is solved, over tasks: many are nearly always or nearly never solved."""
POWER = 0.8
"""Share of the comparisons that should see a change that is there."""
SEED_SD = 0.02
"""Spread of a run's score from seed to seed where nothing is known of it."""
MOST_TASKS, MOST_SEEDS = 100_000, 64
_ALL_PERMUTED = 7  # seeds per group up to which the permutation test is what decides


@dataclass(frozen=True, slots=True, kw_only=True)
class Noise:
    """What hides a change."""

    within: float
    """Variance of one sample of a task, averaged over tasks: p (1 - p) for 0/1 rewards."""
    effect_sd: float
    """Spread over tasks of what the change does to them."""
    seed_sd: float = SEED_SD
    """Spread of a run's score over seeds, its sampling noise taken off."""
    is_greedy: bool = False
    """Whether all samples of a task are the same, so that more of them tell nothing."""
    is_share: bool = True
    """Whether values lie within 0 and 1."""
    sources: tuple[str, ...] = ()
    """Where each of them comes from, in words."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured."""

    seeds: int = 1
    """Runs on each side; 1 is one policy against another."""
    tasks: int
    """Held-out tasks."""
    samples: int = 1
    """Completions of each."""


def prior_noise(effect: float, *, seed_sd: float = SEED_SD, is_greedy: bool = False) -> Noise:
    """The noise of 0/1 rewards on tasks of `PRIOR` difficulty, whose gains are spread as widely as their mean.

    Of a task that is solved with probability p, a sample has the variance p (1 - p). The other side's p is taken to be
    smaller in proportion, by `effect` on average, which moves tasks away from the end at which there is no noise.
    """
    a, b = PRIOR
    mean = a / (a + b)
    square = mean * (a + 1) / (a + b + 1)
    kept = 1 - min(abs(effect) / mean, 1.0)
    within = ((mean - square) + (kept * mean - kept**2 * square)) / 2
    told = (
        f"difficulty of tasks: Beta({a}, {b}), 0/1 rewards (assumed; --run RUN measures it)",
        f"spread of the gain over tasks: {abs(effect):.3g} (assumed)",
        f"spread between seeds: {seed_sd:.3g} (assumed; --run of several seeds measures it, --seed-sd sets it)",
    )
    return Noise(within=within, effect_sd=abs(effect), seed_sd=seed_sd, is_greedy=is_greedy, sources=told)


def measured_noise(
    effect: float,
    runs: Sequence[ScoredRun],
    starts: Sequence[ScoredRun] = (),
    *,
    seed_sd: float | None = None,
    is_greedy: bool = False,
) -> Noise:
    """The noise as stored evaluations of runs show it; what they cannot show is assumed, and `sources` says so.

    Args:
        effect: the change that is to be seen.
        runs: last evaluations of runs of one config, one for each seed.
        starts: an evaluation of the same tasks before training, of each of the runs; empty if there is none.
        seed_sd: spread between seeds; None measures it where there are several runs.
        is_greedy: whether the evaluation takes the most probable token each time.
    """
    assumed = prior_noise(effect, seed_sd=SEED_SD if seed_sd is None else seed_sd, is_greedy=is_greedy)
    told = list(assumed.sources)
    within, spread = _within(runs)
    names = runs[0].name if len(runs) == 1 else f"{runs[0].name} to {runs[-1].name}"
    flat = [value for run in runs for values in run.values.values() for value in values]
    if not flat:
        raise ValueError(f"{runs[0].folder}: no sample of evaluation {runs[0].evaluation} has a value to measure")
    is_share = all(0 <= value <= 1 for value in flat)
    told[0] = f"noise of a sample: variance {within:.3g}, measured in {names}"
    if not spread:
        if not set(flat) <= {0.0, 1.0}:
            within = _variance(flat) / 2
            told[0] = f"noise of a sample: {within:.3g}, half of all spread in {names} (it has one sample of each task)"
        else:
            mean = math.fsum(flat) / len(flat)
            within = mean * (1 - mean) * sum(PRIOR) / (sum(PRIOR) + 1)
            told[0] = f"noise of a sample: {within:.3g}, from the mean {mean:.2f} of {names} (one sample of each task)"
    noise = replace(assumed, within=within, is_share=is_share)
    changes = [_changes(start, run) for start, run in zip(starts, runs, strict=True)] if starts else []
    if spread and changes and len(changes[0][0]) > 1:
        seen = math.fsum(_variance(differences) - error for differences, error in changes) / len(changes)
        mean = abs(math.fsum(d for differences, _ in changes for d in differences)) / sum(len(d) for d, _ in changes)
        of_this_size = math.sqrt(max(0.0, seen)) * min(1.0, abs(effect) / mean if mean else 1.0)
        noise = replace(noise, effect_sd=of_this_size)
        told[1] = f"spread of the gain over tasks: {of_this_size:.3g}, from what training did in {names}"
    if seed_sd is not None:
        told[2] = f"spread between seeds: {seed_sd:.3g} (as given)"
    elif len(runs) > 2:
        scores = [_score(run) for run in runs]
        samples = [sum(map(len, run.values.values())) for run in runs]
        between = math.sqrt(max(0.0, _variance(scores) - within * len(runs) / sum(samples)))
        noise = replace(noise, seed_sd=between)
        told[2] = f"spread between seeds: {between:.3g}, measured over {len(runs)} seeds"
    return replace(noise, sources=tuple(told))


def power(noise: Noise, effect: float, size: Size, level: float = 0.95) -> float:
    """How often a comparison of this size sees a change of `effect`."""
    samples = 1 if noise.is_greedy else size.samples
    if size.tasks < 2:
        return 0.0
    # Intervals of shares count one task more at each end, which are 0 on average, see statistics.mean_interval.
    ends = 2 / size.tasks**2 if noise.is_share else 0.0
    effect = effect * size.tasks / (size.tasks + 2) if noise.is_share else effect
    if size.seeds == 1:
        variance = (2 * noise.within / samples + noise.effect_sd**2) / size.tasks + ends
        return _power_of_t(effect, variance, size.tasks - 1, level)
    if least_p(size.seeds, size.seeds) > 1 - level:
        return 0.0
    noise_of_run = noise.within / samples / size.tasks
    of_seeds = 2 * (noise.seed_sd**2 + noise_of_run) / size.seeds
    # A variance that is measured as below 0 counts as 0, which on average adds a little.
    floor = 0.4 * 2 * noise_of_run / size.seeds * math.sqrt(2 / size.tasks)
    of_tasks = noise.effect_sd**2 / size.tasks + ends + floor
    if size.seeds <= _ALL_PERMUTED:
        return _simulated(size.seeds, math.sqrt(of_seeds) / effect, math.sqrt(of_tasks) / effect, level)
    whole = of_seeds + of_tasks
    freedom = whole**2 / (of_seeds**2 / (2 * size.seeds - 2) + of_tasks**2 / (size.tasks - 1))
    return _power_of_t(effect, whole, freedom, level)


def tasks_needed(noise: Noise, effect: float, size: Size, wanted: float = POWER, level: float = 0.95) -> int | None:
    """Tasks with which the power is as wanted, for the seeds and samples of `size`, rounded up to two digits.

    None beyond `MOST_TASKS`.
    """
    least = _least(lambda n: power(noise, effect, replace(size, tasks=n), level) >= wanted, 2, MOST_TASKS)
    unit = 10 ** max(0, len(str(least)) - 2)
    return None if least is None else math.ceil(least / unit) * unit


def seeds_needed(noise: Noise, effect: float, size: Size, wanted: float = POWER, level: float = 0.95) -> int | None:
    """Fewest seeds on each side for the tasks and samples of `size`; None beyond `MOST_SEEDS`."""
    return _least(lambda n: power(noise, effect, replace(size, seeds=n), level) >= wanted, 2, MOST_SEEDS)


def smallest_effect(noise: Noise, size: Size, wanted: float = POWER, level: float = 0.95) -> float:
    """The smallest change that is seen as often as wanted; infinite where the number of seeds rules it out.

    The spread of the gain over tasks is held at that of `noise`.
    """
    if (size.seeds > 1 and least_p(size.seeds, size.seeds) > 1 - level) or size.tasks < 2:
        return math.inf
    low, high = 0.0, 1.0
    while power(noise, high, size, level) < wanted:
        low, high = high, 2 * high
    while high - low > 0.005 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if power(noise, middle, size, level) >= wanted else (middle, high)
    return high


def _power_of_t(effect: float, variance: float, freedom: float, level: float) -> float:
    from scipy.special import nctdtr, ndtr, stdtrit

    if variance <= 0:
        return 1.0
    limit = float(stdtrit(freedom, 0.5 + level / 2))
    away = abs(effect) / math.sqrt(variance)
    if freedom > 200 or away > 20:  # where the noncentral t is as good as normal, and not always computed
        return float(ndtr(away - limit))
    return 1 - float(nctdtr(freedom, away, limit))


@lru_cache(maxsize=4096)
def _simulated(seeds: int, of_seeds: float, of_tasks: float, level: float) -> float:
    """Power of the permutation test and the interval together, for an effect of 1: what a thousand fixed draws show,
    less two standard errors."""
    import numpy as np
    from scipy.special import stdtrit

    of_runs, of_both, sums_of_runs, from_second = _draws(seeds)
    scale, moved = of_seeds * math.sqrt(seeds / 2), 1 + of_both * of_tasks
    scores = of_runs * scale
    scores[:, seeds:] += moved
    sums = sums_of_runs * scale + moved * from_second
    seen = scores[:, seeds:].sum(axis=1, keepdims=True)
    is_far = 2 * np.mean(sums >= seen - 1e-9, axis=1) <= 1 - level
    error = (scores[:, :seeds].var(axis=1, ddof=1) + scores[:, seeds:].var(axis=1, ddof=1)) / seeds
    whole = error + of_tasks**2
    freedom = whole**2 / (error**2 / (2 * seeds - 2) + 1e-12)
    change = scores[:, seeds:].mean(axis=1) - scores[:, :seeds].mean(axis=1)
    seen_in = float(np.mean(is_far & (change > stdtrit(freedom, 0.5 + level / 2) * np.sqrt(whole))))
    return max(0.0, seen_in - 2 * math.sqrt(seen_in * (1 - seen_in) / len(scores)))


@lru_cache(maxsize=8)
def _draws(seeds: int) -> tuple[Any, Any, Any, Any]:
    """A thousand draws, and every way of dealing the runs out again.

    Returns:
        [1000, 2 seeds] and [1000, 1] normal numbers for runs and for what the second group's runs share; [1000, ways]
        sums of those of each way's second group; [ways] how many of them were in it from the start.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    of_runs, of_both = rng.normal(size=(1000, 2 * seeds)), rng.normal(size=(1000, 1))
    ways = np.array(list(combinations(range(2 * seeds), seeds)))
    table = np.zeros((2 * seeds, len(ways)))
    table[ways.T, np.arange(len(ways))] = 1
    return of_runs, of_both, of_runs @ table, table[seeds:].sum(axis=0)


def _least(is_enough: Callable[[int], bool], low: int, high: int) -> int | None:
    if not is_enough(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle + 1, high)
    return low


def _within(runs: Sequence[ScoredRun]) -> tuple[float, bool]:
    """Variance of samples around their task's mean, and whether any task has two."""
    several = [values for run in runs for values in run.values.values() if len(values) > 1]
    return (math.fsum(map(_variance, several)) / len(several) if several else 0.0), bool(several)


def _changes(start: ScoredRun, run: ScoredRun) -> tuple[list[float], float]:
    """Change of each task's mean, and how much of its variance comes from the samples."""
    common = [task for task, values in run.values.items() if values and start.values.get(task)]
    means = [[math.fsum(each.values[t]) / len(each.values[t]) for t in common] for each in (start, run)]
    error = sum(
        math.fsum(_variance(v) / len(v) for t in common if len(v := each.values[t]) > 1) / max(1, len(common))
        for each in (start, run)
    )
    return [b - a for a, b in zip(*means, strict=True)], error


def _score(run: ScoredRun) -> float:
    means = [math.fsum(values) / len(values) for values in run.values.values() if values]
    return math.fsum(means) / len(means)


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / max(1, len(values) - 1)
