"""Programs are judged by what they compute: the reply's function runs in a sandbox, its values are compared here."""

from __future__ import annotations

import math
from typing import Any

from rlft.reward.extract import code_block
from rlft.reward.sandbox import Limits, call, require

require()  # a run whose code cannot be run says so before it starts


def code_tests(
    completion: str, answer: list[Any], function: str, seconds: float = 4.0, memory_mb: int = 512
) -> dict[str, float] | None:
    """1 if the function gives the expected value for every input, else 0; the share of right values is observed.

    The code is the last Python block between triple backticks that defines the function, or the whole reply. Abstains
    when the task has no cases.

    A program that knows the inputs of all cases by heart passes them without solving the task: have many cases, and
    others in the held-out tasks. It cannot look the values up: they do not enter the sandbox, and what it returns is
    compared outside of it, as plain data.

    Args:
        answer: the cases, `[[arguments, expected], ...]`.
        function: name of the function that the task asks for, from a column.
        seconds: wall time for all cases.

    Raises:
        ValueError: the answer holds something else than cases.
    """
    if not answer:
        return None
    _refuse_others(answer)
    code = code_block(completion, defines=function)
    limits = Limits(seconds=seconds, memory_mb=memory_mb)
    calls = call(completion if code is None else code, function, [case[0] for case in answer], limits)
    right = [not one.error and _same(one.value, case[1]) for one, case in zip(calls, answer, strict=True)]
    return {"score": float(all(right)), "share": sum(right) / len(right)}


def _refuse_others(answer: Any) -> None:
    form = "cases [[arguments, expected], ...] such as [[[2, 3], 5]]"
    if not isinstance(answer, list | tuple):
        read = " The column holds JSON as text: read it with json.loads first." if isinstance(answer, str) else ""
        raise ValueError(f"code_tests: `answer` has to be a list of {form}, got {str(answer)[:80]!r}.{read}")
    for place, case in enumerate(answer):
        if not isinstance(case, list | tuple) or len(case) != 2 or not isinstance(case[0], list | tuple):
            raise ValueError(f"code_tests: `answer[{place}]` is none of {form}: {str(case)[:80]!r}")


def _same(value: Any, expected: Any) -> bool:
    """Equal as JSON: True is not 1, and floats may differ in their last digits."""
    if isinstance(expected, float) and isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-9)
        except OverflowError:  # an integer beyond all floats
            return False
    if isinstance(expected, list | tuple) and isinstance(value, list):
        return len(value) == len(expected) and all(map(_same, value, expected))
    if isinstance(expected, dict) and isinstance(value, dict):
        keys = {str(key): part for key, part in expected.items()}
        return value.keys() == keys.keys() and all(_same(value[key], keys[key]) for key in keys)
    return type(value) is type(expected) and bool(value == expected)
