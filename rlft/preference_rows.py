"""Preferences as their authors wrote them: rows of a file or of the hub, in the conventions that TRL documents.

https://huggingface.co/docs/trl/dataset_formats. Columns hold text, or lists of messages:

    prompt, chosen, rejected       a pair: "The sky is", " blue.", " green."
    chosen, rejected               a pair that shares its beginning: "The sky is blue.", "The sky is green."
    prompt, completion, label      for KTO: one completion that is good (true) or bad (false)

A column `tools` that names some is refused: the prompt would not show them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

from rlft.preference_config import PreferenceDataConfig
from rlft.rows import read_rows
from rlft.types import Message

Text: TypeAlias = "str | list[Message]"
SAME = "chosen and rejected are the same, so there is nothing to prefer; remove the row"


@dataclass(frozen=True, slots=True)
class Row:
    """A prompt and what was said to it."""

    prompt: Text
    """Text, or messages."""
    completions: tuple[Text, ...]
    """Chosen and rejected, or a single one; text or messages as the prompt is."""
    labels: tuple[float, ...]
    """Of each completion: 1 chosen or good, 0 rejected or bad."""


def read(config: PreferenceDataConfig) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row with its place; raises ValueError as `read_rows` does."""
    return read_rows(config.source, subset=config.subset, split=config.split, name="data.source")


def parse(row: Mapping[str, Any], *, paired: bool) -> Row:
    """What a row says, whichever of the conventions it follows.

    Args:
        paired: whether a single completion is of no use.

    Raises:
        ValueError: it follows none; says what is missing or wrong.
    """
    columns = {str(name): value for name, value in row.items() if value is not None}
    if columns.get("tools") not in (None, [], "", "[]"):
        raise ValueError(
            "the column tools is not shown to the model, so the completions would answer another prompt; describe the "
            "tools in the system message of the prompt and remove the column"
        )
    if columns.keys() >= {"chosen", "rejected"}:
        prompt, chosen, rejected = _pair(columns)
        return Row(prompt, (chosen, rejected), (1.0, 0.0))
    if paired:
        absent = " and ".join(name for name in ("chosen", "rejected") if name not in columns)
        hint = "; single completions with a label are for preference.loss=kto" if "label" in columns else ""
        raise ValueError(f"no column {absent}; it has {', '.join(columns) or 'none'}{hint}")
    if missing := [name for name in ("prompt", "completion", "label") if name not in columns]:
        raise ValueError(
            f"no column {missing[0]}; it has {', '.join(columns) or 'none'}. KTO takes prompt, completion, label or "
            "pairs of chosen and rejected"
        )
    prompt, completion = _text("prompt", columns["prompt"]), _text("completion", columns["completion"])
    _refuse_mixture(prompt=prompt, completion=completion)
    return Row(prompt, (completion,), (_label(columns["label"]),))


def _pair(columns: Mapping[str, Any]) -> tuple[Text, Text, Text]:
    chosen, rejected = (_text(name, columns[name]) for name in ("chosen", "rejected"))
    if chosen == rejected:
        raise ValueError(SAME)
    _refuse_mixture(chosen=chosen, rejected=rejected)
    has_prompt = "prompt" in columns
    if has_prompt and isinstance(columns["prompt"], str) and isinstance(chosen, list) and len(chosen) > 1:
        has_prompt = False  # a copy of the question beside conversations that hold it, as many data sets have it
    if has_prompt:
        prompt = _text("prompt", columns["prompt"])
        _refuse_mixture(prompt=prompt, chosen=chosen)
        return prompt, chosen, rejected
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _shared_text(chosen, rejected)
    if chosen[:-1] != rejected[:-1]:
        raise ValueError("chosen and rejected belong to different prompts: all but their last message must be the same")
    return chosen[:-1], chosen[-1:], rejected[-1:]


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
    for message in value:
        if not (
            isinstance(message, Mapping)
            and isinstance(message.get("role"), str)
            and isinstance(message.get("content"), str)
        ):
            raise ValueError(f"{name}: a message must have a role and a content, both text; found {str(message)[:80]}")
    return [{key: part for key, part in message.items() if part is not None} for message in value]  # type: ignore[misc]


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
