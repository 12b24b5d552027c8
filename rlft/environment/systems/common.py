"""Helpers for other systems' environments: optional packages, rows of data, random numbers of one episode."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import json
import random
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from rlft.common.rows import is_heldout, read_rows, row_hash
from rlft.types import Message

T = TypeVar("T")


def require(module: str, extra: str) -> ModuleType:
    """Import a package that an extra of rlft installs.

    Raises:
        ValueError: it is not installed; names the extra.
    """
    try:
        with EpisodeRandom(0):  # some draw random numbers when they are imported
            return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and module.partition(".")[0] != error.name.partition(".")[0]:
            raise  # installed, but broken: its own message says more
        raise ValueError(
            f"the package {module.partition('.')[0]!r} is not installed: pip install 'rlft[{extra}]'"
        ) from None


class EpisodeRandom:
    """Random numbers of one episode, for code that takes them from the global generators of `random` and NumPy.

    Within `with` the globals continue this episode's stream; outside they are what they were. So an episode depends on
    its seed alone, however many episodes take turns, and nothing else in the process sees its draws.
    """

    def __init__(self, seed: int) -> None:
        """Start the stream; the same seed gives the same one."""
        self._python = random.Random(seed).getstate()
        self._numpy = np.random.RandomState(seed % 2**32).get_state()
        self._outside: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self._outside.append((random.getstate(), np.random.get_state()))
        random.setstate(self._python)
        np.random.set_state(self._numpy)

    def __exit__(self, *_: object) -> None:
        self._python, self._numpy = random.getstate(), np.random.get_state()
        python, numpy = self._outside.pop()
        random.setstate(python)
        np.random.set_state(numpy)

    async def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Await a coroutine whose own code, between its waits, draws from this stream."""
        return await _Resumed(coroutine, self)


class _Resumed:
    """A coroutine that runs under an episode's random numbers each time that it goes on."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], random_: EpisodeRandom) -> None:
        self._coroutine, self._random = coroutine, random_

    def __await__(self) -> Generator[Any, Any, Any]:
        resume: Any = self._coroutine.send
        value: Any = None
        try:
            while True:
                with self._random:
                    try:
                        waits_for = resume(value)
                    except StopIteration as end:
                        return end.value
                try:
                    value, resume = (yield waits_for), self._coroutine.send
                except GeneratorExit:  # nobody waits for it any more
                    raise
                except BaseException as error:  # cancelled, or what it waited for failed: the coroutine's to handle
                    value, resume = error, self._coroutine.throw
        finally:
            self._coroutine.close()


def rows_of(data: str | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows that stand in the config itself, or those of a file, hub id or function.

    Raises:
        ValueError: `rows.read_rows` cannot read them; or there are none.
    """
    rows = [dict(row) for _, row in read_rows(data, name="data")] if isinstance(data, str) else [dict(r) for r in data]
    if not rows:
        raise ValueError("data: there are no rows")
    return rows


def split_rows(
    rows: Sequence[Mapping[str, Any]], *, heldout: float, seed: int
) -> tuple[list[tuple[str, dict[str, Any]]], list[tuple[str, dict[str, Any]]]]:
    """Training and held-out rows with their ids; where a row goes depends on it and the seed, not on its place.

    Args:
        heldout: share of the rows that is held out.

    Returns:
        Pairs of id and row; a row that stands twice is taken once.
    """
    train: list[tuple[str, dict[str, Any]]] = []
    held_out: list[tuple[str, dict[str, Any]]] = []
    seen: set[str] = set()
    for row in rows:
        text = json.dumps(row, sort_keys=True, default=str)
        digest = row_hash(text, seed)
        if digest in seen:
            continue
        seen.add(digest)
        (held_out if is_heldout(digest, heldout) else train).append((digest[:16], dict(row)))
    return train, held_out


def as_messages(prompt: Any, where: str) -> tuple[Message, ...]:
    """A prompt of another system, which may be a text or messages, as messages.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(prompt, str):
        return (Message(role="user", content=prompt),)
    if not isinstance(prompt, Sequence):
        raise ValueError(f"{where}: expected text or a list of messages, got {type(prompt).__name__}")
    messages = []
    for message in prompt:
        fields = message if isinstance(message, Mapping) else getattr(message, "__dict__", {})
        if not isinstance(fields.get("content"), str) or not isinstance(fields.get("role"), str):
            raise ValueError(f"{where}: a message needs a role and a content that is text, got {message!r}")
        messages.append(Message(role=fields["role"], content=fields["content"]))
    return tuple(messages)


@contextlib.contextmanager
def keeping_signal_handlers() -> Iterator[None]:
    """Undo what the code within does to the handlers of Ctrl-C and of termination: those are the run's."""
    import signal

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)


def task_seeds(seed: int, count: int) -> list[int]:
    """Distinct seeds of `count` tasks, below 2**31, which every generator of other systems takes."""
    return random.Random(seed).sample(range(2**31), count)


def tasks_of(
    data: str | Sequence[Mapping[str, Any]] | None, *, size: int, heldout: float, seed: int
) -> tuple[list[tuple[str, dict[str, Any]]], list[tuple[str, dict[str, Any]]]]:
    """Rows for an environment class, see `split_rows`: the data's, or without data `size` rows with a seed each."""
    rows = [{"seed": number} for number in task_seeds(seed, size)] if data is None else rows_of(data)
    return split_rows(rows, heldout=heldout, seed=seed)


def accepted(function: Callable[..., Any], row: Mapping[str, Any]) -> dict[str, Any]:
    """The columns of a row that a function takes by name."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return dict(row)
    names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    return {key: value for key, value in row.items() if key in names}
