"""The supervised loop: take the epoch's next rows, update the adapter; repeat until the last update or an early stop.

The stages around it (reading the data, measuring, saving, summary) are in `launch.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import replace
from typing import TypeAlias

import torch

from rlft.curves.live_panel import View
from rlft.curves.statistics import mean_interval
from rlft.learner.batch import num_tokens
from rlft.learner.core import lr_factor
from rlft.objectives.preference import sequence_sums
from rlft.run.directory import Run
from rlft.run.records import Evaluation
from rlft.train import task_order
from rlft.train.standing import Standing
from rlft.train.supervised.config import SupervisedConfig
from rlft.train.supervised.data import SupervisedData, make_batch
from rlft.train.supervised.learner import SupervisedGroup, SupervisedLearner
from rlft.types import Metrics

AnyLearner: TypeAlias = SupervisedLearner | SupervisedGroup
OnChunk = Callable[[int, int], None]
"""Called with (examples done, examples in all)."""
STAGE, METRIC = "SFT", "logprob"
"""What the curves call the training, and what is measured: held-out log-probability per token, nats."""


def train_supervised(
    run: Run[SupervisedConfig],
    learner: AnyLearner,
    data: SupervisedData,
    *,
    start: int,
    view: View,
    standing: Standing,
    after_update: Callable[[int], bool],
) -> int:
    """Train on rows from update `start` + 1 to the last one.

    Args:
        start: updates that the policy already has behind it.
        standing: gets to know when an update is done.
        after_update: called with the number of each update, also with `start`; measures and saves what is missing, and
            says whether to stop there.

    Returns:
        How many updates were made.

    Raises:
        RuntimeError: too many updates in a row were not finite.
    """
    config = run.config
    total = num_updates(config, data)
    skipped = 0
    if start and after_update(start):  # what it may have been stopped in
        return start
    for step in range(start + 1, total + 1):
        started = time.perf_counter()
        examples = task_order.tasks_of_step(data.train, step=step, count=config.batch_size, seed=config.seed)
        batch = make_batch(examples)
        factor = lr_factor(config.learner, update=step - 1, total=total, warmup=config.learner.warmup_steps)
        with standing.moves_to(step):
            update = learner.update(batch, factor)
            skipped = skipped + 1 if update.skipped else 0
            if update.skipped:
                run.skip(step, batch, update.skipped, in_a_row=skipped)
            seconds = time.perf_counter() - started
            times: Metrics = {"time/step": seconds, "time/tokens_per_s": num_tokens(batch) / seconds}
            metrics = {**update.metrics, "sft/tokens": float(batch.sequence_index.numel()), **times}
            run.log(step, metrics)
        view.step(step, metrics)
        if after_update(step):
            return step
    return max(start, total)


def num_updates(config: SupervisedConfig, data: SupervisedData) -> int:
    """Number of updates of a whole run that is not stopped early, at least 1."""
    return task_order.num_updates(len(data.train), batch_size=config.batch_size, epochs=config.epochs)


def looks_planned(config: SupervisedConfig, total: int) -> int:
    """How many measurements follow that before training in `total` updates, the last one included."""
    return math.ceil(total / config.evaluation.every) if config.evaluation.every else 1


def measure(
    learner: AnyLearner,
    config: SupervisedConfig,
    data: SupervisedData,
    *,
    name: str,
    step: int,
    on_chunk: OnChunk | None,
) -> Evaluation:
    """The held-out rows' log-probability per learnt token: its mean over rows, each of which counts once.

    `loss` is its negative and `perplexity` the exponential of that; the interval is clustered by prompt.
    """
    examples = data.heldout
    by_task: dict[str, list[float]] = {}
    for first in range(0, len(examples), config.batch_size):
        chunk = examples[first : first + config.batch_size]
        batch = make_batch(chunk)
        lengths = torch.bincount(batch.sequence_index, minlength=len(chunk))
        means = sequence_sums(learner.logprobs(batch).double(), batch.sequence_index, len(chunk)) / lengths
        for example, mean in zip(chunk, means.tolist(), strict=True):
            by_task.setdefault(example.id, []).append(mean)
        if on_chunk:
            on_chunk(first + len(chunk), len(examples))
    interval = mean_interval(list(by_task.values()))
    interval = replace(interval, high=min(interval.high, 0.0))  # the log of a probability; nan stays
    return Evaluation(
        name=name,
        stage=STAGE,
        step=step,
        adapter_version=step,
        adapter_hash=learner.adapter(step).hash,
        metric=METRIC,
        accuracy=interval,
        loss=-interval.mean,
        failed=0,
        samples=len(examples),
        length=sum(example.num_actions for example in examples) / len(examples),
        truncated=0.0,
        by_task=by_task,
        extra={"perplexity": math.exp(min(700.0, -interval.mean))},
    )
