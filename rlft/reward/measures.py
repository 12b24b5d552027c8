"""What rewards count in a text: sentences, paragraphs, lines, and how often a word occurs.

All take time linear in the length of the text, whatever is in it.
"""

from __future__ import annotations

import re


def sentences(text: str) -> int:
    """How many sentences a text has: what ends with `.`, `!` or `?` or with the text, and has a letter or digit."""
    return sum(bool(re.search(r"\w", part)) for part in re.split(r"[.!?]+(?:\s|$)", text))


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text, which have an empty line between them, without the white space around them."""
    return [part.strip() for part in re.split(r"\n[ \t]*\n", text) if part.strip()]


def lines(text: str) -> list[str]:
    """The lines of a text that are not empty, without the white space around them."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def occurrences(text: str, word: str) -> int:
    """How often a word or phrase occurs as a whole, in whatever case."""
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))
