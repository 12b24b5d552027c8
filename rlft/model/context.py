"""How many tokens a model attends to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PretrainedConfig


@dataclass(frozen=True, slots=True)
class Context:
    """What a prompt and its new tokens have to fit in."""

    tokens: int
    """Most of both together."""
    words: str
    """What that is, for errors, as in "the model's context of 2048"."""


def max_positions(config: PretrainedConfig) -> int:
    """Positions that a model has embeddings for, whatever it attends to.

    With LongRoPE (https://arxiv.org/abs/2402.13753), those before it is stretched: transformers then rotates all of a
    batch otherwise as soon as one of its sequences is longer, so that what a sample is worth would hang on the others.
    """
    text = config.get_text_config()
    longest: int = text.max_position_embeddings
    rotary = getattr(text, "rope_parameters", None) or {}
    for each in (rotary, *(value for value in rotary.values() if isinstance(value, Mapping))):  # by kind of layer
        if each.get("rope_type") == "longrope":
            own = getattr(text, "original_max_position_embeddings", None)
            longest = min(longest, each.get("original_max_position_embeddings") or own or longest)
    return longest


def model_context(config: PretrainedConfig) -> Context:
    """The context of the transformers engine and of the learner, which both attend to everything before a token."""
    longest = max_positions(config)
    window: int = getattr(config.get_text_config(), "sliding_window", None) or longest
    if window < longest:
        return Context(window, f"the model's sliding window of {window}")
    if longest < config.get_text_config().max_position_embeddings:
        return Context(longest, f"the {longest} positions before the model's LongRoPE stretches them")
    return Context(longest, f"the model's context of {longest}")
