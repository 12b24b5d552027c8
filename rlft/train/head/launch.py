"""A whole run of `rlft head`: reading texts, the trunk's features, training, measuring beside baselines, the folder.

    runs/NAME/  head/  summary.json  metrics.jsonl  events.jsonl  config.yaml  provenance.json

It is short by design, so an interrupted run starts over; the features that it has computed are kept.
"""

from __future__ import annotations

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rlft.curves.live_panel import View, training_console
from rlft.model import chat
from rlft.model import head as heads
from rlft.model.context import model_context
from rlft.model.memory import keep_freed_memory
from rlft.model.pretrained import load_config
from rlft.model.starting_point import resolve_model
from rlft.run.directory import Run
from rlft.run.records import HEAD
from rlft.run.summaries import HeadSummary
from rlft.train import provenance
from rlft.train.head import measure
from rlft.train.head.baseline import bag_of_words
from rlft.train.head.config import HeadConfig
from rlft.train.head.data import HeadData, load
from rlft.train.head.train import loss_weights, target_matrix
from rlft.train.head.trunk import load_trunk, train_head
from rlft.train.head.verdict import difference, verdict


def train(config: HeadConfig, *, restart: bool = False) -> HeadSummary:
    """Train a head, measure it beside a bag of words on the same texts, and write it.

    Args:
        restart: move an existing run of that name aside.

    Returns:
        The summary, as `summary.json` holds it.

    Raises:
        ValueError: something in the config, the data or the model cannot work; nothing was started.
        RuntimeError: the training diverged.
    """
    transformers_logging.disable_progress_bar()
    keep_freed_memory()
    torch.set_num_threads(config.threads)
    with View(config.name, steps=0, console=training_console()) as view:
        model_folder = str(resolve_model(config))
        tokenizer = load_tokenizer(config, model_folder)
        view.stage("reading texts")
        context = model_context(load_config(model_folder)).tokens
        data = load(config, tokenizer, context=context, on_row=view.progress)
        for count, why in (
            (data.overlong, "texts that are too long"),
            (data.repeated, "rows that repeat a text and its label"),
            (data.conflicting, "rows that repeat a text with another label"),
        ):
            if count:
                view.note(f"left out: {count} {why}")
        view.stage("loading the model")
        model = load_trunk(config, model_folder, len(data.labels) or 1)
        origin = provenance.present(config, model_folder, sha256={config.data.source: data.hash}, tasks=data.hash)
        with Run.create(config, provenance=origin, restart=restart) as run:
            return _stages(run, view, model_folder, tokenizer, data, model, context)


def load_tokenizer(config: HeadConfig, model_folder: str) -> PreTrainedTokenizerBase:
    """The model's tokenizer with a padding token; a chat template is needed only by conversations.

    Raises:
        ValueError: there is no token to pad with.
    """
    tokenizer = chat.load_tokenizer(
        model_folder, for_chat=False, special_tokens_in_text=config.model.special_tokens_in_text
    )
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ValueError(f"the tokenizer of {model_folder} has neither a padding token nor an end token; set one there")
    return tokenizer


def _stages(
    run: Run[HeadConfig],
    view: View,
    model_folder: str,
    tokenizer: PreTrainedTokenizerBase,
    data: HeadData,
    model: PreTrainedModel,
    context: int,
) -> HeadSummary:
    config, task = run.config, run.config.task
    parts = (data.train, data.validation, data.heldout)
    targets = [target_matrix(config, part, len(data.labels)) for part in parts]
    shift, scale = 0.0, 1.0
    if task == "regression":
        shift, scale = float(targets[0].mean()), float(targets[0].std()) or 1.0
    standardized = [(each - shift) / scale for each in targets] if task == "regression" else targets

    view.stage("bag of words")
    texts = [[example.text for example in part] for part in parts]
    words, penalty = bag_of_words(
        task, texts[0], standardized[0], texts[1], standardized[1], texts[2], loss_weights(config, targets[0])
    )
    trained = train_head(run, view, model_folder, parts, standardized, model)
    seen, logits = (each.double().numpy() for each in trained.outputs)
    temperature = 1.0 if task == "regression" else measure.fit_temperature(task, seen, targets[1])

    def values(raw: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        return raw * scale + shift if task == "regression" else measure.probabilities(task, raw, temperature)

    view.stage("measuring")
    predicted = {
        "majority": np.repeat(targets[0].mean(0, keepdims=True), len(data.heldout), axis=0),
        "bag_of_words": values(words),
        "head": values(logits, temperature),
    }
    measured = {name: measure.measure(task, each, targets[2], seed=config.seed) for name, each in predicted.items()}
    if task != "regression":
        plain = measure.measure(task, values(logits), targets[2], seed=config.seed)
        measured["head"] |= {f"{name}_at_temperature_1": plain[name] for name in ("ece", "brier")}
    change = difference(task, predicted["bag_of_words"], predicted["head"], targets[2])
    decision, sentence = verdict(task, change)

    view.stage("writing the head")
    facts = heads.HeadFacts(
        task=task,
        labels=data.labels,
        pooling=config.pooling,
        hidden_sizes=config.hidden_sizes,
        temperature=temperature,
        conversations=data.are_conversations,
        dtype=str(trained.model.dtype).removeprefix("torch."),
        max_length=context,
        source=config.model.source,
        without_padding=heads.is_native(task, config.pooling, config.hidden_sizes),
    )
    tensors = {name: tensor.cpu() for name, tensor in trained.head.folded(shift=shift, scale=scale).items()}
    heads.save(run.path / HEAD, trained.model, tokenizer, tensors, facts)
    summary: HeadSummary = {
        "name": config.name,
        "task": task,
        "metric": measure.HEADLINE[task],
        "labels": list(data.labels),
        "texts": {
            **{name: len(part) for name, part in zip(("train", "validation", "heldout"), parts, strict=True)},
            **{"overlong": data.overlong, "repeated": data.repeated, "conflicting": data.conflicting},
        },
        "features": trained.features,
        "epochs": trained.fitted.epochs,
        "best_epoch": trained.fitted.best_epoch,
        "temperature": temperature,
        "penalty": penalty,
        "predictors": {
            name: {key: interval.as_dict() for key, interval in each.items()} for name, each in measured.items()
        },
        "difference": change.interval.as_dict(),
        "verdict": decision,
        "sentence": sentence,
        "per_label": [],
        "reliability": [],
        "head": HEAD,
    }
    if task != "regression":
        decided = measure.decisions(task, predicted["head"])
        summary["per_label"] = measure.per_label(decided, targets[2], data.labels, seed=config.seed)
        summary["reliability"] = measure.reliability(*measure.confidences(task, predicted["head"], targets[2]))
    run.write_summary(summary)
    return summary
