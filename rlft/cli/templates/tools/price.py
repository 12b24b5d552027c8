"""The reward: 1 for a final reply that gives the right price.

A reward takes by name what it needs of a sample: `completion` is the policy's last reply, `answer` the task's.
`messages` would be the whole conversation, with the calls of the tool.
"""

from __future__ import annotations

import re


def price(completion: str, answer: str) -> float:
    """1 for `It costs 45.` or the bare number.

    The whole reply has to look like that: one that names several prices, or says what it does not cost, would hold the
    right number too. `rlft reward check` tries such replies.
    """
    said = re.fullmatch(r"(?:It costs )?(\d+)\.?", completion.strip())
    return float(said is not None and said[1] == answer)
