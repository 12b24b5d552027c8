"""Lenient: the last number of the reply is the answer, as for worked solutions that end with their result."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import Any

# A sign is the number's unless a word or a bracket ends before it: "10-5" ends with 5, "x = -5" with -5.
NUMBER = re.compile(
    r"(?:(?<![\w)])[-+\u2212])?"
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"
    r"(?:[eE][-+\u2212]?\d+)?"
)


def last_number(completion: str, answer: Any) -> float | None:
    """1 if the reply's last number equals the answer, else 0; abstains when the answer is not a number."""
    text = str(answer).strip()
    expected = _value(text) if NUMBER.fullmatch(text) else None
    if expected is None:
        return None
    numbers = NUMBER.findall(completion)
    return float(bool(numbers) and _value(numbers[-1]) == expected)


def _value(text: str) -> Decimal | None:
    """Exact, unlike a float: 0.1 is 0.10, and 1e309 is not 1e310."""
    try:
        return Decimal(text.replace(",", "").replace("\u2212", "-"))
    except InvalidOperation:  # an exponent beyond all bounds
        return None
