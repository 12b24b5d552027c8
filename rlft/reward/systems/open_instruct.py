"""Verifiers of open-instruct (https://github.com/allenai/open-instruct): classes of `VerifierFunction`.

An object is made once; `args` are the fields of its `verifier_config`, and what its `__init__` names. It is called with
the tokens, the text, the answer as `label` and the prompt as `query`. The score counts with the verifier's own weight,
its cost is observed.
"""

from __future__ import annotations

import argparse
import inspect
import reprlib
from collections.abc import Mapping
from typing import Any

from rlft.common.by_path import describe_error
from rlft.reward.contract import RewardFunction, prompt_and_reply
from rlft.reward.systems.common import accepted, adapt, find, joined, method, parameters_of, unwrap_single

_BASE = "VerifierFunction"


def load(name: str, args: Mapping[str, Any]) -> RewardFunction:
    """The verifier that `name` names.

    Raises:
        ValueError: it is no such class, or cannot be made of `args`.
    """
    where, found = f"reward open_instruct:{name}", find(name)
    if not inspect.isclass(found):
        raise ValueError(f"{where}: it is no class; name a VerifierFunction")
    verifier = _object(found, args, where)
    weight = float(getattr(verifier, "weight", 1.0))
    # The base class's `async_call` is `__call__` in a thread: only one of the verifier's own is something else.
    definer = next((cls.__name__ for cls in found.__mro__ if "async_call" in vars(cls)), _BASE)
    call = method(verifier, "__call__" if definer == _BASE else "async_call")

    def arguments(offered: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        trajectory = offered["trajectory"]
        prompt, _ = prompt_and_reply(trajectory)
        query = {"query": joined(prompt), "rollout_state": {}}
        return [list(trajectory.token_ids), trajectory.text, trajectory.task.answer], accepted(call, query)

    def result(verdict: Any) -> dict[str, Any]:
        score = getattr(verdict, "score", None)
        if score is None:
            raise ValueError(f"expected a VerificationResult, got {reprlib.repr(verdict)}")
        return {"score": weight * unwrap_single(score), "cost": unwrap_single(getattr(verdict, "cost", 0.0))}

    return adapt(call, arguments, result, takes=("trajectory",))


def _object(cls: Any, args: Mapping[str, Any], where: str) -> Any:
    parameters = parameters_of(cls, where)
    given = {key: value for key, value in args.items() if key in parameters and key != "verifier_config"}
    rest = {key: value for key, value in args.items() if key not in given}
    if rest and "verifier_config" not in parameters:
        raise ValueError(f"{where}: {cls.__name__} does not take args.{min(rest)}; it has {', '.join(parameters)}")
    try:
        if rest:
            config = getattr(cls, "get_config_class", lambda: argparse.Namespace)()
            given["verifier_config"] = config(**rest)
        return cls(**given)
    except Exception as error:
        raise ValueError(f"{where}: making it from `args` failed:\n{describe_error(error)}") from error
