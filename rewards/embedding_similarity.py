"""Embedding similarity: how near the reply is in meaning to a reference answer, as a model of sentences sees it."""

from __future__ import annotations

from typing import Any

from rlft.model.encoder import encode
from rlft.types import Message


def embedding_similarity(
    completions: list[list[Message]], answer: list[Any], folder: str, least: float = 0.5, longest: float = 3.0
) -> list[float | None]:
    """Cosine similarity of reply and answer, from `least` (worth 0) to 1; abstains where a task has no answer.

    Any encoder in a local folder works: one of sentence-transformers, whose kind of pooling is read from it, or a plain
    one of transformers (mean pooling). The first call loads it: `scoring.deadline_s` has to leave time for that.

    Near is not right: "the dose is 5 mg" is close to "the dose is 50 mg", and a text about the same thing that says
    nothing is nearer than a right answer in other words. It suits style and topic, never facts. A reply of more than
    `longest` times the answer's words earns 0: an average over everything would be near to everything.

    Args:
        folder: the model's.
        least: similarity that unrelated texts have with this model; measure it.
    """
    replies = [messages[-1]["content"] for messages in completions]
    values: list[float | None] = []
    for reply, wanted in zip(replies, answer, strict=True):
        if not isinstance(wanted, str) or not wanted.strip():
            values.append(None)
        elif not reply.strip() or len(reply) > longest * max(len(wanted), 20):
            values.append(0.0)
        else:
            one, other = encode(folder, reply), encode(folder, wanted)
            values.append(min(1.0, max(0.0, (float(one @ other) - least) / (1 - least))))
    return values
