"""Engines by the name that a config gives them: checking a config against its engine, and making the engine.

Asking costs no heavy import; `make_engine` loads what the engine runs on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import ValidationError

from rlft.common.by_path import did_you_mean
from rlft.config import RolloutConfig, RunConfig
from rlft.config.layers import Location
from rlft.config.sections import MeasurementConfig
from rlft.config_file import Problem, dotted
from rlft.rollout.engines.contract import Engine
from rlft.rollout.engines.traits import ENGINES, Arguments, EngineTraits, OpenAIArguments, VllmArguments

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ARGS = ("rollout", "engine_args")


def traits_of(rollout: RolloutConfig) -> EngineTraits:
    """What the engine that `rollout.engine` names can do.

    Raises:
        ValueError: there is no such engine.
    """
    if rollout.engine not in ENGINES:
        near = did_you_mean(rollout.engine, ENGINES)
        raise ValueError(f"rollout.engine: {rollout.engine!r} is none; one of {', '.join(ENGINES)}.{near}")
    return ENGINES[rollout.engine]


def read_arguments(rollout: RolloutConfig) -> Arguments:
    """`rollout.engine_args`, of the type that the engine takes.

    Raises:
        ValueError: no such engine; or names each wrong key, the nearest right one, and all that there are.
    """
    traits = traits_of(rollout)
    if problems := _argument_problems(rollout, traits):
        raise ValueError(_said(problems))
    return traits.arguments.model_validate(rollout.engine_args)


def engine_problems(config: RunConfig, *, is_trained: bool) -> list[Problem]:
    """What a config asks of its engine that the engine cannot do.

    Args:
        is_trained: whether a policy is trained on what it generates, else it is only measured.
    """
    rollout, adapter, sampling = config.rollout, config.adapter, config.sampling
    try:
        traits = traits_of(rollout)
    except ValueError as error:
        return [(("rollout", "engine"), str(error).removeprefix("rollout.engine: "))]
    problems = _argument_problems(rollout, traits)
    if is_trained and traits.cannot_train:
        able = " or ".join(name for name, other in ENGINES.items() if not other.cannot_train)
        what = f"{rollout.engine} cannot train: {traits.cannot_train}; use {able}. `rlft evaluate` works with it"
        problems.append((("rollout", "engine"), what))
    if traits.adapter_kinds and adapter.kind not in traits.adapter_kinds:
        what = (
            f"{adapter.kind} is no kind that rollout.engine: {rollout.engine} generates with; use "
            f"{' or '.join(traits.adapter_kinds)}, or rollout.engine: transformers"
        )
        problems.append((("adapter", "kind"), what))
    if traits.max_rank and adapter.rank > traits.max_rank:
        what = f"rollout.engine: {rollout.engine} takes adapters up to rank {traits.max_rank}, this is {adapter.rank}"
        problems.append((("adapter", "rank"), what))
    if traits.truncates_at_temperature_1_only and sampling.is_truncating and sampling.temperature != 1:
        what = (
            f"rollout.engine: {rollout.engine} gives no log-probs of the policy at temperature "
            f"{sampling.temperature:g} before top_p, top_k and min_p, which the learner has to compare with; use 1, or "
            "none of them, or rollout.engine: transformers"
        )
        problems.append((("sampling", "temperature"), what))
    measured: list[tuple[Location, MeasurementConfig]] = [(("evaluation",), config.evaluation)]
    measured += [(("evaluations", at), each) for at, each in enumerate(config.evaluations)]
    for where, each in measured:
        if traits.truncates_at_temperature_1_only and each.top_p < 1 and each.temperature not in (0, 1):
            what = (
                f"rollout.engine: {rollout.engine} takes top_p at temperature 1 only, this is {each.temperature:g}; "
                "use 1, or top_p: 1, or rollout.engine: transformers"
            )
            problems.append(((*where, "top_p"), what))
    return problems


def check_engine(config: RunConfig, *, is_trained: bool) -> None:
    """Refuse a config whose engine cannot do what it asks.

    Raises:
        ValueError: all `engine_problems`, one a line.
    """
    if problems := engine_problems(config, is_trained=is_trained):
        raise ValueError(_said(problems))


def make_engine(config: RunConfig, model_folder: str, tokenizer: PreTrainedTokenizerBase) -> Engine:
    """The engine that `rollout.engine` names, with `rollout.engine_args`.

    Raises:
        ValueError: the engine is not installed, or does not take these arguments.
    """
    arguments, threads = read_arguments(config.rollout), config.rollout.threads
    if isinstance(arguments, OpenAIArguments):
        from rlft.rollout.engines.openai import OpenAIEngine

        return OpenAIEngine(tokenizer, arguments)
    if isinstance(arguments, VllmArguments):
        from rlft.rollout.engines.vllm import VllmEngine

        return VllmEngine(
            model_folder,
            tokenizer,
            model=config.model,
            adapter=config.adapter,
            threads=threads,
            engine_args=arguments,
        )
    from rlft.rollout.engines.transformers import TransformersEngine

    return TransformersEngine(
        model_folder,
        tokenizer,
        model=config.model,
        adapter=config.adapter,
        threads=threads,
        engine_args=arguments,
    )


def _said(problems: Sequence[Problem]) -> str:
    return "\n".join(f"{dotted(loc)}: {what}" for loc, what in problems)


def _argument_problems(rollout: RolloutConfig, traits: EngineTraits) -> list[Problem]:
    kind, given = traits.arguments, rollout.engine_args
    refused = {key: why for key, why in traits.refused.items() if key in given}
    try:
        kind.model_validate({key: value for key, value in given.items() if key not in refused})
        wrong = []
    except ValidationError as error:
        wrong = error.errors()
    problems: list[Problem] = [((*_ARGS, key), why) for key, why in refused.items()]
    for problem in wrong:
        what = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = f"the {rollout.engine} engine has {', '.join(kind.model_fields)}"
            what = f"unknown key.{did_you_mean(str(problem['loc'][0]), kind.model_fields)} ({known})"
        elif problem["type"] == "missing":
            what = f"the {rollout.engine} engine needs this key"
        problems.append(((*_ARGS, *problem["loc"]), what))
    return problems
