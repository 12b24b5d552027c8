"""Reward functions of other systems, named by a prefix: `trl:rewards.py:accuracy`, `reasoning_gym:chain_sum`.

Each system has a module here whose `load(name, args)` makes an ordinary reward of what was written for that system,
unchanged. It is imported when a config names it: what a run does not use need not be installed.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.common import by_path

SHIPPED = "rewards"
"""The package of ours in which a path is looked up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A system that reward functions are taken from."""

    syntax: str
    """How a reward's `path` names one of them."""
    takes_path: bool = True
    """Whether what follows the prefix is the path of a function or class, which may be in a file."""


SYSTEMS: Mapping[str, System] = {
    "trl": System(syntax="trl:FILE.py:NAME"),
    "verl": System(syntax="verl:FILE.py:compute_score"),
    "openrlhf": System(syntax="openrlhf:FILE.py:reward_func"),
    "verifiers": System(syntax="verifiers:FILE.py:NAME"),
    "areal": System(syntax="areal:FILE.py:NAME"),
    "slime": System(syntax="slime:FILE.py:NAME"),
    "swift": System(syntax="swift:FILE.py:NAME"),
    "tinker": System(syntax="tinker:FILE.py:NAME"),
    "open_instruct": System(syntax="open_instruct:FILE.py:CLASS"),
    "reasoning_gym": System(syntax="reasoning_gym:NAME", takes_path=False),
    "openai": System(syntax="openai:GRADER.json", takes_path=False),
}


def split(path: str) -> tuple[str, str]:
    """Split a path into (system, name within it); the system is empty for an ordinary reward.

    Raises:
        ValueError: it has a prefix that is no system's.
    """
    system, _, name = path.partition(":")
    if system in SYSTEMS:
        return system, name
    if ":" in name and system.isidentifier():
        known = ", ".join(SYSTEMS)
        raise ValueError(f"{path}: {system!r} is no system.{by_path.did_you_mean(system, SYSTEMS)} There are {known}.")
    return "", path


def loader(path: str) -> Callable[[Mapping[str, Any]], Callable[..., Any]]:
    """The function that makes the reward which a path with a prefix names, of the `args` of its spec."""
    system, name = split(path)
    return functools.partial(importlib.import_module(f"{__name__}.{system}").load, name)


def grader_file(path: str) -> Path | None:
    """The grader's file that a path of OpenAI's graders names; None for every other path."""
    system, name = split(path)
    return Path(name).expanduser() if system == "openai" else None


def with_absolute_name(path: str) -> str:
    """A path with a prefix whose file, if it names one, is an absolute one."""
    system, name = split(path)
    if system == "openai":
        return f"{system}:{Path(name).expanduser().absolute()}"
    return f"{system}:{by_path.with_absolute_file(name, shipped=SHIPPED)}" if ":" in name else path
