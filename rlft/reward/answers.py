"""What scoring processes answer: JSON of a fixed form, which the driver checks before it uses any of it.

What runs in those processes may be wrong or hostile, so the driver unpickles nothing that comes from there.

    {"loaded": [{"kind": "sample", "parameters": ["completion"], ...}]}       once, or
    {"invalid": "reward rewards.py:x: ..."}
    {"number": 3, "seconds": 0.25, "outcomes": [{"value": 1.5, "parts": {"style": 0.5}},
                                                {"reason": "returned None"},
                                                {"kind": "error", "message": "KeyError: 'x'"}]}

Floats arrive as they were: Python writes the shortest digits that read back as the same float. So do texts, those with
half a surrogate pair included.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, cast, get_args

from rlft.reward.contract import LARGEST, MESSAGE_LIMIT, CallPlan, Kind, failed
from rlft.types import Abstain, Failed, FailureKind, Outcome, Score

ANSWER_LIMIT = 2**24
"""Longest answer, in bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """What the driver learns about a reward without importing it."""

    plan: CallPlan
    """How it is called."""
    sources: Mapping[str, str]
    """sha256 of the file that defines it, and of what that imports of its folder, by path relative to the folder."""
    is_built: bool = False
    """Whether it was made with its `args`, so that calls do not get them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Invalid:
    """A reward that cannot be loaded or called, in words for the user."""

    message: str


def write_start(start: Sequence[Loaded] | Invalid) -> bytes:
    """The first answer of a process: its rewards, or why there are none."""
    if isinstance(start, Invalid):
        return _write({"invalid": start.message})
    return _write(
        {
            "loaded": [
                {
                    "kind": each.plan.kind,
                    "parameters": sorted(each.plan.parameters),
                    "required": sorted(each.plan.required),
                    "takes_any": each.plan.takes_any,
                    "is_async": each.plan.is_async,
                    "sources": dict(each.sources),
                    "is_built": each.is_built,
                }
                for each in start
            ]
        }
    )


def read_start(answer: bytes, rewards: int) -> list[Loaded] | Invalid:
    """The first answer of a process that loads so many rewards.

    Raises:
        ValueError: it is none.
    """
    match _read(answer):
        case {"invalid": str(message)}:
            return Invalid(message=message)
        case {"loaded": list(loaded)} if len(loaded) == rewards:
            return list(map(_read_loaded, loaded))
    raise ValueError("it names neither its rewards nor what is wrong with them")


def write_outcomes(number: int, outcomes: Sequence[Outcome], seconds: float) -> bytes:
    """The answer to a call; where it would be too long, every outcome is a failure that says so.

    Args:
        number: of the call.
        outcomes: one for each trajectory that the call covers.
        seconds: duration of the call.
    """
    answer = _write({"number": number, "seconds": seconds, "outcomes": list(map(_write_outcome, outcomes))})
    if len(answer) <= ANSWER_LIMIT:
        return answer
    message = f"its result has {len(answer)} bytes, more than {ANSWER_LIMIT}: return fewer parts, with shorter names"
    return write_outcomes(number, [failed("length", message)] * len(outcomes), seconds)


def read_outcomes(answer: bytes, *, number: int, size: int) -> tuple[list[Outcome], float]:
    """The outcomes of a call, and its duration in seconds.

    Args:
        number: of the call that was made.
        size: how many trajectories it covers.

    Raises:
        ValueError: it is no answer to that call, or an outcome is none; what is wrong with it.
    """
    match _read(answer):
        case {"number": int(answered), "seconds": float(seconds), "outcomes": list(outcomes)}:
            if answered != number:
                raise ValueError(f"it answers call {answered}, but call {number} was made")
            if len(outcomes) != size:
                raise ValueError(f"it has {len(outcomes)} outcomes for {size} samples")
            if not 0 <= seconds < math.inf:
                raise ValueError(f"it took {seconds} seconds")
            return list(map(_read_outcome, outcomes)), seconds
    raise ValueError("it has no outcomes")


def _write(answer: dict[str, Any]) -> bytes:
    return json.dumps(answer, ensure_ascii=False, allow_nan=False).encode("utf-8", "surrogatepass")


def _read(answer: bytes) -> Any:
    try:
        return json.loads(answer.decode("utf-8", "surrogatepass"), parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"it is no JSON ({error})"[:MESSAGE_LIMIT]) from None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number of JSON")


def _read_loaded(loaded: Any) -> Loaded:
    match loaded:
        case {
            "kind": str(kind),
            "parameters": list(parameters),
            "required": list(required),
            "takes_any": bool(takes_any),
            "is_async": bool(is_async),
            "sources": dict(sources),
            "is_built": bool(is_built),
        } if kind in get_args(Kind) and all(isinstance(n, str) for n in (*parameters, *required, *sources.values())):
            plan = CallPlan(
                kind=cast(Kind, kind),
                parameters=frozenset(parameters),
                required=frozenset(required),
                takes_any=takes_any,
                is_async=is_async,
            )
            return Loaded(plan=plan, sources=sources, is_built=is_built)
    raise ValueError("it does not say how its rewards are called")


def _write_outcome(outcome: Outcome) -> dict[str, Any]:
    if isinstance(outcome, Score):
        return {"value": outcome.value, "parts": dict(outcome.parts)}
    if isinstance(outcome, Abstain):
        return {"reason": outcome.reason}
    return {"kind": outcome.kind, "message": outcome.message}


def _read_outcome(outcome: Any) -> Outcome:
    match outcome:
        case {"value": value, "parts": dict(parts)} if all(map(_is_reward, (value, *parts.values()))):
            return Score(value=value, parts=parts)
        case {"reason": str(reason)} if len(reason) <= MESSAGE_LIMIT:
            return Abstain(reason=reason)
        # A message was cut before it was sent, and says so beyond the limit.
        case {"kind": str(kind), "message": str(message)} if len(message) <= 2 * MESSAGE_LIMIT:
            if kind in get_args(FailureKind):
                return Failed(kind=cast(FailureKind, kind), message=message, reproduce="")
    raise ValueError("one of its outcomes is neither a score, an abstention nor a failure")


def _is_reward(value: Any) -> bool:
    return isinstance(value, float) and abs(value) <= LARGEST
