"""Strict: the reply is the answer inside tags, and nothing else."""

from __future__ import annotations

from typing import Any


def exact_answer(completion: str, answer: Any, tag: str = "answer") -> float | None:
    """1 if the whole reply is `<answer>ANSWER</answer>`, else 0; abstains when the task has no answer.

    Being strict leaves nothing to exploit: a reply that lists answers, or writes around one, earns nothing.
    """
    if answer is None:
        return None
    return float(completion.strip() == f"<{tag}>{answer}</{tag}>")
