"""Attention over a packed row whose prompts are shared (see `batch.pack`), as an attention function of transformers.

The row's linear layers run on all tokens at once; only attention needs to know the layout, a tree. What all prompts
begin with attends causally to itself, a prompt to that and causally to itself, and a completion to both and causally to
itself: exact, and without a [T, T] mask.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from rlft.model.kernels.block_attention import LARGEST_SCORES, Block, HeadBlocks, block_attention, with_heads
from rlft.model.kernels.sizes import LENGTH, SEQUENCES, rounded_up
from rlft.model.layers.packed import PackedGroup

BLOCK_COST = 4096
"""Scores of one head that take as long as the calls of one more block."""
NAME = "rlft_packed"
"""Value for `attn_implementation`; without a packed row it is transformers' own SDPA attention."""


@dataclass(slots=True)
class Layout:
    """Where the sequences of a packed row are, and how many layers have used it."""

    groups: tuple[PackedGroup, ...]
    """Where each prompt and its completions stand."""
    layers: int = 0
    """Layers that have used the layout so far."""
    blocks: dict[tuple[int, int, torch.dtype], HeadBlocks] = field(default_factory=dict)
    """The layout as blocks, by number of heads, of key heads, and type; made when the first such layer asks."""

    def count_layer(self, query: Tensor, key: Tensor, scale: float, window: int | None) -> None:
        """Count a layer whose attention uses the layout, with these operands."""
        self.layers += 1

    def as_blocks(self, num_heads: int, num_key_heads: int, dtype: torch.dtype) -> HeadBlocks:
        """The layout as blocks for a layer with these heads."""
        key = (num_heads, num_key_heads, dtype)
        if key not in self.blocks:
            self.blocks[key] = with_heads(as_blocks(self.groups), *key)
        return self.blocks[key]

    def check_layout_used(self, num_layers: int) -> None:
        """Refuse a model some of whose layers mixed the row's sequences.

        Raises:
            ValueError: a layer has attention code of its own, a convolution or a recurrent state.
        """
        if self.layers != num_layers:
            raise ValueError(
                f"this model cannot take packed rows: {self.layers} of its {num_layers} layers used "
                "their layout, so the "
                "others would mix sequences; use a model whose layers all go through transformers' attention interface"
            )


class OneTokenAttention(Protocol):
    """Keys and values of rows that are continued by one token, such as `model.kernels.kv_cache`."""

    def attend(self, layer_index: Any, query: Tensor, scale: float, softcap: float | None) -> Tensor:
        """Attention of a layer's queries (R, H, 1, D); returns (R, 1, H, D)."""
        ...


def packed_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    packed_layout: Layout | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    row_cache: OneTokenAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Scaled dot-product attention; block-wise over `packed_layout` where the caller gives one.

    Args:
        query: (1, H, T, D). key, value: (1, H_kv, T, D).
        row_cache: computes the attention of one new token in each of R rows instead: then query is (R, H, 1, D).

    Returns:
        ((1, T, H, D), None)

    Raises:
        ValueError: a packed sequence is longer than the model's sliding window, or the model's attention is not plain
            scaled dot-product attention (soft-capped scores, attention sinks).
    """
    if kwargs.get("s_aux") is not None:
        raise ValueError("this model has attention sinks, which packed attention leaves out")
    if row_cache is not None:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return row_cache.attend(module.layer_idx, query, scale, kwargs.get("softcap")), None
    if packed_layout is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    if kwargs.get("softcap") is not None:
        raise ValueError("this model soft-caps its attention scores, which packed attention cannot do")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    _check_window(packed_layout, query, key, scale, sliding_window)
    if _is_in_blocks(packed_layout, query) and key.shape == value.shape:
        # Under autocast, rotary positions leave queries and keys in float32.
        heads = torch.cat([tensor[0].transpose(0, 1).to(value.dtype) for tensor in (query, key, value)], dim=1)
        return _in_blocks(packed_layout, heads, query.shape[1], scale).unsqueeze(0), None
    return _by_group(packed_layout.groups, query, key, value, scale).unsqueeze(0), None


def packed_heads_attention(heads: Tensor, num_heads: int, layout: Layout, scale: float, window: int | None) -> Tensor:
    """Scaled dot-product attention over a packed row whose queries, keys and values are one tensor.

    Args:
        heads: (T, num_heads + 2 H_kv, D), queries, keys and values of each token side by side.
        window: the model's sliding window, if it has one.

    Returns:
        (T, num_heads, D)

    Raises:
        ValueError: a packed sequence is longer than the window.
    """
    num_key_heads = (heads.shape[1] - num_heads) // 2
    parts = heads.split([num_heads, num_key_heads, num_key_heads], dim=1)
    query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in parts)
    _check_window(layout, query, key, scale, window)
    if _is_in_blocks(layout, query):
        return _in_blocks(layout, heads, num_heads, scale)
    return _by_group(layout.groups, query, key, value, scale)


def _check_window(layout: Layout, query: Tensor, key: Tensor, scale: float, window: int | None) -> None:
    layout.count_layer(query, key, scale, window)
    longest = max(g.prefix_length + g.prompt_length + max(g.lengths, default=0) for g in layout.groups)
    if window is not None and longest > window:
        raise ValueError(f"a sequence of {longest} tokens exceeds the model's sliding window of {window}")


def _is_in_blocks(layout: Layout, query: Tensor) -> bool:
    return query.device.type == "cpu" and _num_scores(layout.groups) * query.shape[1] <= LARGEST_SCORES


def _in_blocks(layout: Layout, heads: Tensor, num_heads: int, scale: float) -> Tensor:
    blocks = layout.as_blocks(num_heads, (heads.shape[1] - num_heads) // 2, heads.dtype)
    return block_attention(heads, blocks, scale)


def _by_group(groups: tuple[PackedGroup, ...], query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Group by group with torch's own attention; (T, H, D)."""
    num_repeats = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(num_repeats, dim=1), value.repeat_interleave(num_repeats, dim=1)
    pieces: list[Tensor] = []
    for group in groups:
        start = group.start + group.prompt_length
        prompt_query, prompt_key, prompt_value = (x[:, :, group.start : start] for x in (query, key, value))
        mask = None
        if group.prefix_length:
            prompt_key, prompt_value = (
                torch.cat([x[:, :, : group.prefix_length], own], dim=2)
                for x, own in ((key, prompt_key), (value, prompt_value))
            )
            mask = _behind(group.prefix_length, group.prompt_length, query.device)
        output = F.scaled_dot_product_attention(
            prompt_query, prompt_key, prompt_value, attn_mask=mask, is_causal=mask is None, scale=scale
        )
        pieces.append(output[0])
        lengths = tuple(length for length in group.lengths if length)
        if not lengths:
            continue
        gather, scatter = _padding(lengths, query.device)
        own = slice(start, start + sum(lengths))
        rows, width = len(lengths), max(lengths)
        padded_query, padded_key, padded_value = (
            tensor[0, :, own][:, gather].unflatten(1, (rows, width)).transpose(0, 1) for tensor in (query, key, value)
        )
        output = F.scaled_dot_product_attention(
            padded_query,
            torch.cat([prompt_key.expand(rows, -1, -1, -1), padded_key], dim=2),
            torch.cat([prompt_value.expand(rows, -1, -1, -1), padded_value], dim=2),
            attn_mask=_completion_mask(group.prefix_length + group.prompt_length, width, query.device),
            scale=scale,
        )
        pieces.append(output.transpose(0, 1).flatten(1, 2)[:, scatter])
    return torch.cat(pieces, dim=1).transpose(0, 1).contiguous()


def _behind(prefix_length: int, prompt_length: int, device: torch.device) -> Any:
    """Mask of a prompt that continues a prefix: on a GPU one that fused kernels know, which no memory holds."""
    if device.type == "cuda":
        return causal_lower_right(prompt_length, prefix_length + prompt_length)
    return torch.ones(prompt_length, prefix_length + prompt_length, dtype=torch.bool).tril(diagonal=prefix_length)


def _num_scores(groups: tuple[PackedGroup, ...]) -> int:
    """Scores of one head that attention in blocks would write out, at most but for rows that fill blocks up."""
    width = max(max(group.lengths, default=0) for group in groups)
    longest = max(group.prefix_length + group.prompt_length for group in groups)
    prompts = sum(group.prompt_length for group in groups) * longest
    return prompts + sum(len(group.lengths) for group in groups) * width * (longest + width)


def as_blocks(groups: tuple[PackedGroup, ...]) -> list[Block]:
    """Prefix, prompts and completions as blocks of rows of similar length, so that little is padding."""
    by_depth: dict[int, list[Span]] = {}
    for group in groups:
        prefix = (Span(start=0, length=group.prefix_length),) if group.prefix_length else ()
        prompt = Span(start=group.start, length=group.prompt_length, before=prefix)
        by_depth.setdefault(len(prefix), []).append(prompt)
        start = group.start + group.prompt_length
        for length in filter(None, group.lengths):
            completion = Span(start=start, length=length, before=(*prefix, prompt))
            by_depth.setdefault(len(completion.before), []).append(completion)
            start += length
    return [_block(spans) for _, kind in sorted(by_depth.items()) for spans in _of_similar_length(kind)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Consecutive tokens of the row that attend causally to themselves, and to all of the spans before them."""

    start: int
    length: int
    before: tuple[Span, ...] = ()
    """What the span continues: nothing, a prompt, or a prefix and a prompt."""


def _of_similar_length(spans: list[Span]) -> list[list[Span]]:
    """The spans in blocks, longest first, with the fewest scores when every block costs `BLOCK_COST` of them besides.

    All blocks but the last have a multiple of `SEQUENCES` rows, or one row, if that is the first.
    """
    spans = sorted(spans, key=lambda span: -span.length)
    keys = max(sum(each.length for each in span.before) for span in spans)
    cost, starts = _cut([span.length for span in spans], keys)
    other, behind = _cut([span.length for span in spans[1:]], keys)
    if BLOCK_COST + _scores(1, spans[0].length, keys) + other < cost:
        starts = [0, *(1 + start for start in behind)]
    return [spans[m:n] for m, n in zip(starts, [*starts[1:], len(spans)], strict=True)]


def _cut(lengths: list[int], keys: int) -> tuple[float, list[int]]:
    """(the least cost, where each block begins) of descending lengths.

    The best cut of the first n ends with a block from some m to n, after the best cut of the first m.
    """
    best: dict[int, tuple[float, list[int]]] = {0: (0, [])}
    for n in [*range(SEQUENCES, len(lengths), SEQUENCES), *([len(lengths)] if lengths else [])]:
        best[n] = min(
            (cost + BLOCK_COST + _scores(n - m, lengths[m], keys), [*starts, m]) for m, (cost, starts) in best.items()
        )
    return best[len(lengths)]


def _scores(rows: int, length: int, keys: int) -> int:
    """Scores of one head of a block with these sequences."""
    return _rows(rows) * length * (keys + length)


def _rows(sequences: int) -> int:
    """Rows of a block: one alone stays so, as it may be a long prompt; others are filled up."""
    return sequences if sequences == 1 else rounded_up(sequences, SEQUENCES)


def _block(spans: list[Span]) -> Block:
    """The spans, which have as many before them, as a block, filled up with rows and columns that are not real."""
    fill = _rows(len(spans)) - len(spans)
    queries, is_real = _padded([*spans, *spans[:1] * fill])
    is_real[len(spans) :] = False
    rows, width = queries.shape
    keys, visible = [], []
    for before in zip(*(span.before for span in spans), strict=True):
        position, is_there = _padded([*before, *before[:1] * fill])
        keys.append(position)
        visible.append(is_there[:, None].expand(-1, width, -1))
    causal = torch.ones(width, width, dtype=torch.bool).tril().expand(rows, -1, -1)
    return Block(
        queries=queries,
        is_real=is_real,
        keys=torch.cat([*keys, queries], dim=1),
        is_visible=torch.cat([*visible, causal], dim=2),
    )


def _padded(spans: list[Span]) -> tuple[Tensor, Tensor]:
    """(rows, width) positions of the spans, their last one repeated as padding, and which are real."""
    start, length = torch.tensor([(span.start, span.length) for span in spans]).T
    offsets = torch.arange(rounded_up(int(length.max()), LENGTH))
    return start[:, None] + torch.minimum(offsets, length[:, None] - 1), offsets < length[:, None]


@lru_cache(maxsize=512)
def _padding(lengths: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Indices that pad consecutive completions to one width, and those that undo it.

    The padding repeats a completion's last token; nothing real attends to it, since it comes after.
    """
    width = max(lengths)
    gather: list[int] = []
    scatter: list[int] = []
    offset = 0
    for row, length in enumerate(lengths):
        gather += [offset + min(t, length - 1) for t in range(width)]
        scatter += [row * width + t for t in range(length)]
        offset += length
    return torch.tensor(gather, device=device), torch.tensor(scatter, device=device)


@lru_cache(maxsize=512)
def _completion_mask(before: int, width: int, device: torch.device) -> Tensor:
    """(width, before + width) True where a token may look: all that stands before, and its own sequence causally."""
    return torch.ones(width, before + width, dtype=torch.bool, device=device).tril(diagonal=before)


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)
