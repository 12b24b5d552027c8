"""Engines by the name that a config gives them."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from rlft.config import RunConfig
from rlft.rollout.engine import Engine
from rlft.rollout.transformers_engine import TransformersEngine


def make_engine(config: RunConfig, model_folder: str, tokenizer: PreTrainedTokenizerBase) -> Engine:
    """The engine that `rollout.engine` names, with `rollout.engine_args`.

    Raises:
        ValueError: the engine is not installed, or does not take these arguments.
    """
    rollout = config.rollout
    if rollout.engine == "openai":
        from rlft.rollout.openai_engine import OpenAIEngine

        return OpenAIEngine(tokenizer, rollout.engine_args)
    if rollout.engine == "vllm":
        from rlft.rollout.vllm_engine import VllmEngine

        return VllmEngine(
            model_folder,
            tokenizer,
            model=config.model,
            adapter=config.adapter,
            threads=rollout.threads,
            engine_args=rollout.engine_args,
        )
    return TransformersEngine(
        model_folder,
        tokenizer,
        model=config.model,
        adapter=config.adapter,
        threads=rollout.threads,
        **rollout.engine_args,
    )


def refuse_training(config: RunConfig) -> None:
    """Refuse to train with an engine that can only evaluate.

    Raises:
        ValueError: what to use instead.
    """
    if config.rollout.engine == "openai":
        raise ValueError(
            "rollout.engine: openai cannot train: a server returns text without the tokens that were sampled and their "
            "log-probs, and it does not run the adapter; use transformers or vllm. `rlft evaluate` works with it"
        )
