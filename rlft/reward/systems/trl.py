"""Reward functions of TRL (https://huggingface.co/docs/trl): lists of one value per completion.

A function, a class whose objects are called, or a function that makes the reward (`get_repetition_penalty_reward`):
the last two are made once from `args`. TRL gives texts where its data set is plain and lists of messages where it is
conversational. Here that is read from the function: from the annotation of `completions`, or from whether it speaks
of a message's "content" anywhere. `args.style`, `text` or `messages`, decides otherwise.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlft.reward.contract import RewardFunction
from rlft.reward.systems.common import (
    adapt,
    build,
    check_args,
    find,
    joined,
    parameters_of,
    required,
    takes_any,
    words_of,
)

_MARKS = ("prompts", "completions", "completion_ids")
_NOTES = ("log_extra", "log_metric", "trainer_state")
_LIVE = frozenset({"environments", "trainer", "model", "tokenizer", "processing_class"})
SAME_VALUE_LIMIT = 32
"""Different replies after which one value for all of them is said."""


def load(name: str, args: Mapping[str, Any]) -> RewardFunction:
    """The reward that `name` names.

    Raises:
        ValueError: it cannot be made of `args`, or needs what only a running trainer of TRL has.
    """
    where, own = f"reward trl:{name}", dict(args)
    style = own.pop("style", None)
    if style not in (None, "text", "messages"):
        raise ValueError(f"{where}: args.style is text or messages, got {style!r}")
    if ":" not in name:
        raise ValueError(
            f"{where}: a model as a reward is `rewards.reward_model:reward_model` with args.folder, or adapter:FOLDER"
        )
    function = find(name)
    if _is_maker(function, where):
        function, own = build(function, own, where), {}
        if not callable(function):
            raise ValueError(f"{where}: it made a {type(function).__name__}, which cannot be called")
    check_args(function, own, where)
    needed = required(function, (*_MARKS, *_NOTES, *own))
    if live := sorted(_LIVE & set(needed)):
        raise ValueError(f"{where}: its parameter {live[0]!r} is a part of TRL's running trainer, which is not there")
    is_text = style == "text" if style else not reads_messages(function)
    watch = _SameValue(where, "text" if is_text else "messages")

    def arguments(offered: Mapping[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        values = {**offered, **own}
        if is_text:
            values["prompts"] = [joined(messages) for messages in offered["prompts"]]
            values["completions"] = [_said(messages) for messages in offered["completions"]]
        watch.begin(offered["completions"])
        return (), values if takes_any(function) else {k: v for k, v in values.items() if k in parameters}

    parameters = parameters_of(function, where)
    return adapt(function, arguments, watch.end, takes=(*_MARKS, *_NOTES, *needed), takes_columns=True)


def _is_maker(found: Any, where: str) -> bool:
    """Whether it makes a reward instead of being one: a class, or a function that takes nothing of a sample."""
    if inspect.isclass(found):
        return True
    if not callable(found):
        raise ValueError(f"{where}: it is a {type(found).__name__}, neither a function nor a class")
    return not set(_MARKS) & set(parameters_of(found, where)) and not takes_any(found)


def _said(messages: Sequence[Mapping[str, Any]]) -> str:
    """What the policy wrote; of an episode, all its actions."""
    return joined(message for message in messages if message["role"] == "assistant")


def reads_messages(function: Callable[..., Any]) -> bool:
    """Whether a function's completions are lists of messages, from their annotation or from its code."""
    completions = inspect.signature(function).parameters.get("completions")
    if completions is not None and completions.annotation is not completions.empty:
        written = completions.annotation if isinstance(completions.annotation, str) else str(completions.annotation)
        if "dict" in written.lower() or "str" in written:
            return "dict" in written.lower()
    names, constants = words_of(function)
    return "content" in names or "content" in constants


class _SameValue:
    """Warns once when many different replies all got one value, as when messages are taken for texts."""

    def __init__(self, where: str, style: str) -> None:
        self._where, self._style, self._replies = where, style, set[str]()
        self._values: set[Any] = set()
        self._is_done = False

    def begin(self, completions: Sequence[Any]) -> None:
        if not self._is_done:
            self._replies |= {str(completion) for completion in completions}

    def end(self, values: Any) -> Any:
        if not self._is_done and isinstance(values, list):
            self._values |= {value if isinstance(value, float | int) else str(value) for value in values}
            self._is_done = len(self._values) > 1
            if not self._is_done and len(self._replies) >= SAME_VALUE_LIMIT:
                self._is_done = True
                warnings.warn(
                    f"{self._where} gave {next(iter(self._values), None)} for {len(self._replies)} different replies, "
                    f"which it got as {self._style}; args.style is the other way",
                    stacklevel=1,
                )
        if self._is_done:
            self._replies.clear()
        return values
