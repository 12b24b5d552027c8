"""The trunk below a head in training: frozen, with an adapter, or trained whole."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlft.curves.live_panel import View
from rlft.model import base as models
from rlft.model import head as heads
from rlft.model.adapter import lora_config
from rlft.run.directory import Run
from rlft.train.head.config import HeadConfig
from rlft.train.head.data import Labelled
from rlft.train.head.features import Features, features_folder, features_of
from rlft.train.head.train import Fitted, Forward, fit, make_head, outputs
from rlft.types import Metrics

_SAMPLE = 512
"""Training texts that the features of a trunk that is trained, too, are standardized by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """A trained head."""

    head: heads.Head
    """Its layers."""
    model: PreTrainedModel
    """The trunk below it, as it is saved: an adapter is merged."""
    outputs: Sequence[Tensor]
    """Raw outputs for the validation and the held-out texts, computed with that trunk."""
    fitted: Fitted
    """How the training went."""
    features: dict[str, int] | None
    """Of a frozen trunk how many features were computed, and how many were kept from earlier."""


def load_trunk(config: HeadConfig, model_folder: str, outputs: int) -> PreTrainedModel:
    """The frozen trunk of a config; weights that will be trained themselves are float32. Errors as of the model's."""
    dtype = torch.float32 if config.adapter.kind == "full" else models.resolve_dtype(config.model)
    model = heads.load_trunk(model_folder, layers=config.trunk_layers, dtype=dtype, outputs=outputs)
    return model.to(models.default_device()).requires_grad_(False)


def train_head(
    run: Run[HeadConfig],
    view: View,
    model_folder: str,
    parts: Sequence[Sequence[Labelled]],
    targets: Sequence[np.ndarray],
    model: PreTrainedModel,
) -> Trained:
    """Train the head, and of the trunk what the config says.

    Args:
        parts: training, validation and held-out texts.
        targets: of each part, as `target_matrix` makes them; of a regression standardized.
        model: of `load_trunk`; it is changed.
    """
    config, device = run.config, models.default_device()
    rows = [example.token_ids for part in parts for example in part]
    ends = [0, *np.cumsum([len(part) for part in parts]).tolist()]
    numbers = [range(start, end) for start, end in pairwise(ends)]
    features = _features(view, config, model_folder, model, rows) if config.is_frozen else None
    adapter = None if config.is_frozen else _make_trainable(config, model)
    trunk = heads.trunk_of(model)

    def kept(chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        assert features is not None
        states, mask = features.batch(chosen)
        return states.to(device), mask.to(device)

    def exact(chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        return heads.hidden_states(trunk, [rows[row] for row in chosen])

    def quick(chosen: Sequence[int]) -> tuple[Tensor, Tensor]:
        with _autocast(config):
            return exact(chosen)

    forward, measured = (kept, kept) if features else (quick, exact)
    head = _standardized(config, forward, numbers[0], outputs=targets[0].shape[1])
    view.stage("training")

    def on_epoch(done: int, metrics: Metrics) -> None:
        run.log(done, metrics)
        view.progress(done, config.epochs)
        view.note(
            f"pass {done}: loss {metrics['head/loss']:.4f}, validation loss {metrics['head/validation_loss']:.4f}"
        )

    fitted = fit(
        config,
        head,
        forward,
        numbers[0],
        numbers[1],
        np.concatenate(targets),
        trunk=None if features else trunk,
        on_epoch=on_epoch,
    )
    view.note(f"the lowest validation loss is that of pass {fitted.best_epoch}, whose weights are kept")
    if isinstance(adapter, PeftModel):
        adapter.merge_and_unload()  # before measuring: what is measured is what is saved
    model.requires_grad_(False).eval()
    size = max(64, config.batch_size)
    return Trained(
        head=head,
        model=model,
        outputs=[outputs(head, measured, each, size) for each in numbers[1:]],
        fitted=fitted,
        features={"computed": features.computed, "kept": features.kept} if features else None,
    )


def _features(
    view: View, config: HeadConfig, model_folder: str, model: PreTrainedModel, rows: Sequence[Sequence[int]]
) -> Features:
    folder = features_folder(model_folder, dtype=model.dtype, layers=config.trunk_layers, pooling=config.pooling)
    view.stage("features of the frozen trunk")
    found = features_of(rows, folder, heads.trunk_of(model), config.pooling, view.progress)
    view.note(
        f"features of the frozen trunk: {found.computed} texts computed, {found.kept} already there; kept in {folder}"
    )
    return found


def _make_trainable(config: HeadConfig, model: PreTrainedModel) -> nn.Module:
    trunk = heads.trunk_of(model)
    if config.adapter.kind == "full":
        return trunk.requires_grad_(True)
    settings = lora_config(config.adapter)
    settings.task_type = None
    with models.seeded(config.seed), models.quiet_libraries():
        return get_peft_model(trunk, settings)  # which puts the layers into `trunk` itself


def _standardized(config: HeadConfig, forward: Forward, rows: Sequence[int], *, outputs: int) -> heads.Head:
    """A new head whose layers see training features of mean 0 and scale 1."""
    how: heads.Pooling = "mean" if config.pooling == "attention" else config.pooling
    chosen, parts = rows[: _SAMPLE if not config.is_frozen else None], []
    with torch.no_grad():
        for at in range(0, len(chosen), config.batch_size):
            states, mask = forward(chosen[at : at + config.batch_size])
            parts.append(heads.pool(states.float(), mask, how).cpu())
    pooled = torch.cat(parts)
    is_native = heads.is_native(config.task, config.pooling, config.hidden_sizes)
    head = make_head(config, pooled.shape[1], outputs, bias=not is_native)
    head.standardize(pooled.mean(0), (pooled**2).mean(0).sqrt() if is_native else pooled.std(0))
    return head.to(models.default_device())


def _autocast(config: HeadConfig) -> AbstractContextManager[Any]:
    """Weights that are trained themselves are float32; their products are of the model's type."""
    if config.adapter.kind == "full" and models.resolve_dtype(config.model) == torch.bfloat16:
        return torch.autocast(models.default_device().type, dtype=torch.bfloat16)
    return nullcontext()
