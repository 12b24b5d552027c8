"""In parts: a correct answer, a small bonus for its format, a small penalty for length."""

from __future__ import annotations

from typing import Any

from rlft.reward.extract import tagged


def graded_answer(completion: str, answer: Any, max_words: int = 200) -> dict[str, float] | None:
    """1 for the answer in `<answer>` tags that end the reply, 0.1 for such tags, down to -0.1 for many words.

    The reward is the sum, and each part has a curve of its own that shows what the policy is learning: when
    `format` rises and `correct` does not, the bonus is too large. Abstains when the task has no answer.

    Two different answers earn nothing, nor does an answer that more text follows, which could take it back. Every 20
    characters count as a word, so that neither a word nor white space without end is a way around the penalty.
    """
    if answer is None:
        return None
    found = tagged(completion) if completion.rstrip().endswith("</answer>") else None
    words = max(len(completion) // 20, sum(1 + len(word) // 20 for word in completion.split()))
    excess = max(0, words - max_words) / max_words
    return {
        "correct": float(found is not None and found == str(answer).strip()),
        "format": 0.1 if found else 0.0,
        "length": -0.1 * min(1.0, excess) if excess else 0.0,
    }
