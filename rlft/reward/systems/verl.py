"""Reward functions of verl (https://github.com/verl-project/verl): `compute_score` for a sample or for many.

`data_source`, `reward_model` and `extra_info` are columns, as in verl's data; a task without a `reward_model` is
compared with its answer. `args` are verl's `reward_kwargs`; `args.data_source` stands in for a column.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from rlft.reward.contract import RewardFunction
from rlft.reward.systems.common import accepted, adapt, check_args, find, parameters_of, required
from rlft.types import Trajectory

_ONE = ("data_source", "solution_str", "ground_truth", "extra_info")
_MANY = ("data_sources", "solution_strs", "ground_truths", "extra_infos")
_SERVER = ("reward_router_address", "reward_model_tokenizer")


def load(name: str, args: Mapping[str, Any]) -> RewardFunction:
    """The reward that `name` names.

    Raises:
        ValueError: it is a reward manager, or needs what verl alone can give.
    """
    where, own = f"reward verl:{name}", dict(args)
    source = own.pop("data_source", None)
    function = find(name)
    if inspect.isclass(function):
        raise ValueError(
            f"{where}: it is a class. A reward manager scores the tensors of verl's rollouts with verl's tokenizer; "
            "name the function that it calls, such as compute_score"
        )
    parameters = parameters_of(function, where)
    supplied = _MANY if set(_MANY) & set(parameters) else _ONE
    check_args(function, own, where)
    for missing in required(function, (*supplied, *own)):
        if missing in _SERVER:
            raise ValueError(f"{where}: its parameter {missing!r} is of verl's reward model server, which is not there")
        raise ValueError(f"{where}: verl gives a reward {', '.join(supplied)}; give {missing!r} in `args`")
    needs_source = supplied[0] in parameters and source is None
    column = ("data_source",) if needs_source and parameters[supplied[0]].default is inspect.Parameter.empty else ()

    def values(trajectory: Trajectory) -> tuple[Any, ...]:
        columns, answer = trajectory.task.columns, trajectory.task.answer
        model, info = columns.get("reward_model"), columns.get("extra_info")
        truth = model.get("ground_truth", answer) if isinstance(model, Mapping) else answer
        extra = {**(info if isinstance(info, Mapping) else columns), "num_turns": len(trajectory.turns)}
        chosen = source if source is not None else columns.get("data_source")
        return chosen, trajectory.text, truth, {**extra, "rollout_reward_scores": {}}

    def of_one(offered: Mapping[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        given = dict(zip(_ONE, values(offered["trajectory"]), strict=True))
        return (), accepted(function, {**_known(given), **own})

    def of_many(offered: Mapping[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        rows = [values(trajectory) for trajectory in offered["group"].trajectories]
        given = {name: [row[index] for row in rows] for index, name in enumerate(_MANY)}
        return (), accepted(function, {**given, **own})

    if supplied is _MANY:
        return adapt(function, of_many, takes=("group", *column))
    return adapt(function, of_one, takes=("trajectory", *column))


def _known(given: Mapping[str, Any]) -> dict[str, Any]:
    """Without a data source that nobody named: the function's own default holds."""
    return {name: value for name, value in given.items() if name != "data_source" or value is not None}
