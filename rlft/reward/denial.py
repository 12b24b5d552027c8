"""Whether the words around an answer deny it. English only."""

from __future__ import annotations

import re

_NOT = r"\bnot\b|n['\u2019]t\b|\bnever\b|\bneither\b|\bnor\b|\bcannot\b|\brul(?:e|es|ed|ing) out\b|\u2260|!=|\\neq?\b"
_WRONG = r"\b(?:wrong|incorrect|false|mistaken?|(?<!no )doubt(?:s|ful)?|unlikely|far from)\b"
_DENIED_BEFORE = re.compile(rf"(?:{_NOT}|{_WRONG})[^,;:.!?\n]*\Z|{_WRONG}(?:\s+\w+){{0,2}}\s*:\s*$", re.IGNORECASE)
_RESUMED = re.compile(r"\b(?:but|so|hence|thus|therefore|then|only)\b", re.IGNORECASE)
_DENIED_AFTER = re.compile(
    r"[\s*$)\]}\"']{0,4}(?:\?\s*no\b|(?:is|was|are|would be|seems|can|could)\s+(?:not|wrong|incorrect|false|never)\b"
    r"|(?:is|was|could|ca)n['\u2019]t\b|cannot\b)",
    re.IGNORECASE,
)


def is_denied(before: str, after: str = "") -> bool:
    """Whether what stands around an answer denies it: "it is not 42", "42 is wrong". English only."""
    denial = _DENIED_BEFORE.search(before[-200:])
    return bool(denial and not _RESUMED.search(denial[0])) or bool(_DENIED_AFTER.match(after))
