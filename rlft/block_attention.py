"""Attention between blocks of a packed row with the scores written out, for processors without a fast fused kernel.

torch's fused attention on a CPU recomputes the scores in a backward pass that takes several times as long as the
products themselves, and gathering the blocks under autograd costs as much again. Here gathering, products and their
gradients are one function: rows of all groups are computed together, key heads are not repeated for their query heads,
and only the packed tensors and the softmax are kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

KEPT_SCORES = 1 << 20
"""Elements of softmax that a layer keeps for its backward pass; more are computed again."""
LARGEST_SCORES = 1 << 26
"""Elements beyond which the scores are not written out at all."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """R rows of W queries that look at K keys each, all given as positions in the packed row."""

    queries: Tensor
    """(R, W) int64; padding repeats a position of the row."""
    is_real: Tensor
    """(R, W) bool, False on padding."""
    keys: Tensor
    """(R, K) int64."""
    is_visible: Tensor
    """(R, W, K) bool, whether a query may look at a key; never all False in a row of W."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadBlock:
    """A block for H query heads and H_kv key heads: which rows of (T H, D) and (T H_kv, D) make its products."""

    shape: tuple[int, int, int, int, int]
    """(R, H_kv, H / H_kv, W, K)"""
    query_rows: Tensor
    """(R H W,), in the order of `shape`."""
    key_rows: Tensor
    """(R H_kv K,), likewise."""
    padding: Tensor
    """Where `query_rows` stands for padding."""
    bias: Tensor
    """(R, 1, 1, W, K), added to the scores: 0 where a key is visible, else minus infinity."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadBlocks:
    """All blocks of a packed row, which give every token its result once."""

    blocks: tuple[HeadBlock, ...]
    result_rows: Tensor
    """(T H,) where each token's heads stand in the `query_rows` of all blocks, one block after the other."""


def with_heads(blocks: Sequence[Block], num_heads: int, num_key_heads: int, dtype: torch.dtype) -> HeadBlocks:
    """The blocks' rows for a layer with these heads, whose scores are of type `dtype`."""
    result, places, offset = [], [], 0
    for block in blocks:
        rows, width = block.queries.shape
        heads = torch.arange(num_heads).view(1, num_key_heads, -1, 1)
        query_rows = (block.queries[:, None, None] * num_heads + heads).flatten()
        key_rows = (block.keys[:, None] * num_key_heads + torch.arange(num_key_heads)[:, None]).flatten()
        is_real = block.is_real[:, None].expand(-1, num_heads, -1).flatten()
        bias = torch.zeros(block.is_visible.shape, dtype=dtype).masked_fill_(~block.is_visible, float("-inf"))
        result.append(
            HeadBlock(
                shape=(rows, num_key_heads, num_heads // num_key_heads, width, block.keys.shape[1]),
                query_rows=query_rows,
                key_rows=key_rows,
                padding=(~is_real).nonzero().squeeze(1),
                bias=bias[:, None, None],
            )
        )
        place = is_real.nonzero().squeeze(1)
        places.append((query_rows[place], offset + place))
        offset += query_rows.numel()
    result_rows = torch.empty(sum(rows.numel() for rows, _ in places), dtype=torch.int64)
    for query_rows, place in places:
        result_rows[query_rows] = place
    return HeadBlocks(blocks=tuple(result), result_rows=result_rows)


def block_attention(query: Tensor, key: Tensor, value: Tensor, blocks: HeadBlocks, scale: float) -> Tensor:
    """Softmax attention of all blocks.

    Args:
        query: (T, H, D). key, value: (T, H_kv, D), each serving H / H_kv query heads.

    Returns:
        (T, H, D)
    """
    return _BlockAttention.apply(query, key, value, blocks, scale)


class _BlockAttention(torch.autograd.Function):
    """With S = scale Q K', P = softmax(S), O = P V:

    dV = P' dO,   dS = P (dO V' - rowsum(P dO V')),   dQ = scale dS K,   dK = scale dS' Q
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, blocks: HeadBlocks, scale: float) -> Tensor:
        q, k, v = (_as_rows(tensor) for tensor in (query, key, value))
        is_kept = sum(block.bias.numel() for block in blocks.blocks) * query.shape[1] <= KEPT_SCORES
        output, kept = _Output(blocks, q), []
        for block in blocks.blocks:
            softmax = _softmax(block, q, k, scale)
            torch.bmm(softmax, _keys(block, v), out=output.of(block))
            if is_kept:
                kept.append(softmax)
        ctx.save_for_backward(query, key, value, *kept)
        ctx.blocks, ctx.scale = blocks, scale
        return output.packed().view(query.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        query, key, value, *kept = ctx.saved_tensors
        q, k, v, grad_output = (_as_rows(tensor) for tensor in (query, key, value, grads[0]))
        grad_query = _Output(ctx.blocks, q)
        grad_key, grad_value = (torch.zeros_like(tensor, dtype=_wide(tensor)) for tensor in (k, v))
        for index, block in enumerate(ctx.blocks.blocks):
            softmax = kept[index] if kept else _softmax(block, q, k, ctx.scale)
            grad = _queries(block, grad_output)
            grad.view(-1, grad.shape[-1]).index_fill_(0, block.padding, 0.0)
            _add(grad_value, torch.bmm(softmax.mT, grad), block, 1.0)
            grad_softmax = torch.bmm(grad, _keys(block, v).mT)
            grad_scores = torch._softmax_backward_data(grad_softmax, softmax, -1, softmax.dtype)
            _scaled_bmm(grad_scores, _keys(block, k), ctx.scale, out=grad_query.of(block))
            _add(grad_key, torch.bmm(grad_scores.mT, _queries(block, q)), block, ctx.scale)
        return (
            grad_query.packed().view(query.shape),
            grad_key.to(key.dtype).view(key.shape),
            grad_value.to(value.dtype).view(value.shape),
            None,
            None,
        )


class _Output:
    """What the blocks give for their queries, written one block after the other and then put in the row's order."""

    def __init__(self, blocks: HeadBlocks, like: Tensor) -> None:
        self._result_rows = blocks.result_rows
        self._whole = like.new_empty(sum(block.query_rows.numel() for block in blocks.blocks), like.shape[-1])
        self._used = 0

    def of(self, block: HeadBlock) -> Tensor:
        """The next block's place, (R H_kv, H / H_kv W, D)."""
        rows, num_key_heads = block.shape[:2]
        start, self._used = self._used, self._used + block.query_rows.numel()
        return self._whole[start : self._used].view(rows * num_key_heads, -1, self._whole.shape[-1])

    def packed(self) -> Tensor:
        """(T H, D)"""
        return self._whole.index_select(0, self._result_rows)


def _softmax(block: HeadBlock, q: Tensor, k: Tensor, scale: float) -> Tensor:
    """(R H_kv, H / H_kv W, K)"""
    scores = _scaled_bmm(_queries(block, q), _keys(block, k).mT, scale)
    scores.view(block.shape).add_(block.bias)  # filling by a mask takes several times as long
    return torch.softmax(scores, dim=-1)


def _scaled_bmm(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale left @ right, scaled inside the product."""
    return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=scale, out=out)


def _as_rows(tensor: Tensor) -> Tensor:
    """(T, heads, D) to (T heads, D)"""
    return tensor.reshape(-1, tensor.shape[-1])


def _queries(block: HeadBlock, rows: Tensor) -> Tensor:
    """(T H, D) to (R H_kv, H / H_kv W, D)"""
    return rows.index_select(0, block.query_rows).view(block.shape[0] * block.shape[1], -1, rows.shape[-1])


def _keys(block: HeadBlock, rows: Tensor) -> Tensor:
    """(T H_kv, D) to (R H_kv, K, D)"""
    return rows.index_select(0, block.key_rows).view(block.shape[0] * block.shape[1], -1, rows.shape[-1])


def _add(total: Tensor, grad: Tensor, block: HeadBlock, factor: float) -> None:
    """Add (R H_kv, K, D) to (T H_kv, D); a prompt's keys get the sum over its completions."""
    total.index_add_(0, block.key_rows, grad.view(-1, total.shape[-1]).to(total.dtype), alpha=factor)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
