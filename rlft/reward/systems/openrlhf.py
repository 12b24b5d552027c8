"""Reward functions of OpenRLHF (https://github.com/OpenRLHF/OpenRLHF): `reward_func(queries, prompts, labels)`.

Called with lists of one, as OpenRLHF does. A query is the prompt and the reply; neither has what a chat template writes
around messages, and a function whose code speaks of such marks is warned about. `rewards` is the value, `scores` and
the numbers in `extra_logs` are observed.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any

from rlft.reward.contract import RewardFunction, prompt_and_reply
from rlft.reward.systems.common import adapt, check_args, find, joined, parameters_of, required, unwrap_single, words_of

_MARK = re.compile(r"<\|[^|<>\n]*\|>|</?s>")
"""What templates mark messages with."""


def load(name: str, args: Mapping[str, Any]) -> RewardFunction:
    """The reward that `name` names.

    Raises:
        ValueError: it is an agent, or asks for something else than queries, prompts and labels.
    """
    where, function = f"reward openrlhf:{name}", find(name)
    if inspect.isclass(function):
        raise ValueError(
            f"{where}: it is a class. Agents (AgentInstanceBase, AgentExecutor) lead the conversation and sample with "
            "OpenRLHF's engine: write theirs as an environment, and the scoring as a reward_func"
        )
    positional = [p for p in parameters_of(function, where).values() if p.kind in (p.POSITIONAL_OR_KEYWORD,)]
    if len(positional) < 3:
        raise ValueError(f"{where}: OpenRLHF calls reward_func(queries, prompts, labels), and it takes fewer")
    check_args(function, args, where)
    if missing := required(function, (*(p.name for p in positional[:3]), *args)):
        raise ValueError(
            f"{where}: OpenRLHF gives it queries, prompts and labels, not {missing[0]!r}; put it in `args`"
        )

    marks = sorted({mark for text in words_of(function)[1] for mark in _MARK.findall(text.replace("\\", ""))})
    warning = (
        f"{where}: its code speaks of {', '.join(marks)}, which no query holds here: queries and prompts are "
        "without what a chat template writes around messages. What is split there stays whole, prompt included; "
        "take the reply as query[len(prompt):]"
    )
    to_say = [warning] if marks else []

    def arguments(offered: Mapping[str, Any]) -> tuple[list[list[Any]], Mapping[str, Any]]:
        if to_say:  # with the first sample, so that `rlft reward try` shows it
            warnings.warn(to_say.pop(), stacklevel=1)
        trajectory = offered["trajectory"]
        prompt, reply = map(joined, prompt_and_reply(trajectory))
        return [[prompt + reply], [prompt], [trajectory.task.answer]], args

    return adapt(function, arguments, _result, takes=("trajectory",))


def _result(value: Any) -> Any:
    """Its `rewards`; without them there is nothing to train on.

    Raises:
        ValueError: there are none.
    """
    if not isinstance(value, Mapping):
        return unwrap_single(value)
    if value.get("rewards") is None:
        raise ValueError(f"reward_func returned no `rewards`, only {', '.join(map(str, value)) or 'nothing'}")
    noted = {**(value.get("extra_logs") or {}), "scores": value.get("scores")}
    return {
        **{str(name): unwrap_single(each) for name, each in noted.items()},
        "score": unwrap_single(value["rewards"]),
    }
