"""Multiple choice: the letter that the reply settles on is the right one."""

from __future__ import annotations

from typing import Any

from rlft.reward.extract import choice


def multiple_choice(completion: str, answer: Any, letters: str = "ABCD") -> float | None:
    """1 if the reply's letter is the answer, else 0; abstains when the answer is none of the letters.

    Naming several letters earns nothing, whether as a list or in one sentence after the other, and a letter that is
    denied does not count. A guess is right once in `len(letters)` times: that is the reward of a policy that has learnt
    nothing, and the curve begins there.

    Args:
        answer: a letter, or the index of one, from 0.
    """
    if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(letters):
        answer = letters[answer]
    right = str(answer).strip().strip("().").upper()
    if len(right) != 1 or right not in letters.upper():
        return None
    return float(choice(completion, letters) == right)
