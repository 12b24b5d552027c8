"""Rewards of verifiers (https://github.com/PrimeIntellect-ai/verifiers): functions, rubrics, and tasks of version 0.4.

What is named can be a reward function (of one sample, or over a group: `completions`, `answers`, ...), a `Rubric`, a
class or function that makes one, an environment, whose rubric is taken, a function or task with `@vf.reward`, or the id
of an installed environment. Functions are called here and not by the rubric, which scores an error 0.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
from collections.abc import Mapping
from typing import Any

from rlft.common import by_path
from rlft.reward.contract import RewardFunction
from rlft.reward.systems import SHIPPED
from rlft.reward.systems.common import build, check_args, find
from rlft.reward.systems.verifiers.rubrics import MANY, ONE, Part, of_parts, parts_of
from rlft.reward.systems.verifiers.tasks import is_task, of_task, of_trace


def load(name: str, args: Mapping[str, Any]) -> RewardFunction:
    """The reward that `name` names.

    Raises:
        ValueError: there is no reward there, or it needs what only a running environment of verifiers has.
    """
    where = f"reward verifiers:{name}"
    if ":" not in name:
        environment = _installed(name, args, where)
        return of_parts(parts_of(environment, where), where, file=_file(name.replace("-", "_")))
    found = find(name)
    parameters = set(inspect.signature(found).parameters) if inspect.isfunction(found) else set()
    if "trace" in parameters or hasattr(found, "_vf_weight"):
        return of_trace(found, args, where)
    if inspect.isclass(found) and is_task(found):
        return of_task(found, args, where)
    if {*ONE, *MANY} & parameters and not found.__name__.startswith("load_"):
        check_args(found, args, where)
        objects = dict(args)
        if "parser" in parameters - args.keys():
            objects["parser"] = _parser(where)
        return of_parts([Part(function=found, objects=objects)], where, wrapped=found)
    if callable(found):
        found = build(found, args, where)
    elif args:
        raise ValueError(f"{where}: it is made already, so that there is nothing to give `args` to")
    target = by_path.split(name, shipped=SHIPPED)[0]
    return of_parts(parts_of(found, where), where, file=_file(str(target)))


def _installed(name: str, args: Mapping[str, Any], where: str) -> Any:
    from rlft.environment.systems.common import keeping_signal_handlers, require

    vf = require("verifiers", "verifiers")
    if not hasattr(vf, "load_environment"):
        raise ValueError(f"{where}: this verifiers has no load_environment any more; name a task, FILE.py:CLASS")
    with keeping_signal_handlers():
        return vf.load_environment(name, **args)


def _file(target: str) -> str:
    return target if target.endswith(".py") else str(getattr(sys.modules.get(target), "__file__", "") or "")


def _parser(where: str) -> Any:
    """The parser that a rubric without one has."""
    if importlib.util.find_spec("verifiers.legacy") is None:
        raise ValueError(f"{where}: it wants a `parser`, which is a part of verifiers before 0.4: install that")
    import verifiers

    return verifiers.Parser()
