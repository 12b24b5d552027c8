"""JSON Schemas of what a prompt can ask for, each as small as the words that ask for it, and no stricter.

A schema allows what it does not forbid. So texts have to hold a letter or a digit, lists of texts or objects must not
repeat themselves, and nested objects and arrays that were asked for must not be empty.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "pattern": r"\w"}
INTEGER: Schema = {"type": "integer"}
NUMBER: Schema = {"type": "number"}
BOOLEAN: Schema = {"type": "boolean"}
DATE: Schema = {"type": "string", "format": "date"}
TEXT_OR_NULL: Schema = {"type": ["string", "null"]}
OBJECT: Schema = {"type": "object"}
FILLED: Schema = {"type": "object", "minProperties": 1}
SCALARS: Mapping[str, Schema] = {"string": TEXT, "integer": INTEGER, "number": NUMBER, "boolean": BOOLEAN}


def one_of(values: Sequence[str]) -> Schema:
    """One of these texts."""
    return {"enum": list(values)}


def record(fields: Mapping[str, Schema], *, only: bool = False) -> Schema:
    """An object with these keys.

    Args:
        only: whether other keys are forbidden.
    """
    closed = {"additionalProperties": False} if only else {}
    return {"type": "object", "required": list(fields), "properties": dict(fields), **closed}


def array(item: Schema, count: int | None = None, *, least: int = 1) -> Schema:
    """An array of such items, all different where they are texts or objects.

    Args:
        count: exactly so many; None for `least` or more.
    """
    different = item.get("type") not in ("integer", "number", "boolean")
    size = {"minItems": least} if count is None else {"minItems": count, "maxItems": count}
    return {"type": "array", "items": item, **size, **({"uniqueItems": True} if different else {})}


def mapping(value: Schema, count: int) -> Schema:
    """An object with exactly `count` members, whatever their keys, whose values are such."""
    return {"type": "object", "minProperties": count, "maxProperties": count, "additionalProperties": value}


def members(least: int, *some: Schema) -> Schema:
    """An object with at least so many members, among them one like each of `some`."""
    found = {"allOf": [{"not": {"additionalProperties": {"not": schema}}} for schema in some]} if some else {}
    return {"type": "object", "minProperties": least, **found}


def with_key_like(pattern: str) -> Schema:
    """An object of whose keys one matches a regular expression."""
    return {"not": {"propertyNames": {"not": {"pattern": pattern}}}}


def somewhere(schema: Schema) -> Schema:
    """An object that is such, or holds such at any depth, under whatever key. Not to be nested in another schema."""
    deeper = {"type": "object", **members(0, {"$ref": "#/$defs/holds"})}
    items = {"type": "array", "contains": {"$ref": "#/$defs/holds"}}
    return {
        "type": "object",
        "minProperties": 1,
        "$ref": "#/$defs/holds",
        "$defs": {"holds": _any(schema, deeper, items)},
    }


def several(item: Schema, count: int) -> Schema:
    """Exactly `count` such items as an array, or as an object's values; for `somewhere`."""
    return _any(array(item, count), mapping(item, count))


def tree(own: Mapping[str, Schema], children: str, levels: int) -> Schema:
    """Objects within objects: each has the keys of `own` and an array of its like; at least so many levels."""
    node = record({**own, children: {"type": "array", "items": {"$ref": "#/$defs/node"}}})
    deep: Schema = {}
    for _ in range(levels - 1):
        deep = {"properties": {children: {"contains": deep}}}
    return {"allOf": [{"$ref": "#/$defs/node"}, deep], "$defs": {"node": node}}


def json_schema_document() -> Schema:
    """A JSON Schema of objects: required ones, an object within, and an array whose items are described."""
    nested = {"required": ["type", "properties"], "properties": {"type": {"const": "object"}, "properties": FILLED}}
    described = {"required": ["type", "items"], "properties": {"type": {"const": "array"}, "items": FILLED}}
    properties = {**members(2, nested, described), "additionalProperties": FILLED}
    return record({"type": {"const": "object"}, "properties": properties, "required": array(TEXT)})


def event(least: int) -> Schema:
    """A CloudEvents 1.0 event whose data has at least so many members."""
    texts = dict.fromkeys(("id", "source", "type", "subject", "time", "datacontenttype"), TEXT)
    return record({"specversion": TEXT, **texts, "time": DATE, "data": members(least)})


def endpoint() -> Schema:
    """An endpoint in the manner of OpenAPI: flat, or in a document with `paths`; somewhere in it is an example."""
    typed = _any({"required": ["type"]}, {"required": ["schema"], "properties": {"schema": {"required": ["type"]}}})
    parameters = array(
        {"type": "object", "required": ["name", "required"], "properties": {"required": BOOLEAN}, **typed}
    )
    named = {"type": "object", "minProperties": 1, "additionalProperties": {"required": ["required"], **typed}}
    shown: Schema = {
        "type": "object",
        "required": ["parameters"],
        "properties": {"parameters": _any(parameters, named)},
        "allOf": [with_key_like("(?i)request|body"), with_key_like("(?i)respons"), {"$ref": "#/$defs/example"}],
    }
    flat = {**shown, "required": ["path", "method", "parameters"]}
    flat["properties"] = {**shown["properties"], "path": TEXT, "method": TEXT}
    nested = {"required": ["paths"], "properties": {"paths": members(1, members(1, shown))}}
    example = _any(
        with_key_like("(?i)example"),
        {"type": "object", **members(0, {"$ref": "#/$defs/example"})},
        {"type": "array", "contains": {"$ref": "#/$defs/example"}},
    )
    example["type"] = ["object", "array"]
    return {"type": "object", "minProperties": 1, **_any(flat, nested), "$defs": {"example": example}}


def page(results: str, count: int, least: int, numbers: Sequence[str]) -> Schema:
    """A page of results with `numbers`, which stand beside them or in an object of their own."""
    counted = record(dict.fromkeys(numbers, INTEGER))
    found = record({results: array(members(least, FILLED), count)})
    return {**found, **_any(counted, {"not": {"additionalProperties": {"not": counted}}})}


def _any(*schemas: Schema) -> Schema:
    return {"anyOf": list(schemas)}
