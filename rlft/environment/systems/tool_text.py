"""Tool calls in a policy's text, for environments that take them apart from it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection

from rlft.environment.tools import bare_calls

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def read_tool_calls(text: str, names: Collection[str] = ()) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The text without its calls, and the calls in order: name, and arguments as JSON.

    A call that cannot be read keeps its text as arguments and has no name: what to say to it is the environment's.

    Args:
        names: of the tools that a reply of nothing but JSON may call, see `tools.read_calls`.
    """
    calls = []
    for written in _CALL.findall(text):
        try:
            call = json.loads(written)
            calls.append((str(call["name"]), json.dumps(call.get("arguments", {}))))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            calls.append(("", written.strip()))
    if not calls and (bare := bare_calls(text, names)):
        return "", tuple((call.name, json.dumps(dict(call.arguments))) for call in bare)
    return _CALL.sub("", text).strip(), tuple(calls)
