"""Made-up runs of known truth, as `rlft compare` reads them: tasks of Beta(0.8, 0.8) difficulty, seeds that differ."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlft.curves.scored_run import Group, ScoredRun
from rlft.curves.statistics import mean_interval
from tests.fakes_run import rollout, write_json, write_rollouts


@dataclass(frozen=True, kw_only=True)
class World:
    """What made-up runs are like."""

    tasks: int = 200
    samples: int = 1
    seeds: int = 1
    effect: float = 0.0
    """By how much the mean of the second group lies above that of the first, over all tasks that there could be."""
    seed_sd: float = 0.0
    """Spread of a run's score from seed to seed."""
    effect_sd: float = 0.0
    """Spread over tasks of the effect, beyond what the ends of [0, 1] force on it; there without an effect, too."""
    steps: int = 60
    """Training steps; the reward of each is noise around a rising line that is the same for both groups."""
    parts: int = 0
    """Further rewards, measured on samples of their own."""


def shifted(p: np.ndarray, change: np.ndarray | float, mean: float = 0.5) -> np.ndarray:
    """Probabilities whose true mean is `mean`, moved by `change` on average, within [0, 1].

    Moving up, the room above is used in proportion, and that below moving down.
    """
    up = p + np.maximum(change, 0) * (1 - p) / (1 - mean)
    return up - np.maximum(-np.asarray(change), 0) * up / mean


def group(
    label: str, truth: np.ndarray, world: World, rng: np.random.Generator, *, mean: float = 0.5, first: int = 0
) -> Group:
    """Runs of one config: success probabilities [tasks], whose true mean is `mean`, moved by a seed's own luck."""
    runs = []
    for seed in range(world.seeds):
        p = shifted(truth, rng.normal(0, world.seed_sd), mean) if world.seed_sd else truth
        luck = rng.normal(0, 0.03) if world.seed_sd else 0.0
        noise = luck + rng.normal(0, 0.08, world.steps)
        curve = [(step + 1, float(0.5 * step / world.steps + noise[step])) for step in range(world.steps)]
        parts = {f"part{index}": sampled(p, world.samples, rng) for index in range(world.parts)}
        values = sampled(p, world.samples, rng)
        runs.append(run(f"{label}-{first + seed}", values, seed=first + seed, curve=curve, parts=parts))
    return Group(label=label, runs=runs)


def sampled(p: np.ndarray, samples: int, rng: np.random.Generator) -> dict[str, list[float]]:
    """0/1 values of each task, by task id."""
    data = rng.random((len(p), samples)) < np.clip(p, 0, 1)[:, None]
    return {f"t{index}": [float(value) for value in row] for index, row in enumerate(data)}


def run(name: str, values: dict[str, list[float]], **changes: Any) -> ScoredRun:
    """A run with these values; everything else is empty unless given."""
    known: dict[str, Any] = {
        "folder": Path("runs") / name,
        "seed": 0,
        "evaluation": "step-000060",
        "metric": "right",
        "values": values,
        "word": "accuracy",
        "parts": {},
        "contents": {},
        "prompts": {},
        "curve": [],
        "config": {},
    }
    return ScoredRun(**{**known, **changes})


def pair(world: World, rng: np.random.Generator) -> tuple[Group, Group]:
    """Two groups of runs on the same new tasks."""
    difficulty = rng.beta(0.8, 0.8, world.tasks)
    change = world.effect + rng.normal(0, 1, world.tasks) * world.effect_sd
    before, after = difficulty, shifted(difficulty, change)
    return group("base", before, world, rng), group("new", after, world, rng, mean=0.5 + world.effect, first=100)


def write_run(
    folder: Path,
    values: dict[str, list[float | None]],
    *,
    seed: int = 0,
    lr: float = 1e-4,
    prompts: dict[str, str] | None = None,
    rewards: list[float] | None = None,
    evaluation: str = "step-000010",
) -> Path:
    """A run directory with one evaluation of a reward `right`, by task; None is a sample that failed."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = f"name: {folder.name}\nseed: {seed}\nlearner:\n  lr: {lr}\nrewards:\n- path: mine.py:right\n"
    (folder / "config.yaml").write_text(f"{tree}evaluation:\n  tasks: {len(values)}\n", encoding="utf-8")
    known = {task: [v for v in samples if v is not None] for task, samples in values.items()}
    record = {
        "name": evaluation,
        "step": int(evaluation[5:]) if evaluation.startswith("step-") else 0,
        "adapter_version": 10,
        "adapter_hash": "5f3a",
        "metric": "right",
        "accuracy": mean_interval(known).as_dict(),
        "failed": sum(v is None for samples in values.values() for v in samples),
        "samples": sum(map(len, values.values())),
        "length": 10.0,
        "truncated": 0.0,
        "by_task": known,
    }
    write_json(folder / "evals" / f"{evaluation}.json", record)
    rows = [
        rollout(
            10,
            index,
            sample,
            task_id=task,
            prompt=(prompts or {}).get(task, f"What is {task}?"),
            reward=value,
            parts=json.dumps({} if value is None else {"right": value, "brief": 0.5 + value / 4 + index % 3 / 8}),
            outcome="failed" if value is None else "score",
        )
        for index, (task, samples) in enumerate(values.items())
        for sample, value in enumerate(samples)
    ]
    write_rollouts(folder / "evals" / f"{evaluation}.parquet", rows)
    lines = [{"step": step + 1, "reward/mean": reward} for step, reward in enumerate(rewards or [])]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder
