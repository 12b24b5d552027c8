"""Held-out accuracy: the mean of one reward over the held-out tasks, with a 95 % interval clustered by task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from rlft.config import RunConfig
from rlft.curves.statistics import accuracy_interval
from rlft.reward.scoring import Scorer
from rlft.rollout.chunk import make_chunks
from rlft.rollout.pool import RolloutPool
from rlft.rollout.work_queue import OnChunk
from rlft.types import Adapter, Failed, Group, SamplingParams, Score, Task


def evaluate(
    config: RunConfig,
    pool: RolloutPool,
    scorer: Scorer,
    tasks: Sequence[Task],
    *,
    adapter: Adapter,
    name: str,
    step: int,
    on_chunk: OnChunk | None = None,
) -> tuple[dict[str, Any], list[Group]]:
    """Measure the published adapter on held-out tasks.

    The samples' seeds do not depend on the step, so that two evaluations differ by the policy alone.

    Returns:
        (the result as `evals/NAME.json` holds it, the scored groups). Failed samples are counted (`failed`) and absent
        from the mean; `failed_parts` counts the failures of each reward, also of one that has no weight.

    Raises:
        ValueError: no held-out tasks, or none of the samples has a score.
    """
    if not tasks:
        raise ValueError("the environment has no held-out tasks to evaluate on")
    chunks = make_chunks(
        tasks[: config.evaluation.tasks],
        # Evaluation has few samples of each task, so a chunk takes more tasks for the same number of rows.
        tasks_per_chunk=max(
            1, config.rollout.tasks_per_chunk * config.samples_per_task // config.evaluation.samples_per_task
        ),
        samples_per_task=config.evaluation.samples_per_task,
        params=SamplingParams(
            temperature=config.evaluation.temperature,
            top_p=1.0,
            max_new_tokens=config.sampling.max_new_tokens,
            stop=config.sampling.stop,
        ),
        run_seed=config.seed,
        stream="evaluate",
        step=0,
        version=adapter.version,
    )
    groups = scorer.score(pool.run(chunks, on_chunk))
    metric = config.rewards[0].label
    values = {group.task.id: accuracies(group, metric) for group in groups}
    scored = [v for v in values.values() if v]
    trajectories = [t for group in groups for t in group.trajectories]
    failures = [t.outcome for t in trajectories if isinstance(t.outcome, Failed)]
    failed_parts = Counter(name for t in trajectories for name in t.failed_parts)
    if not scored:
        of_metric = [t.failed_parts[metric] for t in trajectories if metric in t.failed_parts]
        reason = "".join(f": {failure.message}" for failure in [*failures, *of_metric][:1])
        raise ValueError(f"none of the {len(trajectories)} evaluation samples has a score{reason}")
    return {
        "name": name,
        "step": step,
        "adapter_version": adapter.version,
        "adapter_hash": adapter.hash,
        "metric": metric,
        "accuracy": accuracy_interval(scored).as_dict(),
        "failed": len(failures),
        **({"failed_parts": dict(sorted(failed_parts.items()))} if failed_parts else {}),
        "length": sum(t.num_actions for t in trajectories) / len(trajectories),
        "truncated": sum(t.finish_reason == "length" for t in trajectories) / len(trajectories),
        "by_task": values,
    }, groups


def accuracies(group: Group, reward: str) -> list[float]:
    """The named reward's value on each of the group's samples that has one."""
    return [
        trajectory.outcome.parts[reward]
        for trajectory in group.trajectories
        if isinstance(trajectory.outcome, Score) and reward in trajectory.outcome.parts
    ]
