"""Reward functions of slime (https://github.com/THUDM/slime): `custom_rm(args, sample)`, or with a list of samples.

`args` of the spec are the attributes of slime's command line that the function reads. A sample has what is known when a
reply is scored; a task's columns are its metadata, and `label` is the answer.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, ClassVar

from rlft.reward.contract import RewardFunction, prompt_and_reply
from rlft.reward.systems.common import adapt, find, joined, parameters_of, required, unwrap_single
from rlft.types import Trajectory


class Status(Enum):
    """How a sample's generation ended, under slime's names."""

    PENDING = "pending"
    COMPLETED = "completed"
    TRUNCATED = "truncated"
    ABORTED = "aborted"
    FAILED = "failed"


@dataclass(kw_only=True)
class Sample:
    """What slime tells a reward of one reply, where slime's own class is not imported."""

    Status: ClassVar[type[Enum]] = Status
    index: int
    """Position within the group."""
    prompt: Any
    """Text, or messages with `chat: true`."""
    tokens: list[int]
    """Prompt and reply."""
    response: str
    response_length: int
    """Tokens of the reply."""
    label: Any
    """The task's answer."""
    metadata: dict[str, Any]
    """The task's columns."""
    status: Enum
    loss_mask: list[int]
    """1 on tokens that the policy sampled; length of the reply."""
    rollout_log_probs: list[float]
    """Log-probs of the reply's tokens."""
    group_index: int | None = None
    reward: Any = None
    remove_sample: bool = False
    train_metadata: dict[str, Any] | None = None
    weight_versions: list[str] = field(default_factory=list)


class _Settings(argparse.Namespace):
    """slime's command line, of which only `args` are there."""

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"it reads args.{name}, which stands in slime's command line: give it in the reward's `args`"
        )


def load(name: str, args: Mapping[str, Any]) -> RewardFunction:
    """The reward that `name` names.

    Raises:
        ValueError: it is a generate function or asks for more than slime gives.
    """
    where, function, settings = f"reward slime:{name}", find(name), {"reward_key": None, **args}
    named = [p.name for p in parameters_of(function, where).values() if p.kind is p.POSITIONAL_OR_KEYWORD]
    if inspect.isclass(function) or len(named) < 2:
        raise ValueError(f"{where}: slime calls a function custom_rm(args, sample); this is none")
    if missing := required(function, named[:2]):
        raise ValueError(
            f"{where}: its parameter {missing[0]!r} is none that slime gives a reward. Functions that generate "
            "(args, sample, sampling_params) need its engine"
        )
    has_list = (
        named[1] == "samples" or "list" in str(inspect.signature(function).parameters[named[1]].annotation).lower()
    )

    def value_of(returned: Any) -> Any:
        key = settings["reward_key"]
        if not isinstance(returned, Mapping):
            return unwrap_single(returned)
        if key not in returned:
            keys = ", ".join(map(str, returned))
            raise ValueError(f"it returned a dict with {keys}: say in args.reward_key which of them is the reward")
        return {**{str(k): unwrap_single(v) for k, v in returned.items()}, "score": unwrap_single(returned[key])}

    def of_one(offered: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        return [_Settings(**settings), _sample(offered["trajectory"])], {}

    def of_many(offered: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        return [_Settings(**settings), [_sample(each) for each in offered["group"].trajectories]], {}

    if has_list:
        return adapt(function, of_many, lambda values: [value_of(value) for value in values], takes=("group",))
    return adapt(function, of_one, value_of, takes=("trajectory",))


def _sample(trajectory: Trajectory) -> Any:
    theirs = getattr(sys.modules.get("slime.utils.types"), "Sample", None)
    cls: Any = theirs or Sample
    prompt, reply = prompt_and_reply(trajectory)
    finished = {"stop": "COMPLETED", "length": "TRUNCATED"}[trajectory.finish_reason]
    own = trajectory.task.columns.get("metadata")
    return cls(
        index=trajectory.sample_index,
        prompt=joined(prompt),
        tokens=[*trajectory.prompt_ids, *trajectory.token_ids],
        response=joined(reply),
        response_length=len(trajectory.token_ids),
        label=trajectory.task.answer,
        metadata=dict(own if isinstance(own, Mapping) else trajectory.task.columns),
        status=cls.Status[finished],
        loss_mask=[int(is_action) for is_action in trajectory.action_mask],
        rollout_log_probs=list(trajectory.logprobs),
    )
