"""Families of prompts for flat objects and arrays, and what the other families share.

A family is a function of a random generator that gives a prompt, the schema of what it asks for, and an answer.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import words
from .schemas import BOOLEAN, INTEGER, NUMBER, SCALARS, TEXT, Schema, array, mapping, record


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, what it asks for, and an answer."""

    prompt: str
    schema: Schema
    answer: Any


Family = Callable[[random.Random], Asked]
KINDS = tuple(SCALARS)
_POOLS: Mapping[str, Sequence[str]] = {
    "string": tuple(words.TEXTS),
    "integer": tuple(words.INTEGERS),
    "number": tuple(words.NUMBERS),
    "boolean": words.BOOLEANS,
}


def verb(random_: random.Random) -> str:
    """How a prompt begins."""
    return random_.choice(words.VERBS)


def value(random_: random.Random, key: str) -> Any:
    """A value that goes with a key of the word lists."""
    if key in words.TEXTS:
        return random_.choice(words.TEXTS[key])
    if key in words.INTEGERS:
        return random_.randint(*words.INTEGERS[key])
    if key in words.NUMBERS:
        low, high = words.NUMBERS[key]
        return random_.randint(10 * low, 10 * high) / 10
    return random_.random() < 0.5


def keys(random_: random.Random, *kinds: str, without: Sequence[str] = ()) -> dict[str, str]:
    """Different keys of these kinds: key -> kind, in this order."""
    found: dict[str, str] = {}
    for kind in kinds:
        pool = [key for key in _POOLS[kind] if key not in found and key not in without]
        found[random_.choice(pool)] = kind
    return found


def any_keys(random_: random.Random, count: int, without: Sequence[str] = ()) -> dict[str, str]:
    """So many different keys of any kind, a text first."""
    return keys(random_, "string", *random_.choices(KINDS, (3, 3, 2, 2), k=count - 1), without=without)


def filled(random_: random.Random, chosen: Mapping[str, str]) -> dict[str, Any]:
    """An object with these keys."""
    return {key: value(random_, key) for key in chosen}


def different(make: Callable[[], Any], count: int) -> list[Any]:
    """So many values, no two alike."""
    found: list[Any] = []
    while len(found) < count:
        if (made := make()) not in found:
            found.append(made)
    return found


def schemas(chosen: Mapping[str, str]) -> dict[str, Schema]:
    """What their values have to be."""
    return {key: SCALARS[kind] for key, kind in chosen.items()}


def told(random_: random.Random, chosen: Mapping[str, str]) -> str:
    """The keys and their types in words."""
    form = random_.choice(['"{}" ({})', '"{}" ({})', '"{}" (a {})', '"{}": {}'])
    said = [form.format(key, kind).replace("(a integer)", "(an integer)") for key, kind in chosen.items()]
    return listing(said)


def listing(said: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b, and c`."""
    if len(said) < 3:
        return " and ".join(said)
    return f"{', '.join(said[:-1])}, and {said[-1]}"


def quoted(names: Sequence[str]) -> str:
    """The names in quotation marks, as `listing` joins them."""
    return listing([f'"{name}"' for name in names])


def _flat(random_: random.Random) -> Asked:
    do = verb(random_)
    kinds = random_.choice([("string", "integer", "boolean"), ("string", "number", "boolean"), ("string", "integer")])
    chosen = keys(random_, *kinds) if random_.random() < 0.7 else any_keys(random_, random_.randint(2, 5))
    only = random_.random() < 0.3
    thing, said = random_.choice(words.THINGS), told(random_, chosen)
    prompt = random_.choice(
        [
            f"{do} a JSON object for {thing} with the keys {said}.",
            f"Describe {thing} as a flat JSON object that has {said}.",
            f"{do} one valid JSON object. Its keys are {said}.",
            f"I need {thing} as JSON: an object with keys {said}.",
        ]
    )
    prompt += " Use no other keys." if only else ""
    return Asked(prompt, record(schemas(chosen), only=only), filled(random_, chosen))


def _pairs(random_: random.Random) -> Asked:
    do = verb(random_)
    count, kind = random_.randint(2, 7), random_.choice(KINDS)
    subject = random_.choice(list(words.SUBJECTS))
    made: dict[str, Callable[[], Any]] = {
        "string": lambda: random_.choice(words.SHORT_TEXTS),
        "integer": lambda: random_.randint(1, 60),
        "number": lambda: random_.randint(1, 600) / 10,
        "boolean": lambda: random_.random() < 0.5,
    }
    chosen = random_.sample(words.SUBJECTS[subject], count)
    prompt = random_.choice(
        [
            f"{do} a JSON object that has exactly {count} key-value pairs, each value a {kind}. "
            f"Choose keys that have to do with {subject}.",
            f"{do} a JSON object about {subject} with exactly {count} keys. All values must be of type {kind}.",
            f"Exactly {count} key-value pairs about {subject}, please, as one JSON object with {kind} values only.",
        ]
    )
    return Asked(
        prompt.replace("a integer", "an integer"), mapping(SCALARS[kind], count), {k: made[kind]() for k in chosen}
    )


def _strings(random_: random.Random) -> Asked:
    do = verb(random_)
    topic, count = random_.choice(list(words.TOPICS)), random_.randint(2, 8)
    prompt = random_.choice(
        [
            f"{do} a JSON array of exactly {count} strings: {topic}.",
            f"List {count} {topic} as a JSON array of strings.",
            f"{do} a flat JSON array that holds exactly {count} strings, all of them {topic}.",
        ]
    )
    return Asked(prompt, array(TEXT, count), random_.sample(words.TOPICS[topic], count))


def _records(random_: random.Random) -> Asked:
    do = verb(random_)
    count = random_.randint(2, 6)
    chosen = keys(random_, "string", random_.choice(KINDS[1:]))
    if random_.random() < 0.25:
        chosen |= keys(random_, random_.choice(KINDS), without=list(chosen))
    said = told(random_, chosen)
    prompt = random_.choice(
        [
            f"{do} a JSON array of exactly {count} objects. Each has only the keys {said}.",
            f"{do} exactly {count} objects in one JSON array, each of them with nothing but {said}.",
            f"I need a JSON array with {count} objects in it, no more and no fewer; each contains only {said}.",
        ]
    )
    rows = different(lambda: filled(random_, chosen), count)
    return Asked(prompt, array(record(schemas(chosen), only=True), count), rows)


def _listed(random_: random.Random) -> Asked:
    do = verb(random_)
    count = random_.randint(2, 8)
    kind = random_.choice(["integers", "integers", "booleans", "strings", "numbers"])
    item = {"integers": INTEGER, "booleans": BOOLEAN, "strings": TEXT, "numbers": NUMBER}[kind]
    name = random_.choice([key for key in words.TEXTS if key not in ("note", "summary")])
    key = random_.choice(["values", "results", "readings", "steps", "entries", "marks", "levels", "series"])
    topic = random_.choice(list(words.TOPICS))
    items: dict[str, list[Any]] = {
        "integers": [random_.randint(0, 99) for _ in range(count)],
        "booleans": [random_.random() < 0.5 for _ in range(count)],
        "strings": random_.sample(words.TOPICS[topic], count),
        "numbers": [random_.randint(0, 999) / 10 for _ in range(count)],
    }
    about = f" ({topic})" if kind == "strings" else ""
    prompt = random_.choice(
        [
            f'{do} a JSON object with "{name}" (string) and "{key}", an array of exactly {count} {kind}{about}.',
            f'{do} a JSON object. "{name}" is a string, "{key}" a flat array that holds {count} {kind}{about}.',
            f'A JSON object, please: key "{name}" (string) and key "{key}" with a flat array of {count} {kind}{about}.',
        ]
    )
    return Asked(prompt, record({name: TEXT, key: array(item, count)}), {name: value(random_, name), key: items[kind]})


def _mapping(random_: random.Random) -> Asked:
    do = verb(random_)
    short, long = random_.choice(list(words.MAPPINGS))
    known = words.MAPPINGS[short, long]
    count = random_.randint(2, min(7, len(known)))
    prompt = random_.choice(
        [
            f"{do} a JSON object that maps {count} {short} to {long}.",
            f"{do} a valid JSON object whose keys are {count} {short} and whose values are {long}.",
            f"Which are {long}? Answer with a JSON object: {count} {short} as keys, the full text as values.",
        ]
    )
    chosen = random_.sample(list(known), count)
    return Asked(prompt, mapping(TEXT, count), {key: known[key] for key in chosen})


SIMPLE: dict[str, Family] = {
    "flat": _flat,
    "pairs": _pairs,
    "strings": _strings,
    "records": _records,
    "listed": _listed,
    "mapping": _mapping,
}
