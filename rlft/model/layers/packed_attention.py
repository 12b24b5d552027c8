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

from rlft.model.kernels.segments import Segment
from rlft.model.kernels.tree_attention import Tree, tree_attention
from rlft.model.layers.packed import PackedGroup

NAME = "rlft_packed"
"""Value for `attn_implementation`; without a packed row it is transformers' own SDPA attention."""


@dataclass(slots=True)
class Layout:
    """Where the sequences of a packed row are, and how many layers have used it."""

    groups: tuple[PackedGroup, ...]
    """Where each prompt and its completions stand."""
    layers: int = 0
    """Layers that have used the layout so far."""
    tree: Tree = field(init=False)
    """The same sequences, as segments that continue one another."""

    def __post_init__(self) -> None:
        self.tree = Tree(segments_of(self.groups))

    def count_layer(self, query: Tensor, key: Tensor, scale: float, window: int | None) -> None:
        """Count a layer whose attention uses the layout, with these operands."""
        self.layers += 1

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
    """Scaled dot-product attention; along the tree of `packed_layout` where the caller gives one.

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
    if key.shape == value.shape and packed_layout.tree.suits(value, query.shape[1]):
        # Under autocast, rotary positions leave queries and keys in float32.
        heads = torch.cat([tensor[0].transpose(0, 1).to(value.dtype) for tensor in (query, key, value)], dim=1)
        return tree_attention(heads, query.shape[1], packed_layout.tree, scale).unsqueeze(0), None
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
    if layout.tree.suits(heads, num_heads):
        return tree_attention(heads, num_heads, layout.tree, scale)
    return _by_group(layout.groups, query, key, value, scale)


def _check_window(layout: Layout, query: Tensor, key: Tensor, scale: float, window: int | None) -> None:
    layout.count_layer(query, key, scale, window)
    longest = max(g.prefix_length + g.prompt_length + max(g.lengths, default=0) for g in layout.groups)
    if window is not None and longest > window:
        raise ValueError(f"a sequence of {longest} tokens exceeds the model's sliding window of {window}")


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


def segments_of(groups: tuple[PackedGroup, ...]) -> list[Segment]:
    """Prefix, prompts and completions in the order of the row."""
    found: list[Segment] = []
    for group in groups:
        prefix = (Segment(start=0, length=group.prefix_length),) if group.prefix_length else ()
        prompt = Segment(start=group.start, length=group.prompt_length, before=prefix)
        found.append(prompt)
        start = group.start + group.prompt_length
        for length in filter(None, group.lengths):
            found.append(Segment(start=start, length=length, before=(*prefix, prompt)))
            start += length
    return found


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
