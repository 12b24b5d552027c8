"""The packed row that a model reads: what all prompts begin with, then each group's prompt once and its completions."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class PackedGroup:
    """Positions of one prompt and its completions in the row."""

    start: int
    """Row index of the prompt's first token, behind the prefix if it has one."""
    prompt_length: int
    """Tokens of the prompt, without its prefix; at least 1."""
    lengths: tuple[int, ...]
    """Tokens of each completion in the row, which come after the prompt and one another; may be 0."""
    prefix_length: int = 0
    """Tokens at the beginning of the row that the prompt continues; a group without completions holds them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Packed:
    """One row for the model: T tokens, A actions."""

    token_ids: Tensor
    """(1, T) int64."""
    position_ids: Tensor
    """(1, T) int64, counted within each sequence."""
    groups: tuple[PackedGroup, ...]
    """Layout of the row; the attention mask follows from it."""
    predictor_index: Tensor
    """(A,) row index of the token whose logits predict each action."""
    target_ids: Tensor
    """(A,) token id of each action."""
