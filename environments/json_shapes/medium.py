"""Families of prompts for objects that hold objects and arrays."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

from . import words
from .schemas import (
    BOOLEAN,
    DATE,
    FILLED,
    INTEGER,
    SCALARS,
    TEXT,
    Schema,
    array,
    members,
    one_of,
    record,
    several,
    somewhere,
)
from .simple import Asked, Family, any_keys, different, filled, keys, listing, quoted, schemas, told, value, verb


def day(random_: random.Random) -> str:
    """A date such as 2025-03-09."""
    return f"20{random_.randint(19, 27)}-{random_.randint(1, 12):02}-{random_.randint(1, 28):02}"


def nested(random_: random.Random, least: int, without: Any = ()) -> dict[str, Any]:
    """A small object with at least so many members."""
    return filled(random_, any_keys(random_, least + (random_.random() < 0.2), without=without))


def settings(random_: random.Random) -> dict[str, Any]:
    """One to three options of something, of mixed types."""
    return settings_of(random_, random_.sample(list(words.SETTINGS), random_.randint(1, 3)))


def settings_of(random_: random.Random, names: Iterable[str]) -> dict[str, Any]:
    """These options, each with a value that goes with it."""
    return {name: random_.choice(words.SETTINGS[name]) for name in names}


def bare(thing: str) -> str:
    """The thing without its article."""
    return thing.partition(" ")[2]


def _dated(random_: random.Random) -> Asked:
    do = verb(random_)
    first = random_.choice(["title", "name", "label", "owner", "code"])
    date = random_.choice(["date", "due", "created_on", "opened", "day", "deadline"])
    key = random_.choice(["parts", "tasks", "payments", "stops", "visits", "orders", "topics"])
    inner = keys(random_, "string", random_.choice(["number", "integer", "number"]), without=[first])
    count = random_.choice([None, None, 2, 3])
    said, many = told(random_, inner), f"exactly {count} objects" if count else "objects"
    prompt = random_.choice(
        [
            f'{do} a JSON object with "{first}" (string), "{date}" (a date in ISO 8601 form) and "{key}", '
            f"an array of {many} with {said}.",
            f'{do} a JSON object that has the key "{first}" (string), the key "{date}" (ISO 8601 date string) '
            f'and the key "{key}": an array of {many}, each with {said}.',
            f'I need a JSON object. "{first}" is a string, "{date}" an ISO date such as 2020-01-31, "{key}" an array '
            f"of {many} that have {said}.",
        ]
    )
    rows = different(lambda: filled(random_, inner), count or random_.randint(2, 3))
    schema = record({first: TEXT, date: DATE, key: array(record(schemas(inner)), count)})
    return Asked(prompt, schema, {first: value(random_, first), date: day(random_), key: rows})


def _sections(random_: random.Random) -> Asked:
    do = verb(random_)
    about = random_.choice(list(words.DOCUMENTS))
    chosen = random_.sample(words.DOCUMENTS[about], random_.randint(2, 4))
    least = random_.randint(2, 3)
    prompt = random_.choice(
        [
            f"{do} a JSON object for {about} in these sections: {quoted(chosen)}. Every section is a nested "
            f"object with at least {least} fields.",
            f"{do} {about} as JSON. The keys are {quoted(chosen)}; each holds an object of {least} or more fields.",
            f"Describe {about} in a JSON object with the sections {quoted(chosen)}, each of them an object that has at "
            f"least {least} fields.",
        ]
    )
    schema = record(dict.fromkeys(chosen, members(least)))
    return Asked(prompt, schema, {key: nested(random_, least) for key in chosen})


def _nested_records(random_: random.Random) -> Asked:
    do = verb(random_)
    count = random_.randint(2, 4)
    outer = keys(random_, "string", random_.choice(["integer", "integer", "number"]))
    inner = keys(random_, "string", random_.choice(["string", "string", "boolean"]), without=list(outer))
    key = random_.choice(["address", "details", "origin", "maker", "place", "contents", "profile"])
    said, within = told(random_, outer), told(random_, inner)
    prompt = random_.choice(
        [
            f'{do} a JSON array of {count} objects. Each has {said}, and an object "{key}" that holds {within}.',
            f'{do} exactly {count} objects in a JSON array, each with {said} and a nested object "{key}" '
            f"with {within}.",
            f'A JSON array of {count} entries is needed: every entry has {said}, and under "{key}" another object with '
            f"{within}.",
        ]
    )
    rows = different(lambda: {**filled(random_, outer), key: filled(random_, inner)}, count)
    schema = array(record({**schemas(outer), key: record(schemas(inner))}), count)
    return Asked(prompt, schema, rows)


def _fields(random_: random.Random) -> Asked:
    do = verb(random_)
    thing, least = random_.choice(words.THINGS), random_.randint(4, 8)
    prompt = random_.choice(
        [
            f"{do} a JSON object about {thing} with at least {least} fields, one of them an array and one a "
            "nested object.",
            f"Describe {thing} in a JSON object of {least} or more fields. There must be a nested object and an array "
            "among them.",
            f"{do} JSON for {thing}: at least {least} keys, including an array field and an object field.",
        ]
    )
    answer = nested(random_, least - 2)
    answer["tags"] = random_.sample(words.TOPICS[random_.choice(list(words.TOPICS))], random_.randint(2, 3))
    answer["details"] = nested(random_, 2, without=list(answer))
    some: tuple[Schema, ...] = (FILLED, {"type": "array", "minItems": 1})
    return Asked(prompt, members(least, *some), answer)


def _config(random_: random.Random) -> Asked:
    do = verb(random_)
    service = random_.choice(list(words.SERVICES))
    section = random_.choice(words.SERVICES[service])
    outer = random_.sample(list(words.SETTINGS), random_.randint(2, 3))
    inner = random_.sample([key for key in words.SETTINGS if key not in outer], random_.randint(2, 3))
    said = listing(outer) if random_.random() < 0.6 else quoted(outer)
    prompt = random_.choice(
        [
            f"{do} the configuration of {service} as a JSON object: keys {said}, and a nested section {section}.",
            f"{do} a JSON config file for {service}. It needs {said} and, nested in it, a {section} section.",
            f"How could the settings of {service} look? A JSON object with {said} and with a nested object {section}.",
        ]
    )
    answer = {**settings_of(random_, outer), section: settings_of(random_, inner)}
    scalar: Schema = {"type": ["string", "number", "boolean", "array", "object"]}
    return Asked(prompt, record({**dict.fromkeys(outer, scalar), section: FILLED}), answer)


def _members(random_: random.Random) -> Asked:
    do = verb(random_)
    group = random_.choice(list(words.GROUPS))
    many, count, least = words.GROUPS[group], random_.randint(2, 5), random_.randint(2, 4)
    named = random_.random() < 0.5
    prompt = random_.choice(
        [
            f"{do} a JSON object for {group} with a list of {count} {many}. Each has at least {least} fields.",
            f"{do} JSON that describes {group}: an object in which there is an array of exactly {count} "
            f"{many}, each with {least} fields or more.",
            f"Describe {group} as a JSON object. It lists {count} {many}, each an object of {least} or more fields.",
        ]
    )
    chosen = any_keys(random_, least)
    rows = different(lambda: filled(random_, chosen), count)
    if named:
        prompt += f' Put them under the key "{many}".'
        schema = record({many: array(members(least), count)})
    else:
        schema = somewhere(several(members(least), count))
    return Asked(prompt, schema, {"name": value(random_, "label"), many: rows})


def _form(random_: random.Random) -> Asked:
    do = verb(random_)
    about = random_.choice(
        ["a library card", "a job application", "a rental car", "a club", "a tax office", "a lottery"]
    )
    count = random_.randint(2, 7)
    label = random_.choice(["label", "name", "caption", "id"])
    kind = random_.choice(["type", "kind", "input"])
    flag = random_.choice(["required", "optional", "visible", "editable"])
    choices = random_.sample(["text", "number", "date", "checkbox", "email", "choice"], random_.randint(3, 4))
    said = f'"{label}" (string), "{kind}" (one of {quoted(choices).replace(", and", ", or")}), and "{flag}" (boolean)'
    prompt = random_.choice(
        [
            f"{do} a JSON object for the form of {about} with exactly {count} fields. A field has {said}.",
            f"{do} the form of {about} as a JSON object that holds {count} fields, each with {said}.",
            f'{do} a JSON object with the key "fields": {count} input fields of a form for {about}. Each has {said}.',
        ]
    )
    asked = ["full name", "age", "street", "birthday", "newsletter", "phone", "country", "reason", "start", "amount"]
    rows = [
        {label: name.replace(" ", "_"), kind: random_.choice(choices), flag: random_.random() < 0.5}
        for name in random_.sample(asked, count)
    ]
    field = record({label: TEXT, kind: one_of(choices), flag: BOOLEAN})
    schema = record({"fields": array(field, count)}) if '"fields"' in prompt else somewhere(several(field, count))
    return Asked(prompt, schema, {"form": bare(about), "fields": rows})


def _resource(random_: random.Random) -> Asked:
    do = verb(random_)
    thing, least = random_.choice(words.THINGS), random_.randint(2, 4)
    number = random_.choice(["id", "number", "serial"])
    name = random_.choice(["name", "title", "label"])
    tags = random_.choice(["tags", "keywords", "categories"])
    extra = random_.choice(["metadata", "attributes", "properties", "extra"])
    prompt = random_.choice(
        [
            f'{do} a JSON object for {thing} with "{number}" (integer), "{name}" (string), "{tags}" (array of '
            f'strings) and a nested object "{extra}" that has at least {least} key-value pairs.',
            f'Describe {thing} as a JSON object: "{number}" is an integer, "{name}" a string, "{tags}" an array of '
            f'strings, and "{extra}" an object with {least} or more entries.',
        ]
    )
    topic = random_.choice(list(words.TOPICS))
    answer = {
        number: random_.randint(1, 9999),
        name: bare(thing),
        tags: random_.sample(words.TOPICS[topic], random_.randint(2, 3)),
        extra: nested(random_, least, without=[name]),
    }
    schema = record({number: INTEGER, name: TEXT, tags: array(SCALARS["string"]), extra: members(least)})
    return Asked(prompt, schema, answer)


MEDIUM: dict[str, Family] = {
    "dated": _dated,
    "sections": _sections,
    "nested-records": _nested_records,
    "fields": _fields,
    "config": _config,
    "members": _members,
    "form": _form,
    "resource": _resource,
}
