"""A whole run of `rlft reward-model`: held-out accuracy, training, held-out accuracy, the reward model's folder.

    runs/NAME/  reward-model/  summary.json  metrics.jsonl  events.jsonl  config.yaml  provenance.json

It is short by design, so an interrupted run starts over; the folder appears only when it is complete.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rlft.curves.live_panel import View, training_console
from rlft.curves.text import format_accuracy
from rlft.model import base as models
from rlft.model.layers.slow_paths import SLOW_PATH, slow_paths
from rlft.model.memory import keep_freed_memory
from rlft.model.pretrained import load_config
from rlft.model.starting_point import resolve_model
from rlft.run.directory import Run
from rlft.run.records import REWARD_MODEL
from rlft.run.summaries import RewardModelSummary
from rlft.train import provenance
from rlft.train.preference.data import PreferenceData, load
from rlft.train.reward_model import train as train_reward
from rlft.train.reward_model.config import RewardModelConfig
from rlft.types import Metrics


def train(config: RewardModelConfig, *, restart: bool = False) -> RewardModelSummary:
    """Train a reward model.

    Args:
        restart: move an existing run of that name aside.

    Returns:
        The summary, as `summary.json` holds it: `accuracy_before` and `accuracy_after` with their 95 % intervals, and
        `n`, the number of held-out pairs that they were measured on.

    Raises:
        ValueError: something in the config, the data or the model cannot work; nothing was started.
        RuntimeError: the training diverged.
    """
    transformers_logging.disable_progress_bar()
    keep_freed_memory()
    torch.set_num_threads(config.threads)
    with View(config.name, steps=0, unit="update", console=training_console()) as view:
        model_folder = str(resolve_model(config))
        tokenizer = train_reward.load_tokenizer(model_folder, config.model.special_tokens_in_text)
        view.stage("reading preferences")
        context = load_config(model_folder).get_text_config().max_position_embeddings
        data = load(config.data, tokenizer, None, context=context, paired=True, on_row=view.progress)
        if data.dropped:
            view.note(f"{data.dropped} pairs of more than {data.max_length} tokens were left out")
        view.stage("loading the model")
        model = train_reward.load_model(config, model_folder, tokenizer)
        origin = provenance.present(config, model_folder, sha256={config.data.source: data.hash}, tasks=data.hash)
        with Run.create(config, provenance=origin, restart=restart) as run:
            for reason in slow_paths(model):
                run.event_once(SLOW_PATH, f"learner: {reason}")
            return _stages(run, view, model, tokenizer, data)


def _stages(
    run: Run[RewardModelConfig], view: View, model: nn.Module, tokenizer: PreTrainedTokenizerBase, data: PreferenceData
) -> RewardModelSummary:
    config = run.config

    def measure(when: str) -> train_reward.Measured:
        view.stage(f"held-out pairs, {when} training")
        result = train_reward.measure(config, model, data.heldout, pad=tokenizer.pad_token_id)
        view.note(f"held-out accuracy {when} training: {format_accuracy(result.accuracy)}")
        return result

    before = measure("before")
    view.stage("training")
    clock = time.perf_counter()

    def on_update(done: int, total: int, metrics: Metrics) -> None:
        nonlocal clock
        clock, began = time.perf_counter(), clock
        metrics["time/step"] = clock - began
        run.log(done, metrics)
        view.steps = total
        view.step(done, metrics)

    train_reward.fit(config, model, tokenizer, data.train, on_update)
    after = measure("after")
    facts = {
        "source": config.model.source,
        "dtype": str(models.resolve_dtype(config.model)).removeprefix("torch."),
        "accuracy": after.accuracy.as_dict(),
        "mean": statistics.fmean(after.scores),
        "std": statistics.pstdev(after.scores),
        "tools": data.shows_tools,
    }
    train_reward.save(run.path / REWARD_MODEL, model, tokenizer, facts)
    summary: RewardModelSummary = {
        "name": config.name,
        "accuracy_before": before.accuracy.as_dict(),
        "accuracy_after": after.accuracy.as_dict(),
        "n": len(data.heldout),
        "reward_model": REWARD_MODEL,
    }
    run.write_summary(summary)
    return summary
