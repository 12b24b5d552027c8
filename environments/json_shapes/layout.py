"""How JSON is written out in demonstrations."""

from __future__ import annotations

import json
from typing import Any

WIDTH = 100


def written(value: Any, indent: int = 0) -> str:
    """JSON as people lay it out by hand: a short object stands in one line, others are indented by 2.

    That takes half the tokens of a line for each value, and the lines still show where brackets close and how many
    items a list has: each object of a list has a line of its own, and no line nests more than two levels.
    """
    line = json.dumps(value, ensure_ascii=False)
    if not isinstance(value, dict | list) or (indent + len(line) <= WIDTH and _is_plain(value)):
        return line
    begin, end = "{}" if isinstance(value, dict) else "[]"
    named = value.items() if isinstance(value, dict) else ((None, item) for item in value)
    inner = " " * (indent + 2)
    parts = [
        inner + ("" if key is None else f"{json.dumps(key, ensure_ascii=False)}: ") + written(item, indent + 2)
        for key, item in named
    ]
    return f"{begin}\n" + ",\n".join(parts) + f"\n{' ' * indent}{end}"


def _is_plain(value: Any) -> bool:
    """Whether it may stand in one line."""
    several = isinstance(value, list) and sum(isinstance(item, dict | list) for item in value) > 1
    return not several and _depth(value) <= 2


def _depth(value: Any) -> int:
    if not isinstance(value, dict | list):
        return 0
    return 1 + max(map(_depth, value.values() if isinstance(value, dict) else value), default=0)
