"""Cutting a batch into microbatches: consecutive sequences whose packed row keeps within a budget of tokens."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rlft.common.beginnings import alike
from rlft.learner import batch as batches
from rlft.types import Batch

_TOKENS = {"cpu": 1280, "cuda": 8192}
"""Packed tokens of a microbatch by device: a CPU computes few as fast as many, a GPU does not."""


def default_tokens(device: str, prefix: int, groups: Iterable[tuple[float, float]] = ()) -> int:
    """Packed tokens of a microbatch where the config does not say.

    Rows repeat what all prompts begin with, and those of a group that is too long for one its prompt. So that this is a
    sixth of a row, a CPU's may be longer, up to twice: with 16 prompts behind the same 400 tokens an update takes four
    fifths of the time and a fifth more memory. Behind a prompt longer than that a row has room for as much as usual, on
    a GPU for a quarter of it, or each completion would be computed with a prompt of its own.

    Args:
        device: `cpu` or `cuda`.
        prefix: tokens that all prompts of the batch begin with; see `batch.shared_prefix`.
        groups: of each group of several completions that may be split, the tokens of its prompt, and those with its
            completions.
    """
    usual = _TOKENS[device]
    repeated = int(max([prefix, *(prompt for prompt, tokens in groups if tokens > usual)]))
    if device != "cpu":
        return max(usual, repeated + usual // 4)
    return repeated + usual if repeated > usual else min(2 * usual, max(usual, 6 * repeated))


def default_tokens_of(batch: Batch, device: str, *, whole_groups: bool = False, with_ends: bool = False) -> int:
    """`default_tokens` for this batch."""
    groups = [] if whole_groups else _pieces(batch, with_ends=with_ends, whole_groups=True)
    split = [(each.prompt, each.prompt + each.length) for each in groups if len(each.sequences) > 1]
    return default_tokens(device, batches.shared_prefix(batch.prompt_ids), split)


def microbatches(batch: Batch, tokens: int, *, whole_groups: bool = False, with_ends: bool = False) -> list[list[int]]:
    """Cut a batch into consecutive microbatches of at most `tokens` packed tokens; the sequence numbers of each.

    A group is split when it is too long, unless `whole_groups`; its prompt is then repeated. What is longer than the
    budget and cannot be split stands alone. `with_ends` is that of `batch.pack`.
    """
    return _cut(_pieces(batch, with_ends=with_ends, whole_groups=whole_groups), tokens)


def even_microbatches(
    batch: Batch, tokens: int, shares: int, *, whole_groups: bool = False, with_ends: bool = False
) -> list[list[int]]:
    """Cut a batch into microbatches of which `shares` processes get equally many, of about equal length.

    Their number is the next multiple of `shares`, under the smallest budget that keeps it; fewer where the batch cannot
    be split that far. Groups are split only where that number needs it.
    """
    groups = _pieces(batch, with_ends=with_ends, whole_groups=True)
    pieces = groups if whole_groups else _pieces(batch, with_ends=with_ends, whole_groups=False)
    limit = -(-len(_cut(pieces, tokens)) // shares) * shares
    parts = None
    if all(group.prompt + group.length <= tokens for group in groups):
        parts = _smallest_budget(groups, tokens, limit)
    parts = _smallest_budget(pieces, tokens, limit) if parts is None else parts
    assert parts is not None
    return parts


def packed_length(batch: Batch, *, with_ends: bool = False) -> int:
    """Number of tokens of the whole batch as one packed row, in which each prompt, and their prefix, stand once."""
    return _length(_pieces(batch, with_ends=with_ends, whole_groups=True))


@dataclass(frozen=True, slots=True)
class _Piece:
    """What is not split: a sequence, or a whole group."""

    sequences: list[int]
    length: int
    """Tokens of its completions."""
    prompt: int
    """Tokens of its prompt."""
    is_next_of_group: bool
    """Whether it has the prompt of the piece before, which is not repeated in a row."""
    alike: int
    """Tokens that its prompt and that of the piece before begin with."""


def _pieces(batch: Batch, *, with_ends: bool, whole_groups: bool) -> list[_Piece]:
    lengths = batches.read_lengths(batch, with_ends=with_ends)
    result, before = list[_Piece](), tuple[int, ...]()
    for sequences in batches.members(batch).values():
        prompt = batch.prompt_ids[sequences[0]]
        shared = alike(before, prompt)
        for chosen in [sequences] if whole_groups else [[sequence] for sequence in sequences]:
            is_next = chosen[0] != sequences[0]
            length = sum(lengths[sequence] for sequence in chosen)
            result.append(_Piece(chosen, length, len(prompt), is_next, len(prompt) if is_next else shared))
        before = prompt
    return result


@dataclass(frozen=True, slots=True)
class _Row:
    """How long a packed row is."""

    prompts: int = 0
    """Different prompts in it."""
    common: int = 0
    """Tokens that these begin with alike, all but the last of the shortest at most; see `batch.shared_prefix`."""
    total: int = 0
    """Tokens of all prompts and completions."""

    def with_piece(self, piece: _Piece) -> _Row:
        """The row with one more piece."""
        if piece.is_next_of_group and self.prompts:
            return _Row(self.prompts, self.common, self.total + piece.length)
        common = max(0, piece.prompt - 1)
        if self.prompts:  # what neighbours share one by one, all of them do
            common = min(self.common, piece.alike, common)
        return _Row(self.prompts + 1, common, self.total + piece.prompt + piece.length)

    @property
    def tokens(self) -> int:
        """Tokens of the row."""
        is_shared = self.prompts > 1 and self.common >= batches.MIN_PREFIX
        return self.total - (self.prompts - 1) * self.common if is_shared else self.total


def _cut(pieces: list[_Piece], tokens: int) -> list[list[int]]:
    result, row = list[list[int]](), _Row()
    for piece in pieces:
        row = row.with_piece(piece)
        if not result or row.tokens > tokens:
            result.append([])
            row = _Row().with_piece(piece)
        result[-1] += piece.sequences
    return result


def _length(pieces: list[_Piece]) -> int:
    row = _Row()
    for piece in pieces:
        row = row.with_piece(piece)
    return row.tokens


def _smallest_budget(pieces: list[_Piece], tokens: int, limit: int) -> list[list[int]] | None:
    """The microbatches under the smallest budget up to `tokens` that gives at most `limit` of them, if one does.

    A row never gets shorter with one more piece, so that a larger budget never needs more of them.
    """
    low, high = 1, min(tokens, _length(pieces))
    parts = _cut(pieces, high)
    if len(parts) > limit:
        return None
    while low < high:
        middle = (low + high) // 2
        smaller = _cut(pieces, middle)
        if len(smaller) <= limit:
            high, parts = middle, smaller
        else:
            low = middle + 1
    return parts
