"""Graders that ask no model: `string_check`, `text_similarity`, and `python`, which runs in the sandbox."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

from rlft.reward import sandbox
from rlft.reward.systems.openai.grade import Grade, or_zero, with_threshold
from rlft.reward.systems.openai.templates import fill
from rlft.reward.systems.openai.text_similarity import METRICS


def string_check(written: Mapping[str, Any], args: Mapping[str, Any]) -> Grade:
    """1 where the text and the reference are equal, differ, or one holds the other, as `operation` says."""
    operation, first, second = written["operation"], written["input"], written["reference"]
    operations: dict[str, Callable[[str, str], bool]] = {
        "eq": lambda text, reference: text == reference,
        "ne": lambda text, reference: text != reference,
        "like": lambda text, reference: reference in text,
        "ilike": lambda text, reference: reference.lower() in text.lower(),
    }
    if operation not in operations:
        raise ValueError(f"string_check: operation is one of {', '.join(operations)}, got {operation!r}")

    async def grade(spaces: Mapping[str, Any]) -> float:
        return float(operations[operation](fill(first, spaces), fill(second, spaces)))

    return or_zero(grade)


def text_similarity(written: Mapping[str, Any], args: Mapping[str, Any]) -> Grade:
    """How near the text is to the reference, by `evaluation_metric`, from 0 to 1."""
    metric, first, second = written["evaluation_metric"], written["input"], written["reference"]
    if metric not in METRICS:
        why = {"cosine": ": it needs OpenAI's embeddings", "meteor": ": it needs WordNet"}.get(metric, "")
        raise ValueError(f"text_similarity cannot compute {metric!r}{why}. It has {', '.join(METRICS)}")
    compare = METRICS[metric]

    async def grade(spaces: Mapping[str, Any]) -> float:
        return compare(fill(first, spaces), fill(second, spaces))

    return with_threshold(written, grade)


def python(written: Mapping[str, Any], args: Mapping[str, Any]) -> Grade:
    """What the function `grade(sample, item)` in its source returns, run in the sandbox."""
    source, name = written["source"], written.get("name", "")
    try:
        defined = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    except SyntaxError as error:
        raise ValueError(f"python grader {name!r}: line {error.lineno} of its source: {error.msg}") from None
    if "grade" not in defined:
        raise ValueError(f"python grader {name!r}: its source defines no grade(sample, item)")
    sandbox.require()
    chosen = {key: args[key] for key in ("seconds", "memory_mb") if key in args}

    async def grade(spaces: Mapping[str, Any]) -> Any:
        called = sandbox.call(source, "grade", [[spaces["sample"], spaces["item"]]], sandbox.Limits(**chosen))[0]
        if called.error:
            raise RuntimeError(f"python grader {name!r}: {called.error}")
        return called.value

    return grade
