"""Episodes of several turns: the policy acts, the environment answers, until one of them ends it.

Token in, token out: the policy's own tokens are kept as it sampled them, the environment's messages become tokens once,
and ids are only ever appended. So the learner sees exactly the context that each action was sampled in.

All live episodes of a chunk act together, one `generate` per turn.
"""

from __future__ import annotations

import asyncio
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlft.common.by_path import describe_error, innermost_line
from rlft.common.overrun import OverrunError, interrupted_after
from rlft.environment.contract import Environment, Episode, Step, check_messages
from rlft.model import chat
from rlft.rollout.chunk import Chunk
from rlft.rollout.engines.contract import Engine, Request
from rlft.rollout.seeds import turn_seed
from rlft.types import Completion, Failed, Group, Message, StopReason, Task, Trajectory, Turn, whole_text


@dataclass(slots=True, kw_only=True)
class _Live:
    """A sample's episode while it runs."""

    task: Task
    sample_index: int
    seed: int
    environment_seed: int
    episode: Episode
    messages: list[Message] = field(default_factory=list)
    next_ids: tuple[int, ...] = ()
    """Tokens that stand before the next action: the prompt, then the observation."""
    context: list[int] = field(default_factory=list)
    """All tokens so far, without `next_ids`."""
    turns: list[Turn] = field(default_factory=list)
    text: str = ""
    stop_reason: StopReason | None = None
    """None while it goes on."""
    failure: Failed | None = None


def run_episodes(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, chunk: Chunk, environment: Environment
) -> list[Group]:
    """Run every sample of a chunk's tasks to its end.

    An exception in the environment, or an answer that makes no sense, fails the trajectory: it never becomes a reward.

    Raises:
        ValueError: an episode cannot start, does not start alike for all samples of its task, or has no room for a
            single action.
    """
    assert environment.episode is not None
    if environment.max_tokens is not None and environment.max_tokens < chunk.params.max_new_tokens:
        raise ValueError(
            f"the environment's max_tokens is {environment.max_tokens}, less than the {chunk.params.max_new_tokens} "
            "that one action may have; lower sampling.max_new_tokens"
        )
    groups: list[list[_Live]] = [[] for _ in chunk.tasks]
    with asyncio.Runner() as runner:  # one loop for all turns: a client that an episode keeps is bound to its loop
        try:
            for task, group in zip(chunk.tasks, groups, strict=True):
                _start(tokenizer, chunk, environment, environment.episode, task, group)
                _check_first(group[0], chunk, engine.context)
            episodes = [live for group in groups for live in group]
            while alive := [live for live in episodes if live.stop_reason is None]:
                _act(engine, tokenizer, chunk, environment, alive, runner)
        finally:
            for live in (live for group in groups for live in group):
                _close(live, runner)
            if callable(forget := getattr(engine, "forget", None)):
                forget()
    return [
        Group(task=task, trajectories=tuple(map(_trajectory, group)))
        for task, group in zip(chunk.tasks, groups, strict=True)
    ]


def _start(
    tokenizer: PreTrainedTokenizerBase,
    chunk: Chunk,
    environment: Environment,
    make_episode: Callable[[], Episode],
    task: Task,
    group: list[_Live],
) -> None:
    """Start an episode for each sample of a task, and append each to `group` at once, so that it will be closed."""
    seed = chunk.environment_seed(task)
    for index, sample_seed in enumerate(chunk.seeds(task)):
        where = f"task {task.id!r}, sample {index}"
        try:
            live = _Live(task=task, sample_index=index, seed=sample_seed, environment_seed=seed, episode=make_episode())
            group.append(live)
            live.messages += live.episode.start(task, seed)
        except Exception as error:  # whatever a user's environment raises
            raise ValueError(f"{where}: the episode could not start:\n{describe_error(error)}") from error
        check_messages(live.messages, where)
        if live.messages != group[0].messages:
            raise ValueError(
                f"{where}: start(task, seed) returned other messages than for sample 0 with the same seed; the samples "
                "of a group are compared with each other, so take all randomness from the seed"
            )
        try:
            live.next_ids = group[0].next_ids or chat.render(tokenizer, live.messages, tools=environment.tools)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error


def _check_first(live: _Live, chunk: Chunk, context: int) -> None:
    length = len(live.next_ids)
    if length + chunk.params.max_new_tokens > context:
        raise ValueError(
            f"the episode of task {live.task.id!r} starts with {length} tokens, and with sampling.max_new_tokens="
            f"{chunk.params.max_new_tokens} that exceeds the model's context of {context}; shorten what start() "
            "returns, or lower max_new_tokens"
        )


def _close(live: _Live, runner: asyncio.Runner) -> None:
    if callable(close := getattr(live.episode, "close", None)):
        try:
            if inspect.isawaitable(closing := close()):
                runner.run(_awaiting(closing))
        except Exception as error:  # whatever a user's environment raises
            live.failure = live.failure or _failed(live, "while it closed", error)


def _act(
    engine: Engine,
    tokenizer: PreTrainedTokenizerBase,
    chunk: Chunk,
    environment: Environment,
    alive: Sequence[_Live],
    runner: asyncio.Runner,
) -> None:
    """Let every live episode act once and take the environment's answer."""
    requests: list[Request] = []
    acting: list[_Live] = []
    for live in alive:
        prompt = (*live.context, *live.next_ids)
        if live.turns and not _has_room(live, prompt, chunk, environment, engine.context):
            live.stop_reason = "tokens"
            continue
        seed = turn_seed(live.seed, len(live.turns))
        if not live.turns and acting and requests[-1].prompt_ids == prompt and acting[-1].task is live.task:
            requests[-1] = replace(requests[-1], seeds=(*requests[-1].seeds, seed))  # the group shares its prompt
        else:
            requests.append(
                Request(
                    prompt_ids=prompt,
                    seeds=(seed,),
                    messages=tuple(live.messages),
                    tools=environment.tools,
                    goes_on=len(live.turns) + 1 < environment.max_turns,
                    continues=bool(live.turns),
                )
            )
        acting.append(live)
    if not acting:
        return
    completions = [c for samples in engine.generate(requests, chunk.params, version=chunk.version) for c in samples]
    for live, completion in zip(acting, completions, strict=True):
        live.text = chat.completion_text(tokenizer, completion)
        live.messages.append(Message(role="assistant", content=live.text))
    for live, completion, step in zip(
        acting, completions, _answers(acting, environment.step_deadline_s, runner), strict=True
    ):
        _take(tokenizer, environment, live, completion, step)


def _has_room(live: _Live, prompt: Sequence[int], chunk: Chunk, environment: Environment, context: int) -> bool:
    """Whether another action of full length fits the budgets of tokens."""
    total = len(prompt) + chunk.params.max_new_tokens
    first = len(live.turns[0].prompt_ids)
    return total <= context and (environment.max_tokens is None or total - first <= environment.max_tokens)


def _take(
    tokenizer: PreTrainedTokenizerBase,
    environment: Environment,
    live: _Live,
    completion: Completion,
    answer: Step | Failed,
) -> None:
    """Append an action's tokens and the environment's answer to an episode, which has the action's message already."""
    turn = Turn(
        prompt_ids=live.next_ids,
        completion=completion,
        observation=() if isinstance(answer, Failed) else answer.messages,
        reward=None if isinstance(answer, Failed) else answer.reward,
    )
    live.turns.append(turn)
    live.context += [*live.next_ids, *completion.token_ids]
    live.messages += turn.observation
    if isinstance(answer, Failed):
        live.failure, live.stop_reason = answer, "error"
    elif answer.done:
        live.stop_reason = "done"
    elif completion.finish_reason == "length":
        live.stop_reason = "length"  # cut in the middle of its message: what would follow is no conversation
    elif len(live.turns) >= environment.max_turns:
        live.stop_reason = "turns"
    if live.stop_reason is None:
        live.next_ids = chat.render_observation(
            tokenizer, turn.observation, after=completion.token_ids, tools=environment.tools
        )


def _answers(acting: Sequence[_Live], deadline_s: float | None, runner: asyncio.Runner) -> list[Step | Failed]:
    """The environments' answers to the last messages; asynchronous ones are awaited together.

    Args:
        deadline_s: seconds that each may take; None for no end.
    """
    answers: list[Any] = [_try(live, live.episode.step, {**live.messages[-1]}, deadline_s) for live in acting]
    if any(map(inspect.isawaitable, answers)):
        answers = runner.run(_awaited(acting, answers, deadline_s))
    return [
        answer if isinstance(answer, Failed) else _try(live, _checked, answer)
        for live, answer in zip(acting, answers, strict=True)
    ]


async def _awaited(acting: Sequence[_Live], answers: Sequence[Any], deadline_s: float | None) -> list[Any]:
    async def one(live: _Live, answer: Any) -> Any:
        if not inspect.isawaitable(answer):
            return answer
        try:
            async with asyncio.timeout(deadline_s) as deadline:
                return await answer
        except Exception as error:  # whatever a user's environment raises
            if isinstance(error, TimeoutError) and deadline.expired():
                return _overrun(live, deadline_s, error)
            return _failed(live, f"in turn {len(live.turns) + 1}", error)

    return await asyncio.gather(*map(one, acting, answers))


async def _awaiting(awaitable: Any) -> Any:
    return await awaitable


def _try(live: _Live, call: Callable[[Any], Any], argument: Any, deadline_s: float | None = None) -> Any:
    try:
        with interrupted_after(deadline_s):
            return call(argument)
    except OverrunError as error:
        return _overrun(live, deadline_s, error)
    except Exception as error:  # whatever a user's environment raises
        return _failed(live, f"in turn {len(live.turns) + 1}", error)


def _checked(answer: object) -> Step:
    """Check an environment's answer; half characters in its texts are replaced.

    Raises:
        TypeError, ValueError: says what is wrong with it.
    """
    if not isinstance(answer, Step):
        raise TypeError(f"step() returned {type(answer).__name__}; return rlft.environment.contract.Step")
    if answer.reward is not None and not math.isfinite(answer.reward):
        raise ValueError(f"step() returned the reward {answer.reward}")
    if not answer.done or answer.messages:
        check_messages(answer.messages, "step()")
    # A policy can bring half a surrogate pair about, as in a call's JSON: neither tokenizers nor servers take it.
    return replace(answer, messages=tuple(map(_whole, answer.messages)))


def _whole(value: Any) -> Any:
    """Plain data with `whole_text` for every text."""
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, dict):
        return {_whole(key): _whole(item) for key, item in value.items()}
    return [_whole(item) for item in value] if isinstance(value, list | tuple) else value


def _failed(live: _Live, when: str, error: Exception) -> Failed:
    return Failed(
        kind="error",
        fault="environment",
        message=f"the environment raised {when}:\n{describe_error(error)}",
        where=innermost_line(error),
        reproduce=_reproduce(live),
    )


def _overrun(live: _Live, deadline_s: float | None, error: BaseException) -> Failed:
    """The failure of a step that was ended, with the line that it had come to."""
    where = innermost_line(error.__cause__ or error)  # of a coroutine: where it was cancelled
    place = f", while it was at {where}" if where else ""
    text = f"the environment did not answer in turn {len(live.turns) + 1} within step_deadline_s={deadline_s:g}{place}"
    return Failed(kind="timeout", fault="environment", message=text, where=where, reproduce=_reproduce(live))


def _reproduce(live: _Live) -> str:
    actions = [message["content"] for message in live.messages if message["role"] == "assistant"]
    return (
        f"# rlft env play ENVIRONMENT --task {live.task.id!r} --seed {live.environment_seed}, then these actions:\n"
        f"actions = {actions!r}"
    )


def _trajectory(live: _Live) -> Trajectory:
    assert live.stop_reason is not None
    return Trajectory(
        task=live.task,
        sample_index=live.sample_index,
        seed=live.seed,
        turns=tuple(live.turns),
        text=live.text,
        messages=tuple(live.messages),
        stop_reason=live.stop_reason,
        outcome=live.failure,
    )
