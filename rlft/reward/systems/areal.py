"""Reward functions of AReaL (https://github.com/inclusionAI/AReaL): one sample as text and tokens, its row by name.

def reward_fn(prompt, completions, prompt_ids, completion_ids, **row) -> float
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from rlft.reward.contract import RewardFunction, prompt_and_reply
from rlft.reward.systems.common import accepted, adapt, check_args, find, joined, required, row_of

_SUPPLIED = ("prompt", "completions", "prompt_ids", "completion_ids")


def load(name: str, args: Mapping[str, Any]) -> RewardFunction:
    """The reward that `name` names.

    Raises:
        ValueError: it is a workflow, or does not take its `args`.
    """
    where, function = f"reward areal:{name}", find(name)
    if inspect.isclass(function):
        raise ValueError(
            f"{where}: it is a class. A workflow samples with AReaL's engine: name the reward function that it is given"
        )
    check_args(function, args, where)
    needed = required(function, (*_SUPPLIED, *args))
    positional = [p.name for p in inspect.signature(function).parameters.values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    by_place = positional[: len(_SUPPLIED)]
    if len(by_place) < len(_SUPPLIED):
        raise ValueError(f"{where}: AReaL calls it with {', '.join(_SUPPLIED)} in this order, and it takes fewer")
    needed = [column for column in needed if column not in by_place]

    def arguments(offered: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        trajectory = offered["trajectory"]
        prompt, reply = map(joined, prompt_and_reply(trajectory))
        given = [prompt, reply, list(trajectory.prompt_ids), list(trajectory.token_ids)]
        return given, accepted(function, {k: v for k, v in {**row_of(trajectory), **args}.items() if k not in by_place})

    return adapt(function, arguments, takes=("trajectory", *needed))
