"""How often groups give signal under each order of tasks, with the success rates that a run measured and no learning.

    python -m benchmarks.task_order RUN [STEPS] [SEEDS]

A task's rate is (successes + 1/2) / (samples + 1) over the run's rollouts, and a group has as many samples as the
run's. What an order gains while the policy changes, and whether it learns more, only runs can tell.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rlft.config import RunConfig
from rlft.curves.reading import read_config
from rlft.curves.statistics import mean_interval
from rlft.train.rl.task_choice import TaskChoice
from rlft.types import Completion, Group, Score, Task, Trajectory, Turn

_COMPLETION = Completion(token_ids=(0,), logprobs=(0.0,), finish_reason="stop", adapter_version=0, adapter_hash="")
_TURN = Turn(prompt_ids=(0,), completion=_COMPLETION)


def rates_of(run: Path) -> dict[str, float]:
    """The success rate of each task that a run has sampled."""
    samples, right = Counter[str](), Counter[str]()
    for file in sorted((run / "rollouts").glob("step-*.parquet")):
        for row in pq.read_table(file, columns=["task_id", "reward"], partitioning=None).to_pylist():
            samples[row["task_id"]] += 1
            right[row["task_id"]] += row["reward"] == 1
    return {name: (right[name] + 0.5) / (count + 1) for name, count in sorted(samples.items())}


def shares(config: RunConfig, rates: dict[str, float], steps: int, seed: int) -> list[float]:
    """The share of groups with signal of each step."""
    config = config.model_copy(update={"seed": seed})
    tasks = [Task(id=name, messages=(), columns={"environment": name.partition("/")[0]}) for name in rates]
    choice, found = TaskChoice(config, tasks), []
    generator = np.random.default_rng(seed)
    for step in range(1, steps + 1):
        groups = []
        for task in choice.of_step(step):
            scores = generator.random(config.samples_per_task) < rates[task.id]
            trajectories = tuple(
                Trajectory(
                    task=task, sample_index=i, seed=0, turns=(_TURN,), text="", outcome=Score(value=float(score))
                )
                for i, score in enumerate(scores)
            )
            groups.append(Group(task=task, trajectories=trajectories))
        choice.observe(step, groups)
        found.append(sum(len(set(group.scores)) > 1 for group in groups) / len(groups))
    return found


def main() -> None:
    """Print the table."""
    run = Path(sys.argv[1])
    steps, seeds = (int(text) for text in (*sys.argv[2:], *("60", "20")[len(sys.argv) - 2 :]))
    config, rates = RunConfig.model_validate(read_config(run)), rates_of(run)
    print(
        f"{len(rates)} tasks, {config.samples_per_task} samples of each, {config.tasks_per_step} tasks a step, "
        f"{seeds} seeds"
    )
    for order in ("shuffle", "by_signal"):
        environment = config.environment.model_copy(update={"order": order})
        ordered = config.model_copy(update={"environment": environment})
        found = np.array([shares(ordered, rates, steps, seed) for seed in range(seeds)])
        for first in range(0, steps, 15):
            whole = mean_interval([[float(row.mean())] for row in found[:, first : first + 15]])
            told = f"{whole.mean:.3f} [{whole.low:.3f}, {whole.high:.3f}]"
            print(f"{order:>9}  steps {first + 1:>2} to {first + 15:>2}  {told}")


if __name__ == "__main__":
    main()
