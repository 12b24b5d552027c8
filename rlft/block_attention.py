"""Attention between blocks of a packed row with the scores written out, for processors without a fast fused kernel.

torch's fused attention on a CPU recomputes the scores in a backward pass that takes several times as long as the
products themselves, and gathering the blocks under autograd costs as much again. Here gathering, products and their
gradients are one function: rows of all groups are computed together, key heads are not repeated for their query heads,
and only the packed tensors and the softmax are kept for the backward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEPT_SCORES = 1 << 20
"""Elements of softmax that a layer keeps for its backward pass; larger ones are computed again."""
LARGEST_SCORES = 1 << 26
"""Elements beyond which the scores are not written out at all."""


@dataclass(frozen=True, slots=True, eq=False)
class Blocks:
    """R rows of W queries that look at K keys each, all given as positions in the packed row."""

    queries: Tensor
    """(R, W) int64; padding repeats a position of the row."""
    is_real: Tensor
    """(R, W) bool, False on padding."""
    keys: Tensor
    """(R, K) int64."""
    is_visible: Tensor
    """(R, W, K) bool, whether a query may look at a key; never all False in a row of W."""

    def num_scores(self, num_heads: int) -> int:
        """Elements of the scores."""
        return self.is_visible.numel() * num_heads


def block_attention(
    query: Tensor, key: Tensor, value: Tensor, blocks: tuple[Blocks, ...], position: Tensor, scale: float
) -> Tensor:
    """Softmax attention of all blocks.

    Args:
        query: (T, H, D). key, value: (T, H_kv, D), each serving H / H_kv query heads.
        position: (T,) where each token's query stands in the blocks' queries, flattened and one after the other.

    Returns:
        (T, H, D)
    """
    return _BlockAttention.apply(query, key, value, blocks, position, scale)


class _BlockAttention(torch.autograd.Function):
    """With S = scale Q K', P = softmax(S), O = P V:

    dV = P' dO,   dS = P (dO V' - rowsum(P dO V')),   dQ = scale dS K,   dK = scale dS' Q
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: tuple[Blocks, ...], position: Tensor, scale: float
    ) -> Tensor:
        outputs, kept = [], []
        for block in blocks:
            softmax = _softmax(block, query, key, scale)
            outputs.append(_from_heads(torch.bmm(softmax, _keys(block, value)), block, query))
            kept.append(softmax if softmax.numel() <= KEPT_SCORES else None)
        ctx.save_for_backward(query, key, value, position, *[softmax for softmax in kept if softmax is not None])
        ctx.blocks, ctx.scale, ctx.is_kept = blocks, scale, [softmax is not None for softmax in kept]
        return torch.cat(outputs).index_select(0, position)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None, None]:
        query, key, value, position, *kept = ctx.saved_tensors
        remaining = iter(kept)
        grad_queries = []
        grad_key, grad_value = (torch.zeros_like(tensor, dtype=_wide(tensor)) for tensor in (key, value))
        for block, is_kept in zip(ctx.blocks, ctx.is_kept, strict=True):
            softmax = next(remaining) if is_kept else _softmax(block, query, key, ctx.scale)
            grad = _queries(block, grads[0], key.shape[1], only_real=True)
            _add(grad_value, torch.bmm(softmax.mT, grad), block, 1.0)
            grad_softmax = torch.bmm(grad, _keys(block, value).mT)
            grad_scores = torch._softmax_backward_data(grad_softmax, softmax, -1, softmax.dtype)
            grad_queries.append(_from_heads(_scaled_bmm(grad_scores, _keys(block, key), ctx.scale), block, query))
            _add(grad_key, torch.bmm(grad_scores.mT, _queries(block, query, key.shape[1])), block, ctx.scale)
        grad_query = torch.cat(grad_queries).index_select(0, position)
        return grad_query, grad_key.to(key.dtype), grad_value.to(value.dtype), None, None, None


def _softmax(block: Blocks, query: Tensor, key: Tensor, scale: float) -> Tensor:
    """(R H_kv, H / H_kv W, K)"""
    rows, width, num_keys = block.is_visible.shape
    num_key_heads = key.shape[1]
    scores = _scaled_bmm(_queries(block, query, num_key_heads), _keys(block, key).mT, scale)
    hidden = ~block.is_visible[:, None, None]
    scores.view(rows, num_key_heads, -1, width, num_keys).masked_fill_(hidden, float("-inf"))
    return torch.softmax(scores, dim=-1)


def _scaled_bmm(left: Tensor, right: Tensor, scale: float) -> Tensor:
    """scale left @ right, scaled inside the product."""
    return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=scale)


def _queries(block: Blocks, tensor: Tensor, num_key_heads: int, *, only_real: bool = False) -> Tensor:
    """(T, H, D) to (R H_kv, H / H_kv W, D); 0 on padding where `only_real`."""
    rows, width = block.queries.shape
    chosen = tensor.index_select(0, block.queries.flatten())
    if only_real:
        chosen = chosen.mul_(block.is_real.view(-1, 1, 1))
    heads = chosen.view(rows, width, num_key_heads, -1, tensor.shape[2]).permute(0, 2, 3, 1, 4)
    return heads.reshape(rows * num_key_heads, -1, tensor.shape[2])


def _keys(block: Blocks, tensor: Tensor) -> Tensor:
    """(T, H_kv, D) to (R H_kv, K, D)"""
    rows, num_keys = block.keys.shape
    chosen = tensor.index_select(0, block.keys.flatten()).view(rows, num_keys, *tensor.shape[1:])
    return chosen.transpose(1, 2).flatten(0, 1)


def _from_heads(tensor: Tensor, block: Blocks, like: Tensor) -> Tensor:
    """(R H_kv, H / H_kv W, D) to (R W, H, D) as `like` has them."""
    rows, width = block.queries.shape
    heads = tensor.view(rows, -1, width, tensor.shape[-1])
    return heads.transpose(1, 2).reshape(rows * width, like.shape[1], -1)


def _add(total: Tensor, grad: Tensor, block: Blocks, factor: float) -> None:
    """Add (R H_kv, K, D) to the packed (T, H_kv, D); a prompt's keys get the sum over its completions."""
    rows, num_keys = block.keys.shape
    packed = grad.view(rows, total.shape[1], num_keys, -1).transpose(1, 2).flatten(0, 1)
    total.index_add_(0, block.keys.flatten(), packed.to(total.dtype), alpha=factor)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
