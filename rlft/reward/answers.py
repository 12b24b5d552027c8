"""What scoring processes answer: JSON of a fixed form, which the driver checks before it uses any of it.

What runs in those processes may be wrong or hostile, so the driver unpickles nothing that comes from there.

    {"loaded": [{"kind": "sample", "parameters": ["completion"], ...}], "pid": 4711}        once, or
    {"invalid": "reward rewards.py:x: ..."}
    {"message": 3, "is_last": true, "calls": [                    what is done of the calls of the third message
      {"position": 0, "seconds": 0.25, "outcomes": [{"value": 1.5, "parts": {"style": 0.5}},
                                                    {"reason": "returned None"},
                                                    {"kind": "error", "message": "KeyError: 'x'", ...}]}]}

Floats arrive as they were: Python writes the shortest digits that read back as the same float. So do texts, those with
half a surrogate pair included.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, cast, get_args

from rlft.reward.contract import CallPlan, Kind
from rlft.reward.outcomes import LARGEST, MESSAGE_LIMIT, failed
from rlft.types import Abstain, Failed, FailureKind, Fault, Outcome, Score

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
class Result:
    """What one call gave."""

    outcomes: list[Outcome]
    """One for each trajectory that the call covers."""
    seconds: float = 0.0
    """How long it took."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Numbers that the reward logged."""
    extras: Mapping[str, list[Any]] = field(default_factory=dict)
    """What it noted on each of the trajectories, by name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Results of some calls of one message."""

    results: dict[int, Result]
    """By position in the message."""
    is_last: bool
    """Whether the process is idle again; calls that it has not answered by then were not begun."""


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
            ],
            "pid": os.getpid(),
        }
    )


def read_start(answer: bytes, rewards: int) -> tuple[list[Loaded], int] | Invalid:
    """The first answer of a process that loads so many rewards: these, and its process id.

    Raises:
        ValueError: it is none.
    """
    match _read(answer):
        case {"invalid": str(message)}:
            return Invalid(message=message)
        case {"loaded": list(loaded), "pid": int(pid)} if len(loaded) == rewards and pid > 0:
            return list(map(_read_loaded, loaded)), pid
    raise ValueError("it names neither its rewards nor what is wrong with them")


def write_results(message: int, results: Mapping[int, Result], *, is_last: bool) -> bytes:
    """An answer to a message with calls; a call whose result would be too long has failed and says so.

    Args:
        message: its number.
        results: by the calls' positions in it.
        is_last: whether the process waits for the next message now.
    """
    calls = [_write_result(position, result) for position, result in results.items()]
    answer = _write({"message": message, "is_last": is_last, "calls": calls})
    if len(answer) <= ANSWER_LIMIT:
        return answer
    limit = ANSWER_LIMIT // (2 * len(results))
    shorter = {
        position: result if (size := len(_write(_write_result(position, result)))) <= limit else _too_long(result, size)
        for position, result in results.items()
    }
    return write_results(message, shorter, is_last=is_last)


def _too_long(result: Result, size: int) -> Result:
    text = f"its result has {size} bytes, more than is sent: return fewer parts, with shorter names, or note less"
    return Result(outcomes=[failed("length", text)] * len(result.outcomes), seconds=result.seconds)


def read_results(answer: bytes, *, message: int, sizes: Sequence[int]) -> Answer:
    """The results of calls.

    Args:
        message: number of the message that made the calls.
        sizes: how many trajectories each of the calls covers.

    Raises:
        ValueError: it is no answer to that message, or an outcome is none; what is wrong with it.
    """
    match _read(answer):
        case {"message": int(answered), "is_last": bool(is_last), "calls": list(calls)}:
            if answered != message:
                raise ValueError(f"it answers message {answered}, but message {message} was sent")
            results = dict(_read_result(call, sizes) for call in calls)
            if len(results) != len(calls):
                raise ValueError("it answers a call twice")
            return Answer(results=results, is_last=is_last)
    raise ValueError("it has no results")


def _write_result(position: int, result: Result) -> dict[str, Any]:
    written = {
        "position": position,
        "seconds": result.seconds,
        "outcomes": list(map(_write_outcome, result.outcomes)),
    }
    notes = {"metrics": dict(result.metrics), "extras": dict(result.extras)}
    return {**written, **{name: value for name, value in notes.items() if value}}


def _read_result(call: Any, sizes: Sequence[int]) -> tuple[int, Result]:
    match call:
        case {"position": int(position), "seconds": float(seconds), "outcomes": list(outcomes), **rest}:
            if not 0 <= position < len(sizes):
                raise ValueError(f"it answers call {position} of {len(sizes)}")
            size = sizes[position]
            if len(outcomes) != size:
                raise ValueError(f"it has {len(outcomes)} outcomes for {size} samples")
            if not 0 <= seconds < math.inf:
                raise ValueError(f"it took {seconds} seconds")
            metrics, extras = rest.get("metrics", {}), rest.get("extras", {})
            if not (isinstance(metrics, dict) and all(map(_is_reward, metrics.values()))):
                raise ValueError("a metric is no number")
            if not (isinstance(extras, dict) and all(isinstance(v, list) and len(v) == size for v in extras.values())):
                raise ValueError(f"an extra has no list of {size} values")
            read = list(map(_read_outcome, outcomes))
            return position, Result(outcomes=read, seconds=seconds, metrics=metrics, extras=extras)
    raise ValueError("one of its results is none")


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
        written: dict[str, Any] = {"value": outcome.value, "parts": dict(outcome.parts)}
        return {**written, "turns": list(outcome.turns)} if outcome.turns else written
    if isinstance(outcome, Abstain):
        return {"reason": outcome.reason}
    return {"kind": outcome.kind, "message": outcome.message, "fault": outcome.fault, "where": outcome.where}


def _read_outcome(outcome: Any) -> Outcome:
    match outcome:
        case {"value": value, "parts": dict(parts), **rest} if all(map(_is_reward, (value, *parts.values()))):
            turns = rest.get("turns", [])
            if isinstance(turns, list) and all(map(_is_reward, turns)):
                return Score(value=value, parts=parts, turns=tuple(turns))
        case {"reason": str(reason)} if len(reason) <= MESSAGE_LIMIT:
            return Abstain(reason=reason)
        # A message was cut before it was sent, and says so beyond the limit.
        case {"kind": str(kind), "message": str(message), "fault": str(fault), "where": str(where)}:
            is_short = len(message) <= 2 * MESSAGE_LIMIT and len(where) <= MESSAGE_LIMIT
            if kind in get_args(FailureKind) and fault in get_args(Fault) and is_short:
                kind, fault = cast(FailureKind, kind), cast(Fault, fault)
                return Failed(kind=kind, message=message, reproduce="", fault=fault, where=where)
    raise ValueError("one of its outcomes is neither a score, an abstention nor a failure")


def _is_reward(value: Any) -> bool:
    return isinstance(value, float) and abs(value) <= LARGEST
