"""The segments of a packed row, which continue one another, and blocks of those that are alike."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from rlft.model.kernels.sizes import LENGTH, SEQUENCES, rounded_up

BLOCK_COST = 4096
"""Scores of one head that take as long as the calls of one more block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Consecutive tokens of the row that attend causally to themselves, and to all of the segments before them."""

    start: int
    """Negative for tokens that come before the row: their keys and values are known."""
    length: int
    before: tuple[Segment, ...] = field(default=(), repr=False)
    """What the segment continues, the first one first: nothing, or such as a prefix and a prompt."""

    def __hash__(self) -> int:
        # Not of `before`, all of which have some before them, too: that would take 2^depth steps.
        return hash((self.start, self.length))


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """R rows of W queries that look at K keys each, all given as positions in the packed row."""

    queries: Tensor
    """(R, W) int64; padding repeats a position of the row."""
    is_real: Tensor
    """(R, W) bool, False on padding."""
    keys: Tensor
    """(R, K) int64."""
    is_visible: Tensor
    """(R, W, K) bool, whether a query may look at a key; never all False in a row of W."""


def as_blocks(segments: Iterable[Segment]) -> list[Block]:
    """Segments that continue as many others, as blocks of rows of similar length, so that little is padding."""
    return [_block(part) for part in _parts(segments)]


def num_scores(segments: Iterable[Segment]) -> int:
    """Scores of one head that the blocks of these segments have, padding included."""
    return sum(
        _rows(len(part))
        * _width(part)
        * (_width(part) + sum(map(_width, zip(*(each.before for each in part), strict=True))))
        for part in _parts(segments)
    )


def _parts(segments: Iterable[Segment]) -> list[list[Segment]]:
    by_depth: dict[int, list[Segment]] = {}
    for segment in segments:
        by_depth.setdefault(len(segment.before), []).append(segment)
    return [part for _, kind in sorted(by_depth.items()) for part in _of_similar_length(kind)]


def _width(segments: Iterable[Segment]) -> int:
    return rounded_up(max(segment.length for segment in segments), LENGTH)


def _of_similar_length(segments: list[Segment]) -> list[list[Segment]]:
    """The segments in blocks, longest first, with the fewest scores if every block costs `BLOCK_COST` of them besides.

    All blocks but the last have a multiple of `SEQUENCES` rows, or one row, if that is the first.
    """
    segments = sorted(segments, key=lambda segment: -segment.length)
    keys = max(sum(each.length for each in segment.before) for segment in segments)
    cost, starts = _cut([segment.length for segment in segments], keys)
    other, behind = _cut([segment.length for segment in segments[1:]], keys)
    if BLOCK_COST + _scores(1, segments[0].length, keys) + other < cost:
        starts = [0, *(1 + start for start in behind)]
    return [segments[m:n] for m, n in zip(starts, [*starts[1:], len(segments)], strict=True)]


def _cut(lengths: list[int], keys: int) -> tuple[float, list[int]]:
    """(the least cost, where each block begins) of descending lengths.

    The best cut of the first n ends with a block from some m to n, after the best cut of the first m.
    """
    best: dict[int, tuple[float, list[int]]] = {0: (0, [])}
    for n in [*range(SEQUENCES, len(lengths), SEQUENCES), *([len(lengths)] if lengths else [])]:
        best[n] = min(
            (cost + BLOCK_COST + _scores(n - m, lengths[m], keys), [*starts, m]) for m, (cost, starts) in best.items()
        )
    return best[len(lengths)]


def _scores(rows: int, length: int, keys: int) -> int:
    """Scores of one head of a block with these sequences."""
    return _rows(rows) * length * (keys + length)


def _rows(sequences: int) -> int:
    """Rows of a block: one alone stays so, as it may be a long prompt; others are filled up."""
    return sequences if sequences == 1 else rounded_up(sequences, SEQUENCES)


def _block(segments: list[Segment]) -> Block:
    """The segments, which have as many before them, as a block, filled up with rows and columns that are not real."""
    fill = _rows(len(segments)) - len(segments)
    queries, is_real = _padded([*segments, *segments[:1] * fill])
    is_real[len(segments) :] = False
    rows, width = queries.shape
    keys, visible = [], []
    for before in zip(*(segment.before for segment in segments), strict=True):
        position, is_there = _padded([*before, *before[:1] * fill])
        keys.append(position)
        visible.append(is_there[:, None].expand(-1, width, -1))
    causal = torch.ones(width, width, dtype=torch.bool).tril().expand(rows, -1, -1)
    return Block(
        queries=queries,
        is_real=is_real,
        keys=torch.cat([*keys, queries], dim=1),
        is_visible=torch.cat([*visible, causal], dim=2),
    )


def _padded(segments: list[Segment]) -> tuple[Tensor, Tensor]:
    """(rows, width) positions of the segments, their last one repeated as padding, and which are real."""
    start, length = torch.tensor([(segment.start, segment.length) for segment in segments]).T
    offsets = torch.arange(rounded_up(int(length.max()), LENGTH))
    return start[:, None] + torch.minimum(offsets, length[:, None] - 1), offsets < length[:, None]
