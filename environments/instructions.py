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
    "upper_case": ("WRITE IN CAPITAL LETTERS ONLY.", lambda r: {}),
    "at_most_sentences": ("Use at most {count} sentences.", lambda r: {"count": r.randint(2, 4)}),
    "at_least_sentences": ("Use at least {count} sentences.", lambda r: {"count": r.randint(2, 4)}),
    "paragraphs": ("Write {count} paragraphs, with an empty line between them.", lambda r: {"count": r.randint(2, 4)}),
    "paragraph_starts": (
        'Write several paragraphs, with an empty line between them; number {number} begins with the word "{word}".',
        lambda r: {"number": r.randint(1, 3), "word": r.choice(["Today", "Some", "Often", "Here"])},
    ),
    "title": ("Begin with a title between double angle brackets, as in <<A title>>.", lambda r: {}),
    "postscript": ('End with a line that begins with "{marker}".', lambda r: {"marker": r.choice(["P.S.", "P.P.S."])}),
    "uses_word": (
        'Use the word "{word}" at least {count} times.',
        lambda r: {"word": r.choice(["old", "small", "people", "always"]), "count": r.randint(2, 3)},
    ),
    "uses_letter": (
        'Use the letter "{letter}" at least {count} times.',
        lambda r: {"letter": r.choice("bgkpvw"), "count": r.randint(3, 8)},
    ),
    "without_commas": ("Do not use commas.", lambda r: {}),
    "capital_words": ("Write at least {count} words in capital letters.", lambda r: {"count": r.randint(2, 4)}),
    "two_replies": ("Give two different replies, with ****** between them.", lambda r: {}),
    "placeholders": (
        "Use at least {count} placeholders in square brackets, as in [name].",
        lambda r: {"count": r.randint(1, 3)},
    ),
    "highlights": (
        "Highlight at least {count} parts with asterisks, as in *this one*.",
        lambda r: {"count": r.randint(1, 3)},
    ),
    "sections": (
        'Write {count} sections, each under a line with "{word}" and its number, as in "{word} 1".',
        lambda r: {"word": r.choice(["Section", "Part"]), "count": r.randint(2, 3)},
    ),
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
