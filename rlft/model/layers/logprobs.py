"""Log-probabilities and entropy of chosen tokens without a float32 copy of the whole [tokens, vocabulary] matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlft.model.kernels.sizes import slices

CHUNK_ELEMENTS = 1 << 19
"""Elements of the float32 scratch on a CPU: 2 MB, so that a chunk's few passes stay in the cores' caches."""
LARGE_CHUNK_ELEMENTS = 1 << 24
"""The same on a GPU, where few large calls are cheaper."""


def selected_logprobs(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-prob of `targets` and entropy of the distribution softmax(logits / temperature), with gradients.

    Args:
        logits: (N, V) float32 or bfloat16. targets: (N,) int64. temperature: > 0.

    Returns:
        (logprobs (N,), entropy (N,)) in float32 (float64 for float64 logits), nats.
    """
    logprobs, entropy = _SelectedLogprobs.apply(logits, targets, temperature)
    return logprobs, entropy


class _SelectedLogprobs(torch.autograd.Function):
    """Saves the logits in their own type and recomputes the softmax chunk by chunk in the backward pass.

    With p = softmax(x), x = logits / T:  d logp_y / dx = onehot(y) - p,   dH / dx = -p (log p + H)
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(logits.dtype, torch.float32)
        logprobs = torch.empty(targets.shape, dtype=wide, device=logits.device)
        entropy = torch.empty_like(logprobs)
        for rows in chunks(logits):
            x = logits[rows].to(wide, copy=True)
            logprobs[rows], _, entropy[rows], _ = distribution(x, targets[rows], temperature)
        ctx.save_for_backward(logits, targets)
        ctx.temperature = temperature
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, targets = ctx.saved_tensors
        grad_logprobs, grad_entropy = grads
        wants_entropy = bool(grad_entropy.any())
        grad = torch.empty_like(logits)
        for rows in chunks(logits):
            x = logits[rows].to(grad_logprobs.dtype, copy=True)
            _, log_total, entropy, p = distribution(x, targets[rows], ctx.temperature)
            slope = -grad_logprobs[rows, None]
            if wants_entropy:
                slope = slope - grad_entropy[rows, None] * x.sub_(log_total[:, None]).add_(entropy[:, None])
            p.mul_(slope).scatter_add_(1, targets[rows, None], grad_logprobs[rows, None])
            grad[rows] = p.div_(ctx.temperature)
        return grad, None, None


def distribution(x: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of p = softmax(x / temperature): log-probs of the targets, log-normalizers, entropies, all (n,), and p itself.

    Overwrites x with x / temperature minus its row's maximum, which is what the log-normalizers refer to.
    """
    if temperature != 1:
        x.div_(temperature)
    x.sub_(x.amax(dim=1, keepdim=True))
    chosen = x.gather(1, targets[:, None]).squeeze(1)
    p = torch.softmax(x, dim=1)
    log_total = p.amax(dim=1).log_().neg_()  # the largest p is exp(0) / total
    # H = log Z - sum p x with x at most 0: no difference of large numbers.
    return chosen - log_total, log_total, log_total - torch.mul(p, x).sum(dim=1), p


def chunks(logits: Tensor) -> list[slice]:
    """Rows of logits (N, V) that go through several passes together."""
    elements = CHUNK_ELEMENTS if logits.device.type == "cpu" else LARGE_CHUNK_ELEMENTS
    return slices(logits.shape[0], max(1, elements // max(1, logits.shape[1])))
