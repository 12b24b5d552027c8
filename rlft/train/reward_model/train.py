"""A reward model: TRL's RewardTrainer on preference pairs, and its accuracy on pairs."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from rlft.common.files import write_folder
from rlft.curves.statistics import mean_interval
from rlft.learner.reward_model import FACTS
from rlft.model import base as models
from rlft.model import chat, special_tokens
from rlft.model.adapter import lora_config
from rlft.model.layers.lora import use_lean_lora
from rlft.model.pretrained import load_classifier
from rlft.run.records import Interval
from rlft.train import trl
from rlft.train.preference.data import Example
from rlft.train.reward_model.config import RewardModelConfig
from rlft.types import Metrics

OnUpdate = Callable[[int, int, Metrics], None]
"""Called with (updates done, updates in all, metrics of the update)."""


def load_tokenizer(
    model_folder: str, special_tokens_in_text: special_tokens.Policy = "encode"
) -> PreTrainedTokenizerBase:
    """The model's tokenizer with a padding token.

    Args:
        special_tokens_in_text: see `chat.load_tokenizer`.

    Raises:
        ValueError: there is no token to pad with, or no chat template.
    """
    tokenizer = chat.load_tokenizer(model_folder, special_tokens_in_text=special_tokens_in_text)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ValueError(f"the tokenizer of {model_folder} has neither a padding token nor an end token; set one there")
    return tokenizer


def load_model(config: RewardModelConfig, model_folder: str, tokenizer: PreTrainedTokenizerBase) -> nn.Module:
    """The model with a fresh output layer in float32, and what is trained of it; all that is random comes from `seed`.

    Raises:
        ValueError: the architecture has no version with one output per sequence.
    """
    is_full = config.adapter.kind == "full"
    with models.seeded(config.seed), _quiet():
        try:
            dtype = torch.float32 if is_full else models.resolve_dtype(config.model)
            base = load_classifier(model_folder, num_labels=1, dtype=dtype)
        except ValueError as error:
            raise ValueError(f"{config.model.source} cannot be a reward model: {error}") from error
        if not isinstance(getattr(base, "score", None), nn.Linear):
            raise ValueError(
                f"{config.model.source} cannot be a reward model: {type(base).__name__} has no output layer `score`"
            )
        base.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        base.score = _Head(base.score.weight.float())
        base.to(models.default_device())
        if is_full:
            return base
        lora = lora_config(config.adapter)
        lora.task_type = "SEQ_CLS"  # which trains and saves the output layer, too
        if config.adapter.kind == "head":
            lora.target_modules = "dummy-target-modules"  # PEFT's name for none at all
        model = get_peft_model(base, lora)
    use_lean_lora(model)
    return model


def fit(
    config: RewardModelConfig,
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Example],
    on_update: OnUpdate | None = None,
) -> None:
    """Train in place, with the Bradley-Terry loss -log sigmoid(chosen - rejected)."""
    trl.be_quiet()
    from datasets import Dataset
    from trl import RewardConfig, RewardTrainer

    def on_log(done: int, total: int, logs: dict[str, float]) -> None:
        if on_update:
            metrics = {f"preference/{key}": float(logs[key]) for key in ("loss", "accuracy", "margin")}
            on_update(done, total, metrics)

    rows = [{"chosen_ids": list(pair.completions[0]), "rejected_ids": list(pair.completions[1])} for pair in pairs]
    with tempfile.TemporaryDirectory() as scratch, models.seeded(config.seed), models.quiet_libraries():
        trainer = RewardTrainer(
            model=model.train(),
            args=RewardConfig(
                **trl.settings(
                    output_dir=scratch,
                    batch_size=config.batch_size,
                    epochs=config.epochs,
                    lr=config.lr,
                    seed=config.seed,
                    device=models.default_device(),
                    bf16=_autocasts(config),
                )
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        trl.train(trainer, on_log)


class Measured(NamedTuple):
    """A reward model on held-out pairs."""

    accuracy: Interval
    """How often the chosen conversation scores higher, with the 95 % interval, clustered by prompt."""
    scores: list[float]
    """The model's output for every conversation, chosen and rejected in turn."""


def measure(config: RewardModelConfig, model: nn.Module, pairs: Sequence[Example], *, pad: int) -> Measured:
    """Score both conversations of every pair; an equal score counts half.

    Raises:
        RuntimeError: a score is not finite.
    """
    with _autocast(config):
        rows = [ids for pair in pairs for ids in pair.completions]
        scores = score(model, rows, pad=pad, batch_size=2 * config.batch_size)
    if not bool(torch.isfinite(scores).all()):
        raise RuntimeError("the model's scores are not finite; lower lr, or use model.dtype=float32")
    by_prompt: dict[str, list[float]] = {}
    for pair, (chosen, rejected) in zip(pairs, scores.view(-1, 2).tolist(), strict=True):
        by_prompt.setdefault(pair.id, []).append(float(chosen > rejected) + 0.5 * float(chosen == rejected))
    return Measured(mean_interval(by_prompt, bounds=(0.0, 1.0)), scores.tolist())


def score(model: nn.Module, rows: Sequence[Sequence[int]], *, pad: int, batch_size: int) -> Tensor:
    """The model's output for every row of token ids, (len(rows),) float32 on the CPU."""
    model.eval()
    device = next(model.parameters()).device
    scores = torch.zeros(len(rows))
    order = sorted(range(len(rows)), key=lambda row: len(rows[row]))  # rows of a batch need little padding then
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        ids = [torch.tensor(rows[row]) for row in chosen]
        with torch.no_grad():
            output = model(
                input_ids=pad_sequence(ids, batch_first=True, padding_value=pad).to(device),
                attention_mask=pad_sequence([torch.ones_like(row) for row in ids], batch_first=True).to(device),
                use_cache=False,
            )
        scores[chosen] = output.logits[:, 0].float().cpu()
    return scores


def save(folder: Path, model: nn.Module, tokenizer: PreTrainedTokenizerBase, facts: dict[str, Any]) -> None:
    """Write a reward model's folder, whole or not at all; plain `peft` (for `full`: transformers) loads it."""

    def write(temporary: Path) -> None:
        options = {"save_embedding_layers": False} if isinstance(model, PeftModel) else {}
        with models.quiet_libraries():
            model.save_pretrained(temporary, **options)  # type: ignore[operator]
        tokenizer.save_pretrained(temporary)
        (temporary / FACTS).write_text(json.dumps(facts, indent=1) + "\n")

    write_folder(folder, write)


class _Head(nn.Linear):
    """The output layer, in float32 whatever the layers below it compute in: their rounding would be the score's."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False)
        self.weight = nn.Parameter(weight.detach().clone())

    def forward(self, hidden: Tensor) -> Tensor:
        with torch.autocast(hidden.device.type, enabled=False):
            return super().forward(hidden.float())


def _autocasts(config: RewardModelConfig) -> bool:
    """Weights that are trained themselves are float32; their products are of the model's type."""
    return config.adapter.kind == "full" and models.resolve_dtype(config.model) == torch.bfloat16


def _autocast(config: RewardModelConfig) -> AbstractContextManager[Any]:
    if _autocasts(config):
        return torch.autocast(models.default_device().type, dtype=torch.bfloat16)
    return nullcontext()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without transformers' report that the output layer is a new one."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        with models.quiet_libraries():
            yield
    finally:
        transformers_logging.set_verbosity(verbosity)
