"""Prompts' keys and values, of which each part is computed once: what several prompts begin with, and earlier turns.

Prompts of different tasks often begin alike: a system prompt, examples, descriptions of tools. They are laid out as a
tree, whose inner nodes are what several of them share. An episode's next prompt begins with the last one and with what
was sampled behind it, whose keys and values are kept from one call to the next.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol, TypeAlias

from rlft.common.beginnings import alike
from rlft.model.kernels.kv_cache import Span
from rlft.rollout.engines.contract import Request

WORTH = 16
"""Tokens that sharing a part has to save: keeping it and handing it to those behind it takes as long."""
WORTH_A_PASS = 256
"""The same where parts are computed before what stands behind them: one more pass reads all weights again."""
TOKENS_PER_PASS = 4096
"""Tokens that models compute together."""

Context: TypeAlias = Sequence[Span | int]
"""What a sequence continues, the first one first: known keys and values, then sequences of the same call, by their
indices, which continue the same."""


class Prefill(Protocol):
    """Computes keys and values, a part of a `forward.ForwardPass`."""

    packs_contexts: bool
    """Whether sequences behind contexts of any lengths are computed in one pass; else one pass for each length."""

    def prefill(self, sequences: Sequence[Sequence[int]], contexts: Sequence[Context]) -> list[Span]:
        """Keys and values of sequences of tokens, each of which stands behind its context; in as few passes as there is
        room for."""
        ...


@dataclass(frozen=True, slots=True)
class Part:
    """Tokens that several prompts begin with, behind those of another part."""

    parent: int | None
    """Index of the part before it; None where a prompt begins."""
    start: int
    """Tokens before it."""
    token_ids: tuple[int, ...]


def shared_parts(prompts: Sequence[Sequence[int]], *, worth: int) -> tuple[list[Part], list[int | None]]:
    """What of the prompts is worth computing once, as a tree.

    The last token of a prompt is never part of one: the first step of sampling computes it.

    Args:
        prompts: token ids; none is empty.
        worth: tokens that a part has to save.

    Returns:
        (the parts, each after the one that it follows; of each prompt the index of the last part that it has, or None)
    """
    parts: list[Part] = []
    part_of: list[int | None] = [None] * len(prompts)
    waiting: list[tuple[list[int], int, int | None]] = [
        (sorted(range(len(prompts)), key=lambda index: tuple(prompts[index])), 0, None)
    ]
    while waiting:
        members, start, parent = waiting.pop()
        if len(members) < 2:
            continue
        end = min(alike(prompts[members[0]], prompts[members[-1]]), *(len(prompts[index]) - 1 for index in members))
        if (len(members) - 1) * (end - start) >= worth:
            parts.append(Part(parent, start, tuple(prompts[members[0]][start:end])))
            start, parent = end, len(parts) - 1
            for index in members:
                part_of[index] = parent
        longer = [index for index in members if len(prompts[index]) - 1 > end]
        if len(longer) < len(members):  # some end here; the others may have more in common
            waiting.append((longer, start, parent))
        else:
            groups = groupby(members, key=lambda index: prompts[index][end])
            waiting += [(list(group), start, parent) for _, group in groups]
    return parts, part_of


class KeptTurns:
    """Keys and values that the next call may go on from, by their tokens, within a bound of memory."""

    def __init__(self, most_bytes: float = 0.0) -> None:
        """Keep nothing so far, and never more than so many bytes; a span that several samples share counts once."""
        self._room = most_bytes
        self._spans: dict[tuple[int, ...], Sequence[Span]] = {}
        self._counted: dict[int, Span] = {}

    def __len__(self) -> int:
        return len(self._spans)

    def has_room(self, spans: Sequence[Span], further: float) -> bool:
        """Whether these spans and so many further bytes could be kept."""
        return self._new_bytes(spans) + further <= self._room

    def keep(self, token_ids: tuple[int, ...], spans: Sequence[Span]) -> None:
        """Keep a sequence; `has_room` has said that it fits."""
        self._room -= self._new_bytes(spans)
        self._counted |= {id(span): span for span in spans}
        self._spans[token_ids] = spans

    def longest(self, prompt: tuple[int, ...]) -> Sequence[Span] | None:
        """The spans of the longest beginning of a prompt that is here, and that leaves its last token."""
        lengths = sorted({len(ids) for ids in self._spans if len(ids) < len(prompt)}, reverse=True)
        return next((self._spans[prompt[:n]] for n in lengths if prompt[:n] in self._spans), None)

    def _new_bytes(self, spans: Sequence[Span]) -> int:
        return sum(each.nbytes for span in spans if id(span) not in self._counted for each in span)


class Prompts:
    """The prompts of a call."""

    def __init__(self, model: Prefill, requests: Sequence[Request], kept: KeptTurns) -> None:
        """Look what is shared and what is known; nothing is computed yet.

        Args:
            kept: of the call before; only prompts that continue it are looked up.
        """
        self._model, self._prompts = model, [request.prompt_ids for request in requests]
        self._known = {
            index: found
            for index, request in enumerate(requests)
            if request.continues and (found := kept.longest(request.prompt_ids)) is not None
        }
        others = [index for index in range(len(requests)) if index not in self._known]
        unknown = [self._prompts[index] for index in others]
        worth = WORTH if model.packs_contexts else WORTH_A_PASS
        self._parts, part_of = shared_parts(unknown, worth=worth) if unknown else ([], [])
        self._part_of = dict(zip(others, part_of, strict=True))
        self._last_request: dict[int, int] = {}
        """Of each part the last request that has it."""
        for request, part in self._part_of.items():
            while part is not None:
                self._last_request[part] = max(request, self._last_request.get(part, 0))
                part = self._parts[part].parent
        self._pieces: dict[int, _Piece] = {}
        """Parts that have been computed, and that some request may still need."""

    def spans(self, requests: Sequence[int]) -> list[list[Span]]:
        """Keys and values of these requests' prompts, all but of their last tokens, as spans that follow each other.

        Requests are asked for in their order, some perhaps again: what only earlier ones had is let go.
        """
        first = min(requests)
        self._pieces = {part: piece for part, piece in self._pieces.items() if self._last_request[part] >= first}
        pieces = [self._rest(request) for request in requests]
        missing = list(dict.fromkeys(each for piece in pieces for each in piece.missing()))
        places = {piece: place for place, piece in enumerate(missing)}
        contexts = [piece.context(places) for piece in missing]
        found = self._model.prefill([piece.token_ids for piece in missing], contexts)
        for piece, span in zip(missing, found, strict=True):
            piece.span = span
        return [piece.spans() for piece in pieces]

    def _rest(self, request: int) -> _Piece:
        """What of a prompt is its own; an earlier call's spans are handed over once, so that nobody else holds them."""
        known = list(self._known.pop(request, ()))
        parent = self._part_of.get(request)
        piece = _Piece(known=known, parent=None if parent is None else self._piece(parent))
        piece.token_ids = self._prompts[request][piece.start() : -1]
        return piece

    def _piece(self, index: int) -> _Piece:
        if index not in self._pieces:
            part = self._parts[index]
            parent = None if part.parent is None else self._piece(part.parent)
            self._pieces[index] = _Piece(parent=parent, token_ids=part.token_ids)
        return self._pieces[index]


@dataclass(slots=True, kw_only=True, eq=False)
class _Piece:
    """Tokens that are computed together, behind those of another piece or behind known ones."""

    parent: _Piece | None
    known: Sequence[Span] = ()
    token_ids: Sequence[int] = ()
    span: Span | None = None
    """Its keys and values, once they have been computed."""

    def missing(self) -> Iterator[_Piece]:
        """What has to be computed to know this piece and those before it, which comes first."""
        if self.parent is not None and self.parent.span is None:
            yield from self.parent.missing()
        # A prompt may end with a part. What has no tokens at all is asked for all the same: the cache learns its kind.
        if self.token_ids or (self.parent is None and not self.known):
            yield self

    def start(self) -> int:
        """Tokens before it."""
        if self.parent is not None:
            return self.parent.start() + len(self.parent.token_ids)
        return sum(span[0].shape[2] for span in self.known)

    def context(self, places: Mapping[_Piece, int]) -> Context:
        """What it continues, given the places of the pieces that are computed with it."""
        if self.parent is None:
            return self.known
        before = self.parent.span
        return [*self.parent.context(places), places[self.parent] if before is None else before]

    def spans(self) -> list[Span]:
        """What it continues, and its own."""
        before = [*self.known] if self.parent is None else self.parent.spans()
        return before if self.span is None else [*before, self.span]
