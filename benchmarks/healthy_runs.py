"""Metrics of healthy runs, made up: rising rewards, noise that neighbouring steps share, every kind of ordinary course.

They are what the alarms' false-alarm rate is measured on, so they vary what real runs vary: how fast the reward rises
and whether it is done early, how noisy it is, how far entropy falls meanwhile, whether KL and length grow, how many
groups are solved in the end.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def healthy_rows(steps: int, seed: int) -> list[dict[str, float]]:
    """The metrics of one healthy run, by step."""
    random = np.random.default_rng([steps, seed])
    at = np.arange(1, steps + 1) / steps
    skill = _rise(at, random)
    memory = float(random.uniform(0, 0.8))

    def noise(scale: float | Floats) -> Floats:
        """Autoregressive noise of a standard deviation, with the run's memory."""
        free = random.standard_normal(steps) * np.sqrt(1 - memory**2)
        values = np.empty(steps)
        values[0] = random.standard_normal()
        for index in range(1, steps):
            values[index] = memory * values[index - 1] + free[index]
        return scale * values

    low, high = float(random.uniform(0.0, 0.4)), float(random.uniform(0.5, 0.98))
    wanted = low + (high - low) * skill
    tasks = int(random.choice([8, 16, 64]))
    samples = int(random.choice([4, 8, 16]))
    # Tasks differ in difficulty, so that the noise of a step's mean is more than that of its samples.
    spread = np.sqrt(np.maximum(wanted * (1 - wanted), 0.003))
    reward = np.clip(wanted + noise(spread * np.sqrt(0.4 / tasks + 0.6 / (tasks * samples))), 0, 1)
    chance = np.clip(reward, 0.001, 0.999)
    mixed = float(random.uniform(0.55, 0.9))
    with_signal = np.clip(mixed * (1 - chance**samples - (1 - chance) ** samples) + noise(0.04), 0, 1)
    solved_all = np.clip((1 - with_signal) * chance + noise(0.01), 0, 1)

    entropy_end = float(random.uniform(0.25, 0.9))
    entropy = float(random.uniform(0.2, 2.5)) * (1 - (1 - entropy_end) * skill) * np.exp(noise(0.06))
    drift = float(random.uniform(0.0, 0.6))
    kl = float(random.uniform(0.01, 0.3)) * (skill + drift * at) * np.exp(noise(0.1)) + 1e-4
    longer = float(random.uniform(0.6, 1.45))
    length = float(random.uniform(30, 800)) * (1 + (longer - 1) * skill) * np.exp(noise(0.03))
    cut = np.clip(float(random.uniform(0, 0.1)) * (1 - 0.5 * skill) + noise(0.01), 0, 1)
    shape = np.clip(0.4 + 0.55 * (1 - np.exp(-at * float(random.uniform(5, 30)))) + noise(0.02), 0, 1)
    grad = float(random.uniform(0.1, 2)) * np.exp(noise(0.35)) * (1 - 0.5 * at)
    clipped = np.clip(float(random.uniform(0.0, 0.1)) * (1 + 0.3 * at) + noise(0.01), 0, 1)
    seconds = float(random.uniform(5, 100)) * (0.4 + 0.6 * length / length[0]) * np.exp(noise(0.05))
    repeated = np.clip(float(random.uniform(0, 0.15)) + noise(0.01), 0, 1)
    same = np.clip(float(random.uniform(0, 0.3)) + 0.4 * (1 - entropy_end) * skill + noise(0.03), 0, 1)
    explained = np.clip(0.6 * skill + noise(0.08), -1, 1)
    observed = np.clip(0.1 + 0.7 * wanted + noise(0.03), 0, 1)
    columns: dict[str, Floats] = {
        "reward/mean": reward,
        "reward/std": spread,
        "reward/part/answer": np.clip(reward + noise(0.01), 0, 1),
        "reward/part/shape": shape,
        "reward/part/observed": observed,
        "groups/with_signal": with_signal,
        "groups/solved_all": solved_all,
        "policy/entropy": entropy,
        "policy/kl_ref": kl,
        "policy/grad_norm": grad,
        "policy/clip_fraction": clipped,
        "policy/mismatch": float(random.uniform(1e-6, 0.02)) * np.exp(noise(0.1)),
        "critic/explained_variance": explained,
        "rollout/length": length,
        "rollout/truncated": cut,
        "rollout/repetition": repeated,
        "rollout/duplicates": same,
        "time/step": seconds,
        "time/tokens_per_s": tasks * samples * length / seconds,
    }
    return [
        {"step": step + 1, **{name: float(column[step]) for name, column in columns.items()}} for step in range(steps)
    ]


def _rise(at: Floats, random: np.random.Generator) -> Floats:
    """From 0 to about 1: an exponential approach, an S, a straight line, or one that is done after a third."""
    kind = int(random.integers(4))
    if kind == 0:
        return 1 - np.exp(-at * float(random.uniform(2, 6)))
    if kind == 1:
        return 1 / (1 + np.exp(-float(random.uniform(6, 14)) * (at - float(random.uniform(0.25, 0.6)))))
    if kind == 2:
        return at.copy()
    return np.minimum(1.0, at * float(random.uniform(2, 4)))
