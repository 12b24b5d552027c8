"""How difficult a config's training tasks are for the policy that RL would start from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from rlft.common.files import write_file
from rlft.config import RunConfig
from rlft.curves.live_panel import View
from rlft.environment import loading
from rlft.model.adapter import bare_base, make_adapter
from rlft.model.starting_point import resolve_model, start_tensors
from rlft.rollout.chunk import make_chunks
from rlft.rollout.context import fit
from rlft.rollout.engines.by_name import check_engine
from rlft.train.rl.evaluate import headline, values_of
from rlft.train.rl.rollouts import sampling_params
from rlft.train.rl.services import make_scorer, services
from rlft.types import Group


def measure(config: RunConfig, *, samples: int, tasks: int, out: Path) -> dict[str, Any]:
    """Sample the training tasks as training would and write how often each fails.

    The policy is the base model, or the adapter that `adapter.start` names.

    Args:
        samples: completions per task.
        tasks: the first ones only; 0 measures all.
        out: JSON lines of `id`, `difficulty` and `samples`, which `environment.args.difficulty_file` takes.

    Returns:
        `metric`, the reward or part that counts (`evaluation.metric`, or else the first reward); how many tasks there
        are of which kind, and the mean of their `difficulties`.

    Raises:
        ValueError: something in the config cannot work, or no sample has a score.
    """
    if samples < 1 or tasks < 0:
        raise ValueError("--samples must be at least 1, and --tasks 0 (all) or more")
    if config.learner_rewards:
        raise ValueError(
            f"reward {config.learner_rewards[0].path} is scored on a learner, which is not there; measure with "
            "rewards.reward_model:reward_model instead"
        )
    metric = headline(config)  # before minutes of sampling, if there is no such reward
    check_engine(config, is_trained=False)
    environment = loading.load(config.environment)
    model_folder = str(resolve_model(config))
    environment, _ = fit(config, environment, model_folder, is_trained=False)
    start = start_tensors(config)
    adapter = bare_base() if start is None else make_adapter(0, start)
    scorer = make_scorer(config, environment, log_dir=None)
    with (
        View(config.name, steps=0) as view,
        services(config, model_folder, scorer, None, view) as pool,
    ):
        pool.publish(adapter)
        view.stage("measuring the training tasks")
        chunks = make_chunks(
            environment.train[: tasks or None],
            tasks_per_chunk=config.rollout.tasks_per_chunk,
            samples_per_task=samples,
            params=sampling_params(config, temperature=config.sampling.temperature),
            run_seed=config.seed,
            stream="measure",
            step=0,
            version=adapter.version,
        )
        groups = scorer.score(pool.run(chunks, view.progress))
    rows = difficulties(groups, metric)
    write_file(out, "".join(json.dumps(row) + "\n" for row in rows).encode())
    values = [row["difficulty"] for row in rows]
    return {
        "metric": metric,
        "tasks": len(groups),
        "unscored": len(groups) - len(rows),
        "never_solved": sum(value == 1 for value in values),
        "always_solved": sum(value == 0 for value in values),
        "mean": fmean(values),
    }


def difficulties(groups: Sequence[Group], reward: str) -> list[dict[str, Any]]:
    """`id`, `difficulty` and `samples` of each task, easiest first.

    The difficulty is (best - mean) / (best - worst), where best and worst are the reward's bounds: 1 and 0, or what was
    seen beyond them. With rewards of 0 and 1 it is the share of samples that failed.

    Raises:
        ValueError: no sample has a score.
    """
    values = {group.task.id: values_of(group, reward) for group in groups}
    seen = [value for scores in values.values() for value in scores]
    if not seen:
        raise ValueError(f"none of the samples has a score of {reward!r}, so nothing was measured")
    best, worst = max(1.0, *seen), min(0.0, *seen)
    rows = [
        {"id": task_id, "difficulty": round((best - fmean(scores)) / (best - worst), 6), "samples": len(scores)}
        for task_id, scores in values.items()
        if scores
    ]
    return sorted(rows, key=lambda row: row["difficulty"])
