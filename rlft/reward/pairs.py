"""Which answers of a group a judge compares in pairs, which one of two it sees first, and how often each one won."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence


def pairings(texts: Iterable[str], pairs: str | int) -> list[tuple[str, str]]:
    """What is asked, as (shown first, shown second), for n different texts; the same whatever their order.

    Args:
        pairs: `all`: each pair in both orders, n (n - 1) requests. `one_order`: each pair once, half of that; which one
            comes first is drawn from the texts. A number K: each text with K others, in both orders, n K requests (up
            to n more where both are odd): the texts stand in a circle, in an order that is drawn from them, and each
            meets those that stand nearest.

    Raises:
        ValueError: `pairs` is none of these.
    """
    circle = sorted(set(texts), key=lambda text: hashlib.sha256(text.encode()).digest())
    count = len(circle)
    if isinstance(pairs, int) and not isinstance(pairs, bool) and pairs >= 1:
        steps = [*range(1, pairs // 2 + 1)]
        if pairs % 2:  # one more: the text opposite, or with an odd count the next nearest on both sides
            steps.append(count // 2 if count % 2 == 0 else pairs // 2 + 1)
    elif pairs in ("all", "one_order"):
        steps = [*range(1, count)]
    else:
        raise ValueError(f"pairs is `all`, `one_order`, or how many others each is compared with, got {pairs!r}")
    met = {frozenset((i, (i + step) % count)): (i, (i + step) % count) for step in steps for i in range(count)}
    once = [(circle[i], circle[j]) for i, j in met.values() if i != j]
    return once if pairs == "one_order" else [*once, *((second, first) for first, second in once)]


def shares_won(texts: Sequence[str], verdicts: Mapping[tuple[str, str], float]) -> list[float]:
    """The share of the others it met that each text beats; a draw is half, also one with a copy of itself.

    Args:
        verdicts: by (shown first, shown second), 1 where the first won, 0 where the second did, else 0.5. Where both
            orders were asked and do not agree, it is a draw.
    """
    won: dict[tuple[str, str], float] = {}
    for (first, second), verdict in verdicts.items():
        value = verdict if verdicts.get((second, first), 1 - verdict) == 1 - verdict else 0.5
        won[first, second], won[second, first] = value, 1 - value
    shares = []
    for i, text in enumerate(texts):
        others = [other for j, other in enumerate(texts) if j != i and (other == text or (text, other) in won)]
        shares.append(sum(won.get((text, other), 0.5) for other in others) / len(others))
    return shares
