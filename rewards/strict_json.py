"""Strict JSON: one fenced block and nothing else, which holds what was asked."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from jsonschema import FormatChecker
from jsonschema.exceptions import ValidationError
from jsonschema.validators import validator_for
from referencing import Registry

from rlft.reward.extract import json_value

PARTS = ("fence", "parses", "keys", "types", "counts", "all")
_SHAPE = {"required", "additionalProperties", "propertyNames"}
_TYPE = {"type", "enum", "const", "format"}
_FILLED = {"pattern", "minLength", "uniqueItems"}
_FORMATS = FormatChecker(())
_FORMATS.checks("date", raises=ValueError)(lambda value: not isinstance(value, str) or datetime.fromisoformat(value))


def strict_json(completion: str, schema: Mapping[str, Any] | str) -> dict[str, float]:
    """1 if the reply is one ```json block that the schema allows, else 0.1 for each part that holds, in this order.

    `fence`: one block marked json, nothing around it. `parses`: JSON without `NaN` and repeated keys. `keys`: objects,
    arrays and keys where they were asked for, and no empty ones. `types`: of values, one of given texts, dates.
    `counts`: how many, and what has to be somewhere in it. `all`: the rest, no empty text or repeated item. Each part
    needs those before it, so `[]` or `{}` gets no further than `parses`, and no wrong answer above 0.5.

    A schema allows what it does not forbid: write what has to be there. What the values say is not judged, so words
    without sense in the right shape are perfect; a judge or a list of right values has to say that.

    Args:
        schema: as an object or as JSON text, without references to others; a column, or from `args`.
    """
    rules = json.loads(schema) if isinstance(schema, str) else schema
    held = _held(completion, rules)
    score = 1.0 if held == len(PARTS) else held / 10
    return {"score": score, **{part: float(at < held) for at, part in enumerate(PARTS)}}


def _held(reply: str, rules: Mapping[str, Any]) -> int:
    """How many parts hold."""
    block = re.fullmatch(r"```json[ \t]*\n(.*?)\n?[ \t]*```", reply.strip(), re.DOTALL)
    if block is None or re.search(r"^[ \t]*```", block[1], re.MULTILINE):
        return 0
    try:
        value = json_value(block[1])
        validator = validator_for(rules)(rules, registry=Registry(), format_checker=_FORMATS)
        return min((_place(error) for error in validator.iter_errors(value)), default=len(PARTS))
    except (ValueError, RecursionError):  # no JSON, or nested too deeply to be read
        return 1


def _place(error: ValidationError) -> int:
    """Index of the part that an error belongs to."""
    kind, wanted = error.validator, error.validator_value
    empty = kind in ("minItems", "minProperties") and not error.instance
    if kind in _SHAPE or empty or (kind == "type" and wanted in ("object", "array")):
        return PARTS.index("keys")
    return PARTS.index("types" if kind in _TYPE else "all" if kind in _FILLED else "counts")
