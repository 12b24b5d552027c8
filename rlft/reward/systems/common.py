"""Helpers for other systems' reward functions: finding and making them, and what they are called with."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from types import CodeType
from typing import Any

from rlft.common import by_path
from rlft.reward.contract import RewardFunction
from rlft.reward.systems import SHIPPED
from rlft.types import Trajectory

Arguments = tuple[Sequence[Any], Mapping[str, Any]]
"""Positional and named arguments of a call."""


def find(name: str) -> Any:
    """What `file.py:name` or `package.module:name` names; raises ValueError as `by_path.import_object` does."""
    return by_path.import_object(name, shipped=SHIPPED)


def parameters_of(function: Callable[..., Any], where: str) -> Mapping[str, inspect.Parameter]:
    """The parameters of a function, or those of a class's `__init__`.

    Raises:
        ValueError: it has no signature that can be read.
    """
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise ValueError(f"{where}: it is no function whose parameters can be read: {function!r}") from None


def takes_any(function: Callable[..., Any]) -> bool:
    """Whether a function has `**kwargs`."""
    return any(p.kind is p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())


def accepted(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that a function takes by name."""
    if takes_any(function):
        return dict(values)
    return {name: value for name, value in values.items() if name in inspect.signature(function).parameters}


def required(function: Callable[..., Any], supplied: Iterable[str]) -> list[str]:
    """The named parameters without a default that are not among those which the system supplies."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.items()
    known = set(supplied)
    return [name for name, p in parameters if p.kind in named and p.default is p.empty and name not in known]


def check_args(function: Callable[..., Any], args: Mapping[str, Any], where: str) -> None:
    """Raise ValueError where `args` has a name that the function or class does not take."""
    parameters = parameters_of(function, where)
    if takes_any(function):
        return
    for name in args:
        if name not in parameters:
            raise ValueError(
                f"{where}: args.{name} is not a parameter of it.{by_path.did_you_mean(name, parameters)} "
                f"It has {', '.join(parameters) or 'none'}."
            )


def build(maker: Callable[..., Any], args: Mapping[str, Any], where: str) -> Any:
    """An object of a class, or what a function makes that takes no samples.

    Raises:
        ValueError: it does not take these `args`, or making it fails.
    """
    check_args(maker, args, where)
    if missing := required(maker, args):
        raise ValueError(f"{where}: it is made once from `args`, which lack {', '.join(missing)}")
    try:
        return maker(**args)
    except Exception as error:
        raise ValueError(f"{where}: making it from `args` failed:\n{by_path.describe_error(error)}") from error


def adapt(
    target: Callable[..., Any],
    arguments: Callable[[Mapping[str, Any]], Arguments],
    result: Callable[[Any], Any] = lambda value: value,
    *,
    takes: Sequence[str],
    takes_columns: bool = False,
) -> RewardFunction:
    """An ordinary reward that calls another system's function.

    Its source hash and its failures are those of the other function, which stays reachable as `__wrapped__`.

    Args:
        arguments: makes that function's arguments of what a reward is offered.
        result: makes a reward's result of what it returns.
        takes: names that the reward asks for.
        takes_columns: whether it also gets everything else that is offered.
    """
    called: Callable[..., Any] = target if inspect.isroutine(target) else method(target, "__call__")

    async def call_async(**offered: Any) -> Any:
        positional, named = arguments(offered)
        return result(await called(*positional, **named))

    def call(**offered: Any) -> Any:
        positional, named = arguments(offered)
        value = called(*positional, **named)
        return _then(value, result) if inspect.isawaitable(value) else result(value)

    reward: Any = call_async if inspect.iscoroutinefunction(called) else call
    return describe(reward, called, takes=takes, takes_columns=takes_columns)


def describe(
    reward: Any,
    wrapped: Callable[..., Any] | None,
    *,
    takes: Sequence[str],
    takes_columns: bool = False,
    file: str = "",
) -> RewardFunction:
    """Give a reward the parameters that it asks for, and what it was made of.

    Args:
        wrapped: the function behind it, whose file is hashed.
        file: the file that defines it, where there is no such function.
    """
    while isinstance(wrapped, functools.partial):
        wrapped = wrapped.func
    if wrapped is not None:
        functools.update_wrapper(reward, wrapped)
    if file:
        reward.source_file = file
    parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in takes]
    if takes_columns:
        parameters.append(inspect.Parameter("columns", inspect.Parameter.VAR_KEYWORD))
    reward.__signature__ = inspect.Signature(parameters)
    made: RewardFunction = reward
    return made


def method(thing: Any, name: str) -> Any:
    """A method of an object or a class, which may be a special one."""
    return getattr(thing, name)


async def _then(value: Awaitable[Any], result: Callable[[Any], Any]) -> Any:
    return result(await value)


def words_of(function: Any) -> tuple[set[str], set[str]]:
    """(names, texts) in the code of a function, and of those of its module or class that it calls.

    Texts are constants and what global names stand for, patterns included; docstrings are none.
    """
    names, texts = set[str](), set[str]()
    _collect(function, names, texts, set())
    return names, texts


def _collect(function: Any, names: set[str], texts: set[str], seen: set[int]) -> None:
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function if inspect.isroutine(function) else method(function, "__call__"))
    code = getattr(function, "__code__", None)
    if code is None or id(code) in seen:
        return
    seen.add(id(code))
    own, constants = _words(code)
    known = getattr(function, "__globals__", {})
    names |= own
    texts |= (constants - {function.__doc__}) | {text for name in own for text in _texts(known.get(name))}
    owner = type(function.__self__) if inspect.ismethod(function) else None
    for called in (known.get(name) or getattr(owner, name, None) for name in sorted(own)):
        if inspect.isfunction(called) and called.__module__ == function.__module__:
            _collect(called, names, texts, seen)


def _words(code: CodeType) -> tuple[set[str], set[str]]:
    names, constants = set(code.co_names), {text for each in code.co_consts for text in _texts(each)}
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            more_names, more_constants = _words(inner)
            names, constants = names | more_names, constants | more_constants
    return names, constants


def _texts(value: Any) -> list[str]:
    """The texts that a constant holds."""
    if isinstance(value, re.Pattern):
        value = value.pattern
    if isinstance(value, tuple | list | set | frozenset):
        return [text for each in value for text in _texts(each)]
    return [value] if isinstance(value, str) else []


def joined(messages: Iterable[Mapping[str, Any]]) -> str:
    """Messages as one text, without the words that a chat template writes around them."""
    return "\n\n".join(str(message["content"]) for message in messages)


def row_of(trajectory: Trajectory) -> dict[str, Any]:
    """The row of the data set that the task was made of: its columns, and the answer."""
    task = trajectory.task
    return {"answer": task.answer, **task.columns}


def unwrap_single(value: Any) -> Any:
    """The only number of a list, array or tensor; anything else as it is."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    while isinstance(value, list | tuple) and len(value) == 1:
        value = value[0]
    return value
