"""The reward: 1 for a number that was found within the guesses that a game has.

A reward takes by name what it needs of a sample: `completion` is the policy's last reply, `answer` the task's number.
`messages` would be the whole conversation.
"""

from __future__ import annotations

from rlft.reward.extract import last_number


def found(completion: str, answer: str) -> float:
    """1 if the last guess is the number.

    The guess is the reply's last number, so that a list of all the numbers is a guess of its last one. A number that
    the reply denies ("not 13") is none; `rlft reward check` tries such replies.
    """
    return float(last_number(completion) == answer)
