"""Damaged records: an error where somebody builds on them, left out and said where a person looks at the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_NOTES: ContextVar[list[str] | None] = ContextVar("rlft_damage", default=None)


@contextmanager
def left_out() -> Iterator[list[str]]:
    """Within the block readers leave out what is damaged instead of refusing it.

    What they left out is in the list that it gives, once each; a block around this one gets it, too. Whoever decides
    something in such a block has to tell what is in the list.
    """
    outer, notes = _NOTES.get(), list[str]()
    token = _NOTES.set(notes)
    try:
        yield notes
    finally:
        _NOTES.reset(token)
        for note in notes if outer is not None else ():
            _add(note, outer)


def refuse(error: ValueError, *, instead: str = "") -> None:
    """Raise the error, which says what is damaged; within `left_out` note it, for the caller to go on without that.

    Args:
        instead: what to do where the error is raised.
    """
    notes = _NOTES.get()
    if notes is None:
        if instead:
            raise ValueError(f"{error}; {instead}") from error
        raise error
    _add(f"left out as damaged: {error}", notes)


def _add(note: str, notes: list[str] | None) -> None:
    if notes is not None and note not in notes:
        notes.append(note)
