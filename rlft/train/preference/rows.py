"""Preferences as their authors wrote them: rows of a file or of the hub, in the conventions that TRL documents.

https://huggingface.co/docs/trl/dataset_formats. Columns hold text, or lists of messages,
which are written as JSON in tables that hold text only, such as CSV:

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

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlft.common.beginnings import alike
from rlft.train.chat_rows import Text, check_completion, listed, read_prompt, read_text, read_tools, refuse_mixture
from rlft.types import Message

SAME = "chosen and rejected are the same, so there is nothing to prefer; remove the row"
_LISTED = ("prompt", "completion", "chosen", "rejected")
"""Columns that may hold messages as JSON, in tables that hold text only."""


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


def parse(row: Mapping[str, Any], *, paired: bool) -> Row:
    """Read a row in whichever of the conventions it is written.

    Args:
        paired: whether a single completion is of no use.

    Raises:
        ValueError: it follows none; says what is missing or wrong.
    """
    columns = {str(name): value for name, value in row.items() if value is not None}
    columns |= {name: listed(columns[name]) for name in _LISTED if name in columns}
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
        completions = [read_text("completion", columns["completion"])]
        prompt = read_prompt(columns["prompt"], completions[0])
        refuse_mixture(prompt=prompt, completion=completions[0])
        labels = (_label(columns["label"]),)
    for completion in completions:
        check_completion(prompt, completion)
    return Row(prompt, tuple(completions), labels, read_tools(columns.get("tools"), prompt))


def _pair(columns: Mapping[str, Any]) -> tuple[Text, Text, Text]:
    chosen, rejected = (read_text(name, columns[name]) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise ValueError(SAME)
    refuse_mixture(chosen=chosen, rejected=rejected)
    has_prompt = "prompt" in columns
    if has_prompt and isinstance(columns["prompt"], str) and isinstance(chosen, list):
        # Not so where it is a copy of the question beside conversations that hold it, as many data sets have it.
        has_prompt = len(chosen) == 1 or chosen[0]["role"] == "assistant"
    if has_prompt:
        prompt = read_prompt(columns["prompt"], chosen)
        refuse_mixture(prompt=prompt, chosen=chosen)
        return prompt, chosen, rejected
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _shared_text(chosen, rejected)
    assert not isinstance(chosen, str)
    assert not isinstance(rejected, str)
    return _shared_messages(chosen, rejected)


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
    shared = alike(chosen, rejected)
    while shared and not (chosen[shared : shared + 1].isspace() and rejected[shared : shared + 1].isspace()):
        shared -= 1
    if not chosen[:shared].strip():
        raise ValueError(
            "chosen and rejected belong to different prompts: they have no beginning in common, and there is no column "
            "prompt"
        )
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _label(value: Any) -> float:
    """CSV files hold the words, and tables with a gap numbers with a point."""
    labels = {"true": 1.0, "1": 1.0, "1.0": 1.0, "false": 0.0, "0": 0.0, "0.0": 0.0}
    if str(value).lower() not in labels:
        raise ValueError(f"label must be true for a good completion or false for a bad one, found {value!r}")
    return labels[str(value).lower()]
