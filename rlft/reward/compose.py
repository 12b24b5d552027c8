"""Rewards made of rewards: one opens the way for another, several with weights, and bounds.

    # mine.py
    from rewards.exact_answer import exact_answer
    from rewards.format_tags import format_tags
    from rlft.reward.compose import clip, gate, weighted

    reward = gate(format_tags, weighted({"right": (1.0, exact_answer), "short": (0.2, shortness)}))

What is made is an ordinary reward, named as `mine.py:reward`: its parameters are those of the rewards in it, by name,
and their parts are kept. It composes rewards that are called for one sample; those that see the whole group stand in
the config, with weights.
"""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from rlft.reward.contract import Kind, RewardFunction, plan_call
from rlft.reward.outcomes import read
from rlft.types import Failed, RewardSpec, Score

_Ask: TypeAlias = Callable[[RewardFunction], Any]


def gate(condition: RewardFunction, reward: RewardFunction, *, least: float = 1.0, closed: float = 0.0) -> Any:
    """A reward that counts only where a condition holds: `gate(format_tags, exact_answer)`.

    Where the condition's value is at least `least`, the value is that of `reward`, which is not called elsewhere: there
    the value is `closed`. It abstains where the condition does, or where `reward` does behind an open gate. Parts:
    `gate`, the condition's value, and those of `reward`.
    """

    def decide(opened: Score | None) -> bool:
        return opened is not None and opened.value >= least

    def finish(values: list[Score | None]) -> dict[str, float] | None:
        opened, *rest = values
        if opened is None or (rest and rest[0] is None):
            return None
        passed = rest[0] if rest else None
        score = passed.value if passed else closed
        return {**(passed.parts if passed else {}), "gate": opened.value, "score": score}

    return _composed([condition, reward], finish, proceed=decide)


def clip(reward: RewardFunction, low: float, high: float) -> Any:
    """A reward whose value is kept from `low` to `high`; its parts are left as they are.

    Raises:
        ValueError: `low` is above `high`.
    """
    if not low <= high:
        raise ValueError(f"clip needs low <= high, got {low} and {high}")

    def finish(values: list[Score | None]) -> dict[str, float] | None:
        (only,) = values
        return None if only is None else {**only.parts, "score": min(high, max(low, only.value))}

    return _composed([reward], finish)


def weighted(rewards: Mapping[str, tuple[float, RewardFunction]]) -> Any:
    """The weighted sum of rewards, `{"right": (1.0, exact_answer), "short": (0.2, shortness)}`.

    Parts: the unweighted value of each under its name, and `NAME.PART` for parts of its own. One that abstains is left
    out, and the sum abstains if all do.

    Raises:
        ValueError: there is none, one is called `score`, or one is no pair of a finite weight and a function.
    """
    expected = "weighted needs rewards by name, each with its weight, like {'right': (1.0, exact_answer)}"
    if not isinstance(rewards, Mapping) or not rewards:
        raise ValueError(f"{expected}; got {rewards!r}")
    if "score" in rewards:
        raise ValueError(f"{expected}; `score` is the sum's name")
    for name, pair in rewards.items():
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not callable(pair[1]):
            raise ValueError(f"{expected}; {name!r} has {pair!r}")
        if isinstance(pair[0], bool) or not isinstance(pair[0], int | float) or not math.isfinite(pair[0]):
            raise ValueError(f"{expected}; the weight of {name!r} is {pair[0]!r}, and has to be a finite number")
    weights = {name: weight for name, (weight, _) in rewards.items()}

    def finish(values: list[Score | None]) -> dict[str, float] | None:
        parts: dict[str, float] = {}
        for name, value in zip(weights, values, strict=True):
            if value is not None:
                parts |= {f"{name}.{part}": number for part, number in value.parts.items()}
                parts[name] = value.value
        total = sum(weight * parts[name] for name, weight in weights.items() if name in parts)
        return {**parts, "score": total} if parts else None

    return _composed([reward for _, reward in rewards.values()], finish)


def _composed(
    rewards: list[RewardFunction],
    finish: Callable[[list[Score | None]], dict[str, float] | None],
    proceed: Callable[[Score | None], bool] = lambda value: True,
) -> Any:
    """A reward that calls others with what each takes, one after the other while `proceed`, and puts them together."""
    plans = [plan_call(reward, RewardSpec(path=_name(reward))) for reward in rewards]
    for reward, plan in zip(rewards, plans, strict=True):
        _refuse_lists(_name(reward), plan.kind)

    def call(number: int, offered: Mapping[str, Any]) -> Any:
        plan = plans[number]
        taken = {name: value for name, value in offered.items() if plan.takes_any or name in plan.parameters}
        return rewards[number](**taken)

    def understood(number: int, value: Any) -> Score | None:
        outcome = read(value)
        if isinstance(outcome, Failed):
            raise ValueError(f"{_name(rewards[number])}: {outcome.message}")
        return outcome if isinstance(outcome, Score) else None

    def composed(**offered: Any) -> dict[str, float] | None:
        values: list[Score | None] = []
        for number in range(len(rewards)):
            if not values or proceed(values[-1]):
                values.append(understood(number, call(number, offered)))
        return finish(values)

    async def composed_async(**offered: Any) -> dict[str, float] | None:
        values: list[Score | None] = []
        for number in range(len(rewards)):
            if not values or proceed(values[-1]):
                value = call(number, offered)
                values.append(understood(number, await value if inspect.isawaitable(value) else value))
        return finish(values)

    made: Any = composed_async if any(plan.is_async for plan in plans) else composed
    made.__signature__ = _signature(rewards)
    made.__name__ = made.__qualname__ = "_".join(map(_name, rewards))
    made.__module__ = sys._getframe(2).f_globals["__name__"]  # where it is made
    return made


def _refuse_lists(name: str, kind: Kind) -> None:
    if kind != "sample":
        raise ValueError(
            f"{name} is called for a whole group, so it cannot be composed with others: name it in the config, beside "
            "them, with a weight"
        )


def _signature(rewards: list[RewardFunction]) -> inspect.Signature:
    """The parameters of all, each once; required where one of the rewards requires it."""
    merged: dict[str, inspect.Parameter] = {}
    for reward in rewards:
        for parameter in inspect.signature(reward).parameters.values():
            name = parameter.name
            if parameter.kind is parameter.VAR_POSITIONAL:
                continue
            if parameter.kind is not parameter.VAR_KEYWORD:
                parameter = parameter.replace(kind=parameter.KEYWORD_ONLY)
            known = merged.get(name)
            if known and known.kind is parameter.kind and known.default != parameter.default:
                if parameter.empty not in (known.default, parameter.default):
                    raise ValueError(
                        f"two of the rewards have a parameter {name!r}, with the defaults {known.default!r} and "
                        f"{parameter.default!r}: fix it in one of them with functools.partial"
                    )
                parameter = parameter.replace(default=parameter.empty)
            merged[name] = parameter
    ordered = sorted(merged.values(), key=lambda parameter: parameter.kind)
    return inspect.Signature(ordered)


def _name(reward: RewardFunction) -> str:
    while hasattr(reward, "func"):  # functools.partial
        reward = reward.func
    return getattr(reward, "__name__", type(reward).__name__)
