"""In parts: a correct answer, a small bonus for its format, a small penalty for length."""

from __future__ import annotations

import re
from typing import Any


def graded_answer(completion: str, answer: Any, max_words: int = 200) -> dict[str, float] | None:
    """1 for the answer in the only `<answer>` tags, 0.1 for such tags, down to -0.1 for many words.

    The reward is the sum, and each part has a curve of its own that shows what the policy is learning: when
    `format` rises and `correct` does not, the bonus is too large. Abstains when the task has no answer.
    """
    if answer is None:
        return None
    tagged = re.findall(r"<answer>(.*?)</answer>", completion, re.DOTALL)
    excess = max(0, len(completion.split()) - max_words) / max_words
    return {
        "correct": float(len(tagged) == 1 and tagged[0].strip() == str(answer).strip()),
        "format": 0.1 if len(tagged) == 1 else 0.0,
        "length": -0.1 * min(1.0, excess) if excess else 0.0,
    }
