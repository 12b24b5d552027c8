"""Families of prompts for documents of several levels: plans, dashboards, pages, trees, schemas, events."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from . import words
from .medium import bare, day, nested, settings
from .schemas import (
    FILLED,
    INTEGER,
    NUMBER,
    OBJECT,
    TEXT,
    TEXT_OR_NULL,
    Schema,
    array,
    endpoint,
    event,
    json_schema_document,
    members,
    one_of,
    page,
    record,
    several,
    somewhere,
    tree,
)
from .simple import Asked, Family, any_keys, filled, quoted, verb


def _choice(choices: Sequence[str]) -> str:
    return f"one of {quoted(choices).replace(', and', ', or').replace(' and ', ' or ')}"


def _held(prompt: str, key: str, item: Schema, count: int) -> Schema:
    """The items where the prompt says to put them, or anywhere in the object if it does not."""
    return record({key: array(item, count)}) if f'"{key}"' in prompt else somewhere(several(item, count))


def _plan(random_: random.Random) -> Asked:
    do = verb(random_)
    about = random_.choice(
        ["a house move", "a server upgrade", "a data import", "a product launch", "an office cleanup"]
    )
    count, many = random_.randint(2, 5), random_.choice(["steps", "operations", "actions", "tasks"])
    order, kind = random_.choice(["order", "number", "position"]), random_.choice(["action", "kind", "operation"])
    target, details = random_.choice(["target", "object", "subject"]), random_.choice(["details", "options", "change"])
    choices = random_.sample(["add", "remove", "move", "copy", "check", "rename", "replace"], random_.randint(3, 4))
    said = (
        f'"{order}" (integer), "{kind}" ({_choice(choices)}), "{target}" (string) and "{details}" (a nested object '
        "that says more)"
    )
    prompt = random_.choice(
        [
            f"{do} a plan for {about} as a JSON object with {count} {many}. Each of them has {said}.",
            f'{do} a JSON object that plans {about}: under "{many}" there are exactly {count} objects, each '
            f"with {said}.",
            f"Plan {about} in JSON: an object that holds {count} {many}, each one an object with {said}.",
        ]
    )
    targets = random_.sample(words.TOPICS[random_.choice(["tools", "pieces of furniture", "clothes"])], count)
    rows = [
        {order: i, kind: random_.choice(choices), target: name, details: nested(random_, 1)}
        for i, name in enumerate(targets, 1)
    ]
    item = record({order: INTEGER, kind: one_of(choices), target: TEXT, details: FILLED})
    return Asked(prompt, _held(prompt, many, item, count), {"plan": bare(about), many: rows})


def _dashboard(random_: random.Random) -> Asked:
    do = verb(random_)
    about = random_.choice(["a bakery", "a wind farm", "a bus company", "a clinic", "a web shop", "a school"])
    count, many = random_.randint(2, 5), random_.choice(["panels", "tiles", "widgets", "cards"])
    kind, title = random_.choice(["kind", "type", "view"]), random_.choice(["title", "heading", "caption"])
    place, source = random_.choice(["position", "place", "area"]), random_.choice(["source", "data", "feed"])
    url, params = random_.choice(["url", "endpoint", "path"]), random_.choice(["params", "query", "filters"])
    refresh = random_.choice(["refresh", "interval", "every_seconds"])
    choices = random_.sample(["chart", "table", "gauge", "map", "list", "number"], random_.randint(3, 4))
    sides = random_.choice([("x", "y", "w", "h"), ("row", "column"), ("x", "y", "width", "height")])
    options = f"{', '.join(choices[:-1])} or {choices[-1]}"
    said = (
        f'"id", "{kind}" ({options}), "{title}", "{place}" (an object with {", ".join(sides)}) and an object '
        f'"{source}" with "{url}" (string), "{params}" (object) and "{refresh}" (integer)'
    )
    prompt = random_.choice(
        [
            f"{do} the dashboard of {about} as a JSON object with {count} {many}. Each has {said}.",
            f'{do} a JSON object for the dashboard of {about}. Its key "{many}" is an array of exactly {count} '
            f"objects with {said}.",
            f"A dashboard of {about} in JSON: one object with {count} {many}, where each has {said}.",
        ]
    )
    shown = random_.sample(
        ["Sales", "Visitors", "Costs", "Orders", "Alarms", "Stock", "Trips", "Load", "Income"], count
    )
    rows = [
        {
            "id": f"{kind[0]}{i}",
            kind: random_.choice(choices),
            title: name,
            place: {side: random_.randint(0, 6) for side in sides},
            source: {
                url: f"/api/{name.lower()}",
                params: settings(random_),
                refresh: random_.choice([30, 60, 300]),
            },
        }
        for i, name in enumerate(shown, 1)
    ]
    item = record(
        {
            "id": {"type": ["string", "integer"]},
            kind: one_of(choices),
            title: TEXT,
            place: record(dict.fromkeys(sides, NUMBER)),
            source: record({url: TEXT, params: OBJECT, refresh: INTEGER}),
        }
    )
    return Asked(prompt, _held(prompt, many, item, count), {"name": bare(about), many: rows})


def _page(random_: random.Random) -> Asked:
    do = verb(random_)
    about = random_.choice(
        ["recipes", "songs", "invoices", "flights", "photos", "users", "comments", "tickets", "rooms"]
    )
    count, least = random_.randint(2, 4), random_.randint(3, 6)
    key = random_.choice(["results", "items", "data", "results"])
    numbers = random_.choice(
        [
            ("page", "per_page", "total", "total_pages"),
            ("page", "page_size", "total"),
            ("offset", "limit", "total", "pages"),
        ]
    )
    prompt = random_.choice(
        [
            f"{do} one page of an API's list of {about} as a JSON object: the numbers {', '.join(numbers)}, and "
            f'an array "{key}" of {count} objects. Each has at least {least} fields, one of them a nested object.',
            f"{do} a JSON object as an API returns it for {about}, page by page. It includes "
            f"{', '.join(numbers)} (integers) and {key}, an array with exactly {count} entries of {least} fields or "
            "more, one of which is an object.",
            f"An API lists {about} in pages. {do} such a response in JSON with the metadata fields "
            f"{', '.join(numbers)}, and {count} items in the array {key}; each item has at least {least} fields and a "
            "nested object among them.",
        ]
    )
    chosen = any_keys(random_, least - 2)
    inner = any_keys(random_, random_.randint(2, 3), without=list(chosen))
    start, details = random_.randint(1, 400), random_.choice(["details", "source", "links", "contact"])
    rows = [{"id": start + i, **filled(random_, chosen), details: filled(random_, inner)} for i in range(count)]
    pages = random_.randint(2, 30)
    known = {"total": pages * count, "total_pages": pages, "pages": pages, "page": 1, "offset": 0}
    return Asked(prompt, page(key, count, least, numbers), {**{n: known.get(n, count) for n in numbers}, key: rows})


_TREES: dict[str, tuple[str, ...]] = {
    "the rooms of a castle": ("Castle", "East Wing", "First Floor", "Library", "Map Room"),
    "a family": ("Rosa", "Anton", "Mila", "Jon", "Eva"),
    "the parts of a bicycle": ("Bicycle", "Rear Wheel", "Hub", "Bearing", "Ball"),
    "the regions of a country": ("Norland", "Coast", "Bay County", "Port Town", "Old Quarter"),
    "the chapters of a handbook": ("Handbook", "Basics", "Safety", "Fire", "Exits"),
    "the units of an army": ("Army", "Division", "Brigade", "Company", "Squad"),
    "the folders of a disk": ("disk", "home", "ada", "letters", "2024"),
    "the groups of animals": ("Animals", "Birds", "Owls", "Barn Owls", "Young Owls"),
}


def _hierarchy(random_: random.Random) -> Asked:
    do = verb(random_)
    about, levels = random_.choice(list(_TREES)), random_.choice([3, 4, 4, 5])
    name, number = random_.choice(["name", "title", "label"]), random_.choice(["id", "size", "number", "rank"])
    key = random_.choice(["children", "parts", "members", "items"])
    said = f'"{name}" (string), "{number}" (integer) and "{key}" (an array of objects of the same form)'
    prompt = random_.choice(
        [
            f"{do} a JSON object for {about}, nested at least {levels} levels deep. Every level has {said}.",
            f"{do} {about} as a tree in JSON with {levels} or more levels of objects. Each object has {said}.",
            f"Show {about} as nested JSON objects, at least {levels} levels. On each level there are {said}.",
        ]
    )
    answer: dict[str, Any] = {}
    for depth, said in reversed(list(enumerate(_TREES[about][:levels]))):
        below = [answer] if answer else []
        if depth in (0, 1) and random_.random() < 0.3:
            below.append({name: f"Other {said}", number: random_.randint(20, 40), key: []})
        answer = {name: said, number: depth + 1 if number == "id" else random_.randint(1, 90), key: below}
    return Asked(prompt, tree({name: TEXT, number: INTEGER}, key, levels), answer)


def _schema(random_: random.Random) -> Asked:
    do = verb(random_)
    thing = random_.choice(words.THINGS)
    prompt = random_.choice(
        [
            f"{do} a JSON Schema (draft-07) for {thing}: required fields, types, one property that is an object "
            "with properties of its own, and one that is an array with a schema of its items.",
            f"{do} a draft-07 JSON Schema that {thing} can be checked with. Name what is required and each "
            "type, describe a nested object and an array with its items.",
            f"How would you validate {thing}? Answer with a JSON Schema, draft-07, that has typed properties, a list "
            "of required ones, a nested object and an array whose items are described.",
        ]
    )
    outer, names = any_keys(random_, random_.randint(2, 4)), random_.choice(["details", "contact", "origin", "place"])
    inner = any_keys(random_, random_.randint(2, 3), without=[*outer, names])
    listed = random_.choice(["tags", "parts", "notes", "images"])
    properties: dict[str, Any] = {key: {"type": kind} for key, kind in outer.items()}
    properties[names] = {"type": "object", "properties": {key: {"type": kind} for key, kind in inner.items()}}
    if random_.random() < 0.5:
        properties[names]["required"] = [next(iter(inner))]
    properties[listed] = {"type": "array", "items": {"type": "string"}}
    answer = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": bare(thing).title(),
        "type": "object",
        "properties": properties,
        "required": [*list(outer)[:2], random_.choice([names, listed])],
    }
    return Asked(prompt, json_schema_document(), answer)


def _event(random_: random.Random) -> Asked:
    do = verb(random_)
    about, kind = random_.choice(
        [
            ("a parcel that arrived", "parcel.arrived"),
            ("a door that opened", "door.opened"),
            ("a payment that failed", "payment.failed"),
            ("a new member", "member.joined"),
            ("a finished backup", "backup.finished"),
            ("a cancelled trip", "trip.cancelled"),
            ("a low battery", "battery.low"),
            ("a published article", "article.published"),
        ]
    )
    least = random_.randint(2, 7)
    attributes = "specversion, id, source, type, subject, time, datacontenttype"
    prompt = random_.choice(
        [
            f"{do} a CloudEvents 1.0 event about {about} as a JSON object: {attributes}, and an object data "
            f"with at least {least} fields about what happened.",
            f"{do} a JSON event for {about} by the CloudEvents specification, version 1.0. It has {attributes} "
            f"and, nested in it, data with {least} or more fields of its own.",
            f"Report {about} as one CloudEvent in JSON, with {attributes}, and with data: an object of at least "
            f"{least} fields.",
        ]
    )
    number = random_.randint(100, 9999)
    answer = {
        "specversion": "1.0",
        "id": f"evt-{number}",
        "source": f"/{kind.partition('.')[0]}s/{random_.randint(1, 9)}",
        "type": f"com.example.{kind}",
        "subject": f"{kind.partition('.')[0]}-{number}",
        "time": f"{day(random_)}T{random_.randint(0, 23):02}:{random_.choice(['00', '15', '30'])}:00Z",
        "datacontenttype": "application/json",
        "data": nested(random_, least),
    }
    return Asked(prompt, event(least), answer)


def _endpoint(random_: random.Random) -> Asked:
    do = verb(random_)
    about, path = random_.choice(
        [
            ("booking a table", "/bookings"),
            ("renaming a photo", "/photos/{id}"),
            ("sending a message", "/messages"),
            ("adding a song", "/playlists/{id}/songs"),
            ("closing a ticket", "/tickets/{id}"),
            ("rating a film", "/films/{id}/ratings"),
            ("ordering a pizza", "/orders"),
            ("reporting a fault", "/faults"),
        ]
    )
    prompt = random_.choice(
        [
            f"{do} the description of an API endpoint for {about} as a JSON object in OpenAPI style: path, "
            "method, parameters (each with type and required), the schema of the request body, and the schema of the "
            "response with an example.",
            f"{do} a JSON object that specifies the endpoint for {about}, like OpenAPI. It has path, method, "
            "parameters with types and required flags, a request body schema and a response schema, with examples.",
        ]
    )
    sent, back = any_keys(random_, random_.randint(2, 4)), any_keys(random_, random_.randint(2, 3))
    kinds = {"limit": "integer", "dry_run": "boolean", "page": "integer", "lang": "string", "token": "string"}
    answer = {
        "path": path,
        "method": random_.choice(["POST", "PUT", "PATCH"]),
        "parameters": [
            {"name": name, "in": "query", "type": kinds[name], "required": random_.random() < 0.5}
            for name in random_.sample(list(kinds), random_.randint(1, 3))
        ],
        "requestBody": {"schema": {"type": "object", "properties": {k: {"type": t} for k, t in sent.items()}}},
        "response": {
            "status": 200,
            "schema": {"type": "object", "properties": {k: {"type": t} for k, t in back.items()}},
            "example": filled(random_, back),
        },
    }
    return Asked(prompt, endpoint(), answer)


def _workflow(random_: random.Random) -> Asked:
    do = verb(random_)
    about = random_.choice(["a loan request", "a hiring round", "a recall", "a photo upload", "a refund", "a harvest"])
    least, many = random_.randint(2, 6), random_.choice(["steps", "stages", "nodes"])
    kind, options = random_.choice(["type", "kind"]), random_.choice(["config", "settings", "options"])
    after = random_.choice(["next", "then", "next_id"])
    choices = random_.sample(["task", "decision", "wait", "notify", "review"], 3)
    said = f'"id", "name", "{kind}" ({_choice(choices)}), "{options}" (nested object) and "{after}" (string or null)'
    prompt = random_.choice(
        [
            f"{do} the workflow of {about} as a JSON object with at least {least} {many}. Each has {said}.",
            f'{do} a JSON object for the workflow of {about}; the array "{many}" has {least} or more objects '
            f"with {said}.",
            f"Describe how {about} is handled as a workflow in JSON: an object with at least {least} {many}, each with "
            f"{said}.",
        ]
    )
    names = ["Receive", "Check", "Assign", "Approve", "Inform", "Record", "Archive", "Close"]
    count = least + (random_.random() < 0.2)
    rows = [
        {
            "id": f"s{i}",
            "name": name,
            kind: random_.choice(choices),
            options: settings(random_),
            after: f"s{i + 1}" if i < count else None,
        }
        for i, name in enumerate(sorted(random_.sample(names, count), key=names.index), 1)
    ]
    label = {"type": ["string", "integer"]}
    item = record({"id": label, "name": TEXT, kind: one_of(choices), options: OBJECT, after: TEXT_OR_NULL})
    schema = record({many: array(item, least=least)})
    if f'"{many}"' not in prompt:
        schema = somewhere({"anyOf": [array(item, least=least), {**members(least), "additionalProperties": item}]})
    return Asked(prompt, schema, {"workflow": bare(about), many: rows})


HARD: dict[str, Family] = {
    "plan": _plan,
    "dashboard": _dashboard,
    "page": _page,
    "hierarchy": _hierarchy,
    "schema": _schema,
    "event": _event,
    "endpoint": _endpoint,
    "workflow": _workflow,
}
