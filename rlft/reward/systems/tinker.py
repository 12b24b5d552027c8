"""Reward functions of tinker-cookbook (https://github.com/thinking-machines-lab/tinker-cookbook).

    async def reward(history: list[Message]) -> tuple[float, dict[str, float]]

Often an object that holds the gold answer: a class is made for each sample, of `args` and of the columns and the answer
that its `__init__` names. The numbers in the dict are observed.
"""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Mapping
from typing import Any

from rlft.reward.contract import RewardFunction
from rlft.reward.systems.common import (
    accepted,
    adapt,
    check_args,
    find,
    method,
    parameters_of,
    required,
    row_of,
    unwrap_single,
)


def load(name: str, args: Mapping[str, Any]) -> RewardFunction:
    """The reward that `name` names.

    Raises:
        ValueError: it is an environment, or does not take its `args`.
    """
    where, found = f"reward tinker:{name}", find(name)
    check_args(found, args, where)
    if hasattr(found, "initial_observation"):
        raise ValueError(
            f"{where}: it is an environment, which samples with tinker's service; name the reward that it is given"
        )
    if not inspect.isclass(found):
        if missing := required(found, (next(iter(parameters_of(found, where)), ""), *args)):
            raise ValueError(f"{where}: tinker calls it with the history alone; give {missing[0]!r} in `args`")
        return adapt(found, lambda offered: ([offered["messages"]], args), _result, takes=("messages",))
    if not any("__call__" in vars(cls) for cls in found.__mro__):
        raise ValueError(f"{where}: its objects cannot be called")
    call, needed = method(found, "__call__"), required(found, args)

    def arguments(offered: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        row = {key: value for key, value in row_of(offered["trajectory"]).items() if key not in args}
        made = found(**accepted(found, {**row, **args}))
        return [made, offered["messages"]], {}

    return adapt(call, arguments, _result, takes=("trajectory", "messages", *needed))


def _result(value: Any) -> Any:
    """Its reward, and its metrics beside it.

    Raises:
        ValueError: it is not such a pair.
    """
    if not (isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Mapping)):
        raise ValueError(f"expected a pair of a reward and a dict of metrics, got {reprlib.repr(value)}")
    return {**{str(name): unwrap_single(each) for name, each in value[1].items()}, "score": unwrap_single(value[0])}
