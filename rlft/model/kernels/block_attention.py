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

from rlft.common.private_names import private
from rlft.model.kernels.library import kernel
from rlft.model.kernels.segments import Block

KEPT_SCORES = 1 << 20
"""Elements of softmax that a layer keeps for its backward pass; more are computed again."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadBlock:
    """A block for H query heads and H_kv key heads, as indices of rows of (T (H + 2 H_kv), D)."""

    shape: tuple[int, int, int, int, int]
    """(R, H_kv, H / H_kv, W, K)"""
    query_rows: Tensor
    """(R H W,), in the order of `shape`."""
    output_rows: Tensor
    """(R H W,), the same queries' rows in (T H, D)."""
    key_rows: Tensor
    """(R H_kv K,), in the order of `shape`."""
    value_rows: Tensor
    """(R H_kv K,), the rows of their values, in the order of `shape`."""
    key_sums: Tensor
    """(R H_kv K,), the same keys' rows in (T 2 H_kv, D)."""
    value_sums: Tensor
    """(R H_kv K,), the rows of their values in (T 2 H_kv, D)."""
    padding: Tensor
    """Indices into `query_rows` that are padding."""
    bias: Tensor
    """(R, 1, 1, W, K), added to the scores: 0 where a key is visible, else minus infinity."""


@dataclass(frozen=True, slots=True, eq=False)
class HeadBlocks:
    """All blocks of a packed row, which give every token its result once."""

    blocks: tuple[HeadBlock, ...]
    num_heads: int
    """H"""
    result_rows: Tensor
    """(T H,) index of each token's heads in the `query_rows` of all blocks, one block after the other."""


def with_heads(blocks: Sequence[Block], num_heads: int, num_key_heads: int, dtype: torch.dtype) -> HeadBlocks:
    """Blocks of positions as blocks of rows, for a layer with these heads and with scores of type `dtype`."""
    width, result, places, offset = num_heads + 2 * num_key_heads, [], [], 0
    for block in blocks:
        num_rows, num_queries = block.queries.shape
        heads = torch.arange(num_heads).view(1, num_key_heads, -1, 1)
        key_heads = torch.arange(num_key_heads)[:, None]
        key_rows = (block.keys[:, None] * width + num_heads + key_heads).flatten()
        key_sums = (block.keys[:, None] * 2 * num_key_heads + key_heads).flatten()
        output_rows = (block.queries[:, None, None] * num_heads + heads).flatten()
        is_real = block.is_real[:, None].expand(-1, num_heads, -1).flatten()
        bias = torch.zeros(block.is_visible.shape, dtype=dtype).masked_fill_(~block.is_visible, float("-inf"))
        result.append(
            HeadBlock(
                shape=(num_rows, num_key_heads, num_heads // num_key_heads, num_queries, block.keys.shape[1]),
                query_rows=(block.queries[:, None, None] * width + heads).flatten(),
                output_rows=output_rows,
                key_rows=key_rows,
                value_rows=key_rows + num_key_heads,
                key_sums=key_sums,
                value_sums=key_sums + num_key_heads,
                padding=(~is_real).nonzero().squeeze(1),
                bias=bias[:, None, None],
            )
        )
        place = is_real.nonzero().squeeze(1)
        places.append((output_rows[place], offset + place))
        offset += is_real.numel()
    result_rows = torch.empty(sum(rows.numel() for rows, _ in places), dtype=torch.int64)
    for rows, place in places:
        result_rows[rows] = place
    return HeadBlocks(blocks=tuple(result), num_heads=num_heads, result_rows=result_rows)


def block_attention(heads: Tensor, blocks: HeadBlocks, scale: float) -> Tensor:
    """Softmax attention of all blocks, with its gradient.

    Args:
        heads: (T, H + 2 H_kv, D), the queries of every token, its keys, each serving H / H_kv query heads, and its
            values.

    Returns:
        (T, H, D)
    """
    return _BlockAttention.apply(heads, blocks, scale)


class _BlockAttention(torch.autograd.Function):
    """With S = scale Q K', P = softmax(S), O = P V:

    dV = P' dO,   dS = P (dO V' - rowsum(P dO V')),   dQ = scale dS K,   dK = scale dS' Q
    """

    @staticmethod
    def forward(ctx: Any, heads: Tensor, blocks: HeadBlocks, scale: float) -> Tensor:
        rows = heads.reshape(-1, heads.shape[-1])
        num_scores = sum(block.bias.numel() for block in blocks.blocks) * blocks.num_heads
        output, kept = _Output(blocks, rows), []
        for block in blocks.blocks:
            softmax = _softmax(block, rows, scale)
            torch.bmm(softmax, _gather(block, rows, block.value_rows), out=output.of(block))
            if num_scores <= KEPT_SCORES:
                kept.append(softmax)
        ctx.save_for_backward(heads, *kept)
        ctx.blocks, ctx.scale = blocks, scale
        return output.packed().view(len(heads), blocks.num_heads, -1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        heads, *kept = ctx.saved_tensors
        blocks, scale = ctx.blocks, ctx.scale
        rows, grad_output = (x.reshape(-1, x.shape[-1]) for x in (heads, grads[0]))
        grad_query = _Output(blocks, rows)
        # Keys and values get sums over the queries that looked at them; a query gets its one result.
        num_summed = heads.shape[1] - blocks.num_heads
        total = rows.new_zeros(len(heads) * num_summed, rows.shape[-1], dtype=_wide(rows))
        for index, block in enumerate(blocks.blocks):
            softmax = kept[index] if kept else _softmax(block, rows, scale)
            grad = _gather(block, grad_output, block.output_rows)
            grad.view(-1, grad.shape[-1]).index_fill_(0, block.padding, 0.0)
            _add(total, block.value_sums, torch.bmm(softmax.mT, grad), 1.0)
            grad_softmax = torch.bmm(grad, _gather(block, rows, block.value_rows).mT)
            grad_scores = private("torch._softmax_backward_data")(grad_softmax, softmax, -1, softmax.dtype)
            scaled_bmm(grad_scores, _gather(block, rows, block.key_rows), scale, out=grad_query.of(block))
            _add(total, block.key_sums, torch.bmm(grad_scores.mT, _gather(block, rows, block.query_rows)), scale)
        grad_heads = torch.empty_like(heads, memory_format=torch.contiguous_format)
        grad_heads[:, : blocks.num_heads] = grad_query.packed().view(len(heads), blocks.num_heads, -1)
        grad_heads[:, blocks.num_heads :] = total.view(len(heads), num_summed, -1)
        return grad_heads, None, None


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


def _softmax(block: HeadBlock, rows: Tensor, scale: float) -> Tensor:
    """(R H_kv, H / H_kv W, K)"""
    query, key = (_gather(block, rows, index) for index in (block.query_rows, block.key_rows))
    scores = scaled_bmm(query, key.mT, scale)
    num_rows, num_key_heads, num_shared, num_queries, num_keys = block.shape
    shape = (num_rows, num_key_heads * num_shared, num_queries, num_keys)
    return biased_softmax(scores.view(shape), block.bias.view(num_rows, 1, num_queries, num_keys)).view_as(scores)


def biased_softmax(scores: Tensor, bias: Tensor) -> Tensor:
    """softmax(scores + bias) over the last dimension of scores (R, H, W, K), with bias (R, 1, W, K); may overwrite the
    scores."""
    num_rows, num_heads, num_queries, num_keys = scores.shape
    fits = bias.shape == (num_rows, 1, num_queries, num_keys)
    if fits and (run := kernel("biased_softmax", scores, bias)) is not None:
        run(scores.data_ptr(), bias.data_ptr(), num_rows, num_heads, num_queries, num_keys)
        return scores
    return torch.softmax(scores.add_(bias), dim=-1)  # filling by a mask takes several times as long


def scaled_bmm(left: Tensor, right: Tensor, scale: float, out: Tensor | None = None) -> Tensor:
    """scale left @ right, scaled inside the product."""
    return torch.baddbmm(left.new_empty(()), left, right, beta=0, alpha=scale, out=out)


def _gather(block: HeadBlock, rows: Tensor, index: Tensor) -> Tensor:
    """The rows of `index` as (R H_kv, H / H_kv W or K, D)"""
    return rows.index_select(0, index).view(block.shape[0] * block.shape[1], -1, rows.shape[-1])


def _add(total: Tensor, index: Tensor, grad: Tensor, factor: float) -> None:
    """Add (R H_kv, K, D) to the rows of `index`; a prompt's keys get the sum over its completions."""
    total.index_add_(0, index, grad.view(-1, total.shape[-1]).to(total.dtype), alpha=factor)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
