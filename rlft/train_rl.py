"""The RL loop: roll out, score, estimate advantages, update the adapter, publish it; repeat.

What is left out of it on purpose: profiling, retries, timers of parts and progress live in the pool, the scorer, the
run and the view; the stages around it (base evaluation, SFT, summary) are in `launch.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from rlft.batch import collate, minibatches
from rlft.checkpoint import Snapshot
from rlft.config import RunConfig
from rlft.metrics import describe, has_signal
from rlft.reward.scoring import Scorer
from rlft.rollout.chunk import make_chunks
from rlft.rollout.pool import RolloutPool
from rlft.run import Run
from rlft.tasks import tasks_of_step
from rlft.types import Adapter, Batch, Failed, Group, Metrics, SamplingParams, Task
from rlft.view import View

AfterStep = Callable[[int, Adapter], None]


class PolicyLearner(Protocol):
    """What the loop needs of a learner; `Learner` says what the methods do."""

    num_updates: int

    def annotate(self, batch: Batch) -> Batch: ...

    def has_gradient(self, batch: Batch) -> bool: ...

    def update(self, batch: Batch) -> Metrics: ...

    def adapter(self, version: int) -> Adapter: ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None: ...


def train_rl(
    run: Run,
    learner: PolicyLearner,
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
    skipped = 0
    for step in range(start + 1, config.steps + 1):
        clock = _Clock()
        rollouts = _Rollouts(run, pool, scorer, tasks, step=step, adapter=adapter, view=view, clock=clock)
        groups, unused = rollouts.with_signal() if config.algorithm.max_refills else (rollouts.round(0), [])
        if config.algorithm.baseline == "greedy":
            groups, unused = rollouts.with_greedy(groups)
        metrics = describe([*groups, *unused]) | {"groups/used": float(len(groups))}

        batch = learner.annotate(collate(groups))
        run.write_rollouts(step, [*groups, *unused], sequence_means(batch))
        for minibatch in minibatches(batch, config.updates_per_step):
            if not learner.has_gradient(minibatch):
                run.event("no_signal", "all groups have equal rewards; no update was made", step=step)
                continue
            update = learner.update(minibatch)
            skipped = skipped + 1 if update["policy/skipped"] else 0
            metrics |= update | {"policy/skipped": max(update["policy/skipped"], metrics.get("policy/skipped", 0.0))}
            if update["policy/skipped"]:
                run.skip(step, minibatch, in_a_row=skipped)
            refuse_mismatch(config, step, update)
        metrics["policy/updates"] = float(learner.num_updates)
        clock.lap("learn")

        adapter = learner.adapter(version=step)
        pool.publish(adapter)
        clock.lap("publish")
        metrics |= clock.metrics(tokens=metrics["rollout/tokens"])
        run.log(step, metrics)
        view.step(step, metrics)
        after_step(step, adapter)


class _Rollouts:
    """A step's scored groups, in as many rounds as the algorithm asks for."""

    def __init__(
        self,
        run: Run,
        pool: RolloutPool,
        scorer: Scorer,
        tasks: Sequence[Task],
        *,
        step: int,
        adapter: Adapter,
        view: View,
        clock: _Clock,
    ) -> None:
        self._run, self._pool, self._scorer, self._tasks = run, pool, scorer, tasks
        self._step, self._adapter, self._view, self._clock = step, adapter, view, clock

    def round(self, number: int, count: int | None = None) -> list[Group]:
        """The first `count` of the round's groups; all of them if not said."""
        config = self._run.config
        tasks = tasks_of_step(
            self._tasks, step=self._step, count=config.tasks_per_step, seed=config.seed, round_number=number
        )
        stream = f"refill-{number}" if number else "train"
        return self._sample(tasks[:count], config.samples_per_task, config.sampling.temperature, stream)

    def with_signal(self) -> tuple[list[Group], list[Group]]:
        """(tasks_per_step groups with different rewards, or as many as the rounds gave, the other groups).

        Dynamic sampling, https://arxiv.org/abs/2503.14476, section 3.2. Where no group has any, all count as used.
        """
        config = self._run.config
        groups: list[Group] = []
        useful: list[Group] = []
        for number in range(1 + config.algorithm.max_refills):
            groups += self.round(number, config.tasks_per_step - len(useful))
            useful = [group for group in groups if has_signal(group)]
            if len(useful) == config.tasks_per_step:
                break
        if not useful:
            return groups, []
        return useful, [group for group in groups if not has_signal(group)]

    def with_greedy(self, groups: Sequence[Group]) -> tuple[list[Group], list[Group]]:
        """(the groups with the reward of the greedy answer, those whose greedy answer could not be scored)."""
        tasks = [group.task for group in groups]
        greedy = self._sample(tasks, samples_per_task=1, temperature=0.0, stream="greedy")
        self._run.write_rollouts(self._step, greedy, kind="greedy")
        scores = [answer.scores[0] if answer.scores else None for answer in greedy]
        paired = [replace(group, greedy_score=score) for group, score in zip(groups, scores, strict=True)]
        if all(score is None for score in scores):
            raise RuntimeError(
                f"step {self._step}: no greedy answer could be scored, and they are the baseline; see "
                f"{self._run.path / 'rollouts'} for what the rewards said"
            )
        return [g for g in paired if g.greedy_score is not None], [g for g in paired if g.greedy_score is None]

    def _sample(self, tasks: Sequence[Task], samples_per_task: int, temperature: float, stream: str) -> list[Group]:
        config = self._run.config
        chunks = make_chunks(
            tasks,
            tasks_per_chunk=config.rollout.tasks_per_chunk,
            samples_per_task=samples_per_task,
            params=sampling_params(config, temperature=temperature),
            run_seed=config.seed,
            stream=stream,
            step=self._step,
            version=self._adapter.version,
        )
        groups = self._pool.run(chunks, self._view.rollout)
        self._clock.lap("rollout")
        groups = self._scorer.score(groups)
        self._clock.lap("score")
        refuse_wrong_stamps(groups, self._adapter)
        refuse_failures(self._run, self._step, groups)
        return groups


def sampling_params(config: RunConfig, *, temperature: float) -> SamplingParams:
    """How training rollouts are drawn."""
    sampling = config.sampling
    return SamplingParams(
        temperature=temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        stop=sampling.stop,
        max_new_tokens=sampling.max_new_tokens,
    )


def snapshot(learner: PolicyLearner, step: int) -> Snapshot:
    """Everything that continues after `step`."""
    tensors, numbers = learner.state()
    return Snapshot(step=step, tensors=tensors, state={"learner": numbers})


def restore(learner: PolicyLearner, snapshot: Snapshot) -> None:
    """The other way round.

    Raises:
        ValueError: the snapshot belongs to another configuration.
    """
    learner.load_state(snapshot.tensors, snapshot.state["learner"])


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

    Raises:
        RuntimeError: the measured difference and the bound.
    """
    if metrics["policy/mismatch"] > config.rollout.max_mismatch:
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
        self._laps[f"time/{name}"] = self._laps.get(f"time/{name}", 0.0) + now - self._last
        self._last = now

    def metrics(self, *, tokens: float) -> Metrics:
        total = time.perf_counter() - self._start
        return {**self._laps, "time/step": total, "time/tokens_per_s": tokens / total}
