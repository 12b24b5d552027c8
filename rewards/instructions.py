"""Instructions that a program can check: how long a reply may be, how it begins, what it holds.

The idea of https://arxiv.org/abs/2311.07911. Each check is one function below; `environments.instructions` writes the
instructions in words.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any


def instructions(completion: str, constraints: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Share of the task's constraints that the reply keeps; each kind has a curve of its own, a second one `KIND_2`.

    An empty reply keeps none: else saying nothing would be the safest way to avoid a word. Without constraints it
    abstains.

    Raises:
        ValueError: a constraint of an unknown kind.
    """
    reply = completion.strip()
    kept: dict[str, float] = {}
    seen: Counter[str] = Counter()
    for constraint in constraints:
        arguments = dict(constraint)
        kind = arguments.pop("kind")
        if kind not in CHECKS:
            raise ValueError(f"no constraint {kind!r}; there is {', '.join(CHECKS)}")
        seen[kind] += 1
        kept[kind if seen[kind] == 1 else f"{kind}_{seen[kind]}"] = float(
            bool(reply) and CHECKS[kind](reply, **arguments)
        )
    return {"score": sum(kept.values()) / len(kept), **kept} if kept else None


def _at_most_words(reply: str, count: int) -> bool:
    """No more than `count` words."""
    return len(reply.split()) <= count


def _at_least_words(reply: str, count: int) -> bool:
    """No fewer than `count` words."""
    return len(reply.split()) >= count


def _starts_with(reply: str, phrase: str) -> bool:
    """It begins with the phrase, and something follows."""
    return reply.startswith(phrase) and len(reply) > len(phrase)


def _ends_with(reply: str, phrase: str) -> bool:
    """It ends with the phrase, and something stands before."""
    return reply.endswith(phrase) and len(reply) > len(phrase)


def _without_word(reply: str, word: str) -> bool:
    """The word does not occur, in whatever case."""
    return not re.search(rf"\b{re.escape(word)}\b", reply, re.IGNORECASE)


def _in_quotes(reply: str) -> bool:
    """All of it stands between double quotation marks, which do not occur inside."""
    return len(reply) > 2 and reply[0] == reply[-1] == '"' and '"' not in reply[1:-1]


def _items(reply: str, count: int) -> bool:
    """Exactly `count` list items, each on a line that begins with `-`, and nothing else."""
    lines = [line.strip() for line in reply.splitlines() if line.strip()]
    return len(lines) == count and all(re.match(r"-\s*\S", line) for line in lines)


def _json_object(reply: str, keys: list[str]) -> bool:
    """A JSON object with exactly these keys, between triple backticks or not."""
    # Not one pattern with white space at both ends: a reply of many spaces would keep it busy for hours.
    is_fenced = len(reply) >= 6 and reply.startswith("```") and reply.endswith("```")
    try:
        value = json.loads(reply[3:-3].removeprefix("json").strip() if is_fenced else reply)
    except (ValueError, RecursionError):
        return False
    return isinstance(value, dict) and sorted(value) == sorted(keys)


def _lower_case(reply: str) -> bool:
    """No capital letter, but some letter."""
    return reply == reply.lower() and any(map(str.isalpha, reply))


CHECKS = {
    check.__name__.removeprefix("_"): check
    for check in (
        *(_at_most_words, _at_least_words, _starts_with, _ends_with, _without_word),
        *(_in_quotes, _items, _json_object, _lower_case),
    )
}
