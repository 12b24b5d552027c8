"""The preference loop: take the epoch's next examples, compare their completions, update the adapter; repeat.

The losses are those of `objectives.preference`: DPO and its relatives on pairs, KTO on single completions. The stages
around it (reading the data, the reference's pass over it, summary) are in `launch.py`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

import torch
from torch import Tensor

from rlft.curves.live_panel import View
from rlft.curves.statistics import mean_interval
from rlft.learner.batch import num_tokens
from rlft.learner.core import lr_factor
from rlft.objectives.algorithm import Loss
from rlft.objectives.preference import example_losses, is_right
from rlft.run.directory import Run
from rlft.run.records import Evaluation
from rlft.train.preference.config import PreferenceConfig
from rlft.train.preference.data import Example, PreferenceData, make_batch
from rlft.train.preference.group import PreferenceGroup
from rlft.train.preference.learner import PreferenceLearner, RoleName
from rlft.train.standing import Standing
from rlft.train.task_order import tasks_of_step

AnyLearner: TypeAlias = PreferenceLearner | PreferenceGroup
OnChunk = Callable[[int, int], None]
"""Called with (examples done, examples in all)."""
NAMES: dict[Loss, str] = {
    "sigmoid": "DPO",
    "ipo": "IPO",
    "hinge": "SLiC",
    "simpo": "SimPO",
    "orpo": "ORPO",
    "kto": "KTO",
}
"""What the curves call a loss."""


def train_dpo(
    run: Run[PreferenceConfig],
    learner: AnyLearner,
    data: PreferenceData,
    *,
    start: int,
    view: View,
    standing: Standing,
    after_update: Callable[[int], None],
) -> None:
    """Train on preferences from update `start` + 1 to the last one.

    Args:
        start: updates that the policy already has behind it.
        standing: gets to know when an update is done.
        after_update: called with the number of each update, also with `start`; measures and saves what is missing.

    Raises:
        RuntimeError: too many updates in a row were not finite.
    """
    config = run.config
    total = num_updates(config, data)
    skipped = 0
    if start:
        after_update(start)  # what it may have been stopped in
    for step in range(start + 1, total + 1):
        started = time.perf_counter()
        examples = tasks_of_step(data.train, step=step, count=config.batch_size, seed=config.seed)
        batch, kl = learner.annotate(make_batch(examples))
        factor = lr_factor(config.learner, update=step - 1, total=total, warmup=config.learner.warmup_steps)
        with standing.moves_to(step):
            update = learner.update(batch, kl, factor)
            skipped = skipped + 1 if update.skipped else 0
            if update.skipped:
                run.skip(step, batch, update.skipped, in_a_row=skipped)
            seconds = time.perf_counter() - started
            metrics = update.metrics | {"time/step": seconds, "time/tokens_per_s": num_tokens(batch) / seconds}
            run.log(step, metrics)
        view.step(step, metrics)
        after_update(step)


def num_updates(config: PreferenceConfig, data: PreferenceData) -> int:
    """Number of updates of the whole run."""
    return config.epochs * updates_per_epoch(config, data)


def updates_per_epoch(config: PreferenceConfig, data: PreferenceData) -> int:
    """Number of full updates in one pass over the training examples."""
    return len(data.train) // config.batch_size


def measure(
    learner: AnyLearner,
    config: PreferenceConfig,
    data: PreferenceData,
    *,
    name: str,
    step: int,
    on_chunk: OnChunk | None,
) -> Evaluation:
    """The held-out examples' mean loss and margin, and the share on whose label the policy's margin sides; the
    interval is clustered by prompt."""
    preference, examples = config.preference, data.heldout
    batch = make_batch(examples)
    if preference.needs_reference and batch.ref_logprobs is None:
        batch = replace(batch, ref_logprobs=logprobs(learner, "reference", examples, chunk=config.batch_size))
    losses, margins, _ = example_losses(
        preference,
        logprobs=logprobs(learner, "policy", examples, chunk=config.batch_size, on_chunk=on_chunk),
        ref_logprobs=batch.ref_logprobs,
        sequence_index=batch.sequence_index,
        labels=batch.rewards,
        kl=learner.reference_point(batch),
    )
    by_task: dict[str, list[float]] = {}
    for example, right in zip(examples, is_right(margins).tolist(), strict=True):
        by_task.setdefault(example.id, []).append(right)
    adapter = learner.adapter(step)
    return Evaluation(
        name=name,
        stage=NAMES[preference.loss],
        step=step,
        adapter_version=step,
        adapter_hash=adapter.hash,
        metric="preference",
        accuracy=mean_interval(list(by_task.values()), bounds=(0.0, 1.0)),
        loss=float(losses.mean()),
        margin=float(margins.mean()),
        failed=0,
        samples=len(examples),
        length=batch.sequence_index.numel() / batch.num_sequences,
        truncated=0.0,
        by_task=by_task,
    )


def logprobs(
    learner: AnyLearner, role: RoleName, examples: Sequence[Example], *, chunk: int, on_chunk: OnChunk | None = None
) -> Tensor:
    """Log-probs of all completions under a role, (A,) float32 on the CPU, `chunk` examples at a time; no gradient."""
    found = [torch.empty(0)]
    for first in range(0, len(examples), chunk):
        found.append(learner.logprobs(make_batch(examples[first : first + chunk]), role))
        if on_chunk:
            on_chunk(min(first + chunk, len(examples)), len(examples))
    return torch.cat(found)
