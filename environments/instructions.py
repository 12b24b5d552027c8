"""Verifiable instructions: a question and how the reply has to look, which a program can check.

Scored by `rewards.instructions:instructions`. A 135M model keeps some of these in every third sample ("at most n
words", "begin with ...") and others almost never ("in quotes"), so training has something to find from the first step.
"""

from __future__ import annotations

import random
from typing import Any

from rlft.common.rows import refuse_negative
from rlft.environment.contract import Environment
from rlft.types import Task

TOPICS = (
    *("the sea", "bread", "a bicycle", "winter", "a library", "the moon", "coffee", "a garden", "trains", "music"),
    *("a river", "glass", "the desert", "bees", "a lighthouse", "salt", "mountains", "a clock", "rain", "chess"),
    *("a bridge", "cats", "the forest", "maps", "a kitchen", "wool", "stars", "a harbour", "ice", "letters"),
)
QUESTIONS = ("Tell me about {}.", "Describe {}.", "What is interesting about {}?", "What do people like about {}?")

# kind: (what the user is told, how its arguments are drawn)
KINDS: dict[str, tuple[str, Any]] = {
    "at_most_words": ("Use at most {count} words.", lambda r: {"count": r.randint(6, 15)}),
    "at_least_words": ("Use at least {count} words.", lambda r: {"count": r.randint(15, 30)}),
    "starts_with": (
        'Begin your reply with "{phrase}".',
        lambda r: {"phrase": r.choice(["Well,", "In short,", "Dear friend,", "Some say", "To me,"])},
    ),
    "ends_with": (
        'End your reply with "{phrase}".',
        lambda r: {"phrase": r.choice(["That is all.", "Goodbye!", "The end.", "Is it not?"])},
    ),
    "without_word": ('Do not use the word "{word}".', lambda r: {"word": r.choice(["the", "and", "is", "a", "of"])}),
    "in_quotes": ("Put your whole reply in double quotation marks.", lambda r: {}),
    "items": (
        "Reply with exactly {count} items, each on a line that begins with -.",
        lambda r: {"count": r.randint(2, 5)},
    ),
    "json_object": (
        "Reply with a JSON object that has the keys {keys}.",
        lambda r: {"keys": r.sample(["name", "color", "size", "use", "origin"], 2)},
    ),
    "lower_case": ("Write in lower case only.", lambda r: {}),
}


def load(
    kinds: str = "at_most_words,starts_with,without_word,at_least_words",
    constraints: int = 1,
    tasks: int = 600,
    heldout: int = 100,
    seed: int = 0,
) -> Environment:
    """Questions with `constraints` instructions each, of different kinds.

    Args:
        kinds: which ones, separated by commas; `all` for all.
        tasks: in all.

    Raises:
        ValueError: an unknown kind, or too few different tasks.
    """
    refuse_negative(heldout=heldout)
    chosen = list(KINDS) if kinds == "all" else [kind.strip() for kind in kinds.split(",")]
    if unknown := [kind for kind in chosen if kind not in KINDS]:
        raise ValueError(f"no kind {unknown[0]!r}; there is {', '.join(KINDS)}")
    if not 1 <= constraints <= len(chosen):
        raise ValueError(f"constraints is {constraints}, and there are {len(chosen)} kinds to draw from")
    random_ = random.Random(seed)
    made: dict[str, Task] = {}
    for _ in range(50 * tasks):
        if len(made) == tasks:
            break
        task = _task(sorted(random_.sample(chosen, constraints)), random_)
        made.setdefault(task.id, task)
    if heldout >= len(made):
        raise ValueError(f"there are {len(made)} different tasks, too few to hold out {heldout}")
    listed = list(made.values())
    return Environment(train=listed[heldout:], heldout=listed[:heldout])


def _task(kinds: list[str], random_: random.Random) -> Task:
    question = random_.choice(QUESTIONS).format(random_.choice(TOPICS))
    told, constraints = [question], []
    for kind in kinds:
        words, draw = KINDS[kind]
        arguments = draw(random_)
        shown = {key: " and ".join(value) if isinstance(value, list) else value for key, value in arguments.items()}
        told.append(words.format(**shown))
        constraints.append({"kind": kind, **arguments})
    text = " ".join(told)
    return Task(id=text, messages=({"role": "user", "content": text},), columns={"constraints": constraints})
