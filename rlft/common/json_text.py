"""JSON that others wrote."""

from __future__ import annotations

import json
from typing import Any


def parse(text: str | bytes) -> Any:
    """The value that a JSON text holds, as `json.loads` gives it.

    Raises:
        ValueError: it is no JSON, or is nested too deeply to be read.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
