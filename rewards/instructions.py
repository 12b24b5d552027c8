"""Instructions that a program can check: how long a reply may be, how it begins, what it holds.

The idea and most of the kinds are those of https://arxiv.org/abs/2311.07911. `environments.instructions` writes the
instructions in words, `constraints.py` beside this file has the checks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from .constraints import CHECKS


def instructions(completion: str, constraints: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """Share of the task's constraints that the reply keeps; each kind has a curve of its own, a second one `KIND_2`.

    A constraint is its kind and the arguments of that check, `{"kind": "at_most_words", "count": 9}`, in a column.
    Abstains without constraints.

    Only the form is checked, so any text of that form is perfect, sense or nonsense: put a judge or a reward model
    beside it. An empty reply keeps none, since saying nothing would be the safest way to avoid a word.

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
        name = kind if seen[kind] == 1 else f"{kind}_{seen[kind]}"
        kept[name] = float(bool(reply) and CHECKS[kind](reply, **arguments))
    return {"score": sum(kept.values()) / len(kept), **kept} if kept else None
