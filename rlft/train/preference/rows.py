"""Preferences as their authors wrote them: rows of a file or of the hub, in the conventions that TRL documents.

https://huggingface.co/docs/trl/dataset_formats. Columns hold text, or lists of messages:

    prompt, chosen, rejected       a pair: "The sky is", " blue.", " green."
    chosen, rejected               a pair that shares its beginning: "The sky is blue.", "The sky is green."
    prompt, completion, label      for KTO: one completion that is good (true) or bad (false)

A pair of conversations shares the messages that both begin with. A completion may be several messages: the assistant's
are what is compared, the others, such as a tool's answers, what it is shown in between. `tools` holds the JSON schemas
of tools, as a list or as its JSON, that the chat template shows to the model:

    prompt     [{"role": "user", "content": "17 * 23?"}]
    chosen     [{"role": "assistant", "tool_calls": [{"type": "function", "function": {
                   "name": "multiply", "arguments": {"a": 17, "b": 23}}}]},
                {"role": "tool", "name": "multiply", "content": "391"},
                {"role": "assistant", "content": "391"}]
    rejected   [{"role": "assistant", "content": "381"}]
    tools      [{"type": "function", "function": {"name": "multiply", "parameters": {"type": "object", ...}}}]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rlft.common import json_text
from rlft.common.rows import read_rows
from rlft.train.preference.config import PreferenceDataConfig
from rlft.types import Message

Text: TypeAlias = "str | list[Message]"
SAME = "chosen and rejected are the same, so there is nothing to prefer; remove the row"


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt with its rated completions, as text or messages."""

    prompt: Text
    """Text, or messages."""
    completions: tuple[Text, ...]
    """Chosen and rejected, or a single one; text or messages as the prompt is."""
    labels: tuple[float, ...]
    """Of each completion: 1 chosen or good, 0 rejected or bad."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of the tools that the prompt shows; none where it is text."""


def read(config: PreferenceDataConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
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


def parse(row: Mapping[str, Any], *, paired: bool) -> Row:
    """Read a row in whichever of the conventions it is written.

    Args:
        paired: whether a single completion is of no use.

    Raises:
        ValueError: it follows none; says what is missing or wrong.
    """
    columns = {str(name): value for name, value in row.items() if value is not None}
    if columns.get("chat_template_kwargs"):
        raise ValueError(
            "the column chat_template_kwargs is not given to the chat template, so the completions would answer "
            "another prompt; write its choices into a chat_template.jinja beside the tokenizer and remove the column"
        )
    if columns.keys() >= {"chosen", "rejected"}:
        prompt, *completions = _pair(columns)
        labels: tuple[float, ...] = (1.0, 0.0)
    elif paired:
        absent = " and ".join(name for name in ("chosen", "rejected") if name not in columns)
        hint = "; single completions with a label are for preference.loss=kto" if "label" in columns else ""
        raise ValueError(f"no column {absent}; it has {', '.join(columns) or 'none'}{hint}")
    elif missing := [name for name in ("prompt", "completion", "label") if name not in columns]:
        raise ValueError(
            f"no column {missing[0]}; it has {', '.join(columns) or 'none'}. KTO takes prompt, completion, label or "
            "pairs of chosen and rejected"
        )
    else:
        completions = [_text("completion", columns["completion"])]
        prompt = _prompt(columns["prompt"], completions[0])
        _refuse_mixture(prompt=prompt, completion=completions[0])
        labels = (_label(columns["label"]),)
    for completion in completions:
        _check_completion(prompt, completion)
    return Row(prompt, tuple(completions), labels, _tools(columns.get("tools"), prompt))


def _pair(columns: Mapping[str, Any]) -> tuple[Text, Text, Text]:
    chosen, rejected = (_text(name, columns[name]) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise ValueError(SAME)
    _refuse_mixture(chosen=chosen, rejected=rejected)
    has_prompt = "prompt" in columns
    if has_prompt and isinstance(columns["prompt"], str) and isinstance(chosen, list):
        # Not so where it is a copy of the question beside conversations that hold it, as many data sets have it.
        has_prompt = len(chosen) == 1 or chosen[0]["role"] == "assistant"
    if has_prompt:
        prompt = _prompt(columns["prompt"], chosen)
        _refuse_mixture(prompt=prompt, chosen=chosen)
        return prompt, chosen, rejected
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _shared_text(chosen, rejected)
    assert not isinstance(chosen, str)
    assert not isinstance(rejected, str)
    return _shared_messages(chosen, rejected)


def _prompt(value: Any, completion: Text) -> Text:
    """The column `prompt`; text that the assistant's messages answer is the user's message."""
    prompt = _text("prompt", value)
    if isinstance(prompt, str) and not isinstance(completion, str) and completion[0]["role"] == "assistant":
        return [Message(role="user", content=prompt)]
    return prompt


def _shared_messages(
    chosen: list[Message], rejected: list[Message]
) -> tuple[list[Message], list[Message], list[Message]]:
    """The prompt that two conversations begin with, and the rest of each: at least its last message."""
    shortest = min(len(chosen), len(rejected)) - 1
    shared = next((at for at in range(shortest) if chosen[at] != rejected[at]), shortest)
    roles = {chosen[shared]["role"], rejected[shared]["role"]}
    if shared == 0 or roles != {"assistant"}:
        raise ValueError(
            f"chosen and rejected belong to different prompts: they differ from message {shared + 1} on, of role "
            f"{' and '.join(sorted(roles))}, and there is no column prompt; let them begin with the same messages and "
            "differ from a message of the assistant on"
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _shared_text(chosen: str, rejected: str) -> tuple[str, str, str]:
    """The prompt that two texts begin with, up to the space before the first word that differs, and the rest."""
    pairs = enumerate(zip(chosen, rejected, strict=False))
    shared = next((index for index, (one, other) in pairs if one != other), min(len(chosen), len(rejected)))
    while shared and not (chosen[shared : shared + 1].isspace() and rejected[shared : shared + 1].isspace()):
        shared -= 1
    if not chosen[:shared].strip():
        raise ValueError(
            "chosen and rejected belong to different prompts: they have no beginning in common, and there is no column "
            "prompt"
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _text(name: str, value: Any) -> Text:
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


def _check_completion(prompt: Text, completion: Text) -> None:
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
        replies = [str(m.get("tool_calls", m["content"])) for m in completion if m["role"] == "assistant"]
    if not all(reply.strip() for reply in replies):
        raise ValueError("a completion is empty, or a reply in it; fill it or remove the row")


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


def _tools(value: Any, prompt: Text) -> tuple[Mapping[str, Any], ...]:
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


def _refuse_mixture(**columns: Text) -> None:
    kinds = {name: "text" if isinstance(value, str) else "messages" for name, value in columns.items()}
    if len(set(kinds.values())) > 1:
        held = ", ".join(f"{name} holds {kind}" for name, kind in kinds.items())
        raise ValueError(f"{held}; all must be text, or all lists of messages")


def _label(value: Any) -> float:
    """CSV files hold the words."""
    labels = {"true": 1.0, "1": 1.0, "false": 0.0, "0": 0.0}
    if str(value).lower() not in labels:
        raise ValueError(f"label must be true for a good completion or false for a bad one, found {value!r}")
    return labels[str(value).lower()]
