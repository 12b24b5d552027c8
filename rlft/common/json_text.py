"""JSON that others wrote."""

from __future__ import annotations

import json
import re
from typing import Any

DEEPEST = 200
"""Most lists and objects within each other. Python's own bound is another one in each of its versions."""
_MARKS = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[{]|[\]}]', re.DOTALL)


def parse(text: str | bytes) -> Any:
    """The value that a JSON text holds, as `json.loads` gives it.

    Raises:
        ValueError: it is no JSON, or is nested too deeply to be read.
    """
    refuse_deep(text)
    return json.loads(text)


def refuse_deep(text: str | bytes) -> None:
    """Refuse lists and objects that are nested too deeply, whether the text is JSON or not.

    Raises:
        ValueError: more than `DEEPEST` are open at once.
    """
    text = text if isinstance(text, str) else text.decode("utf-8", "replace")
    if text.count("[") + text.count("{") <= DEEPEST:  # most texts, and much faster than to look at each
        return
    depth = 0
    for mark in _MARKS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(mark[0], 0)
        if depth > DEEPEST:
            raise ValueError("it is nested too deeply")
