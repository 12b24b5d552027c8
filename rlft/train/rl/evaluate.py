"""Held-out measurement: the mean of every reward over the held-out tasks, with 95 % intervals clustered by task.

One of them is the headline, `evaluation.metric`. It is called accuracy where its values are only 0 and 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from rlft.common.by_path import did_you_mean
from rlft.config import EnvironmentConfig, RunConfig
from rlft.curves.contents import merged, same_tasks
from rlft.curves.statistics import mean_interval
from rlft.reward.outcomes import first_cause
from rlft.reward.scoring import Scorer
from rlft.rollout.chunk import Chunk, make_chunks
from rlft.rollout.pool import RolloutPool
from rlft.rollout.work_queue import OnChunk
from rlft.run.records import Evaluation
from rlft.types import Abstain, Adapter, Failed, Group, SamplingParams, Task, Trajectory


def headline(config: RunConfig, key: str = "evaluation") -> str:
    """Name of the reward or part that the policy is judged by on held-out tasks.

    Args:
        key: the section of the config that says so, for the error.

    Raises:
        ValueError: its `metric` names a reward that the config does not have.
    """
    metric = config.evaluation.metric
    if metric:
        check_metric(config, metric, f"{key}.metric")
    return metric or config.rewards[0].label


def check_metric(config: RunConfig, metric: str, where: str) -> None:
    """Raise ValueError, which says `where`, if a metric names a reward that the config does not have."""
    name, rewards = metric.partition("/")[0], [reward.label for reward in config.rewards]
    if name not in rewards:
        raise ValueError(
            f"{where}: no reward is named {name!r}.{did_you_mean(name, rewards)} "
            f"There are: {', '.join(rewards)}; write NAME, or NAME/PART for a part that it returns"
        )


def answer_heldout(
    config: RunConfig,
    pool: RolloutPool,
    scorer: Scorer,
    tasks: Sequence[Task],
    *,
    version: int,
    environment: EnvironmentConfig | None = None,
    on_chunk: OnChunk | None = None,
) -> list[Group]:
    """Sample and score answers to the first `evaluation.tasks` held-out tasks with the published adapter `version`.

    The samples' seeds do not depend on the step, so that two evaluations differ by the policy alone.

    Args:
        environment: whose episodes the tasks are, if not the run's.

    Raises:
        ValueError: there are no held-out tasks.
    """
    if not tasks:
        raise ValueError("the environment has no held-out tasks to evaluate on")
    return scorer.score(pool.run(heldout_chunks(config, tasks, version=version, environment=environment), on_chunk))


def heldout_chunks(
    config: RunConfig, tasks: Sequence[Task], *, version: int, environment: EnvironmentConfig | None = None
) -> list[Chunk]:
    """Chunks of an evaluation of the adapter `version` on the first `evaluation.tasks` of the held-out tasks."""
    return make_chunks(
        tasks[: config.evaluation.tasks],
        # Evaluation has few samples of each task, so a chunk takes more tasks for the same number of rows.
        tasks_per_chunk=max(
            1, config.rollout.tasks_per_chunk * config.samples_per_task // config.evaluation.samples_per_task
        ),
        samples_per_task=config.evaluation.samples_per_task,
        params=SamplingParams(
            temperature=config.evaluation.temperature,
            top_p=config.evaluation.top_p,
            max_new_tokens=config.sampling.max_new_tokens,
            stop=config.sampling.stop,
        ),
        run_seed=config.seed,
        stream="evaluate",
        step=0,
        version=version,
        environment=environment,
    )


def evaluation(
    config: RunConfig,
    groups: Sequence[Group],
    *,
    adapter: Adapter,
    name: str,
    step: int,
    samples_file: Path | None,
    set_name: str = "",
    is_by_id: bool = False,
) -> Evaluation:
    """What the scored answers of `answer_heldout` say about the adapter that gave them.

    Tasks of equal prompt and answer count as one, however many ids they have.

    Args:
        samples_file: where the samples are kept, for the error; None if they are not.
        set_name: name of the evaluation set, of which `config` is then that of `RunConfig.for_set`.
        is_by_id: count each id as a task, as an earlier rlft did.

    Raises:
        RuntimeError: the metric has no value, or failed on more samples than `scoring.max_failed` allows: a mean over
            the others alone would be a mean over the samples that the reward happens to understand.
    """
    metric = headline(config)
    trajectories = [t for group in groups for t in group.trajectories]
    values = {group.task.id: values_of(group, metric) for group in groups}
    same = {} if is_by_id else same_tasks(groups)
    names = dict.fromkeys(name for t in trajectories for name in t.parts)
    scored = [v for v in merged(values, same).values() if v]
    failures = [failure for t in trajectories if (failure := _failure(t, metric))]
    if not scored or len(failures) > config.scoring.max_failed * len(trajectories):
        told = _told(name, set_name)
        raise RuntimeError(_refusal(config, told, metric, names, trajectories, failures, samples_file))
    return Evaluation(
        name=name,
        step=step,
        adapter_version=adapter.version,
        adapter_hash=adapter.hash,
        metric=metric,
        accuracy=mean_interval(scored),
        failed=len(failures),
        samples=len(trajectories),
        rewards={
            each: mean_interval(merged({group.task.id: values_of(group, each) for group in groups}, same))
            for each in names
        },
        failed_parts=dict(sorted(Counter(part for t in trajectories for part in t.failed_parts).items())),
        length=sum(t.num_actions for t in trajectories) / len(trajectories),
        truncated=sum(t.finish_reason == "length" for t in trajectories) / len(trajectories),
        by_task=values,
        set_name=set_name,
        same=same,
    )


def _told(name: str, set_name: str) -> str:
    return f"{set_name}, {name}" if set_name else name


def _failure(trajectory: Trajectory, metric: str) -> Failed | None:
    """Why the metric has no value; None where it has one, though another reward failed."""
    reward = metric.partition("/")[0]
    if isinstance(trajectory.outcome, Failed) and reward not in trajectory.parts:
        return trajectory.outcome
    return trajectory.failed_parts.get(reward)


def _refusal(
    config: RunConfig,
    name: str,
    metric: str,
    measured: Collection[str],
    trajectories: Sequence[Trajectory],
    failures: Sequence[Failed],
    samples_file: Path | None,
) -> str:
    samples = len(trajectories)
    kept = f" All samples are in {samples_file}." if samples_file else ""
    if not failures and "/" in metric:
        there = f"there are: {', '.join(measured)}" if measured else "no reward has a value"
        return f"evaluation {name}: no sample has the part {metric} of its metric; {there}.{kept}"
    if not failures:
        why = next((f" ({t.outcome.reason})" for t in trajectories if isinstance(t.outcome, Abstain)), "")
        return (
            f"evaluation {name}: {metric} returned None for all {samples} samples, which says that it does not apply "
            f"to them{why}; return a number.{kept}"
        )
    first = first_cause(failures)
    return (
        f"evaluation {name}: {len(failures)} of {samples} samples could not be scored, more than scoring.max_failed="
        f"{config.scoring.max_failed} allows, so the mean of the others says little about the policy. First failure "
        f"({first.kind}): {first.message}\nReproduce it with:\n{first.reproduce}\n{kept.strip()}"
    ).rstrip()


def values_of(group: Group, reward: str) -> list[float]:
    """The value of the named reward or part on each of the group's samples that has one."""
    return [trajectory.parts[reward] for trajectory in group.trajectories if reward in trajectory.parts]
