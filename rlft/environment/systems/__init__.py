"""Environments of other systems, named by a prefix: `gymnasium:FrozenLake-v1`, `reasoning_gym:chain_sum`.

Each system has a module here whose `load(name, **args)` makes an `Environment` of what the system offers. It is
imported when a config names it: what a run does not use need not be installed.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A system that environments are taken from."""

    distribution: str
    """The package to install; empty where the user's own file is enough."""
    syntax: str
    """How `environment.path` names one of its environments."""
    takes_path: bool = False
    """Whether what follows the prefix may be the path of a class or function."""


SYSTEMS: Mapping[str, System] = {
    "reasoning_gym": System(distribution="reasoning-gym", syntax="reasoning_gym:NAME"),
    "gymnasium": System(distribution="gymnasium", syntax="gymnasium:ID"),
    "textarena": System(distribution="textarena", syntax="textarena:ID"),
    "verifiers": System(distribution="verifiers", syntax="verifiers:ENV or verifiers:FILE.py:NAME", takes_path=True),
    "openenv": System(distribution="openenv", syntax="openenv:FILE.py:CLASS", takes_path=True),
    "trl": System(distribution="", syntax="trl:FILE.py:CLASS", takes_path=True),
    "skyrl_gym": System(distribution="", syntax="skyrl_gym:FILE.py:CLASS", takes_path=True),
}


def split(path: str) -> tuple[str, str]:
    """Split a path into (system, name within it); the system is empty for a user's own function."""
    system, _, name = path.partition(":")
    return (system, name) if system in SYSTEMS else ("", path)


def loader(system: str) -> Callable[..., Any]:
    """The function `load(name, **args)` that makes a system's environments."""
    load: Callable[..., Any] = importlib.import_module(f"{__name__}.{system}").load
    return load


def identity(system: str, name: str) -> str:
    """Package and version of another system's environment, for the run's provenance.

    Raises:
        ValueError: the package is not installed.
    """
    distribution = SYSTEMS[system].distribution
    try:
        return f"{distribution} {importlib.metadata.version(distribution)}"
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(f"{system}:{name}: the package {distribution} is not installed") from None
