"""Whether prompts fit the model, decided before a run starts."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Literal

from transformers import AutoConfig, PreTrainedTokenizerBase

from rlft import chat
from rlft.config import RunConfig
from rlft.environment.contract import Environment, check_messages
from rlft.imports import describe_error
from rlft.types import Message, Task

STARTED = 16
"""Tasks of a multi-turn environment, evenly spread, whose first prompt is looked at."""


def fit(config: RunConfig, environment: Environment, model_folder: str) -> tuple[Environment, str]:
    """`fit_context` for a config and its model; demonstrations of the SFT stage have to fit too."""
    context = AutoConfig.from_pretrained(model_folder).get_text_config().max_position_embeddings
    tokenizer = chat.load_tokenizer(model_folder)
    if config.sft is not None:
        shown = environment.demonstrations[: config.sft.examples]
        chat.check_conversations(tokenizer, shown, context=context, tools=environment.tools)
    return fit_context(
        environment,
        tokenizer,
        max_new_tokens=config.sampling.max_new_tokens,
        context=context,
        overlong=config.environment.overlong,
    )


def fit_context(
    environment: Environment,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    context: int,
    overlong: Literal["error", "drop"],
) -> tuple[Environment, str]:
    """(the environment with tasks whose prompt and completion fit the context, what was left out in words).

    A multi-turn environment writes its prompts from a seed, which is another at each step. So nothing can be left out
    for good: a few episodes are started, and too long a prompt is an error whatever `overlong` says.

    Raises:
        ValueError: how many tasks are too long, the longest one, and the bound; or nothing is left.
    """
    if environment.episode is not None:
        return environment, _check_episodes(environment, tokenizer, max_new_tokens, context)
    lengths = {
        task.id: len(chat.render(tokenizer, task.messages)) for task in (*environment.train, *environment.heldout)
    }
    too_long = [(length, task_id) for task_id, length in lengths.items() if length + max_new_tokens > context]
    if not too_long:
        return environment, ""
    length, task_id = max(too_long)
    bound = (
        f"task {task_id!r} has {length} tokens, and with sampling.max_new_tokens={max_new_tokens} that exceeds the "
        f"model's context of {context}"
    )
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


def _check_episodes(
    environment: Environment, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, context: int
) -> str:
    tasks: Sequence[Task] = [*environment.train, *environment.heldout]
    for task in tasks[:: -(-len(tasks) // STARTED)]:
        messages = first_messages(environment, task, seed=0)
        length = len(chat.render(tokenizer, messages, tools=environment.tools))
        if length + max_new_tokens > context:
            raise ValueError(
                f"the episode of task {task.id!r} starts with {length} tokens, and with sampling.max_new_tokens="
                f"{max_new_tokens} that exceeds the model's context of {context}; shorten what start() returns, or "
                "lower max_new_tokens"
            )
    if environment.max_tokens is not None and environment.max_tokens < max_new_tokens:
        raise ValueError(
            f"the environment's max_tokens is {environment.max_tokens}, less than the {max_new_tokens} that one action "
            "may have; lower sampling.max_new_tokens"
        )
    return ""


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
