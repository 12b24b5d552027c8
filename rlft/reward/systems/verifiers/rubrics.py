"""Reward functions and rubrics of verifiers before 0.4: what they are offered by name, and their weighted sum."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_origin

from rlft.reward.contract import RewardFunction, prompt_and_reply
from rlft.reward.systems.common import accepted, describe, required, row_of
from rlft.types import Trajectory

ONE = ("prompt", "completion", "answer", "state", "task", "info")
MANY = ("prompts", "completions", "answers", "states", "tasks", "infos")


class _Said(dict[str, Any]):
    """A message that can be read as a dict and as an object; verifiers has had both."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One reward function of a rubric."""

    function: Callable[..., Any]
    weight: float = 1.0
    objects: Mapping[str, Any] = field(default_factory=dict)
    """What the rubric offers by name: its parser, a judge."""

    @property
    def is_group(self) -> bool:
        """Whether it compares the samples of a group, as verifiers tells it."""
        signature = inspect.signature(self.function)
        is_list = signature.return_annotation is list or get_origin(signature.return_annotation) is list
        return is_list or bool({*MANY} & {*signature.parameters})


def parts_of(found: Any, where: str) -> list[Part]:
    """The functions of a rubric, of an environment's rubric, or of a group of rubrics."""
    found = getattr(found, "rubric", found)
    parts = [part for rubric in _rubrics(found) for part in _own(rubric)]
    if not parts:
        raise ValueError(f"{where}: expected reward functions or a rubric with some, got a {type(found).__name__}")
    return parts


def _rubrics(rubric: Any) -> Iterator[Any]:
    yield rubric
    for each in getattr(rubric, "rubrics", ()):
        yield from _rubrics(each)


def _own(rubric: Any) -> list[Part]:
    functions, weights = getattr(rubric, "funcs", ()), getattr(rubric, "weights", ())
    objects = dict(getattr(rubric, "class_objects", {}))
    pairs = zip(functions, weights, strict=True)
    return [Part(function=function, weight=weight, objects=objects) for function, weight in pairs]


def of_parts(
    parts: Sequence[Part], where: str, *, wrapped: Callable[..., Any] | None = None, file: str = ""
) -> RewardFunction:
    """A reward of the functions of a rubric: of a group where one of them compares its samples, else of a sample."""
    columns = sorted(
        {name for part in parts for name in required(part.function, (*ONE, *MANY, "parser", *part.objects))}
    )
    if "resources" in columns or "client" in columns:
        raise ValueError(f"{where}: a reward function asks for what only a running environment has")

    async def one(**offered: Any) -> Any:
        return (await _score(parts, [offered["trajectory"]]))[0]

    async def many(**offered: Any) -> Any:
        return await _score(parts, offered["group"].trajectories)

    if any(part.is_group for part in parts):
        return describe(many, wrapped, takes=("group", *columns), file=file)
    return describe(one, wrapped, takes=("trajectory", *columns), file=file)


async def _score(parts: Sequence[Part], trajectories: Sequence[Trajectory]) -> list[dict[str, float]]:
    """Weighted sum and parts of each sample; functions one after the other, samples at the same time."""
    offered = [_offered(trajectory) for trajectory in trajectories]
    totals: list[dict[str, float]] = [{"score": 0.0} for _ in offered]
    for part in parts:
        if part.is_group:
            together = {many: [each[one] for each in offered] for one, many in zip(ONE, MANY, strict=True)}
            values = list(await _call(part.function, {**together, **part.objects}))
            if len(values) != len(offered):
                raise ValueError(f"{_name(part)} returned {len(values)} values for {len(offered)} samples")
        else:
            values = await asyncio.gather(*(_call(part.function, {**each, **part.objects}) for each in offered))
        for total, value in zip(totals, values, strict=True):
            total["score"] += part.weight * float(value)
            total[_name(part)] = total.get(_name(part), 0.0) + float(value)
    return totals if len(parts) > 1 else [{"score": total["score"]} for total in totals]


def _name(part: Part) -> str:
    return str(getattr(part.function, "__name__", type(part.function).__name__))


async def _call(function: Callable[..., Any], values: Mapping[str, Any]) -> Any:
    value = function(**accepted(function, values))
    return await value if inspect.isawaitable(value) else value


def _offered(trajectory: Trajectory) -> dict[str, Any]:
    """What a reward function of one sample can ask for."""
    prompt, completion = ([_Said(message) for message in half] for half in prompt_and_reply(trajectory))
    row = row_of(trajectory)
    own = {
        "prompt": prompt,
        "completion": completion,
        "answer": trajectory.task.answer if trajectory.task.answer is not None else "",
        "task": row.get("task", "default"),
        "info": row.get("info", {}),
    }
    is_cut = trajectory.finish_reason == "length"
    state = {**row, **own, "input": {**row, **own}, "trajectory": [], "is_completed": True, "is_truncated": is_cut}
    return {**row, **own, "state": {**state, "turn": len(trajectory.turns)}}
