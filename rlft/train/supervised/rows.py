"""Rows to learn from, in the conventions of TRL: https://huggingface.co/docs/trl/dataset_formats.

    messages               a conversation that ends with the assistant's reply; all of its replies are learnt
    prompt, completion     text, or lists of messages; text that messages answer is the user's
    text                   plain text, all of which is learnt

A column `tools` holds JSON schemas, as a list or as its JSON, that the chat template shows. In tables that hold text
only, such as CSV, lists are written as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlft.common.by_path import did_you_mean
from rlft.common.rows import prompt_and_answer, row_hash
from rlft.train.chat_rows import Text, check_completion, listed, read_prompt, read_text, read_tools, refuse_mixture
from rlft.types import Message

CONVENTIONS = "a row has messages, or prompt and completion, or text"


@dataclass(frozen=True, slots=True)
class Row:
    """What a row of a table says."""

    prompt: Text
    """Text, or messages; empty text where all is learnt."""
    completion: Text
    """Text or messages, as the prompt is; of messages the first is the assistant's."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of the tools that the prompt shows."""

    @property
    def id(self) -> str:
        """Hash of the prompt and its tools, of text without a prompt that of the text: rows of one id stay together."""
        read = self.prompt or self.completion
        texts = [read] if isinstance(read, str) else [_identity(message) for message in read]
        texts += [json.dumps(self.tools, sort_keys=True, default=str)] if self.tools else []
        return row_hash("\x1e".join(texts), 0)[:16]


def _identity(message: Message) -> str:
    """Role and content as they stand, so that differences that nobody sees are none; and what else there is as JSON."""
    rest = {key: value for key, value in message.items() if key not in ("role", "content")}
    extra = f"\n{json.dumps(rest, sort_keys=True, default=str)}" if rest else ""
    return f"{message['role']}\n{message['content']}{extra}"


def parse(row: Mapping[str, Any], names: Mapping[Any, str]) -> Row:
    """Read a row in whichever of the conventions it is written.

    Args:
        names: what the columns are called in the table, where they are called otherwise.

    Raises:
        ValueError: it follows none; says what is missing or wrong.
    """
    given = {str(name): value for name, value in row.items() if value is not None}
    for meant, name in names.items():
        if name not in row:
            raise ValueError(
                f"data.columns names {name!r} as {meant}, and there is no such column.{did_you_mean(name, row)} "
                f"There are: {', '.join(map(str, row)) or 'none'}"
            )
    renamed = {meant: given.pop(name) for meant, name in names.items() if name in given}
    columns = {**given, **renamed}
    if columns.get("chat_template_kwargs"):
        raise ValueError(
            "the column chat_template_kwargs is not given to the chat template, so the replies would answer another "
            "prompt; write its choices into a chat_template.jinja beside the tokenizer and remove the column"
        )
    if "messages" in columns:
        prompt, completion = _conversation(read_text("messages", listed(columns["messages"])))
    elif columns.keys() >= {"prompt", "completion"}:
        completion = read_text("completion", listed(columns["completion"]))
        prompt = read_prompt(listed(columns["prompt"]), completion)
        refuse_mixture(prompt=prompt, completion=completion)
        check_completion(prompt, completion)
    elif "text" in columns:
        prompt, completion = "", read_text("text", columns["text"])
        if not isinstance(completion, str):
            raise ValueError("the column text holds messages; name it in data.columns as in {messages: text}")
    else:
        raise ValueError(_unknown(list(columns)))
    return Row(prompt, completion, read_tools(columns.get("tools"), prompt))


def _conversation(messages: Text) -> tuple[Text, Text]:
    """A conversation up to its first reply, and from that on."""
    if isinstance(messages, str):
        raise ValueError(
            "messages holds text; it must be a list of messages with a role each, or name the column text in "
            "data.columns"
        )
    first = next((at for at, message in enumerate(messages) if message["role"] == "assistant"), None)
    if first is None:
        raise ValueError(f"no message is the assistant's, so nothing is to be learnt; roles: {_roles(messages)}")
    if first == 0:
        raise ValueError("the first message is the assistant's, and no prompt comes before it; remove it, or the row")
    prompt, completion = messages[:first], messages[first:]
    if completion[-1]["role"] != "assistant":
        raise ValueError(
            f"the last message is of role {completion[-1]['role']!r} and is answered by none; end the conversation "
            "with the assistant's reply"
        )
    check_completion(prompt, completion)
    return prompt, completion


def _roles(messages: list[Message]) -> str:
    return ", ".join(dict.fromkeys(message["role"] for message in messages))


def _unknown(columns: list[str]) -> str:
    told = f"{CONVENTIONS}; this one has {', '.join(columns) or 'none'}"
    if "conversations" in columns:
        return f"{told}. If conversations holds messages: data.columns={{messages: conversations}}"
    if "chosen" in columns:
        return f"{told}. Preferences are for `rlft dpo`"
    if len(columns) >= 2:
        asked, replied = prompt_and_answer(columns)
        if asked and replied:
            return f"{told}. Name two of them, as in data.columns={{prompt: {asked}, completion: {replied}}}"
        return f"{told}. Name the one that asks and the one that answers: data.columns={{prompt: ..., completion: ...}}"
    return f"{told}. Name it in data.columns" if columns else told
