"""How often `rlft compare` and `rlft gate` are wrong, and how often they see what is there, on made-up runs.

    python -m tests.compare_rates [--pairs 2000] [--gates 400]

Null pairs: runs that are equal in truth; at most 6 of 100 comparisons may call them different (headline), may call any
other row different (after Holm), and may say that their curves part. Gates: at the sizes that `rlft power` names for a
change of 0.05, a planted loss of 0.05 has to be a regression in at least 80 of 100 and may pass in at most 5, and an
equal candidate may be a regression in at most 5. Exit code 1 if one of these does not hold beyond what the number of
simulations can show.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace

import numpy as np

from rlft.curves.compare import compare
from rlft.curves.gate import gate
from rlft.curves.power import Noise, Size, power, prior_noise, tasks_needed
from tests.synthetic_runs import World, pair

NULLS = {
    "1 against 1, 200 tasks x 1": World(parts=3),
    "1 against 1, 200 tasks x 4": World(samples=4, parts=3),
    "1 against 1, 30 tasks x 1": World(tasks=30, parts=3),
    "3 seeds, 100 tasks": World(tasks=100, seeds=3, seed_sd=0.02, parts=2),
    "4 seeds, 100 tasks": World(tasks=100, seeds=4, seed_sd=0.02, parts=2),
    "5 seeds, 50 tasks x 4, seeds differ widely": World(tasks=50, samples=4, seeds=5, seed_sd=0.06, parts=2),
    "8 seeds, 100 tasks, change helps some, hurts some": World(
        tasks=100, seeds=8, seed_sd=0.02, effect_sd=0.1, parts=2
    ),
}
"""Kinds of equal runs."""
EFFECT = 0.05
_SHAPES = ((1, 1), (1, 4), (1, 8), (5, 4), (8, 1))  # seeds on each side, samples


def null_rates(world: World, pairs: int, seed: int = 0) -> dict[str, float]:
    """Shares of comparisons of equal runs that say what is not so."""
    rng, counts = np.random.default_rng(seed), dict.fromkeys(("headline", "any other", "curves part"), 0)
    for _ in range(pairs):
        result = compare(*pair(world, rng))
        counts["headline"] += result.verdict in ("better", "worse")
        counts["any other"] += any(row.conclusive for row in result.rows)
        counts["curves part"] += result.courses is not None and result.courses.parted is not None
    return {name: count / pairs for name, count in counts.items()}


def named_size(seeds: int, samples: int, noise: Noise | None = None) -> Size:
    """The size that `rlft power --effect 0.05` names for so many seeds and samples."""
    size = Size(seeds=seeds, tasks=1, samples=samples)
    tasks = tasks_needed(noise or prior_noise(EFFECT), EFFECT, size)
    assert tasks
    return replace(size, tasks=tasks)


def gate_rates(size: Size, effect: float, gates: int, seed: int = 0) -> tuple[float, float, float]:
    """Shares of gates that pass, call a regression, and cannot tell, for a candidate that is `effect` better."""
    rng, counts = np.random.default_rng(seed), [0, 0, 0]
    noise = prior_noise(EFFECT)
    world = World(
        tasks=size.tasks,
        samples=size.samples,
        seeds=size.seeds,
        effect=effect,
        effect_sd=noise.effect_sd / 2,  # the ends of [0, 1] add the rest
        seed_sd=noise.seed_sd if size.seeds > 1 else 0.0,
        steps=0,
    )
    for _ in range(gates):
        counts[gate(compare(*pair(world, rng), min_effect=EFFECT), EFFECT).exit_code] += 1
    return counts[0] / gates, counts[1] / gates, counts[2] / gates


def main() -> int:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--gates", type=int, default=1000)
    asked = parser.parse_args()
    wrong = False
    print(f"Of {asked.pairs} comparisons of equal runs, %\n{'':52}{'headline':>10}{'any other':>11}{'curves part':>13}")
    for name, world in NULLS.items():
        rates = null_rates(world, asked.pairs)
        columns = zip(rates.values(), (10, 11, 13), strict=True)
        print(f"{name:52}" + "".join(f"{100 * rate:{width}.1f}" for rate, width in columns), flush=True)
        wrong |= any(rate > 0.06 + (0 if asked.pairs >= 2000 else _slack(0.06, asked.pairs)) for rate in rates.values())
    print(f"\nOf {asked.gates} gates at the size that `rlft power --effect {EFFECT}` names, %")
    print(f"{'':40}{'candidate':>10}{'passes':>8}{'regression':>12}{'cannot tell':>13}{'predicted':>11}")
    for seeds, samples in _SHAPES:
        size = named_size(seeds, samples)
        for effect in (-EFFECT, 0.0):
            passes, found, unknown = gate_rates(size, effect, asked.gates)
            told = f"{power(prior_noise(EFFECT), EFFECT, size):11.0%}" if effect else ""
            name = f"{seeds} against {seeds}, {size.tasks} tasks x {samples}"
            print(f"{name:40}{effect:>10}{100 * passes:8.1f}{100 * found:12.1f}{100 * unknown:13.1f}{told}", flush=True)
            slack = _slack(0.05, asked.gates)
            wrong |= found > 0.05 + slack if not effect else passes > 0.05 + slack
            wrong |= bool(effect) and found < 0.8 - _slack(0.8, asked.gates)
    return int(wrong)


def _slack(rate: float, count: int) -> float:
    """Two standard errors of a simulated rate."""
    return 2 * math.sqrt(rate * (1 - rate) / count)


if __name__ == "__main__":
    sys.exit(main())
