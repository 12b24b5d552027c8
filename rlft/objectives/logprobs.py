"""Log-probabilities and entropy of chosen tokens without a float32 copy of the whole [tokens, vocabulary] matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

CHUNK_ELEMENTS = 1 << 21
"""Elements of the float32 scratch: 2M, 8 MB, so that a chunk's few passes stay near the cache."""


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
        normalizer = torch.empty_like(logprobs)
        entropy = torch.empty_like(logprobs)
        for rows in _chunks(logits):
            x = logits[rows].to(wide) / temperature
            lse = x.logsumexp(dim=-1)
            logprobs[rows] = x.gather(1, targets[rows, None]).squeeze(1) - lse
            normalizer[rows] = lse
            probabilities = (x - lse[:, None]).exp_()
            entropy[rows] = lse - torch.einsum("nv,nv->n", probabilities, x)
        ctx.save_for_backward(logits, targets, normalizer, entropy)
        ctx.temperature = temperature
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        grad_logprobs, grad_entropy = grads
        logits, targets, normalizer, entropy = ctx.saved_tensors
        wants_entropy = bool(grad_entropy.any())
        grad = torch.empty_like(logits)
        for rows in _chunks(logits):
            log_p = (logits[rows].to(normalizer.dtype) / ctx.temperature).sub_(normalizer[rows, None])
            p = log_p.exp()
            if wants_entropy:
                log_p.add_(entropy[rows, None]).mul_(-grad_entropy[rows, None])
                x_grad = log_p.sub_(grad_logprobs[rows, None]).mul_(p)
            else:
                x_grad = p.mul_(-grad_logprobs[rows, None])
            x_grad.scatter_add_(1, targets[rows, None], grad_logprobs[rows, None])
            grad[rows] = x_grad.div_(ctx.temperature).to(grad.dtype)
        return grad, None, None


def _chunks(logits: Tensor) -> list[slice]:
    rows = max(1, CHUNK_ELEMENTS // max(1, logits.shape[1]))
    return [slice(start, min(start + rows, logits.shape[0])) for start in range(0, logits.shape[0], rows)]
