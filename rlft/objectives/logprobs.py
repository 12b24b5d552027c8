"""Log-probabilities and entropy of chosen tokens without a float32 copy of the whole [tokens, vocabulary] matrix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 1 << 19
"""Elements of the float32 scratch on a CPU: 2 MB, so that a chunk's few passes stay in the cores' caches."""
LARGE_CHUNK_ELEMENTS = 1 << 24
"""The same on a GPU, where few large calls are cheaper."""

PROJECTED_ROWS = 256
"""Rows that are projected to the vocabulary together: enough for the products to run at their full rate."""


ROW_STEP = 32
"""They are filled up to a multiple of this."""


def selected_logprobs(logits: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-prob of `targets` and entropy of the distribution softmax(logits / temperature), with gradients.

    Args:
        logits: (N, V) float32 or bfloat16. targets: (N,) int64. temperature: > 0.

    Returns:
        (logprobs (N,), entropy (N,)) in float32 (float64 for float64 logits), nats.
    """
    logprobs, entropy = _SelectedLogprobs.apply(logits, targets, temperature)
    return logprobs, entropy


def projected_logprobs(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float, *, entropy_gradient: bool
) -> tuple[Tensor, Tensor]:
    """`selected_logprobs` of hidden @ weight.T for a frozen weight, without the logits ever being whole.

    A token's log-prob depends on its own hidden state alone, so its gradient there, up to the factor that the loss
    brings, is known in the forward pass: (onehot(y) - p) weight / T. It is computed with the logits at hand, chunk by
    chunk, and costs what the backward pass would.

    Args:
        hidden: (N, D). weight: (V, D), no gradient.
        entropy_gradient: whether the entropy is differentiable; it costs one more product.
    """
    logprobs, entropy = _ProjectedLogprobs.apply(hidden, weight, targets, temperature, entropy_gradient)
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
        for rows in _chunks(logits):
            x = logits[rows].to(wide, copy=True)
            logprobs[rows], _, entropy[rows], _ = _distribution(x, targets[rows], temperature)
        ctx.save_for_backward(logits, targets)
        ctx.temperature = temperature
        return logprobs, entropy

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, targets = ctx.saved_tensors
        grad_logprobs, grad_entropy = grads
        wants_entropy = bool(grad_entropy.any())
        grad = torch.empty_like(logits)
        for rows in _chunks(logits):
            x = logits[rows].to(grad_logprobs.dtype, copy=True)
            _, log_total, entropy, p = _distribution(x, targets[rows], ctx.temperature)
            slope = -grad_logprobs[rows, None]
            if wants_entropy:
                slope = slope - grad_entropy[rows, None] * x.sub_(log_total[:, None]).add_(entropy[:, None])
            p.mul_(slope).scatter_add_(1, targets[rows, None], grad_logprobs[rows, None])
            grad[rows] = p.div_(ctx.temperature)
        return grad, None, None


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
        for block in _slices(hidden.shape[0], PROJECTED_ROWS):
            count = block.stop - block.start
            # A last block of any size would need kernels of its own, see `rlft.shapes`.
            logits = F.pad(hidden[block], (0, 0, 0, -count % ROW_STEP)) @ weight.T
            surprise = torch.zeros_like(logits) if entropy_slopes.numel() else None
            for part in _chunks(logits[:count]):
                rows = slice(block.start + part.start, block.start + part.stop)
                x = logits[part].to(wide, copy=True)
                logprobs[rows], log_total, entropy[rows], p = _distribution(x, targets[rows], temperature)
                if surprise is not None:
                    surprise[part] = x.sub_(log_total[:, None]).add_(entropy[rows, None]).mul_(p)
                if needs_grad:  # the logits are not needed again: p - onehot(y) takes their place
                    p.scatter_add_(1, targets[rows, None], torch.full_like(logprobs[rows, None], -1.0))
                    logits[part] = p
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


def _distribution(x: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
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


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _chunks(logits: Tensor) -> list[slice]:
    elements = CHUNK_ELEMENTS if logits.device.type == "cpu" else LARGE_CHUNK_ELEMENTS
    return _slices(logits.shape[0], max(1, elements // max(1, logits.shape[1])))
