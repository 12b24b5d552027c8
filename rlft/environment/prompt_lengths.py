"""Whether prompts fit the model, decided before a run starts."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Literal

from transformers import PretrainedConfig, PreTrainedTokenizerBase

from rlft.common.by_path import describe_error
from rlft.config import RunConfig
from rlft.environment.contract import Environment, check_messages
from rlft.model import chat, pretrained, special_tokens
from rlft.model.context import Context, _positions, model_context
from rlft.types import Message, Task

STARTED = 16
"""Tasks of a multi-turn environment, evenly spread, whose first prompt is looked at unless all are."""
CANARY_TOKENS = 48
"""Most tokens of the reply in the weight proof, see `rollout.weight_proof`."""


def run_context(
    config: RunConfig, model_config: PretrainedConfig, *, is_trained: bool = True, is_canary: bool = False
) -> Context:
    """The context of a config's engine, and of the learner where there is one.

    Args:
        is_trained: whether the learner gets the samples too.
        is_canary: whether it is for the canary instead of samples.
    """
    rollout, sampling = config.rollout, config.sampling
    if rollout.engine == "transformers":
        return model_context(model_config)
    longest = _positions(model_config)
    context = Context(longest, f"the model's context of {longest}")
    name = {"vllm": "max_model_len", "openai": "context"}[rollout.engine]
    given = rollout.engine_args.get(name)
    if isinstance(given, int) and 0 < given < longest:  # anything else is for the engine to read, or to refuse
        context = Context(given, f"rollout.engine_args.{name}={given}")
    if rollout.engine == "openai":
        return context
    if is_canary or sampling.top_p < 1 or sampling.top_k > 0 or sampling.min_p > 0:
        # vLLM then reads the whole as a prompt, and needs a place behind it.
        context = Context(context.tokens - 1, f"{context.words}, of which vLLM keeps one token")
    return min(context, model_context(model_config), key=lambda bound: bound.tokens) if is_trained else context


def fit(
    config: RunConfig, environment: Environment, model_folder: str, *, is_trained: bool = True
) -> tuple[Environment, str]:
    """`fit_context` for a config and its model; demonstrations of the SFT stage and the canary have to fit too.

    Args:
        is_trained: whether training follows, else only a measurement.

    Raises:
        ValueError: see `fit_context`; or a demonstration or the canary is too long.
    """
    model_config = pretrained.load_config(model_folder)
    context = run_context(config, model_config, is_trained=is_trained)
    tokenizer = chat.load_tokenizer(model_folder, special_tokens_in_text=config.model.special_tokens_in_text)
    if config.sft is not None:
        shown = environment.demonstrations[: config.sft.examples]
        longest = _positions(model_config)  # SFT runs the model with its window
        chat.check_conversations(tokenizer, shown, context=longest, tools=environment.tools)
    environment, note = fit_context(
        environment,
        tokenizer,
        max_new_tokens=config.sampling.max_new_tokens,
        context=context,
        overlong=config.environment.overlong,
    )
    asked = [*environment.train, *environment.heldout]
    spelled, token = special_tokens.as_text(
        tokenizer, [*(task.messages for task in asked), *environment.demonstrations]
    )
    if spelled:
        becomes = "act as those tokens" if config.model.special_tokens_in_text == "allow" else "stay text"
        remark = (
            f"{spelled} prompts and demonstrations spell special tokens, such as {token!r}; they {becomes} "
            "(model.special_tokens_in_text)"
        )
        environment = replace(environment, notes=(*environment.notes, remark))
    if is_trained and config.rollout.engine != "openai":
        _check_canary(environment.train[0], tokenizer, run_context(config, model_config, is_canary=True))
    return environment, note


def fit_context(
    environment: Environment,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    context: Context,
    overlong: Literal["error", "drop"],
) -> tuple[Environment, str]:
    """(the environment with tasks whose prompt and completion fit the context, what was left out in words).

    A multi-turn environment writes its first prompt from a seed, which is another at each step: one episode is started,
    with seed 0, of every task to drop those that are too long, else of a few.

    Raises:
        ValueError: how many tasks are too long, the longest one, and the bound; nothing is left; or an episode cannot
            start, or has too small a budget for one action.
    """
    if environment.max_tokens is not None and environment.episode and environment.max_tokens < max_new_tokens:
        raise ValueError(
            f"the environment's max_tokens is {environment.max_tokens}, less than the {max_new_tokens} that one action "
            "may have; lower sampling.max_new_tokens"
        )
    tasks: Sequence[Task] = [*environment.train, *environment.heldout]
    if environment.episode is not None and overlong == "error":
        tasks = tasks[:: -(-len(tasks) // STARTED)]
    lengths = {task.id: _prompt_length(environment, tokenizer, task) for task in tasks}
    too_long = [(length, task_id) for task_id, length in lengths.items() if length + max_new_tokens > context.tokens]
    if not too_long:
        return environment, ""
    length, task_id = max(too_long)
    starts = f"task {task_id!r} has" if environment.episode is None else f"the episode of task {task_id!r} starts with"
    bound = f"{starts} {length} tokens, and with sampling.max_new_tokens={max_new_tokens} that exceeds {context.words}"
    if overlong == "error":
        raise ValueError(
            f"{len(too_long)} of {len(lengths)} prompts are too long: {bound}; shorten the prompts, lower "
            "max_new_tokens, or leave such tasks out with environment.overlong: drop"
        )
    dropped = {task_id for _, task_id in too_long}
    train, heldout = (
        [task for task in tasks if task.id not in dropped] for tasks in (environment.train, environment.heldout)
    )
    if not train or (environment.heldout and not heldout):
        raise ValueError(
            f"environment.overlong: drop leaves {len(train)} training and {len(heldout)} held-out tasks: {bound}"
        )
    note = (
        f"left out {len(environment.train) - len(train)} training and {len(environment.heldout) - len(heldout)} "
        f"held-out tasks that are too long; the longest, {bound}"
    )
    return replace(environment, train=train, heldout=heldout), note


def _prompt_length(environment: Environment, tokenizer: PreTrainedTokenizerBase, task: Task) -> int:
    if environment.episode is None:
        return len(chat.render(tokenizer, task.messages))
    return len(chat.render(tokenizer, first_messages(environment, task, seed=0), tools=environment.tools))


def _check_canary(task: Task, tokenizer: PreTrainedTokenizerBase, context: Context) -> None:
    length = len(chat.render(tokenizer, task.messages)) + CANARY_TOKENS
    if length > context.tokens:
        raise ValueError(
            f"the canary, which proves that the engine has the learner's weights, is a reply of {CANARY_TOKENS} tokens "
            f"to the first training task {task.id!r}, {length} tokens in all, and that exceeds {context.words}; "
            "shorten the prompts, or use a model or an engine with a larger context"
        )


def first_messages(environment: Environment, task: Task, *, seed: int) -> list[Message]:
    """What an episode about a task starts with.

    Raises:
        ValueError: it cannot start.
    """
    assert environment.episode is not None
    try:
        episode = environment.episode()
        messages = list(episode.start(task, seed))
        close = getattr(episode, "close", None)
        if callable(close) and inspect.isawaitable(closing := close()):
            asyncio.run(_awaiting(closing))
    except Exception as error:  # whatever a user's environment raises
        raise ValueError(f"task {task.id!r}: the episode could not start:\n{describe_error(error)}") from error
    check_messages(messages, f"task {task.id!r}")
    return messages


async def _awaiting(awaitable: Awaitable[object]) -> None:
    await awaitable
