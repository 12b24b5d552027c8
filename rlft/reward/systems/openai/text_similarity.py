"""How alike two texts are, from 0 to 1, by the measures that graders of OpenAI name."""

from __future__ import annotations

import functools
import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

_WORD = re.compile(r"\w+")
_TOKEN = re.compile(r"\w+|[^\w\s]")


def fuzzy_match(text: str, reference: str) -> float:
    """Twice the longest common subsequence of characters over both lengths: 1 - normalised insertions and deletions."""
    both = len(text) + len(reference)
    return 2 * _common(text, reference) / both if both else 1.0


def bleu(text: str, reference: str) -> float:
    """Sentence BLEU up to 4-grams with brevity penalty; counts of 2-grams and more are smoothed by one."""
    said, right = _TOKEN.findall(text), _TOKEN.findall(reference)
    if not said or not right:
        return float(said == right)
    logs = 0.0
    for size in range(1, 5):
        shared, in_text, _ = _overlap(said, right, size)
        smooth = 0 if size == 1 else 1
        if not shared + smooth:
            return 0.0
        logs += math.log((shared + smooth) / (in_text + smooth)) / 4
    return math.exp(logs + min(0.0, 1 - len(right) / len(said)))


def gleu(text: str, reference: str) -> float:
    """The lower of precision and recall over all 1- to 4-grams (https://arxiv.org/abs/1609.08144)."""
    said, right = _TOKEN.findall(text), _TOKEN.findall(reference)
    counts = [_overlap(said, right, size) for size in range(1, 5)]
    shared, in_text, in_reference = (sum(column) for column in zip(*counts, strict=True))
    most = max(in_text, in_reference)
    return shared / most if most else 1.0


def rouge_n(text: str, reference: str, size: int) -> float:
    """F1 of n-grams of `size` words, in lower case."""
    said, right = _words(text), _words(reference)
    shared, in_text, in_reference = _overlap(said, right, size)
    return 2 * shared / (in_text + in_reference) if in_text + in_reference else float(said == right)


def rouge_l(text: str, reference: str) -> float:
    """F1 of the longest common subsequence of words, in lower case."""
    said, right = _words(text), _words(reference)
    return 2 * _common(said, right) / (len(said) + len(right)) if said or right else 1.0


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _overlap(said: Sequence[str], right: Sequence[str], size: int) -> tuple[int, int, int]:
    """n-grams that both have, those of the first, those of the second."""
    first, second = (Counter(zip(*(words[i:] for i in range(size)), strict=False)) for words in (said, right))
    return (first & second).total(), first.total(), second.total()


def _common(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Length of the longest common subsequence; a row of the table of lengths is the bits of one number."""
    places: dict[Hashable, int] = {}
    for index, each in enumerate(first):
        places[each] = places.get(each, 0) | 1 << index
    everywhere = (1 << len(first)) - 1
    row = everywhere
    for each in second:
        matched = row & places.get(each, 0)
        row = (row + matched | row - matched) & everywhere
    return len(first) - row.bit_count()


METRICS: Mapping[str, Callable[[str, str], float]] = {
    "fuzzy_match": fuzzy_match,
    "bleu": bleu,
    "gleu": gleu,
    "rouge_l": rouge_l,
    **{f"rouge_{size}": functools.partial(rouge_n, size=size) for size in range(1, 6)},
}
"""By the names that graders give them."""
