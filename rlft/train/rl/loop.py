"""The RL loop: roll out, score, estimate advantages, update the adapter, publish it; repeat.

What is left out of it on purpose: profiling, retries, timers of parts and progress live in the pool, the scorer, the
run and the live panel; the stages around it (base evaluation, SFT, summary) are in `launch.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from rlft.config import RunConfig
from rlft.curves.live_panel import View
from rlft.learner.batch import collate, minibatches
from rlft.learner.rl import PolicyLearner
from rlft.learner.update import step_metrics
from rlft.objectives.batch_advantages import sequence_means
from rlft.reward.scoring import Scorer
from rlft.rollout.pool import RolloutPool
from rlft.rollout.weight_proof import CanaryMaker
from rlft.run.directory import Run
from rlft.train.rl.guards import Guards
from rlft.train.rl.metrics import Clock, describe_dropped, describe_staleness, describe_step
from rlft.train.rl.rollouts import StepRollouts
from rlft.train.rl.task_choice import TaskChoice
from rlft.train.standing import Standing
from rlft.types import Adapter, Batch

AfterStep = Callable[[int, Adapter], None]
"""Called with (step, the adapter that it published)."""


def train_rl(
    run: Run,
    learner: PolicyLearner,
    pool: RolloutPool,
    scorer: Scorer,
    tasks: TaskChoice,
    *,
    start: int,
    earlier: Sequence[Adapter] = (),
    canary: CanaryMaker,
    view: View,
    standing: Standing,
    after_step: AfterStep,
) -> None:
    """Train from step `start` + 1 to the last one.

    Rollouts are submitted `max_staleness` steps ahead, so that workers generate while this process learns; 0 is
    strictly on-policy.

    Args:
        tasks: chooses those of each step.
        start: steps that the learner already has behind it.
        earlier: published adapters that rollouts in flight after `start` come from, see `restore`.
        canary: makes the proof that every published adapter asks of the engines.
        standing: gets to know when a step is done.
        after_step: called once a step's adapter is published, also for `start`; evaluates and saves what is missing.

    Raises:
        RuntimeError: too many samples failed to be scored, the policy diverged (see `guards`), or engine and learner
            disagree about log-probs: see `refuse_mismatch` and `weight_proof.Prover`.
    """
    config = run.config
    rollouts = StepRollouts(run, pool, scorer, tasks, start=start, view=view)
    for adapter in earlier:
        rollouts.publish(adapter)
        rollouts.submit_ahead()
    rollouts.publish(canary(learner.adapter(version=start), learner.logprobs_of))
    standing.adapters = rollouts.adapters
    if start:
        after_step(start, standing.adapters[-1])  # what it may have been stopped in
    guards, skipped = Guards(run, view, start=start), 0
    for step in range(start + 1, config.steps + 1):
        clock = Clock()
        rollouts.submit_ahead()
        groups, unused = rollouts.collect(step, clock)
        metrics = describe_step(config, [*groups, *unused]) | {"groups/used": float(len(groups))}
        if config.max_staleness:
            metrics |= describe_staleness([*groups, *unused], version=step - 1) | describe_dropped(groups, unused)
        is_stale = metrics.get("rollout/staleness_max", 0.0) > 0

        batch = learner.annotate(collate(groups))
        run.write_rollouts(step, [*groups, *unused], learned_columns(batch))
        updates = []
        with standing.moves_to(step):
            for minibatch in minibatches(batch, config.updates_per_step):
                if not learner.has_gradient(minibatch):
                    continue
                update = learner.update(minibatch)
                updates.append(update)
                skipped = skipped + 1 if update.skipped else 0
                if update.skipped:
                    run.skip(step, minibatch, update.skipped, in_a_row=skipped)
                if not is_stale:
                    refuse_mismatch(config, step, update.mismatch)
            if not updates:
                run.event("no_signal", "all groups have equal rewards; no update was made", step=step)
            metrics |= step_metrics(updates) | {"policy/updates": float(learner.num_updates)}
            adapter = learner.adapter(version=step)
            guards.check(step, metrics, adapter)
            clock.lap("learn")

            rollouts.publish(canary(adapter, learner.logprobs_of))
            clock.lap("publish")
            metrics |= rollouts.measure(clock)
            metrics |= clock.metrics(tokens=metrics["rollout/tokens"])
            run.log(step, metrics)
            standing.adapters = rollouts.adapters
        view.step(step, metrics)
        after_step(step, standing.adapters[-1])


def learned_columns(batch: Batch) -> dict[str, list[Any]]:
    """What the learner computed of each sequence, as columns of the rollout table.

    With it the advantages can be computed again, under another reward too.
    """
    assert batch.advantages is not None
    lengths = torch.bincount(batch.sequence_index, minlength=batch.num_sequences).tolist()
    of_actions = {
        "learner_logprobs": batch.old_logprobs,
        "reference_logprobs": batch.ref_logprobs,
        "values": batch.values,
    }
    columns = {n: [part.tolist() for part in v.split(lengths)] for n, v in of_actions.items() if v is not None}
    means = sequence_means(batch.advantages, batch.sequence_index, batch.num_sequences)
    return {"advantage": means, **columns}


def refuse_mismatch(config: RunConfig, step: int, mismatch: float) -> None:
    """Stop when engine and learner disagree about the log-probs of the same tokens: the engine runs other weights.

    It is asked only about steps whose samples all come from the present adapter. Of older samples `policy/mismatch`
    also holds how far the policy has moved since, for which no bound is right: there the hash proves which weights the
    engine got, and the canary that it computes with them.

    Args:
        mismatch: mean |difference| in nats per token.

    Raises:
        RuntimeError: the measured difference and the bound.
    """
    if mismatch > config.rollout.max_mismatch:
        raise RuntimeError(
            f"step {step}: engine and learner differ by {mismatch:.3f} nats per token on average, more than "
            f"rollout.max_mismatch={config.rollout.max_mismatch}; the engine does not run the learner's adapter, or "
            "bfloat16 rounds too coarsely for this model (try model.dtype=float32)"
        )
