"""How long an environment's prompts are, and whether they fit a bound."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Sequence
from dataclasses import replace
from typing import Literal, TypeVar

from transformers import PreTrainedTokenizerBase

from rlft.common.by_path import describe_error
from rlft.environment.contract import Environment, check_messages
from rlft.model import chat
from rlft.model.context import Context
from rlft.types import Message, Task

STARTED = 16
"""Tasks of a multi-turn environment, evenly spread, whose first prompt is looked at unless all are."""
_Item = TypeVar("_Item")


def evenly_spread(items: Sequence[_Item]) -> Sequence[_Item]:
    """At most `STARTED` of these, in their order; all where they are no more."""
    return items[:: max(1, -(-len(items) // STARTED))]


def fit_context(
    environment: Environment,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_new_tokens: int,
    context: Context,
    overlong: Literal["error", "drop"],
) -> tuple[Environment, str]:
    """Leave out, or refuse, tasks whose prompt and completion do not fit the context.

    A multi-turn environment writes its first prompt from a seed, which is another at each step: one episode is started,
    with seed 0, of every task to drop those that are too long, else of a few.

    Returns:
        (the environment with the tasks that fit, what was left out in words).

    Raises:
        ValueError: how many tasks are too long, the longest one, and the bound; nothing is left; or an episode cannot
            start, or has too small a budget for one action.
    """
    for each in environment.sources.values() or (environment,):
        if each.max_tokens is not None and each.episode and each.max_tokens < max_new_tokens:
            raise ValueError(
                f"the environment's max_tokens is {each.max_tokens}, less than the {max_new_tokens} that one action "
                "may have; lower sampling.max_new_tokens"
            )
    tasks: Sequence[Task] = [*environment.train, *environment.heldout]
    episodes = [task for task in tasks if environment.of(task).episode is not None]
    if episodes and overlong == "error":
        tasks = [task for task in tasks if environment.of(task).episode is None]
        tasks += evenly_spread(episodes)
    lengths = {task.id: len(prompt_ids(environment, tokenizer, task)) for task in tasks}
    too_long = [(length, task_id) for task_id, length in lengths.items() if length + max_new_tokens > context.tokens]
    if not too_long:
        return environment, ""
    length, task_id = max(too_long)
    starts = f"the episode of task {task_id!r} starts with" if episodes else f"task {task_id!r} has"
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
    if (environment.train and not train) or (environment.heldout and not heldout):
        raise ValueError(
            f"environment.overlong: drop leaves {len(train)} training and {len(heldout)} held-out tasks: {bound}"
        )
    note = (
        f"left out {len(environment.train) - len(train)} training and {len(environment.heldout) - len(heldout)} "
        f"held-out tasks that are too long; the longest, {bound}"
    )
    return replace(environment, train=train, heldout=heldout), note


def prompt_ids(environment: Environment, tokenizer: PreTrainedTokenizerBase, task: Task) -> tuple[int, ...]:
    """Tokens of a task's prompt, of an episode of the first one. Raises ValueError if the episode cannot start."""
    environment = environment.of(task)
    if environment.episode is None:
        return chat.render(tokenizer, task.messages)
    return chat.render(tokenizer, first_messages(environment, task, seed=0), tools=environment.tools)


def first_messages(environment: Environment, task: Task, *, seed: int) -> list[Message]:
    """Start an episode about a task, close it, and return its first messages.

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
