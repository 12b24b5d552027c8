"""Words about nothing inside the format of a reply, where a reward that counts its length may look."""

from __future__ import annotations

import re

_TAGS = re.compile(r"<(\w+)>(.*?)</\1>", re.DOTALL)


def inside_tags(text: str, words: str, answer: str | None) -> str | None:
    """The text with words more in its first tags that do not hold the answer; None where there are none."""
    for found in _TAGS.finditer(text):
        if not answer or answer not in found[2]:
            return f"{text[: found.end(2)]} {words}{text[found.end(2) :]}"
    return None


def lengthened(text: str, words: str, answer: str | None) -> list[str]:
    """The text with words more before it, after it, and in its tags, where it has any."""
    inside = inside_tags(text, words, answer)
    return [f"{words}{text}", f"{text} {words}", *([inside] if inside else [])]
