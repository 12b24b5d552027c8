"""What each grader becomes: a coroutine that grades one reply, and what a reply that lacks something is worth."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import Any, TypeAlias

from rlft.reward.systems.openai.templates import AbsentError
from rlft.types import Abstain

Grade: TypeAlias = Callable[[Mapping[str, Any]], Coroutine[Any, Any, Any]]
"""Of `item` and `sample`, and of `log_metric` and `log_extra`: what a reward returns."""


def or_zero(grade: Grade) -> Grade:
    """0 where the reply lacks what the grader reads of it."""

    async def safe(spaces: Mapping[str, Any]) -> Any:
        try:
            return await grade(spaces)
        except AbsentError:
            return 0.0

    return safe


def with_threshold(written: Mapping[str, Any], grade: Grade) -> Grade:
    """The value, and whether it passes where the grader has a threshold."""
    threshold, safe = written.get("pass_threshold"), or_zero(grade)

    async def graded(spaces: Mapping[str, Any]) -> Any:
        value = await safe(spaces)
        is_value = not isinstance(value, Abstain)
        return {"score": value, "passed": value >= threshold} if is_value and threshold is not None else value

    return graded
