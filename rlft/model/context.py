"""How many tokens a model attends to."""

from __future__ import annotations

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
    """Positions that a model has embeddings for, whatever it attends to."""
    longest: int = config.get_text_config().max_position_embeddings
    return longest


def model_context(config: PretrainedConfig) -> Context:
    """The context of the transformers engine and of the learner, which both attend to everything before a token."""
    longest = max_positions(config)
    window: int = getattr(config.get_text_config(), "sliding_window", None) or longest
    if window < longest:
        return Context(window, f"the model's sliding window of {window}")
    return Context(longest, f"the model's context of {longest}")
