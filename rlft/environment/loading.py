"""From the config's path to an environment."""

from __future__ import annotations

import inspect
from typing import Any

from rlft.config import EnvironmentConfig
from rlft.environment.contract import Environment, check
from rlft.imports import describe_error, did_you_mean, import_function


def load(config: EnvironmentConfig) -> Environment:
    """Call the environment's function and check what it returned.

    Raises:
        ValueError: no such function, an argument that it does not take, or an environment that `contract.check`
        refuses.
    """
    function = import_function(config.path, shipped="environments")
    _check_arguments(function, config)
    try:
        environment = function(**config.args)
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
    return environment


def _check_arguments(function: Any, config: EnvironmentConfig) -> None:
    parameters = inspect.signature(function).parameters
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
        return
    for name in config.args:
        if name not in parameters:
            raise ValueError(
                f"environment.args.{name}: {config.path} takes {', '.join(parameters) or 'no arguments'}."
                f"{did_you_mean(name, parameters)}"
            )
    for name, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and name not in config.args:
            raise ValueError(f"environment.args: {config.path} needs the argument {name!r}")
