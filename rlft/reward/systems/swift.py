"""Rewards of ms-swift (https://github.com/modelscope/ms-swift): classes of `ORM`, and functions, over lists of texts.

A class gets `args` of the spec as attributes of swift's `args`, and those that its `__init__` names. When it is
called it gets the last reply of each sample, and by name the columns, `messages`, `response_token_ids` and
`trainer_state`.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Mapping
from typing import Any

from rlft.common.by_path import describe_error
from rlft.reward.contract import RewardFunction
from rlft.reward.systems.common import adapt, check_args, find, parameters_of, required, takes_any

_SUPPLIED = ("messages", "response_token_ids", "trainer_state")


def load(name: str, args: Mapping[str, Any]) -> RewardFunction:
    """The reward that `name` names.

    Raises:
        ValueError: it cannot be made of `args`, or needs what only a running trainer of swift has.
    """
    where, function, own = f"reward swift:{name}", find(name), dict(args)
    if inspect.isclass(function):
        function, own = _object(function, own, where), {}
    if not callable(function):
        raise ValueError(f"{where}: its objects cannot be called")
    check_args(function, own, where)
    first = next(iter(parameters_of(function, where)), "")
    needed = [column for column in required(function, (*_SUPPLIED, *own)) if column != first]
    if "trajectory_inputs" in needed:
        raise ValueError(f"{where}: its parameter 'trajectory_inputs' comes from swift's multi-turn scheduler")

    def arguments(offered: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        conversations = [[*p, *c] for p, c in zip(offered["prompts"], offered["completions"], strict=True)]
        values = {
            **{key: value for key, value in offered.items() if key not in ("prompts", "completions", "completion_ids")},
            "messages": conversations,
            "response_token_ids": offered["completion_ids"],
            **own,
        }
        values = {key: value for key, value in values.items() if takes_any(function) or key in parameters}
        return [[messages[-1]["content"] for messages in conversations]], values

    parameters = {*parameters_of(function, where)} - {first}
    takes = ("prompts", "completions", "completion_ids", "trainer_state", *needed)
    return adapt(function, arguments, takes=takes, takes_columns=True)


def _object(cls: Any, args: Mapping[str, Any], where: str) -> Any:
    parameters = parameters_of(cls, where)
    given = {key: value for key, value in args.items() if key in parameters and key != "args"}
    if "args" in parameters:
        given["args"] = argparse.Namespace(**args)
    elif unknown := sorted(args.keys() - given.keys()):
        raise ValueError(f"{where}: {cls.__name__} does not take args.{unknown[0]}; it has {', '.join(parameters)}")
    try:
        return cls(**given)
    except Exception as error:
        raise ValueError(f"{where}: making it from `args` failed:\n{describe_error(error)}") from error
