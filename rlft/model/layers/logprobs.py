"""Log-probabilities and entropy of chosen tokens without a float32 copy of the whole [tokens, vocabulary] matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rlft.model.kernels.token_logprobs import chunks, distribution


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
