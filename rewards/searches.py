"""How often an episode searched, and whether the answer was in what came back: to be observed, with weight 0."""

from __future__ import annotations

import re
from typing import Any

from rlft.types import Message


def searches(messages: list[Message], answer: Any = None) -> dict[str, float]:
    """The number of `tool` messages, and as a part whether one of them holds the answer as whole words.

    It says how a policy works, not how well: with a weight it would be paid for asking without end.
    """
    results = [str(message["content"]) for message in messages if message["role"] == "tool"]
    found: dict[str, float] = {"score": float(len(results))}
    if answer is not None:
        found["found"] = float(any(f" {_words(str(answer))} " in f" {_words(text)} " for text in results))
    return found


def _words(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.lower()))
