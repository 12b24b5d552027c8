"""Columns that hold text or lists of messages: read as they were written, checked, and as chat templates take them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from rlft.common import json_text
from rlft.common.rows import read_rows
from rlft.types import Message

Text: TypeAlias = "str | list[Message]"


class TableSource(Protocol):
    """The part of a config that names a table."""

    @property
    def source(self) -> str: ...

    @property
    def subset(self) -> str: ...

    @property
    def split(self) -> str: ...


def read_table(config: TableSource) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Read the rows of the source, each with its place for messages; raises ValueError as `read_rows` does."""
    rows = read_rows(config.source, subset=config.subset, split=config.split, name="data.source")
    if Path(config.source).suffix in (".json", ".jsonl"):
        return rows
    # A table gives all schemas and calls of a column the same keys, those that one lacks as nulls.
    return ((where, _without_nulls(row)) for where, row in rows)


def _without_nulls(value: Any) -> Any:
    """Plain data without the keys that hold None."""
    if isinstance(value, Mapping):
        return {key: _without_nulls(part) for key, part in value.items() if part is not None}
    return [_without_nulls(part) for part in value] if isinstance(value, list) else value


def listed(value: Any) -> Any:
    """A list of messages that stands in a text as JSON, as in CSV files; other values as they are.

    A JSON array of anything else, such as of extracted records, is text that is to be learnt.
    """
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            found = json_text.parse(value)
        except ValueError:
            return value  # a text that begins so
        if isinstance(found, list) and found and all(isinstance(each, Mapping) and "role" in each for each in found):
            return found
    return value


def read_text(name: str, value: Any) -> Text:
    """A column's text or messages."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"{name} is empty; fill it or remove the row")
        return value
    if not isinstance(value, list):
        raise ValueError(f"{name} must be text or a list of messages, found {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} is empty; fill it or remove the row")
    return [_message(name, message) for message in value]


def read_prompt(value: Any, completion: Text) -> Text:
    """The column `prompt`; text that the assistant's messages answer is the user's message."""
    prompt = read_text("prompt", value)
    if isinstance(prompt, str) and not isinstance(completion, str) and completion[0]["role"] == "assistant":
        return [Message(role="user", content=prompt)]
    return prompt


def check_completion(prompt: Text, completion: Text) -> None:
    """Refuse what is no reply to the prompt."""
    if isinstance(completion, str):
        replies = [completion]
    else:
        first, last = completion[0]["role"], completion[-1]["role"]
        if last != "assistant":
            raise ValueError(f"the last message is of role {last!r}; it must be the assistant's reply")
        if first != "assistant":
            raise ValueError(
                f"a completion begins with a message of role {first!r}; it must begin with the assistant's: put what "
                "comes before that into prompt"
            )
        assert not isinstance(prompt, str)
        if prompt[-1]["role"] == "assistant":
            raise ValueError("the prompt must be messages that end with another's than the assistant's")
        said = [message for message in completion if message["role"] == "assistant"]
        if not any(message.get("weight", 1) for message in said):
            raise ValueError("every reply has the weight 0, so nothing is to be learnt; remove the row")
        replies = [str(message.get("tool_calls", message["content"])) for message in said]
    if not all(reply.strip() for reply in replies):
        raise ValueError("a completion is empty, or a reply in it; fill it or remove the row")


def read_tools(value: Any, prompt: Text) -> tuple[Mapping[str, Any], ...]:
    """The schemas that the column `tools` holds."""
    tools = value
    if isinstance(value, str) and value.strip():
        try:
            tools = json_text.parse(value)
        except ValueError as error:
            raise ValueError(f"tools: not JSON: {error}; it must be a list of JSON schemas, or its JSON") from None
    if not tools:
        return ()
    if not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise ValueError(
            f'tools must be a list of JSON schemas, {{"type": "function", "function": {{"name": ...}}}} each, or its '
            f"JSON; found {str(value)[:80]}"
        )
    if isinstance(prompt, str):
        raise ValueError(
            "tools are shown by the chat template, which plain text goes without; make messages of the row's text, or "
            "describe the tools in it and remove the column"
        )
    return tuple(tools)


def refuse_mixture(**columns: Text) -> None:
    """Refuse a row of which one column holds text and another one messages."""
    kinds = {name: "text" if isinstance(value, str) else "messages" for name, value in columns.items()}
    if len(set(kinds.values())) > 1:
        held = ", ".join(f"{name} holds {kind}" for name, kind in kinds.items())
        raise ValueError(f"{held}; all must be text, or all lists of messages")


def _message(name: str, message: Any) -> Message:
    """A message as chat templates take it; one that only calls tools has an empty content."""
    given = message if isinstance(message, Mapping) else {}
    calls = given.get("tool_calls") or []
    content = given.get("content")
    if content is None and calls:
        content = ""
    if not (isinstance(given.get("role"), str) and isinstance(content, str)):
        raise ValueError(
            f"{name}: a message must have a role and a content, both text, or tool_calls instead of a content; found "
            f"{str(message)[:80]}"
        )
    if given.get("weight") not in (None, 0, 1):
        raise ValueError(
            f"{name}: the weight of a message must be 0 (it is not learnt) or 1, found {given['weight']!r}; other "
            "weights are not supported"
        )
    kept = {key: part for key, part in given.items() if part is not None and key != "tool_calls"}
    if calls:
        kept["tool_calls"] = [_call(name, call) for call in calls]
    return {**kept, "content": content}  # type: ignore[typeddict-item]


def _call(name: str, call: Any) -> dict[str, Any]:
    """A call of a tool as `Message` has it; its arguments may be JSON, as APIs give them."""
    given = call if isinstance(call, Mapping) else {}
    function = given.get("function", given)
    arguments = (function.get("arguments") or {}) if isinstance(function, Mapping) else None
    if isinstance(arguments, str):
        try:
            arguments = json_text.parse(arguments)
        except ValueError:
            arguments = None
    if not (isinstance(arguments, Mapping) and isinstance(function.get("name"), str)):
        raise ValueError(
            f'{name}: a call in tool_calls must be {{"type": "function", "function": {{"name": ..., "arguments": '
            f"{{...}}}}}}, found {str(call)[:80]}; a call that is broken on purpose goes into the content, as the "
            "model would write it"
        )
    outer = {key: part for key, part in given.items() if part is not None} if "function" in given else {}
    return {"type": "function", **outer, "function": {**function, "arguments": arguments}}
