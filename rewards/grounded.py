"""Retrieval: the answer is right, and something that was retrieved says so."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from rlft.reward.extract import conclusion, is_denied
from rlft.types import Message


def grounded(messages: Sequence[Message], answer: Any, max_words: int = 30) -> dict[str, float] | None:
    """1 if the last reply has the answer and a result of a tool has it, too, else 0; abstains without an answer.

    `right` and `supported` are observed: their difference is what the policy knows, or guesses, without looking it up.

    A reply of more than `max_words` words is not right: else it could be all that was retrieved. Nor is one that denies
    the answer. A result supports nothing whose call had the answer in it: a tool that repeats its question ("nothing
    found for ...") would else confirm every guess. What it does not see is a passage that has the words of the answer
    in another meaning.
    """
    wanted = _plain(str(answer)) if answer is not None else ""
    if not wanted:
        return None
    supported, asked = False, ""
    for message in messages:
        if message["role"] == "assistant":
            asked = _plain(json.dumps(message.get("tool_calls") or [], ensure_ascii=False))
        elif message["role"] == "tool" and not _has(asked, wanted):
            supported = supported or _has(_plain(message["content"]), wanted)
    last = messages[-1]
    reply = conclusion(last["content"]) if last["role"] == "assistant" and not last.get("tool_calls") else ""
    said = re.split(rf"(?<!\w){re.escape(str(answer).strip())}(?!\w)", reply, maxsplit=1, flags=re.IGNORECASE)
    right = len(said) == 2 and len(reply.split()) <= max_words and not is_denied(said[0], said[1])
    return {"score": float(right and supported), "right": float(right), "supported": float(supported)}


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _has(text: str, words: str) -> bool:
    return f" {words} " in f" {text} "
