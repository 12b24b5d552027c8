"""A made-up episode as a text: what a policy and its tools said, for rewards that read more than a reply.

    turns = read_turns([{"role": "assistant", "tool_calls": [{"name": "search", "arguments": {"query": "Ada"}}]},
                        {"role": "tool", "content": "Ada was born in Kelham."}], "cases.jsonl:1: turns")
    transcript(turns, "In Kelham.")

It is a `str`, so that what scores, compares, remembers and shows replies takes it like any other. Its value is JSON of
the messages; a string method gives plain text, which is a reply and no episode.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from rlft.types import Message, Trajectory

_KEYS = ("role", "content", "tool_calls", "name")


class Transcript(str):
    """Messages after the prompt, from the first action to the last reply."""

    __slots__ = ()

    @property
    def messages(self) -> list[Message]:
        """All of them; the last one is the reply."""
        return [cast(Message, {k: v for k, v in each.items() if k != "reward"}) for each in json.loads(self)]

    @property
    def turns(self) -> tuple[Message, ...]:
        """What stands before the reply."""
        return tuple(self.messages[:-1])

    @property
    def reply(self) -> str:
        """The text of the last message."""
        return self.messages[-1]["content"]

    @property
    def rewards(self) -> tuple[float, ...]:
        """What the environment gave for each action; empty where it gave nothing."""
        return tuple(each["reward"] for each in json.loads(self) if "reward" in each)

    def __repr__(self) -> str:
        """`search(query='Ada') -> 'Ada was born in Kelham.' | 'In Kelham.'`, for people."""
        return " ".join([*map(_told, self.turns), f"| {self.reply!r}"])


def transcript(turns: Sequence[Message], reply: str, rewards: Sequence[float] = ()) -> Transcript:
    """An episode as text.

    Args:
        rewards: what the environment gave for each action, the reply included; empty where it gave nothing.
    """
    messages: list[dict[str, Any]] = [dict(message) for message in (*turns, Message(role="assistant", content=reply))]
    actions = [message for message in messages if message["role"] == "assistant"]
    for message, reward in zip(actions, rewards, strict=False):
        message["reward"] = reward
    return Transcript(json.dumps(messages, ensure_ascii=False))


def whole(turns: Sequence[Message], reply: str, rewards: Sequence[float] = ()) -> str:
    """The reply with what came before it; as it is where that is nothing, or where it is an episode already."""
    alone = isinstance(reply, Transcript) or not (turns or rewards)
    return reply if alone else transcript(turns, reply, rewards)


def parted(reply: str) -> tuple[tuple[Message, ...], str, tuple[float, ...]]:
    """(turns, last reply, rewards) of an episode or of a reply alone."""
    return (reply.turns, reply.reply, reply.rewards) if isinstance(reply, Transcript) else ((), reply, ())


def of_trajectory(trajectory: Trajectory) -> str:
    """What a policy and its tools said, from the first action to the last reply; only that where it is all."""
    said = trajectory.messages
    actions = [index for index, message in enumerate(said) if message["role"] == "assistant"][-len(trajectory.turns) :]
    return whole(said[actions[0] : actions[-1]], trajectory.text) if actions else trajectory.text


def read_turns(given: Any, where: str) -> tuple[Message, ...]:
    """The messages between a prompt and the last reply, as a person writes them.

    A call may be short, `{"name": "add", "arguments": {"a": 1}}`, or as servers write it.

    Raises:
        ValueError: it is no list of such messages, or does not go from an action to an answer to one.
    """
    if not isinstance(given, list) or not all(isinstance(message, Mapping) for message in given):
        raise ValueError(f'{where} must be a list of messages, [{{"role": "assistant", "content": "..."}}, ...]')
    turns = tuple(_message(message, f"{where}[{number}]") for number, message in enumerate(given))
    if turns and (turns[0]["role"] != "assistant" or turns[-1]["role"] == "assistant"):
        raise ValueError(
            f"{where} go from an action of the assistant to the answer of a tool or a user; the last reply of the "
            "assistant is `completion`, and what comes before its first action `prompt`"
        )
    return turns


def calls_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """The calls of tools in some messages, `{"name": ..., "arguments": ...}` each."""
    return [call.get("function", call) for message in messages for call in message.get("tool_calls") or ()]


def _message(given: Mapping[str, Any], where: str) -> Message:
    for key in given:
        if key not in _KEYS:
            raise ValueError(f"{where}: unknown key {key!r}; a message has {', '.join(_KEYS)}")
    role, content, calls = given.get("role"), given.get("content", ""), given.get("tool_calls", [])
    if role not in ("assistant", "tool", "user", "system"):
        raise ValueError(f"{where}: role must be assistant, tool, user or system, got {role!r}")
    if not isinstance(content, str):
        raise ValueError(f"{where}: content must be text, got {type(content).__name__}")
    message = Message(role=role, content=content)
    if "name" in given:
        message["name"] = str(given["name"])
    if calls:
        if not isinstance(calls, list) or not all(isinstance(call, Mapping) for call in calls):
            raise ValueError(f'{where}: tool_calls must be a list, [{{"name": "add", "arguments": {{"a": 1}}}}]')
        message["tool_calls"] = [
            dict(call) if "function" in call else {"type": "function", "function": dict(call)} for call in calls
        ]
    return message


def _told(message: Message) -> str:
    if message["role"] != "assistant":
        return f"-> {message['content']!r}"
    calls = [f"{call.get('name')}({_arguments(call.get('arguments'))})" for call in calls_of([message])]
    return "; ".join([*calls, *([repr(message["content"])] if message["content"] else [])])


def _arguments(given: Any) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items()) if isinstance(given, Mapping) else str(given)
