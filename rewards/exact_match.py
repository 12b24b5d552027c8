"""Exact match: the reply is one of the right answers, but for case, white space, articles and the final point."""

from __future__ import annotations

import re
import unicodedata
from typing import Any

from rlft.reward.extract import conclusion


def exact_match(completion: str, answer: Any, stated: bool = False) -> float | None:
    """1 if the reply (behind its reasoning) is the answer or one of a list of them, else 0; abstains without one.

    The whole reply is compared, so nothing can be added to it: no second answer, no text around it. With `stated` a
    sentence such as "The answer is Paris." is allowed, too, and only what it states is compared.
    """
    answers = [each for each in (answer if isinstance(answer, list | tuple) else [answer]) if each not in (None, "")]
    if not answers:
        return None
    said = _plain(conclusion(completion))
    if stated:
        said = re.sub(r"^(?:(?:so|therefore|hence),? )?(?:the )?(?:final |correct )?answer(?: is:?|:) ", "", said)
    return float(_plain(said) in {_plain(str(each)) for each in answers})


def _plain(text: str) -> str:
    text = " ".join(unicodedata.normalize("NFC", text).casefold().split()).rstrip(".! ")
    return re.sub(r"^(?:the|an?) (?!answer)", "", text).strip("\"'*")
