"""Tool use: the calls that were needed were made, with the right arguments, and no others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from rlft.types import Message


def tool_calls(
    messages: Sequence[Message], calls: Sequence[Mapping[str, Any]], ordered: bool = False, partial: float = 0.0
) -> dict[str, float]:
    """1 for exactly the expected calls, else `partial` times the share of them; `names` and `arguments` are observed.

    The calls are those of the assistant since the last message of the user. An empty list of expected ones asks for
    none: then a call earns 0, and an answer without one 1.

    Every call too many counts against the reply as one that is missing does, so trying all tools or all arguments does
    not pay. What the calls are for is not judged: put a reward for the final answer beside it.

    Args:
        calls: from a column, `[{"name": "search", "arguments": {"query": "..."}}, ...]`.
        ordered: whether they have to come in this order.
        partial: what some right calls are worth, from 0 to 1; it makes the first steps easier to find.
    """
    users = [i for i, message in enumerate(messages) if message["role"] == "user"]
    after = messages[users[-1] + 1 if users else 0 :]
    made = [_read(call.get("function", call)) for message in after for call in message.get("tool_calls") or ()]
    wanted = [_read(call) for call in calls]
    names = _share([name for name, _ in made], [name for name, _ in wanted])
    share = _share(made, wanted)
    exact = made == wanted if ordered else share == 1.0
    return {"score": 1.0 if exact else partial * share, "names": names, "arguments": share}


def _read(call: Mapping[str, Any]) -> tuple[str, str]:
    """(name, arguments as text that is the same for equal ones); arguments that are no JSON stay as they are."""
    arguments = call.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return str(call.get("name")), arguments
    return str(call.get("name")), json.dumps(arguments, sort_keys=True, default=str)


def _share(made: Sequence[Any], wanted: Sequence[Any]) -> float:
    """How many were right, of all that were made or wanted."""
    rest, right = list(wanted), 0
    for each in made:
        if each in rest:
            rest.remove(each)
            right += 1
    return right / (len(made) + len(rest)) if made or rest else 1.0
