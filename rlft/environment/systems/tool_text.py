"""Tool calls in a policy's text, for environments that take them apart from it."""

from __future__ import annotations

import json
import re

_CALL = re.compile(r"<tool_call>(.*?)(?:</tool_call>|\Z)", re.DOTALL)


def read_tool_calls(text: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The text without its calls, and the calls in order: name, and arguments as JSON.

    A call that cannot be read keeps its text as arguments and has no name: what to say to it is the environment's.
    """
    calls = []
    for written in _CALL.findall(text):
        try:
            call = json.loads(written)
            calls.append((str(call["name"]), json.dumps(call.get("arguments", {}))))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            calls.append(("", written.strip()))
    return _CALL.sub("", text).strip(), tuple(calls)
