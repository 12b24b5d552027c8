"""What a chat template takes, and what it writes: conversations as text, with the tools that the model may call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from rlft.common.beginnings import alike
from rlft.model import special_tokens
from rlft.types import Message, whole_text

_TODAY = datetime(2024, 7, 26)
"""What a template that writes today's date is given, the default of Llama's: a prompt must not change at midnight."""
_WRITTEN = {form: _TODAY.strftime(f"%{form}") for form in "aAbBcdHIjmMpSUwWxXyY"} | {"-d": "26", "-m": "7", "e": "26"}
FIXED_CLOCK = (
    "{%- macro strftime_now(format) -%}{{ format"
    + "".join(f" | replace('%{form}', '{written}')" for form, written in _WRITTEN.items())
    + " }}{%- endmacro %}\n"
)
"""Stands before a template that calls `strftime_now`: as a macro of the template, since transformers turns a function
that it is handed into text. Templates are rendered without the line break after a block, so nothing else changes."""
SAMPLE_TOOL = "look_up"
SAMPLE_ARGUMENTS = {"word": "asked"}
"""A call that shows in which form a chat template has tools called."""


def write(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] = (),
    *,
    opened: bool = True,
) -> str:
    """Render a conversation as text with the tokenizer's chat template, marked as `special_tokens` says.

    Args:
        tools: JSON schemas of tools; a template that does not take any has them in the system message instead.
        opened: whether the mark that opens the assistant's turn follows the last message.

    Raises:
        ValueError: the template refuses these messages, one holds half a surrogate pair, or a special token that is
            to be refused.
    """
    fitted, options = special_tokens.marked(tokenizer, fit(tokenizer, messages, tools))
    try:
        text = _rendered(tokenizer, fitted, add_generation_prompt=opened, **options)
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in fitted)
        raise ValueError(f"the chat template refuses a conversation of {roles}: {error}") from error
    refuse_halves(text)  # as calls of tools may hold them
    return text


def fit(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> tuple[list[Message], dict[str, Any]]:
    """Prepare a conversation for the template: (its messages, further arguments for the template).

    A template without tools has them in the system message; one without `tool` messages has the user say them.

    Raises:
        ValueError: a message holds half a surrogate pair.
    """
    refuse_halves(*(message.get("content") for message in messages))
    fitted: list[Message] = list(messages)
    called = any("tool_calls" in message for message in messages)
    if any(message["role"] == "tool" for message in messages) and not takes_tool_messages(tokenizer, called=called):
        fitted = without_tool_messages(messages)
    if not tools:
        return fitted, {}
    if takes_tools(tokenizer):
        return fitted, {"tools": list(tools)}
    return with_tools_described(fitted, tools), {}


def refuse_halves(*texts: object) -> None:
    """Refuse text that no tokenizer takes; what is no text is the template's affair.

    Raises:
        ValueError: quotes the place.
    """
    for text in texts:
        if isinstance(text, str) and whole_text(text) != text:
            at = next(index for index, character in enumerate(text) if "\ud800" <= character <= "\udfff")
            raise ValueError(
                f"a text holds half a surrogate pair, as a string that was cut inside an emoji does, at the end of "
                f"{text[max(0, at - 40) : at + 1]!r}; no tokenizer takes it: mend the data, or replace it with "
                "text.encode('utf-8', 'replace').decode()"
            )


def sample_call(tokenizer: PreTrainedTokenizerBase) -> str:
    """How the chat template has the assistant call `SAMPLE_TOOL`, as a policy's reply is read: without special tokens.

    Empty where it takes no tools, or writes no calls.
    """
    if not takes_tools(tokenizer):
        return ""
    function = {"name": SAMPLE_TOOL, "arguments": SAMPLE_ARGUMENTS}
    called = {"id": "abcdef123", "type": "function", "function": function}
    ask: list[dict[str, Any]] = [{"role": "user", "content": "?"}]
    tools = [_tool(SAMPLE_TOOL)]
    opened = _tried(tokenizer, ask, tools=tools, add_generation_prompt=True)
    whole = _tried(tokenizer, [*ask, {"role": "assistant", "content": "", "tool_calls": [called]}], tools=tools)
    if opened is None or whole is None:
        return ""
    ids = special_tokens.token_ids(tokenizer, whole[alike(opened, whole) :])
    written = str(tokenizer.decode(list(ids), skip_special_tokens=True)).strip()
    return written if SAMPLE_TOOL in written else ""


def takes_tools(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template describes tools itself."""
    ask: list[dict[str, Any]] = [{"role": "user", "content": "?"}]
    with_tool = _tried(tokenizer, ask, tools=[_tool(SAMPLE_TOOL)])
    return with_tool is not None and SAMPLE_TOOL in with_tool


def _tool(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "description": "", "parameters": {"properties": {}}}}


def takes_tool_messages(tokenizer: PreTrainedTokenizerBase, *, called: bool = False) -> bool:
    """Whether the chat template writes `tool` messages otherwise than those of a role that it has never heard of.

    Args:
        called: whether they answer `tool_calls`. A template that writes those has a form of its own for both.
    """
    ask: list[dict[str, Any]] = [{"role": "user", "content": "?"}]
    answer = {"content": "the answer", "name": "look_up"}
    if called:
        call = {"id": "abcdef123", "type": "function", "function": {"name": "look_up", "arguments": {"word": "asked"}}}
        ask.append({"role": "assistant", "content": "", "tool_calls": [call]})
        written = _tried(tokenizer, [*ask, {"role": "tool", "tool_call_id": call["id"], **answer}])
        return written is not None and "asked" in written and "the answer" in written
    ask.append({"role": "assistant", "content": "!"})
    written = _tried(tokenizer, [*ask, {"role": "tool", **answer}])
    unknown = _tried(tokenizer, [*ask, {"role": "unheard-of", **answer}])
    if written is None or "the answer" not in written:
        return False
    return unknown is None or written != unknown.replace("unheard-of", "tool")


def _tried(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]], **options: Any) -> str | None:
    """What the template writes, None if it refuses."""
    try:
        return _rendered(tokenizer, messages, **options)
    except TemplateError:
        return None


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Any], **options: Any) -> str:
    """What the template writes, on the same day always."""
    template = tokenizer.get_chat_template(None, options.get("tools"))
    if "strftime_now" in template:
        options["chat_template"] = FIXED_CLOCK + template
    text = tokenizer.apply_chat_template(list(messages), tokenize=False, **options)
    assert isinstance(text, str)
    return text


def without_tool_messages(messages: Sequence[Message]) -> list[Message]:
    """Tools' answers as messages of the user, one for those that follow each other, each answer inside tags."""
    fitted: list[Message] = []
    for index, message in enumerate(messages):
        if message["role"] != "tool":
            fitted.append(message)
            continue
        content = f"<tool_response>\n{message['content']}\n</tool_response>"
        if index and messages[index - 1]["role"] == "tool":
            content = f"{fitted.pop()['content']}\n{content}"
        fitted.append(Message(role="user", content=content))
    return fitted


def with_tools_described(messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> list[Message]:
    """The conversation with the tools described in its system message, which is added if there is none."""
    described = describe_tools(tools)
    if messages and messages[0]["role"] == "system":
        first = messages[0]
        return [Message(role="system", content=f"{first['content']}\n\n{described}"), *messages[1:]]
    return [Message(role="system", content=described), *messages]


def describe_tools(tools: Sequence[Mapping[str, Any]]) -> str:
    """Tools in words, and how to call one."""
    listed = "\n".join(json.dumps(tool.get("function", tool), ensure_ascii=False) for tool in tools)
    return (
        f"You can call tools:\n{listed}\n"
        'To call one, write <tool_call>{"name": "...", "arguments": {...}}</tool_call> and wait for its answer.'
    )


def check_shown(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = ()
) -> None:
    """Refuse tools, and calls of tools, that the chat template leaves out.

    Raises:
        ValueError: says which, and what to do.
    """
    if tools and (not takes_tools(tokenizer) or write(tokenizer, messages, tools) == write(tokenizer, messages)):
        raise ValueError(
            "the chat template does not show the column tools, so the completions would answer another prompt; use a "
            "model whose template takes tools, or describe them in the prompt's system message and remove the column"
        )
    for at, message in enumerate(messages):
        if "tool_calls" not in message:
            continue
        silent: Any = {key: part for key, part in message.items() if key != "tool_calls"}
        without = None
        with suppress(ValueError):
            without = write(tokenizer, [*messages[:at], silent], tools, opened=False)
        if without == write(tokenizer, messages[: at + 1], tools, opened=False):
            raise ValueError(
                f"the chat template leaves out the tool_calls of message {at + 1} ({message['role']}); use a model "
                "whose template writes them, or write the calls into the content as the model is to write them"
            )
