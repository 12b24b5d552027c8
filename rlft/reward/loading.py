"""Reward functions: finding them by name, hashing their sources, and writing a program that repeats a failed call.

Loading runs the module's code: it happens in the scoring processes, and in the driver only with `workers: 0`.
"""

from __future__ import annotations

import ast
import functools
import inspect
import keyword
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlft.common import by_path, user_folder
from rlft.reward import systems
from rlft.reward.contract import OFFERED, RewardFunction, ignore
from rlft.reward.source import source_file

REPRODUCE_LIMIT = 100_000
"""Longest program that `reproduce` writes, in characters: the system takes 128 KiB after `python -c`."""

_IMPORTS = {
    **{name: f"from rlft.types import {name}" for name in ("Completion", "Group", "Task", "Trajectory", "Turn")},
    **{name: f"from rlft.types import {name}" for name in ("Abstain", "Failed", "Score")},
    "build": "from rlft.reward.loading import build",
    "Decimal": "from decimal import Decimal",
    "Fraction": "from fractions import Fraction",
    "datetime": "import datetime",
    "ignore": "from rlft.reward.contract import ignore",
    "inf": "from math import inf",
    "load": "from rlft.reward.loading import load",
    "TrainerState": "from rlft.reward.contract import TrainerState",
    "nan": "from math import nan",
}
"""What the repr of plain data refers to, and the line that makes it evaluate."""


def load(path: str) -> Any:
    """The function or class that `path` names, or what makes another system's of its `args`; see `build`.

    Raises:
        ValueError: as `by_path.import_object` does, or what is there cannot be called.
    """
    if systems.split(path)[0]:
        return systems.loader(path)
    found = by_path.import_object(path, shipped=systems.SHIPPED)
    if not callable(found):
        name = path.rpartition(":")[2]
        raise ValueError(f"{path}: {name!r} is a {type(found).__name__}, neither a function nor a class")
    return found


def build(found: Any, path: str, args: Mapping[str, Any]) -> tuple[RewardFunction, bool]:
    """The reward itself, of what `load` gave: an object of a class, or what a function makes that takes nothing of a
    sample.

    Returns:
        (reward, whether `args` are used up by that; else each call gets them)

    Raises:
        ValueError: it does not take these `args`, making it fails, or an object cannot be called; or what another
            system has there cannot be used.
    """
    if systems.split(path)[0]:
        return found(args), True
    is_class = inspect.isclass(found)
    if not is_class and not _is_factory(found, args):
        return found, False
    what = f"reward {path}: {'its __init__' if is_class else 'it'}"
    parameters = inspect.signature(found).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in args:
        if name not in parameters and not takes_any:
            hint = by_path.did_you_mean(name, parameters)
            raise ValueError(f"{what} has no parameter {name!r}.{hint} It has {', '.join(parameters) or 'none'}.")
    for name, p in parameters.items():
        if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and name not in args:
            raise ValueError(f"{what} needs a value for {name!r}: give it in `args`")
    try:
        made = found(**args)
    except Exception as error:
        raise ValueError(f"reward {path}: making it from its args failed:\n{by_path.describe_error(error)}") from error
    if callable(made):
        return made, True
    if is_class:
        raise ValueError(f"reward {path}: objects of this class cannot be called; give it a method `__call__`")
    return found, False  # a reward that looks at nothing


def _is_factory(found: Any, args: Mapping[str, Any]) -> bool:
    """Whether a function takes nothing of a sample and all that it needs is there."""
    try:
        parameters = inspect.signature(found).parameters.values()
    except (TypeError, ValueError):
        return False
    if any(p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL, p.POSITIONAL_ONLY) for p in parameters):
        return False
    return all(p.name not in OFFERED and (p.name in args or p.default is not p.empty) for p in parameters)


def absolute_path_of(path: str) -> str:
    """A reward's path as an absolute one, so that it names the same function from any working directory."""
    if systems.split(path)[0]:
        return systems.with_absolute_name(path)
    return by_path.with_absolute_file(path, shipped=systems.SHIPPED)


def reward_sources(path: str, function: RewardFunction) -> dict[str, str]:
    """sha256 of the file that a reward's path names and of the one that defines it, and of what these import of their
    folders.

    The two differ where a file makes its reward with something else's function, as `reward = clip(inner, 0, 1)` does.
    Decorators and `partial` are looked through; a function may name its file as `source_file`.

    Args:
        function: what `build` made of the path.

    Returns:
        see `user_folder.sources`.

    Raises:
        ValueError: if it comes from no file.
    """
    files = [file for file in (source_file(path), _defining_file(function)) if file]
    if not files:
        raise ValueError(f"reward {path}: {function!r} comes from no file; wrap it in a `def` in a file")
    return user_folder.sources(*files)


def _defining_file(function: RewardFunction) -> Path | None:
    if named := getattr(function, "source_file", ""):
        return Path(named)
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    module = sys.modules.get(function.__module__)
    for file in (code and code.co_filename, module and getattr(module, "__file__", None)):
        if file and Path(file).is_file():
            return Path(file)
    return None


def reproduce(
    path: str, arguments: Mapping[str, Any], *, is_async: bool, made_with: Mapping[str, Any] | None = None
) -> str:
    """A program for `python -c` that calls a reward with these arguments and prints what it returns.

    `made_with` are the `args` that made the reward, where calls do not get them. Arguments that are not plain data or
    do not fit a command line cannot be written: the program says so.
    """
    values = {name: "ignore" if value is ignore else repr(value) for name, value in arguments.items()}
    if all(name.isidentifier() and not keyword.iskeyword(name) for name in values):
        listed = ", ".join(f"{name}={value}" for name, value in values.items())
    else:  # a column whose name is no Python name arrives in **kwargs
        listed = f"**{{{', '.join(f'{name!r}: {value}' for name, value in values.items())}}}"
    where = repr(absolute_path_of(path))
    function = f"load({where})" if made_with is None else f"build(load({where}), {where}, {dict(made_with)!r})[0]"
    call = f"{function}({listed})"
    problem = "are too long" if len(call) > REPRODUCE_LIMIT else ""
    names: set[str] = set()
    if not problem:
        try:
            names = {node.id for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Name)}
        except (SyntaxError, RecursionError, MemoryError):
            problem = "are not all plain data"
        if unknown := sorted(names - _IMPORTS.keys() - {"set", "frozenset", "bytearray"}):
            problem = f"contain {unknown[0]}(...), which is not plain data"
    if problem:
        return f"raise SystemExit({f'the arguments of {path} {problem}; take the sample from the rollouts'!r})"
    imports = [_IMPORTS[name] for name in sorted(names & _IMPORTS.keys())]
    if is_async:
        return "\n".join(["import asyncio", *imports, f"print(asyncio.run({call}))"])
    return "\n".join([*imports, f"print({call})"])
