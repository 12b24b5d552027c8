"""Prompts that ask for JSON of a given shape, from flat objects to nested documents, and a JSON Schema of it for each.

Scored by `rewards.strict_json:strict_json`. The schema stands in the column `schema`, how hard it is in `level`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from typing import Any

from rlft.common.rows import canonical_text, refuse_negative
from rlft.environment.contract import Environment
from rlft.types import Message, Task

from .json_shapes.hard import HARD
from .json_shapes.medium import MEDIUM
from .json_shapes.simple import SIMPLE, Asked

LEVELS = {"simple": SIMPLE, "medium": MEDIUM, "hard": HARD}
SYSTEMS = (
    "You answer in JSON. Your whole reply is one fenced code block that begins with ```json and ends with ```. Write "
    "nothing before or after it.",
    "Reply with JSON and nothing else: one code block, opened by ```json and closed by ```, without a word around it.",
    "You write valid JSON for programs that read it. Put it between ```json and ```, and add no text of your own.",
    "Output: a single ```json code block. No greeting, no remarks, nothing behind the closing ```.",
)
"""One of them is the system prompt, so that what is learnt does not hang on one wording."""


def load(
    seed: int = 0,
    tasks: int = 2000,
    heldout: int = 150,
    demonstrations: int = 400,
    levels: Sequence[str] = ("simple", "medium", "hard"),
) -> Environment:
    """Prompts of each level in turn, and of each of its families; training, held-out and demonstrated ones all differ.

    Args:
        tasks: training tasks.
        levels: some of simple, medium and hard.

    Raises:
        ValueError: an unknown level, or more prompts than there are.
    """
    refuse_negative(tasks=tasks, heldout=heldout, demonstrations=demonstrations)
    if not levels or (unknown := [level for level in levels if level not in LEVELS]):
        raise ValueError(f"levels are some of {', '.join(LEVELS)}; got {', '.join(unknown) if levels else 'none'}")
    random_ = random.Random(seed)
    total, seen = heldout + demonstrations + tasks, set[str]()
    drawn: list[tuple[str, str, str, Asked]] = []
    misses = 0
    while len(drawn) < total:
        turn = len(drawn) + misses
        level = levels[turn % len(levels)]
        families = LEVELS[level]
        name = list(families)[turn // len(levels) % len(families)]
        asked = families[name](random_)
        if (text := canonical_text(asked.prompt)) in seen:
            misses += 1
            if misses > 10 * total + 1000:
                raise ValueError(f"levels {', '.join(levels)} have {len(drawn)} different prompts, fewer than {total}")
            continue
        seen.add(text)
        drawn.append((level, name, random_.choice(SYSTEMS), asked))
    made = [_task(*each, number) for number, each in enumerate(drawn)]
    shown = drawn[heldout : heldout + demonstrations]
    return Environment(
        heldout=made[:heldout],
        demonstrations=[
            (*_prompt(system, asked), Message(role="assistant", content=_written(asked.answer)))
            for _, _, system, asked in shown
        ],
        train=made[heldout + demonstrations :],
    )


def _task(level: str, family: str, system: str, asked: Asked, number: int) -> Task:
    columns = {"schema": asked.schema, "level": level}
    return Task(id=f"{family}-{number}", messages=_prompt(system, asked), columns=columns)


def _prompt(system: str, asked: Asked) -> tuple[Message, ...]:
    return (Message(role="system", content=system), Message(role="user", content=asked.prompt))


def _written(answer: Any) -> str:
    # A line for each value, as most JSON that models have read: a layout with short objects in one line takes a fifth
    # fewer tokens, but then a small model forgets which bracket is still open.
    return f"```json\n{json.dumps(answer, ensure_ascii=False, indent=2)}\n```"
