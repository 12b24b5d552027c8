"""The published prompts for strict JSON, and what their words ask for, as JSON Schemas.

They were written by others (GiuseppeBellamacina/GRPO-strict-generation on GitHub): 300 prompts of 23 forms, with the
verdicts on a base and a trained model. The file is not part of this project, which measures on
it and never trains on it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from environments import strict_json
from environments.json_shapes import schemas
from environments.json_shapes.schemas import NUMBER, OBJECT, SCALARS, TEXT, TEXT_OR_NULL, Schema
from rlft.common.rows import canonical_text, read_rows
from rlft.environment.contract import Environment
from rlft.types import Message, Task

LEVELS = ("simple", "medium", "hard")
_ANY: Schema = {"type": ["string", "number", "boolean"]}
_KEY = re.compile(r'"(\w+)"(?: key)?(?: \(([^()]*)\))?')
"""A key and, behind it, what its value is: `"age" (integer)`, `"kind" (one of "a", "b")`, or `"id"` alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One row of the file."""

    task: Task
    base_valid: bool
    """Whether the published base model gave JSON."""
    trained_valid: bool
    """Whether the published trained model did."""


def load_published(path: str) -> Environment:
    """The 300 published prompts as held-out tasks, with schemas of what they ask for.

    An environment has to have training tasks: a few of `environments.strict_json` stand there.

    Args:
        path: the file of prompts, JSON lines.

    Raises:
        ValueError: a prompt that is not understood, or a row without the columns, with its line.
    """
    own = strict_json.load(tasks=3, heldout=0, demonstrations=0)
    return Environment(train=own.train, heldout=[each.task for each in read_published(path)])


def read_published(path: str | Path) -> list[Published]:
    """The rows of the file in its order; errors as of `load_published`."""
    found = []
    for where, row in read_rows(str(path)):
        try:
            system, prompt, level = (str(row[name]) for name in ("system", "prompt", "difficulty"))
            task = Task(
                id=str(row["id"]),
                messages=(Message(role="system", content=system), Message(role="user", content=prompt)),
                columns={"schema": understood(prompt), "level": level},
            )
            verdicts = {name: row[f"published_{name}"] for name in ("base_valid", "trained_valid")}
        except KeyError as error:
            raise ValueError(f"{where}: there is no column {error}; is this the file of published prompts?") from None
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        if level not in LEVELS or not all(isinstance(value, bool) for value in verdicts.values()):
            raise ValueError(f"{where}: difficulty must be one of {', '.join(LEVELS)}, the verdicts true or false")
        found.append(Published(task=task, **verdicts))
    return found


def understood(prompt: str) -> Schema:
    """What a published prompt asks for; no more than its words say.

    Raises:
        ValueError: it is of none of the published forms.
    """
    for form, read in FORMS:
        if found := re.fullmatch(form, prompt):
            return read(found)
    raise ValueError(f"what this prompt asks for is not known, as it is of none of {len(FORMS)} forms: {prompt!r}")


def overlap(environment: Environment, published: list[Published]) -> list[str]:
    """Published prompts that are trained on or demonstrated: the user's words, but for case and spacing."""

    def plain(text: str) -> str:
        return " ".join(canonical_text(text).casefold().split())

    learnt = [task.messages for task in environment.train] + list(environment.demonstrations)
    known = {plain(m["content"]) for messages in learnt for m in messages if m["role"] == "user"}
    asked = [each.task.messages[-1]["content"] for each in published]
    return [prompt for prompt in dict.fromkeys(asked) if plain(prompt) in known]


def _keys(text: str) -> dict[str, Schema]:
    found = {name: _value(said) for name, said in _KEY.findall(text)}
    if not found:
        raise ValueError(f"no keys in {text!r}")
    return found


def _value(said: str) -> Schema:
    """What a value is in words: nothing, a type, the choice of some texts, an object."""
    if not said:
        return _ANY
    if said in SCALARS:
        return SCALARS[said]
    if said == "string or null":
        return TEXT_OR_NULL
    if said in ("object", "nested object"):
        return OBJECT
    if said.startswith("nested object "):  # "describing ...", so something stands in it
        return schemas.FILLED
    if inside := re.fullmatch(r"object with (.+)", said):
        return schemas.record(dict.fromkeys(inside[1].split(", "), NUMBER))
    if said.startswith("one of "):
        return schemas.one_of(re.findall(r'"([^"]+)"', said))
    if choice := re.fullmatch(r"(\w+(?:, \w+)*), or (\w+)", said):
        return schemas.one_of([*choice[1].split(", "), choice[2]])
    raise ValueError(f"what {said!r} says about a value is not known")


def _several(item: Schema, count: str) -> Schema:
    """The prompt names no key for them: so many may stand anywhere in the object."""
    return schemas.somewhere(schemas.several(item, int(count)))


def _record(text: str) -> Schema:
    return schemas.record(_keys(text))


def _listed(found: re.Match[str]) -> Schema:
    item = SCALARS[found[4].removesuffix("s")]
    return schemas.record({**_keys(found[1]), found[2]: schemas.array(item, int(found[3]))})


def _steps(found: re.Match[str]) -> Schema:
    item, least = _record(found[2]), int(found[1])
    named = {**schemas.members(least), "additionalProperties": item}
    return schemas.somewhere({"anyOf": [schemas.array(item, least=least), named]})


def _with_nested(found: re.Match[str]) -> Schema:
    return schemas.record({**_keys(found[2]), found[3]: _record(found[4])})


_N = r"(\d+)"
FORMS: tuple[tuple[str, Callable[[re.Match[str]], Any]], ...] = (
    # Simple
    (
        r".* JSON object (?:with the following keys: |representing a simple [\w -]+ with keys )(.+)\.",
        lambda m: _record(m[1]),
    ),
    (
        rf".* exactly {_N} key-value pairs where all values are of type (\w+)\. .*",
        lambda m: schemas.mapping(SCALARS[m[2]], int(m[1])),
    ),
    (rf".* key-value mapping of {_N} .*", lambda m: schemas.mapping(TEXT, int(m[1]))),
    (rf".* JSON array containing exactly {_N} strings .*", lambda m: schemas.array(TEXT, int(m[1]))),
    (
        rf".* JSON array of exactly {_N} objects, each containing only (.+)\.",
        lambda m: schemas.array(schemas.record(_keys(m[2]), only=True), int(m[1])),
    ),
    (rf'.* JSON object with (.+) and a key "(\w+)" which is an array of {_N} (\w+)\.', _listed),
    (rf'.* JSON object with (.+) and a "(\w+)" key containing a flat array of {_N} (\w+)\.', _listed),
    # Medium
    (
        rf'.* JSON array of {_N} objects, each with keys (.+), and a nested object "(\w+)" containing (.+)\.',
        lambda m: schemas.array(_with_nested(m), int(m[1])),
    ),
    (
        r'.* JSON object with (.+), a "(\w+)" key \(ISO 8601 date string\), and a "(\w+)" key containing an array of '
        r"objects with (.+) fields\.",
        lambda m: schemas.record({**_keys(m[1]), m[2]: schemas.DATE, m[3]: schemas.array(_record(m[4]))}),
    ),
    (
        rf".* with the following sections: (.+)\. Each section should be a nested object with at least {_N} fields\.",
        lambda m: schemas.record(dict.fromkeys(_keys(m[1]), schemas.members(int(m[2])))),
    ),
    (
        rf".* with at least {_N} fields, including one nested object and one array field\.",
        lambda m: schemas.members(int(m[1]), schemas.FILLED, {"type": "array", "minItems": 1}),
    ),
    (rf".* form schema with {_N} fields\. Each field should have (.+)\.", lambda m: _several(_record(m[2]), m[1])),
    (
        rf".* that includes a list of {_N} \w+, each with at least {_N} fields\.",
        lambda m: _several(schemas.members(int(m[2])), m[1]),
    ),
    (
        r".* configuration file for .+ with keys for (\w+), (\w+), and a nested (\w+) section\.",
        lambda m: schemas.record({m[1]: {}, m[2]: {}, m[3]: schemas.FILLED}),
    ),
    (
        rf'.* with an (.+), "(\w+)" \(array of strings\), and a "(\w+)" nested object with at least {_N} key-value '
        r"pairs\.",
        lambda m: schemas.record({**_keys(m[1]), m[2]: schemas.array(TEXT), m[3]: schemas.members(int(m[4]))}),
    ),
    # Hard
    (r".* JSON Schema \(draft-07\) that validates .*", lambda m: schemas.json_schema_document()),
    (rf".* workflow definition with at least {_N} steps\. Each step must have an (.+)\.", _steps),
    (
        rf".* CloudEvents specification .* and a nested data object with at least {_N} domain-specific fields\.",
        lambda m: schemas.event(int(m[1])),
    ),
    (
        rf'.* with {_N} widgets\. Each widget has (.+), and a "(\w+)" object with (.+)\.',
        lambda m: _several(_with_nested(m), m[1]),
    ),
    (
        rf".* plan with {_N} operations\. Each operation should be an object with (.+)\.",
        lambda m: _several(_record(m[2]), m[1]),
    ),
    (r".* API endpoint specification \(OpenAPI-style\) including .*", lambda m: schemas.endpoint()),
    (
        rf".* Include metadata fields \((.+)\) and a (\w+) array with {_N} items, each having at least {_N} fields "
        r"including one nested object\.",
        lambda m: schemas.page(m[2], int(m[3]), int(m[4]), m[1].split(", ")),
    ),
    (
        rf'.* \(at least {_N} levels of nesting\) .* Each level should have a (.+), and "(\w+)" '
        r"\(array of sub-objects\)\.",
        lambda m: schemas.tree(_keys(m[2]), m[3], int(m[1])),
    ),
)
"""The published forms: a pattern of the whole prompt, and how its words become a schema."""
