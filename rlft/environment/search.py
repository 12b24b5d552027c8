"""Finding the passages of a corpus that a query is about: by words (BM25), or by meaning with a model of sentences."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

Search: TypeAlias = Callable[[str, int], list[int]]
"""(query, how many at the most) -> positions in the corpus, best first. What is nothing like the query is left out."""

_ASKING = frozenset(
    ("which", "what", "who", "whose", "when", "where", "why", "how", "does", "do", "did", "has", "have")
)
"""Words that ask; bm25s leaves out articles and the like by itself."""


def by_words(texts: Sequence[str]) -> Search:
    """An index by words: BM25 (https://doi.org/10.1561/1500000019) by bm25s, without English stop words.

    Raises:
        ValueError: there are no texts.
    """
    import bm25s

    if not texts:
        raise ValueError("the corpus is empty")
    index = bm25s.BM25()
    index.index(bm25s.tokenize(list(texts), stopwords="en", show_progress=False), show_progress=False)

    def search(query: str, count: int) -> list[int]:
        words = _words(query)
        scores = index.get_scores(words) if words else []
        return _best([(score, row) for row, score in enumerate(scores) if score > 0], count)

    return search


def by_meaning(texts: Sequence[str], folder: str) -> Search:
    """An index by the cosine similarity of vectors that a model of sentences gives; see `model.encoder.encode`.

    Args:
        folder: the model's; its vectors of all texts are made now.

    Raises:
        ValueError: there are no texts, or no model.
    """
    import torch

    from rlft.model.encoder import encode

    if not texts:
        raise ValueError("the corpus is empty")
    vectors = torch.stack([encode(folder, text) for text in texts])

    def search(query: str, count: int) -> list[int]:
        if not query.strip():
            return []
        scores = (vectors @ encode(folder, query)).tolist()
        return _best([(score, row) for row, score in enumerate(scores)], count)

    return search


def query_of(question: str) -> str:
    """The words of a question that say what it is about, in their order: a plain query."""
    about = set(_words(question)) - _ASKING
    return " ".join(word for word in re.findall(r"[\w.+/-]*\w", question) if set(_words(word)) & about)


def _words(text: str) -> list[str]:
    import bm25s

    words: list[str] = bm25s.tokenize([text], stopwords="en", show_progress=False, return_ids=False)[0]
    return words


def _best(scored: list[tuple[float, int]], count: int) -> list[int]:
    # In the corpus's order where equal: nothing depends on how a library sorts.
    return [row for _, row in sorted((-score, row) for score, row in scored)[:count]]
