"""Log-probabilities and entropy of chosen tokens from hidden states, without the logits ever being whole."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlft.model.kernels import products
from rlft.model.kernels.sizes import TOKENS, slices
from rlft.model.kernels.token_logprobs import token_logprobs

PROJECTED_ROWS = 256
"""Rows that are projected to the vocabulary together: enough for the products to run at their full rate."""


def projected_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, *, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """Log-prob of `targets` and entropy of softmax(hidden @ weight.T / temperature), with gradients of `hidden`.

    A token's log-prob depends on its own hidden state alone, so its gradient there, up to the factor that the loss
    brings, is known in the forward pass: (onehot(y) - p) weight / T. It is computed with the logits at hand, block by
    block, and costs what the backward pass would.

    Args:
        hidden: (N, D). weight: (V, D), no gradient. targets: (N,) int64. temperature: > 0.
        entropy_gradient: whether the entropy is differentiable; it costs one more product.

    Returns:
        (logprobs (N,), entropy (N,)) in float32 (float64 for float64 hidden states), nats.
    """
    logprobs, entropy = _ProjectedLogprobs.apply(hidden, weight, targets, temperature, entropy_gradient)
    return logprobs, entropy


class _ProjectedLogprobs(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, entropy_gradient: bool
    ) -> tuple[Tensor, Tensor]:
        wide = torch.promote_types(hidden.dtype, torch.float32)
        logprobs = torch.empty(targets.shape, dtype=wide, device=hidden.device)
        entropy = torch.empty_like(logprobs)
        needs_grad = ctx.needs_input_grad[0]
        slopes = torch.empty_like(hidden) if needs_grad else hidden.new_empty(0)
        entropy_slopes = torch.empty_like(hidden) if needs_grad and entropy_gradient else hidden.new_empty(0)
        project = products.with_weight(weight)
        for block in slices(hidden.shape[0], PROJECTED_ROWS):
            count = block.stop - block.start
            # A last block of any size would need kernels of its own, see `rlft.model.kernels.sizes`.
            logits = project(F.pad(hidden[block], (0, 0, 0, -count % TOKENS)))
            surprise = torch.zeros_like(logits) if entropy_slopes.numel() else None
            logprobs[block], entropy[block] = token_logprobs(
                logits[:count],
                targets[block],
                temperature,
                with_slopes=needs_grad,  # the logits are not needed again
                entropy_slopes=None if surprise is None else surprise[:count],
            )
            if needs_grad:
                slopes[block] = (logits @ weight)[:count].mul_(-1 / temperature)
            if surprise is not None:
                entropy_slopes[block] = (surprise @ weight)[:count].mul_(-1 / temperature)
        ctx.save_for_backward(slopes, entropy_slopes)
        if not entropy_gradient:
            ctx.mark_non_differentiable(entropy)
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        slopes, entropy_slopes = ctx.saved_tensors
        grad = slopes * grads[0][:, None]
        if entropy_slopes.numel():
            grad.addcmul_(entropy_slopes, grads[1][:, None])
        return grad.to(slopes.dtype), None, None, None, None
