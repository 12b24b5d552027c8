"""Programs are judged by what they compute: the reply's function is called in a sandbox, its values are compared here."""

from __future__ import annotations

import re
from typing import Any

import rlft.reward.sandbox as sandbox

_BLOCK = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)

sandbox.require()  # a run whose code cannot be run says so before it starts


def code_tests(
    completion: str, answer: list[Any], function: str, seconds: float = 4.0, memory_mb: int = 512
) -> dict[str, float] | None:
    """1 if the function gives the expected value for every input, else 0; the share of right values is observed.

    The code is the last block between triple backticks, or the whole reply. Abstains when the task has no cases.

    Args:
        answer: the cases, `[[arguments, expected], ...]`. The expected values do not enter the sandbox.
        function: name of the function that the task asks for, from a column.
        seconds: wall time for all cases.
    """
    if not answer:
        return None
    blocks = _BLOCK.findall(completion)
    limits = sandbox.Limits(seconds=seconds, memory_mb=memory_mb)
    calls = sandbox.call(blocks[-1] if blocks else completion, function, [case[0] for case in answer], limits)
    right = [not one.error and _same(one.value, case[1]) for one, case in zip(calls, answer, strict=True)]
    return {"score": float(all(right)), "share": sum(right) / len(right)}


def _same(value: Any, expected: Any) -> bool:
    """Equal as JSON: True is not 1, and floats may differ in their last digits."""
    if isinstance(expected, float) and isinstance(value, int | float) and not isinstance(value, bool):
        return abs(value - expected) <= 1e-9 * max(1.0, abs(expected))
    if isinstance(expected, list | tuple) and isinstance(value, list):
        return len(value) == len(expected) and all(map(_same, value, expected))
    if isinstance(expected, dict) and isinstance(value, dict):
        keys = {str(key): part for key, part in expected.items()}
        return value.keys() == keys.keys() and all(_same(value[key], keys[key]) for key in keys)
    return type(value) is type(expected) and bool(value == expected)
