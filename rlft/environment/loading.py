"""Loading the environment that a config names, and adding measured difficulties to its tasks.

`args.difficulty_file` is for every environment whose function has no such parameter: a JSON-lines file with `id` and
`difficulty`, as `rlft env measure` writes it. The difficulties become a column of the training tasks.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlft.common import user_folder
from rlft.common.by_path import describe_error, did_you_mean, import_function, import_object, source_file
from rlft.common.rows import read_rows
from rlft.config import EnvironmentConfig, TaskSource
from rlft.environment import systems
from rlft.environment.contract import Environment, check
from rlft.environment.mix import mix
from rlft.types import Task

DIFFICULTY_FILE = "difficulty_file"


def load(config: EnvironmentConfig) -> Environment:
    """Call the environment's function and check what it returned; of a mix, all of them, as one environment.

    Raises:
        ValueError: no such function, an argument that it does not take, or an environment that `contract.check`
        refuses.
    """
    if not config.mix:
        return _load(config)
    loaded = {}
    for each in config.mix:
        try:
            loaded[each.name] = _load(each, prefix=f"{each.name}/")
        except ValueError as error:
            raise ValueError(f"environment.mix, {each.name}: {error}") from None
    return mix(loaded, {each.name: each.weight for each in config.mix})


def _load(config: TaskSource, *, prefix: str = "") -> Environment:
    """Args: prefix: what ids of its tasks may begin with in a file of difficulties."""
    system, name = systems.split(config.path)
    if system:
        _check_name(system, name, config.path)
        function: Callable[..., Any] = functools.partial(systems.loader(system), name)
    else:
        function = import_function(config.path, shipped="environments")
    args = dict(config.args)
    takes_file = DIFFICULTY_FILE in inspect.signature(function).parameters
    difficulty_file = "" if takes_file else str(args.pop(DIFFICULTY_FILE, ""))
    _check_arguments(function, config.path, args)
    try:
        environment = function(**args)
    except ValueError as error:
        raise ValueError(f"environment {config.path}: {error}") from error
    except Exception as error:  # whatever a user's code raises
        raise ValueError(f"environment {config.path} raised:\n{describe_error(error)}") from error
    if not isinstance(environment, Environment):
        raise ValueError(
            f"environment {config.path} returned {type(environment).__name__}; return "
            "rlft.environment.contract.Environment"
        )
    try:
        check(environment)
    except ValueError as error:
        raise ValueError(f"environment {config.path}: {error}") from None
    return with_difficulty(environment, difficulty_file, prefix) if difficulty_file else environment


def identity(path: str) -> str:
    """What identifies an environment in a run's provenance: one hash or version of `sources`, whose errors it has."""
    return user_folder.combined(sources(path))


def sources(path: str) -> dict[str, str]:
    """The sources that make an environment: the file that the path names and the one that defines what is there.

    Returns:
        see `user_folder.sources`; of one that another system's package makes, the package's version by its name.

    Raises:
        ValueError: there is no such file or package.
    """
    system, name = systems.split(path)
    if system and not (systems.SYSTEMS[system].takes_path and ":" in name):
        return {system: systems.identity(system, name)}
    found: Any = import_object(name, shipped="environments")
    file = inspect.getsourcefile(inspect.unwrap(found))
    assert file is not None  # it was just loaded from one
    named = source_file(name, shipped="environments")
    return user_folder.sources(*([named] if named else []), Path(file))


def _check_name(system: str, name: str, path: str) -> None:
    if not name:
        raise ValueError(f"environment.path: {path!r} names no environment; write {systems.SYSTEMS[system].syntax}")


def with_difficulty(environment: Environment, file: str, prefix: str = "") -> Environment:
    """Add the difficulties that a file holds to the tasks, in the column `difficulty`.

    Args:
        prefix: what an id may begin with in the file.

    Raises:
        ValueError: the file is not readable, or is about other tasks.
    """
    measured: dict[str, float] = {}
    for where, row in read_rows(file, name=f"environment.args.{DIFFICULTY_FILE}"):
        value = row.get("difficulty")
        if not isinstance(row.get("id"), str) or isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f'{where}: expected {{"id": "...", "difficulty": 0.25}}, found {dict(row)!r}')
        measured[row["id"].removeprefix(prefix)] = float(value)
    if not any(task.id in measured for task in environment.train):
        raise ValueError(
            f"{file} has the difficulty of {len(measured)} tasks, and none of them is a training task here (the first "
            f"is {environment.train[0].id!r}): it was measured with other arguments; measure again with `rlft env "
            "measure`"
        )

    def known(task: Task) -> Task:  # rewards may name the column, so every task has it
        return replace(task, columns={**task.columns, "difficulty": measured.get(task.id)})

    return replace(
        environment, train=list(map(known, environment.train)), heldout=list(map(known, environment.heldout))
    )


def _check_arguments(function: Any, path: str, args: dict[str, Any]) -> None:
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for name in args:
        if name not in parameters:
            raise ValueError(
                f"environment.args.{name}: {path} takes {', '.join(parameters) or 'no arguments'}."
                f"{did_you_mean(name, parameters)}"
            )
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in args:
            raise ValueError(f"environment.args: {path} needs the argument {name!r}")
