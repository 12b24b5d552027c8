"""Prompts' keys and values, of which each part is computed once: what several prompts begin with, and earlier turns.

Prompts of different tasks often begin alike: a system prompt, examples, descriptions of tools. They are laid out as a
tree, whose inner nodes are what several of them share. An episode's next prompt begins with the last one and with what
was sampled behind it, whose keys and values are kept from one call to the next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from rlft.common.beginnings import alike
from rlft.model.kernels.kv_cache import Span
from rlft.rollout.engines.contract import Request

WORTH = 256
"""Tokens that sharing a part has to save: a pass of its own reads all weights again."""
TOKENS_PER_PASS = 4096
"""Tokens that are computed together."""


class Prefill(Protocol):
    """Computes keys and values; see `forward.ForwardPass`."""

    def prefill(self, sequences: Sequence[Sequence[int]], contexts: Sequence[Sequence[Span]]) -> list[Span]:
        """Keys and values of sequences of tokens, each of which stands behind the spans of its context."""
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
        self._parts, part_of = shared_parts(unknown, worth=WORTH) if unknown else ([], [])
        self._part_of = dict(zip(others, part_of, strict=True))
        self._spans: dict[int, Span] = {}
        """Of the parts that have been needed so far."""

    def spans(self, requests: Sequence[int]) -> list[list[Span]]:
        """Keys and values of these requests' prompts, all but of their last tokens, as spans that follow each other."""
        contexts = [self._context(index) for index in requests]
        rest = [
            self._prompts[index][sum(span[0].shape[2] for span in context) : -1]
            for index, context in zip(requests, contexts, strict=True)
        ]
        # A prompt may end with a part; what computes the first token of all has to be asked for it all the same.
        open_ended = [at for at, tokens in enumerate(rest) if tokens or not contexts[at]]
        found = self._in_passes([rest[at] for at in open_ended], [contexts[at] for at in open_ended])
        for at, span in zip(open_ended, found, strict=True):
            contexts[at].append(span)
        return contexts

    def _context(self, index: int) -> list[Span]:
        """What is there already; an earlier call's spans are handed over once, so that nobody else holds them."""
        if index in self._known:
            return list(self._known.pop(index))
        return self._up_to(self._part_of.get(index))

    def _up_to(self, index: int | None) -> list[Span]:
        """The spans from the beginning up to and with a part, each computed when it is first needed."""
        if index is None:
            return []
        part = self._parts[index]
        before = self._up_to(part.parent)
        if index not in self._spans:
            (self._spans[index],) = self._model.prefill([part.token_ids], [before])
        return [*before, self._spans[index]]

    def _in_passes(self, rest: Sequence[Sequence[int]], contexts: Sequence[Sequence[Span]]) -> list[Span]:
        """Those of like length together, so that what pads does not pad much."""
        order = sorted(range(len(rest)), key=lambda index: len(rest[index]))
        found: dict[int, Span] = {}
        start = 0
        while start < len(order):
            end = start + 1
            while end < len(order) and (end + 1 - start) * len(rest[order[end]]) <= TOKENS_PER_PASS:
                end += 1
            together = order[start:end]
            spans = self._model.prefill([rest[i] for i in together], [contexts[i] for i in together])
            found |= dict(zip(together, spans, strict=True))
            start = end
        return [found[index] for index in range(len(rest))]
