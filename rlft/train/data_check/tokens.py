"""What a model's tokenizer and chat template make of rows: lengths, special tokens, one row in tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from rlft.model import chat, special_tokens
from rlft.train.data_check.findings import Finding, found
from rlft.train.data_check.records import Record
from rlft.train.preference import data as preference_data
from rlft.train.preference import rows as preference_rows
from rlft.train.supervised import data as supervised_data
from rlft.train.supervised import rows as supervised_rows

_LOOK_SPECIAL = re.compile(
    r"<\|\w+\|>|</?s>|\[/?INST\]|<(?:start|end)_of_turn>|<(?:bos|eos|pad)>|<\uff5c[^<>]{1,40}\uff5c>"
)
"""Spellings of special tokens of well-known models, where no tokenizer is at hand."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What a run would tokenise the rows with."""

    tokenizer: PreTrainedTokenizerBase
    """With its policy for special tokens in texts."""
    end_ids: frozenset[int] | None
    """See `chat.end_token_ids`; None for a reward model, which reads whole conversations."""
    limit: int
    """Most tokens of a row."""
    limit_name: str
    """What sets that, for people."""
    new_tokens: int = 0
    """Tokens of a completion that come on top of a task's prompt."""
    is_dropped: bool = False
    """Whether a run leaves out longer rows, else it refuses them."""
    policy: special_tokens.Policy = "encode"
    """`model.special_tokens_in_text`."""
    columns: Mapping[Any, str] = field(default_factory=dict)
    """`data.columns` of `rlft sft`."""
    loss_on: str = "replies"
    """`data.loss_on` of `rlft sft`."""


@dataclass(frozen=True, slots=True)
class Written:
    """A row in tokens."""

    prompt: tuple[int, ...]
    """What is only read."""
    rest: tuple[int, ...]
    """The reply; empty where a rollout makes it."""
    is_learnt: tuple[bool, ...]
    """Of the reply's tokens."""
    length: int
    """Tokens of the longest that a run makes of the row: prompt and reply, or prompt and new tokens."""


def write(record: Record, model: Model, *, kind: str) -> Written:
    """A row as a run would tokenise it.

    Raises:
        ValueError: the template or the reader refuses it.
    """
    if kind == "demonstrations":
        assert model.end_ids is not None
        said = supervised_rows.parse(record.columns, model.columns)
        made = supervised_data.tokenize(said, model.tokenizer, model.end_ids, loss_on=model.loss_on)
        length = len(made.prompt_ids) + len(made.token_ids)
        return Written(made.prompt_ids, made.token_ids, made.action_mask, length)
    if kind == "labelled":
        tokenizer = model.tokenizer
        is_text = not record.messages
        ids = tokenizer(record.prompt)["input_ids"] if is_text else chat.conversation(tokenizer, record.messages)
        return Written(tuple(ids), (), (), len(ids))
    if kind != "tasks":
        row = preference_rows.parse(record.columns, paired=kind == "pairs")
        example = preference_data.tokenize(row, model.tokenizer, model.end_ids)
        length = len(example.prompt_ids) + max(map(len, example.completions))
        return Written(example.prompt_ids, example.completions[0], example.action_mask[0], length)
    prompt = chat.render(model.tokenizer, record.messages, tools=record.tools)
    length = len(prompt) + model.new_tokens
    if not record.replies:
        return Written(prompt, (), (), length)
    assert model.end_ids is not None
    messages = [*record.messages, *record.replies[0]]
    prompt, reply = chat.demonstration(model.tokenizer, messages, model.end_ids, tools=record.tools)
    return Written(prompt, reply, (True,) * len(reply), max(length, len(prompt) + len(reply)))


def lengths(records: Sequence[Record], model: Model, *, kind: str) -> tuple[list[Finding], dict[str, str]]:
    """Rows that do not fit, rows that cannot be tokens at all, and how long the rows are."""
    refused: list[tuple[str, str]] = []
    written: list[tuple[int, str]] = []
    for record in records:
        try:
            written.append((write(record, model, kind=kind).length, record.where))
        except ValueError as error:
            refused.append((record.where, str(error)))
    too_long = [(length, where) for length, where in written if length > model.limit]
    what = ""
    if too_long:
        new = f", {model.new_tokens} of them new," if model.new_tokens else ""
        what = f"the longest has {max(too_long)[0]} tokens{new} and {model.limit_name} is {model.limit}"
    todo = (
        "nothing: the run leaves them out"
        if model.is_dropped
        else "the run refuses them: shorten them, or set overlong: drop"
    )
    findings = [
        *found("too long", "warning" if model.is_dropped else "error", [where for _, where in too_long], what, todo),
        *found(
            "not in tokens",
            "error",
            [where for where, _ in refused],
            refused[0][1] if refused else "",
            "mend the row, or remove it",
        ),
    ]
    counts = sorted(length for length, _ in written)
    if not counts:
        return findings, {}
    middle, most = counts[len(counts) // 2], counts[-1]
    new = f" with {model.new_tokens} new ones" if model.new_tokens else ""
    return findings, {
        "tokens": f"{counts[0]} to {most}, median {middle}{new}; {model.limit_name} is {model.limit}",
    }


def spelt(records: Sequence[Record], model: Model | None, *, kind: str) -> list[Finding]:
    """Texts that spell a special token: of the model, or where none is given of well-known ones.

    In plain text it acts as that token; in messages `model.special_tokens_in_text` says what becomes of it.
    """
    seen: list[tuple[str, str]] = []
    acting: list[tuple[str, str]] = []
    is_templated = kind in ("pairs", "rated") and model is not None and model.end_ids is None  # a reward model's
    for record in records:
        for _, text in record.texts:
            if model is None:
                token = match[0] if (match := _LOOK_SPECIAL.search(text)) else None
            else:
                token = special_tokens.found(model.tokenizer, text)
            if token:
                (seen if record.messages or is_templated else acting).append((record.where, token))
                break
    policy = model.policy if model else "encode"
    does = {
        "encode": "it becomes the tokens of its characters, so it ends or opens nothing",
        "allow": "it acts as that token, in the middle of a message",
        "refuse": "the run refuses it (model.special_tokens_in_text)",
    }[policy]
    return [
        *found(
            "special token",
            "error" if policy == "refuse" else "warning",
            [where for where, _ in seen],
            f"a text spells {seen[0][1]!r}: {does}" if seen else "",
            "if a chat template wrote it there, store messages instead of its text; else take it out",
        ),
        *found(
            "special token",
            "warning",
            [where for where, _ in acting],
            f"plain text spells {acting[0][1]!r}: it acts as that token" if acting else "",
            "nothing, if a chat template wrote it there and all of the text is to be learnt; else store messages, or "
            "take it out",
        ),
    ]


def shown(record: Record, model: Model, *, kind: str) -> list[tuple[str, bool]]:
    """Each token of a row as text, and whether it is learnt."""
    written = write(record, model, kind=kind)
    ids = (*written.prompt, *written.rest)
    mask = (*(False for _ in written.prompt), *written.is_learnt)
    return [(model.tokenizer.decode([token]), is_learnt) for token, is_learnt in zip(ids, mask, strict=True)]
