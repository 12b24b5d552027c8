"""The smallest text that still does what a longer one does: delta debugging over lines, words and characters."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from rlft.reward.transcript import Transcript, transcript
from rlft.types import Message

Works = Callable[[Sequence[str]], Sequence[bool]]
"""Says of each text whether it still does it; says no to all when the time is over."""

_LINE, _WORD = re.compile(r"[^\n]*\n|[^\n]+"), re.compile(r"\S+\s*|\s+")
_MOST_LETTERS = 160
_MOST_ASKED = 1_000_000


def shrunk(text: str, works: Works) -> str:
    """The text without the lines, words and letters that it does not need (https://doi.org/10.1109/32.988498).

    Args:
        works: is asked about texts that miss some units of this one, many at once.
    """
    for unit in (_LINE, _WORD):
        text = _without(unit.findall(text), works)
    return _without(list(text), works) if len(text) <= _MOST_LETTERS else text


def fewest_actions(episode: Transcript, works: Works) -> Transcript:
    """The episode without the actions that it does not need, and what was answered to them."""
    turns = episode.turns
    starts = [index for index, message in enumerate(turns) if message["role"] == "assistant"]
    actions = [turns[start:end] for start, end in pairwise([*starts, len(turns)])]
    index = 0
    while index < len(actions):
        fewer = [*actions[:index], *actions[index + 1 :]]
        if works([_joined(fewer, episode.reply)])[0]:
            actions = fewer
        else:
            index += 1
    return _joined(actions, episode.reply)


def _joined(actions: Sequence[Sequence[Message]], reply: str) -> Transcript:
    return transcript([message for action in actions for message in action], reply)


def _without(units: list[str], works: Works) -> str:
    parts, asked = 2, 0
    while units and asked < _MOST_ASKED:
        size = -(-len(units) // parts)
        tried = [units[:start] + units[start + size :] for start in range(0, len(units), size)]
        asked += sum(len(unit) for one in tried for unit in one)
        good = [one for one, does in zip(tried, works(["".join(one) for one in tried]), strict=True) if does]
        if good:
            units, parts = min(good, key=len), max(2, parts - 1)
        elif size == 1:
            break
        else:
            parts = min(len(units), 2 * parts)
    return "".join(units)
