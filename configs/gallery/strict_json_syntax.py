"""What a prompt asks for, to be watched beside a reward that only says whether the reply is JSON."""

from collections.abc import Mapping
from typing import Any

from rewards.strict_json import strict_json


def as_asked(completion: str, schema: Mapping[str, Any] | str) -> bool:
    """Whether the reply is one block of JSON with the keys, types and counts that the prompt asks for."""
    return strict_json(completion, schema)["all"] == 1.0
