"""Retrieval: the answer is right, and something that was retrieved says so."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from rlft.reward.extract import stated_answer
from rlft.types import Message


def grounded(messages: Sequence[Message], answer: Any) -> dict[str, float] | None:
    """1 if the last reply gives the answer and a result of a tool has it, too, else 0; abstains without an answer.

    `right` and `supported` are observed: their difference is what the policy knows, or guesses, without looking it up.

    What the reply gives is read by `stated_answer`: in a box or tags, behind "the answer is", or as all of a short
    line. It has to be the answer but for case, so a list of answers, a denial, or all that was retrieved earns nothing.
    A result supports nothing whose call had the answer in it: a tool that repeats its question ("nothing found for
    ...") would else confirm every guess. What it does not see is a passage that has the words of the answer in another
    meaning.
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
    is_reply = last["role"] == "assistant" and not last.get("tool_calls")
    right = is_reply and _bare(stated_answer(last["content"]) or "") == _bare(str(answer))
    return {"score": float(right and supported), "right": float(right), "supported": float(supported)}


def _bare(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".! ")


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))


def _has(text: str, words: str) -> bool:
    return f" {words} " in f" {text} "
