"""Word lists: words or phrases that the reply has to use, and ones that it must not."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence


def word_list(
    completion: str, required: Sequence[str] = (), forbidden: Sequence[str] = (), most: int = 5
) -> dict[str, float] | None:
    """Share of the required words that occur; 0 if a forbidden one does, or the reply is little else than the list.

    Compared are whole words, without case. Abstains when both lists are empty.

    Stuffing keywords is what it invites, so a reply earns nothing that uses a required word more than `most` times or
    does not have twice as many words as the required ones. A forbidden word cannot hide behind invisible characters or
    full-width letters; a word that mixes alphabets, as with a Cyrillic letter in it, counts as forbidden. Spelling it
    with spaces, or saying the same otherwise, stays possible.
    """
    if not required and not forbidden:
        return None
    text = _plain(completion)
    counts = [_count(text, word) for word in required]
    used = sum(count > 0 for count in counts) / len(counts) if counts else 1.0
    clean = not any(_count(text, word) for word in forbidden) and not (forbidden and _mixes_alphabets(text))
    words = len(text.split())
    honest = max(counts, default=0) <= most and words >= max(1, 2 * sum(len(word.split()) for word in required))
    return {"score": used * clean * honest, "required": used, "clean": float(clean)}


def _plain(text: str) -> str:
    visible = (letter for letter in unicodedata.normalize("NFKC", text) if unicodedata.category(letter) != "Cf")
    return " ".join("".join(visible).casefold().split())


def _count(text: str, word: str) -> int:
    return len(re.findall(rf"(?<!\w){re.escape(_plain(word))}(?!\w)", text)) if word.strip() else 0


def _mixes_alphabets(text: str) -> bool:
    latin, others = "a-z\u00df-\u024f", "\u0370-\u052f"
    return bool(re.search(rf"[{latin}][{others}]|[{others}][{latin}]", text))
