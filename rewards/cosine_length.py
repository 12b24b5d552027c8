"""Length: right answers are worth more when they are short, wrong ones cost less when they are long."""

from __future__ import annotations

import math
from typing import Any

from rlft.reward.extract import same_number, stated_answer
from rlft.types import Trajectory


def cosine_length(
    trajectory: Trajectory,
    answer: Any,
    max_tokens: int,
    right_short: float = 1.0,
    right_long: float = 0.5,
    wrong_short: float = -1.0,
    wrong_long: float = -0.5,
) -> float | None:
    """Along half a cosine over the length, from the short to the long value of a right or a wrong reply.

    The cosine reward of https://arxiv.org/abs/2502.03373: who is wrong should think longer, who is right need not. The
    reply is right if what it states (`rlft.reward.extract.stated_answer`) is the answer, as a number or as text.
    Abstains when the task has no answer. A reply beyond `max_tokens` gets `wrong_short`, right or not.

    A wrong reply gains by padding, up to `wrong_long`: keep that below what the shortest wrong reply can still win by
    being right, and put `rewards.repetition` beside it, which is what the paper does.
    """
    if answer is None:
        return None
    length = trajectory.num_actions
    if length > max_tokens:
        return wrong_short
    said, wanted = stated_answer(trajectory.text) or "", str(answer).strip()
    said = said.rstrip(".").casefold()
    is_right = bool(said) and (said == wanted.casefold() or same_number(said, wanted))
    short, long = (right_short, right_long) if is_right else (wrong_short, wrong_long)
    return long + (short - long) * (1 + math.cos(math.pi * length / max_tokens)) / 2
