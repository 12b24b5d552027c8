"""The RL loop: roll out, score, estimate advantages, update the adapter, publish it; repeat.

What is left out of it on purpose: profiling, retries, timers of parts and progress live in the pool, the scorer, the
run and the view; the stages around it (base evaluation, SFT, summary) are in `launch.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from rlft.batch import collate, minibatches
from rlft.checkpoint import Snapshot
from rlft.config import RunConfig
from rlft.learner import Learner
from rlft.metrics import describe
from rlft.reward.scoring import Scorer
from rlft.rollout.episode import make_chunks
from rlft.rollout.pool import RolloutPool
from rlft.run import Run
from rlft.tasks import tasks_of_step
from rlft.types import Adapter, Batch, Failed, Group, Metrics, SamplingParams, Task
from rlft.view import View

AfterStep = Callable[[int, Adapter], None]


def train_rl(
    run: Run,
    learner: Learner,
    pool: RolloutPool,
    scorer: Scorer,
    tasks: Sequence[Task],
    *,
    start: int,
    view: View,
    after_step: AfterStep,
) -> None:
    """Train from step `start` + 1 to the last one.

    Args:
        start: steps that the learner already has behind it.
        after_step: called with (step, adapter) once a step's adapter is published; evaluates and saves.

    Raises:
        RuntimeError: too many samples failed to be scored, or engine and learner disagree about log-probs.
    """
    config = run.config
    adapter = learner.adapter(version=start)
    pool.publish(adapter)
    for step in range(start + 1, config.steps + 1):
        clock = _Clock()
        chunks = make_chunks(
            tasks_of_step(tasks, step=step, count=config.tasks_per_step, seed=config.seed),
            tasks_per_chunk=config.rollout.tasks_per_chunk,
            samples_per_task=config.samples_per_task,
            params=SamplingParams(
                temperature=config.sampling.temperature,
                top_p=config.sampling.top_p,
                max_new_tokens=config.sampling.max_new_tokens,
            ),
            run_seed=config.seed,
            stream="train",
            step=step,
            version=adapter.version,
        )
        groups = pool.run(chunks, view.rollout)
        clock.lap("rollout")
        groups = scorer.score(groups)
        clock.lap("score")
        metrics = describe(groups)
        refuse_wrong_stamps(groups, adapter)
        refuse_failures(run, step, groups)

        batch = learner.annotate(collate(groups))
        run.write_rollouts(step, groups, sequence_means(batch))
        for minibatch in minibatches(batch, config.updates_per_step):
            if not has_gradient(config, minibatch):
                run.event("no_signal", "all groups have equal rewards; no update was made", step=step)
                continue
            metrics |= learner.update(minibatch)
            refuse_mismatch(config, step, metrics)
            if metrics["policy/skipped"]:
                run.event("update_skipped", "loss or gradient not finite; parameters unchanged", step=step)
        metrics["policy/updates"] = float(learner.num_updates)
        clock.lap("learn")

        adapter = learner.adapter(version=step)
        pool.publish(adapter)
        clock.lap("publish")
        metrics |= clock.metrics(tokens=metrics["rollout/tokens"])
        run.log(step, metrics)
        view.step(step, metrics)
        after_step(step, adapter)


def snapshot(learner: Learner, step: int) -> Snapshot:
    """Everything that continues after `step`."""
    tensors, numbers = learner.state()
    return Snapshot(step=step, tensors=tensors, state={"learner": numbers})


def restore(learner: Learner, snapshot: Snapshot) -> None:
    """The other way round.

    Raises:
        ValueError: the snapshot belongs to another configuration.
    """
    learner.load_state(snapshot.tensors, snapshot.state["learner"])


def has_gradient(config: RunConfig, batch: Batch) -> bool:
    """Whether the loss depends on the policy: some advantage is not 0, or a KL or entropy term is in the loss.

    Without this Adam's momentum would move the policy on a step that says nothing.
    """
    algorithm = config.algorithm
    assert batch.advantages is not None
    in_loss = algorithm.kl_coef > 0 and algorithm.kl_in == "loss"
    return bool(batch.advantages.any()) or in_loss or algorithm.entropy_coef > 0 or algorithm.needs_critic


def sequence_means(batch: Batch) -> list[float]:
    """Mean advantage of each sequence, for the rollout table."""
    assert batch.advantages is not None
    sums = torch.zeros(batch.num_sequences).index_add(0, batch.sequence_index, batch.advantages)
    return (sums / torch.bincount(batch.sequence_index, minlength=batch.num_sequences).clamp(min=1)).tolist()


def refuse_wrong_stamps(groups: Sequence[Group], adapter: Adapter) -> None:
    """Refuse to train on samples that another adapter made.

    Raises:
        RuntimeError: names the first such sample.
    """
    for group in groups:
        for trajectory in group.trajectories:
            for turn in trajectory.turns:
                if turn.completion.adapter_hash != adapter.hash:
                    raise RuntimeError(
                        f"sample {trajectory.sample_index} of task {group.task.id!r} was made by adapter "
                        f"{turn.completion.adapter_version} ({turn.completion.adapter_hash[:12]}), expected "
                        f"{adapter.version} ({adapter.hash[:12]}): the rollout worker holds the wrong weights"
                    )


def refuse_failures(run: Run, step: int, groups: Sequence[Group]) -> None:
    """Stop when more samples failed to be scored than `scoring.max_failed` allows; keep them first.

    Raises:
        RuntimeError: the share, the first failure and how to reproduce it.
    """
    failures = [t.outcome for group in groups for t in group.trajectories if isinstance(t.outcome, Failed)]
    total = sum(len(group.trajectories) for group in groups)
    if not any(group.scores for group in groups) and not failures:
        run.write_rollouts(step, groups)
        raise RuntimeError(
            f"step {step}: the rewards abstained on all {total} samples, so there is no score to learn "
            "from; let one of "
            f"them score these tasks. All samples are in {run.path / 'rollouts'}."
        )
    if not failures:
        return
    run.event("reward_failed", f"{len(failures)} of {total} samples; first: {failures[0].message}", step=step)
    if len(failures) > run.config.scoring.max_failed * total or not any(group.scores for group in groups):
        run.write_rollouts(step, groups)
        raise RuntimeError(
            f"step {step}: {len(failures)} of {total} samples could not be scored, more than scoring.max_failed="
            f"{run.config.scoring.max_failed} allows. First failure ({failures[0].kind}): {failures[0].message}\n"
            f"Reproduce it with:\n{failures[0].reproduce}\nAll samples are in {run.path / 'rollouts'}."
        )


def refuse_mismatch(config: RunConfig, step: int, metrics: Metrics) -> None:
    """Stop when engine and learner disagree about the log-probs of the same tokens: the engine runs other weights.

    With top_p < 1 the engine samples another distribution on purpose, so nothing can be said.

    Raises:
        RuntimeError: the measured difference and the bound.
    """
    if config.sampling.top_p == 1 and metrics["policy/mismatch"] > config.rollout.max_mismatch:
        raise RuntimeError(
            f"step {step}: engine and learner differ by {metrics['policy/mismatch']:.3f} nats per token on "
            "average, more "
            f"than rollout.max_mismatch={config.rollout.max_mismatch}; the engine does not run the "
            "learner's adapter, or "
            "bfloat16 rounds too coarsely for this model (try model.dtype=float32)"
        )


class _Clock:
    """Seconds of a step's parts."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: Metrics = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[f"time/{name}"] = now - self._last
        self._last = now

    def metrics(self, *, tokens: float) -> Metrics:
        total = time.perf_counter() - self._start
        return {**self._laps, "time/step": total, "time/tokens_per_s": tokens / total}
