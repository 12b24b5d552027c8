"""Format: the reply consists of some tags in their order, each once, each with something in it."""

from __future__ import annotations

import re
from collections.abc import Sequence


def format_tags(completion: str, tags: Sequence[str] = ("think", "answer"), least: int = 1) -> float:
    """1 if the reply is `<think>...</think><answer>...</answer>` and nothing else, else 0.

    White space between the tags does not matter. Tags that are empty, repeated, nested or in another order earn
    nothing, nor does text outside of them.

    A format says nothing about content: `<think>x</think><answer>x</answer>` is perfect. So give it a small weight, or
    let it only open the way for another reward: `rlft.reward.compose.gate`.

    Args:
        tags: their names, in order.
        least: letters or digits that must stand in each.
    """
    names = "|".join(map(re.escape, tags))
    parts = re.split(rf"<(/?(?:{names}))>", completion)
    if parts[1::2] != [mark for tag in tags for mark in (tag, f"/{tag}")]:
        return 0.0
    inside, outside = parts[2::4], parts[0::4]
    filled = all(sum(map(str.isalnum, text)) >= least for text in inside)
    return float(filled and not any(text.strip() for text in outside))
