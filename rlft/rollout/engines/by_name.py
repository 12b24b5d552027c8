"""Engines by the name that a config gives them."""

from __future__ import annotations

from typing import TypeVar

from pydantic import ValidationError
from transformers import PreTrainedTokenizerBase

from rlft.common.by_path import did_you_mean
from rlft.config import RolloutConfig, RunConfig, Strict
from rlft.rollout.engines.contract import Engine
from rlft.rollout.engines.openai import OpenAIEngine, ServerArguments
from rlft.rollout.engines.transformers import TransformersArguments, TransformersEngine

Arguments = TypeVar("Arguments", bound=Strict)


def make_engine(config: RunConfig, model_folder: str, tokenizer: PreTrainedTokenizerBase) -> Engine:
    """The engine that `rollout.engine` names, with `rollout.engine_args`.

    Raises:
        ValueError: the engine is not installed, or does not take these arguments.
    """
    rollout = config.rollout
    if rollout.engine == "openai":
        return OpenAIEngine(tokenizer, read_arguments(ServerArguments, rollout))
    if rollout.engine == "vllm":
        from rlft.rollout.engines.vllm import VllmEngine

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
        engine_args=read_arguments(TransformersArguments, rollout),
    )


def read_arguments(kind: type[Arguments], rollout: RolloutConfig) -> Arguments:
    """`rollout.engine_args`, of the kind that the engine takes.

    Raises:
        ValueError: names each wrong key, the nearest right one, and all that there are.
    """
    if "api_key" in rollout.engine_args and "api_key_env" in kind.model_fields:
        raise ValueError(
            "rollout.engine_args.api_key: a config is saved with its run, so the key has no place in it; put it into "
            "an environment variable and name that in rollout.engine_args.api_key_env"
        )
    try:
        return kind.model_validate(rollout.engine_args)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"]))
            is_unknown = problem["type"] == "extra_forbidden"
            said = f"unknown key.{did_you_mean(key, kind.model_fields)}" if is_unknown else problem["msg"]
            problems.append(f"rollout.engine_args.{key}: {said}")
        known = ", ".join(kind.model_fields)
        raise ValueError(f"{'; '.join(problems)} (the {rollout.engine} engine has {known})") from None


def refuse_training(config: RunConfig) -> None:
    """Refuse to train with an engine that can only evaluate, or with arguments that the engine does not take.

    vLLM knows its arguments itself, once it starts.

    Raises:
        ValueError: what to use instead; see `read_arguments`.
    """
    if config.rollout.engine == "openai":
        raise ValueError(
            "rollout.engine: openai cannot train: a server returns text without the tokens that were sampled and their "
            "log-probs, and it does not run the adapter; use transformers or vllm. `rlft evaluate` works with it"
        )
    if config.rollout.engine == "transformers":
        read_arguments(TransformersArguments, config.rollout)
