"""The reward: 1 for the right label and nothing else.

A reward takes by name what it needs of a sample: `completion` is the reply, and every column of messages.jsonl has its
own name.
"""

from __future__ import annotations


def label(completion: str, label: str) -> float:
    """1 if the reply is the label, but for capital letters and a full stop at the end.

    Nothing for a reply with more words: one that lists all the labels, or denies one, would hold the right one too.
    """
    return float(completion.strip().removesuffix(".").lower() == label)
