"""JSON: the reply is an object that a JSON Schema allows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from jsonschema.validators import validator_for
from referencing import Registry

from rlft.reward.extract import json_object


def json_schema(completion: str, schema: Mapping[str, Any] | str, alone: bool = True) -> dict[str, float]:
    """1 for an object that the schema allows, else 0; `json`, whether it is JSON at all, is observed.

    `NaN`, a key that occurs twice, and several objects that differ are no JSON. Fetches nothing: a schema that refers
    to others has to bring them along.

    A schema allows what it does not forbid: without `required`, `{}` is perfect, without `minLength` so is `""`. Write
    what has to be there, and `additionalProperties: false`. Whether it is true, another reward has to say.

    Args:
        schema: as an object or as JSON text; from `args`, or a column of that name.
        alone: whether the object has to be the whole reply (or all of it between triple backticks).
    """
    rules = json.loads(schema) if isinstance(schema, str) else schema
    text = completion.strip()
    if alone and text.startswith("```") and text.endswith("```"):
        text = text[3:-3].removeprefix("json").removeprefix("JSON").strip()
    found = json_object(text) if not alone or (text.startswith("{") and text.endswith("}")) else None
    if alone and found is not None:
        try:
            json.loads(text)  # one object, not two with text between them
        except ValueError:
            found = None
    if found is None:
        return {"score": 0.0, "json": 0.0}
    return {"score": float(validator_for(rules)(rules, registry=Registry()).is_valid(found)), "json": 1.0}
