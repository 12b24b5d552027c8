"""Attention in a packed row whose segments form a tree: each looks at those that it continues, and causally at itself.

The kernel (`native/tree_attention.h`) goes through the tree as it is: no segment is padded to the length of another, of
a segment's own scores only those are computed that a query of the same tile sees, and none is written to memory. Where
there is no kernel torch computes blocks of segments with their scores written out (`block_attention`), and without a
gradient one segment after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rlft.model.kernels.block_attention import HeadBlocks, block_attention, with_heads
from rlft.model.kernels.library import VECTOR, Kernel, kernel
from rlft.model.kernels.segments import Segment, as_blocks, num_scores

LARGEST_SCORES = 1 << 26
"""Elements beyond which scores are not written out."""


class Tree:
    """The segments of a packed row, in the forms in which attention takes them."""

    def __init__(self, segments: Sequence[Segment]) -> None:
        """
        Args:
            segments: those before the row, then those of the row in its order, each behind those that it continues.

        Raises:
            ValueError: they leave tokens out, or one continues what is no segment before it.
        """
        self.segments = tuple(segments)
        self.num_earlier = sum(segment.length for segment in self.segments if segment.start < 0)
        """Tokens before the row."""
        self.num_tokens = -self.num_earlier
        """Tokens of the row, once all segments are counted in."""
        indices: dict[Segment, int] = {}
        rows: list[tuple[int, int, int]] = []
        for index, segment in enumerate(self.segments):
            before = segment.before
            if segment.start != self.num_tokens or segment.length < 1:
                raise ValueError(f"segment {index} of a row is {segment}, but token {self.num_tokens} comes next")
            if before and (before[-1] not in indices or before[-1].before != before[:-1]):
                raise ValueError(f"segment {index} of a row continues {before[-1]}, which is no segment before it")
            rows.append((segment.start, segment.length, indices[before[-1]] if before else -1))
            indices[segment] = index
            self.num_tokens += segment.length
        self.table = torch.tensor(rows, dtype=torch.int64)
        """(segments, 3) for the kernel: start, length, index of the segment that it continues or -1."""
        self._blocks: dict[tuple[int, int, torch.dtype], HeadBlocks] = {}
        self._masks: dict[Segment, Tensor] = {}

    def as_blocks(self, num_heads: int, num_key_heads: int, dtype: torch.dtype) -> HeadBlocks:
        """The segments as blocks for a layer with these heads; made when the first such layer asks."""
        key = (num_heads, num_key_heads, dtype)
        if key not in self._blocks:
            self._blocks[key] = with_heads(as_blocks(self.segments), *key)
        return self._blocks[key]

    def mask(self, segment: Segment, device: torch.device) -> Tensor | None:
        """What a segment's tokens see of those that it continues and of itself, (length, before + length) bool; None
        for a single token, which sees all, and where plain causal attention says it."""
        if segment.length == 1 or not segment.before:
            return None
        if segment not in self._masks:
            before = sum(each.length for each in segment.before)
            visible = torch.ones(segment.length, before + segment.length, dtype=torch.bool, device=device)
            self._masks[segment] = visible.tril_(before)
        return self._masks[segment]

    @cached_property
    def _num_scores(self) -> int:
        return num_scores(self.segments)

    def suits(self, operand: Tensor, num_heads: int) -> bool:
        """Whether `tree_attention` is the way for a layer with operands like this one, of heads in the last dimension:
        on a CPU, if there is a kernel or the scores of `num_heads` are few enough to be written out."""
        if operand.device.type != "cpu":
            return False
        return _has_kernel(operand) or num_heads * self._num_scores <= LARGEST_SCORES


def tree_attention(heads: Tensor, num_heads: int, tree: Tree, scale: float) -> Tensor:
    """Softmax attention along the tree, with its gradient.

    Args:
        heads: (T, num_heads + 2 H_kv, D), the queries of every token, its keys, each serving num_heads / H_kv query
            heads, and its values.
        tree: of T tokens.

    Returns:
        (T, num_heads, D)

    Raises:
        ValueError: the heads do not fit the tree or one another, segments come before the row, or `scale` is not
            positive.
    """
    num_key_heads = _num_key_heads(heads, num_heads, tree, scale)
    if tree.num_earlier:
        raise ValueError(f"{tree.num_earlier} tokens come before the row: only `attention_behind` takes such a tree")
    if _has_kernel(heads):
        return _TreeAttention.apply(heads, num_heads, num_key_heads, tree, scale)
    return block_attention(heads, tree.as_blocks(num_heads, num_key_heads, heads.dtype), scale)


def attention_behind(heads: Tensor, num_heads: int, tree: Tree, earlier: Sequence[Tensor], scale: float) -> Tensor:
    """`tree_attention`, without a gradient, of a row whose segments may continue some that were computed earlier.

    Args:
        earlier: keys and values (2, H_kv, T, D) of each segment before the row.

    Raises:
        ValueError: as `tree_attention`, or the earlier keys and values do not fit.
    """
    num_key_heads = _num_key_heads(heads, num_heads, tree, scale)
    size, before = heads.shape[-1], [segment for segment in tree.segments if segment.start < 0]
    shapes = [(2, num_key_heads, segment.length, size) for segment in before]
    if [tuple(each.shape) for each in earlier] != shapes:
        raise ValueError(f"keys and values before the row are {[tuple(each.shape) for each in earlier]}, not {shapes}")
    joined = torch.cat(list(earlier), dim=2) if earlier else heads.new_empty(2, num_key_heads, 0, size)
    output = heads.new_empty(len(heads), num_heads, size)
    run = kernel("tree_attention", heads, joined, output) if size % VECTOR == 0 else None
    if run is None:
        _by_segments(heads, num_heads, tree, joined, scale, output)
    else:
        sizes = (len(tree.segments), num_heads, num_key_heads, size)
        run(*(x.data_ptr() for x in (heads, tree.table, joined, output)), None, *sizes, scale)
    return output


def _by_segments(heads: Tensor, num_heads: int, tree: Tree, earlier: Tensor, scale: float, output: Tensor) -> None:
    """Write attention of a row behind `earlier` (2, H_kv, T, D) to `output`, one segment after the other, by torch."""
    of_row = heads[:, num_heads:].unflatten(1, (2, -1)).permute(1, 2, 0, 3)
    for segment in tree.segments:
        if segment.start < 0:
            continue
        kept = []
        for each in (*segment.before, segment):
            source, start = (of_row, each.start) if each.start >= 0 else (earlier, tree.num_earlier + each.start)
            kept.append(source[:, :, start : start + each.length])
        keys, values = torch.cat(kept, dim=2)[:, None]
        rows = slice(segment.start, segment.start + segment.length)
        query, mask = heads[rows, :num_heads].transpose(0, 1)[None], tree.mask(segment, heads.device)
        attended = F.scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, is_causal=not segment.before, scale=scale, enable_gqa=True
        )
        output[rows] = attended[0].transpose(0, 1)


def _num_key_heads(heads: Tensor, num_heads: int, tree: Tree, scale: float) -> int:
    """H_kv of heads (T, num_heads + 2 H_kv, D) that fit a tree of T tokens. Raises ValueError where they do not."""
    if scale <= 0:
        raise ValueError(f"attention scores are scaled by {scale:g}; this takes positive scales only")
    num_key_heads, rest = divmod(heads.shape[1] - num_heads, 2)
    if len(heads) != tree.num_tokens or rest or num_key_heads < 1 or num_heads % num_key_heads:
        raise ValueError(
            f"{tuple(heads.shape)} are no {num_heads} queries, keys and values of each of {tree.num_tokens} tokens"
        )
    return num_key_heads


def _has_kernel(operand: Tensor) -> bool:
    """Whether both kernels take operands of this type, and heads of this size."""
    like = operand.new_empty(0)
    kernels = [kernel(name, like) for name in ("tree_attention", "tree_attention_backward")]
    return operand.shape[-1] % VECTOR == 0 and None not in kernels


class _TreeAttention(torch.autograd.Function):
    """The kernel. Of its scores only the logarithm of each query's sum of exponentials is kept."""

    @staticmethod
    def forward(ctx: Any, heads: Tensor, num_heads: int, num_key_heads: int, tree: Tree, scale: float) -> Tensor:
        heads = heads.contiguous()
        output = heads.new_empty(len(heads), num_heads, heads.shape[-1])
        log_sums = heads.new_empty(len(heads), num_heads, dtype=torch.float32)
        run = _kernel("tree_attention", heads, output)
        sizes = (len(tree.segments), num_heads, num_key_heads, heads.shape[-1])
        run(heads.data_ptr(), tree.table.data_ptr(), None, output.data_ptr(), log_sums.data_ptr(), *sizes, scale)
        ctx.save_for_backward(heads, log_sums)
        ctx.tree, ctx.sizes, ctx.scale = tree, sizes, scale
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        heads, log_sums = ctx.saved_tensors
        grad, grad_heads = grads[0].contiguous(), torch.empty_like(heads)
        run = _kernel("tree_attention_backward", heads, grad, grad_heads)
        run(*(x.data_ptr() for x in (heads, ctx.tree.table, log_sums, grad, grad_heads)), *ctx.sizes, ctx.scale)
        return grad_heads, None, None, None, None


def _kernel(name: str, *tensors: Tensor) -> Kernel:
    run = kernel(name, *tensors)
    if run is None:
        types = ", ".join(str(tensor.dtype) for tensor in tensors)
        raise ValueError(f"{name} takes contiguous operands of one type and has no second derivative; got {types}")
    return run
