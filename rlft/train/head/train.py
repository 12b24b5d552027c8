"""Training a head: on features of a frozen trunk, or together with a trunk that has an adapter or is trained whole."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlft.model.base import seeded
from rlft.model.head import Head
from rlft.train.head.config import HeadConfig
from rlft.train.head.data import Labelled
from rlft.types import Metrics

Forward: TypeAlias = Callable[[Sequence[int]], tuple[Tensor, Tensor]]
"""Hidden states (B, T, hidden_size) and mask (B, T) of some of the run's texts, by their numbers."""
OnEpoch = Callable[[int, Metrics], None]
"""Called with (passes done, metrics of the pass)."""
_WEIGHT_DECAY = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """What a training came to."""

    best_epoch: int
    """The pass with the lowest validation loss, whose weights are kept."""
    epochs: int
    """Passes that were made."""
    loss: float
    """Validation loss of the best pass, nats for each text (regression: squared error in units of its deviation)."""


def make_head(config: HeadConfig, hidden_size: int, outputs: int, *, bias: bool) -> Head:
    """A new head; all that is random comes from `seed`."""
    with seeded(config.seed):
        return Head([hidden_size, *config.hidden_sizes, outputs], config.pooling, bias=bias)


def target_matrix(config: HeadConfig, examples: Sequence[Labelled], labels: int) -> np.ndarray:
    """One-hot or many-hot labels (n, labels), or numbers (n, 1)."""
    if config.task == "regression":
        return np.array([[example.target] for example in examples], dtype=float)
    found = np.zeros((len(examples), labels))
    for row, example in enumerate(examples):
        for column in example.target if isinstance(example.target, tuple) else (int(example.target),):
            found[row, column] = 1.0
    return found


def loss_weights(config: HeadConfig, targets: np.ndarray) -> np.ndarray:
    """Of each output's term in the loss, (n, outputs); their mean over what counts is 1."""
    if config.class_weights == "none":
        return np.ones_like(targets)
    share = targets.mean(0)
    if config.task == "classification":
        return np.ones_like(targets) / np.maximum(share, 1e-12) / targets.shape[1]
    return targets / (2 * share) + (1 - targets) / (2 * np.maximum(1 - share, 1e-12))


def loss_of(task: str, logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """Sum over texts of the cross-entropy, of the binary ones, or of the squared error."""
    if task == "classification":
        return -(weights * targets * logits.log_softmax(1)).sum()
    if task == "multilabel":
        return F.binary_cross_entropy_with_logits(logits, targets, weights, reduction="sum")
    return (weights * (logits - targets) ** 2).sum()


def fit(
    config: HeadConfig,
    head: Head,
    forward: Forward,
    train: Sequence[int],
    validation: Sequence[int],
    targets: np.ndarray,
    *,
    trunk: nn.Module | None = None,
    on_epoch: OnEpoch,
) -> Fitted:
    """Train in place with AdamW until the validation loss has not fallen for `patience` passes; keep the best pass.

    Args:
        forward: hidden states of texts.
        train: numbers of the training texts.
        validation: of the validation texts.
        targets: of all texts, as `target_matrix` makes them; of a regression standardized.
        trunk: what is trained together with the head; None where it is frozen.

    Raises:
        RuntimeError: the loss is not finite.
    """
    device = head.scale.device
    wanted = torch.tensor(targets, dtype=torch.float32, device=device)
    weighted = np.ones_like(targets)
    weighted[list(train)] = loss_weights(config, targets[list(train)])
    weights = torch.tensor(weighted, dtype=torch.float32, device=device)
    trained = [p for p in trunk.parameters() if p.requires_grad] if trunk is not None else []
    groups = [{"params": list(head.parameters()), "lr": config.lr}]
    if trained:
        groups.append({"params": trained, "lr": config.trunk_lr})
    optimizer = torch.optim.AdamW(groups, weight_decay=_WEIGHT_DECAY)
    everything = [*head.parameters(), *trained]
    random = np.random.default_rng([config.seed, 4])
    best, best_epoch, kept = math.inf, 0, [p.detach().clone() for p in everything]
    epoch = 0
    for epoch in range(1, config.epochs + 1):
        order, total = random.permutation(np.array(train)), 0.0
        if trunk is not None:
            trunk.train()
        for start in range(0, len(order), config.batch_size):
            rows = order[start : start + config.batch_size].tolist()
            loss = loss_of(config.task, head(*forward(rows)), wanted[rows], weights[rows])
            optimizer.zero_grad()
            (loss / len(rows)).backward()
            torch.nn.utils.clip_grad_norm_(everything, 1.0 if trunk is not None else math.inf)
            optimizer.step()
            total += loss.item()
        if trunk is not None:
            trunk.eval()
        logits = outputs(head, forward, validation, config.batch_size).to(device)
        held = list(validation)
        found = float(loss_of(config.task, logits, wanted[held], torch.ones_like(wanted[held]))) / len(held)
        if not (math.isfinite(found) and math.isfinite(total)):
            raise RuntimeError(
                f"the loss of pass {epoch} is not finite; lower lr or trunk_lr, or use model.dtype=float32"
            )
        on_epoch(epoch, {"head/loss": total / len(order), "head/validation_loss": found})
        if found < best:
            best, best_epoch, kept = found, epoch, [p.detach().clone() for p in everything]
        elif epoch - best_epoch >= config.patience:
            break
    with torch.no_grad():
        for parameter, value in zip(everything, kept, strict=True):
            parameter.copy_(value)
    return Fitted(best_epoch=best_epoch, epochs=epoch, loss=best)


@torch.no_grad()
def outputs(head: Head, forward: Forward, rows: Sequence[int], batch_size: int) -> Tensor:
    """Raw outputs for texts, in their order, (len(rows), outputs) float32 on the CPU."""
    parts = [head(*forward(rows[at : at + batch_size])).float().cpu() for at in range(0, len(rows), batch_size)]
    return torch.cat(parts)
