"""The reward: 1 for a reply that is the order as JSON.

A reward takes by name what it needs of a sample: `completion` is the reply, `answer` and every other column are what
stands in orders.jsonl. What it returns as a dict gets a curve for each name; the reward is their sum.
"""

from __future__ import annotations

from rlft.reward.extract import json_object


def order(completion: str, answer: dict[str, str | int]) -> dict[str, float]:
    """Half for each key that has the right value; nothing if the reply holds further keys, or no JSON object.

    A key more would let a policy write the whole message into the object, so that everything right is in it somewhere.
    """
    found = json_object(completion)
    if found is None or set(found) - set(answer):
        return {"item": 0.0, "count": 0.0}
    # `type` too: in Python 1 == True and 3 == 3.0, and neither is a count that another program would take.
    right = {key: type(found.get(key)) is type(wanted) and found.get(key) == wanted for key, wanted in answer.items()}
    return {key: 0.5 * is_right for key, is_right in right.items()}
