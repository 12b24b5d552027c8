"""Options of the form `key=value`: columns of a task as data files hold them, arguments as configs do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from rlft.reward.extract import json_value


def key_values(items: Iterable[str], option: str, read: Callable[[str], Any]) -> dict[str, Any]:
    """The pairs of `key=value` options.

    Args:
        read: makes a value of its text.

    Raises:
        ValueError: one has no `=`, or its value cannot be read.
    """
    found = {}
    for item in items:
        key, sign, value = item.partition("=")
        if not sign:
            raise ValueError(f"{option} {item!r}: write key=value")
        try:
            found[key] = read(value)
        except YAMLError as error:
            what = str(getattr(error, "problem", "") or error)
            raise ValueError(f"{option} {item!r}: the value is no YAML ({what}); put a text in quotes") from None
    return found


def as_in_a_config(text: str) -> Any:
    """The value of an argument, as YAML."""
    return YAML(typ="safe").load(text)


def as_in_a_row(text: str) -> Any:
    """The value of a column: what is JSON, as it would stand in a line of a .jsonl; everything else is that text."""
    try:
        return json_value(text)
    except ValueError:
        return text


def nearly_json(columns: Sequence[str]) -> list[str]:
    """A note on each column whose text begins as a list or an object of JSON and is none."""
    texts = {key: value for key, _, value in (item.partition("=") for item in columns)}
    return [
        f'column {key} is the text {text}, which is no JSON: texts in a list need double quotes, as in ["a", "b"]'
        for key, text in texts.items()
        if text.startswith(("[", "{")) and isinstance(as_in_a_row(text), str)
    ]
