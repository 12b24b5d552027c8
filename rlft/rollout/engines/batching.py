"""Continuous batching: which samples are in the batch, what they drew, and which ones take the rows that ended.

Rows are filled in the order of the requests. A row whose sample has ended is given to the next waiting sample, or, once
a block of rows is free and nobody waits, the batch becomes narrower. A sample's uniform numbers follow from its seed
alone, so what it draws does not depend on its neighbours (only the last bits of its logits do, through the shape of the
batch that the products have).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from rlft.rollout.engines.contract import Request
from rlft.rollout.engines.sampling import sample
from rlft.rollout.seeds import uniforms
from rlft.types import SamplingParams

ROW_BLOCK = 4
"""The batch's width is a multiple of this: oneDNN's products are made per shape, and rows that leave are moved."""


class Decoder(Protocol):
    """A model and its cache."""

    def enter_prompts(self, slots: Sequence[int], requests: Sequence[int]) -> None:
        """Have the keys and values of these requests' prompts, all but of their last tokens, in these slots."""
        ...

    def enter_rows(self, rows: Sequence[int], slots: Sequence[int]) -> None:
        """Let rows continue the prompts in these slots."""
        ...

    def move_rows(self, sources: Sequence[int], targets: Sequence[int]) -> None:
        """Move rows within the batch, with their keys and values."""
        ...

    def step(self, tokens: Tensor) -> Tensor:
        """Append a token to each of the first len(tokens) rows; returns their logits (R, V)."""
        ...

    def keep(self, row: int, request: int, token_ids: Sequence[int]) -> None:
        """Keep what a later call may go on from: a row behind a request's prompt, which has sampled these tokens."""
        ...


@dataclass(slots=True)
class Sampled:
    """What one sample drew."""

    token_ids: list[int]
    logprobs: list[float]
    policy_logprobs: list[float]
    """Empty where nothing was truncated."""
    has_stopped: bool = False
    """By an end token or a stop text; else it is as long as allowed."""


@dataclass(frozen=True, slots=True)
class _Waiting:
    request: int
    sample: int


def sample_all(
    decoder: Decoder,
    requests: Sequence[Request],
    params: SamplingParams,
    *,
    max_rows: int,
    max_prompts: int,
    end_ids: frozenset[int],
    ends_with_stop: Callable[[Sequence[int]], bool],
    device: torch.device,
    on_token: Callable[[Sequence[int]], None] | None = None,
) -> list[list[Sampled]]:
    """Draw every sample of the requests, with as many rows in the batch as there is room for.

    Args:
        max_rows: rows that the decoder has room for.
        max_prompts: prompts that it has room for.
        ends_with_stop: whether the last token of a completion completes one of `params.stop`.
        on_token: called after each token with all tokens of its sample; what it raises ends the sampling.
    """
    batch = _Batch(requests, params, max_rows=max_rows, max_prompts=max_prompts, device=device)
    batch.admit(decoder)
    while batch.rows:
        logits = decoder.step(batch.tokens())
        drawn = sample(logits, batch.uniforms(), params)
        policy = drawn.logprobs if drawn.policy_logprobs is None else drawn.policy_logprobs
        columns = (drawn.tokens.tolist(), drawn.logprobs.tolist(), policy.tolist())
        for row, (token, logprob, policy_logprob) in enumerate(zip(*columns, strict=True)):
            if (sampled := batch.sampled(row)) is None:
                continue
            sampled.token_ids.append(token)
            sampled.logprobs.append(logprob)
            if drawn.policy_logprobs is not None:
                sampled.policy_logprobs.append(policy_logprob)
            if on_token is not None:
                on_token(sampled.token_ids)
            if token in end_ids or (params.stop and ends_with_stop(sampled.token_ids)):
                sampled.has_stopped = True
                if requests[index := batch.request(row)].goes_on:
                    decoder.keep(row, index, sampled.token_ids)
                batch.release(row)
            elif len(sampled.token_ids) == params.max_new_tokens:
                batch.release(row)
        batch.admit(decoder)
        batch.narrow(decoder)
    return batch.results


class _Batch:
    """Which sample has which row of the batch, and which prompt which slot of the cache."""

    def __init__(
        self,
        requests: Sequence[Request],
        params: SamplingParams,
        *,
        max_rows: int,
        max_prompts: int,
        device: torch.device,
    ) -> None:
        self._requests, self._device = requests, device
        self._max_rows, self._max_prompts = max_rows, max_prompts
        self._waiting = deque(
            _Waiting(index, number) for index, request in enumerate(requests) for number in range(len(request.seeds))
        )
        self._uniform = [drawing_numbers(request.seeds, params.max_new_tokens) for request in requests]
        self.results = [[Sampled([], [], []) for _ in request.seeds] for request in requests]
        self.rows: list[_Waiting | None] = []
        """Sample of each row; None once it has ended."""
        self._slot_of: dict[int, int] = {}
        """Slot of each request that has rows."""

    def sampled(self, row: int) -> Sampled | None:
        """What the row's sample has drawn so far."""
        entry = self.rows[row]
        return None if entry is None else self.results[entry.request][entry.sample]

    def request(self, row: int) -> int:
        """Index of the request whose sample a row has."""
        entry = self.rows[row]
        assert entry is not None
        return entry.request

    def tokens(self) -> Tensor:
        """(R,) the last token of each row; the prompt's last one at first, so that its logits need no code of their
        own."""
        last = []
        for entry in self.rows:
            drawn = self.results[entry.request][entry.sample].token_ids if entry else []
            last.append(drawn[-1] if drawn else self._requests[entry.request].prompt_ids[-1] if entry else 0)
        return torch.tensor(last, device=self._device)

    def uniforms(self) -> Tensor:
        """(R,) the uniform number that each row's next token is drawn with."""
        numbers = [
            self._uniform[e.request][e.sample, len(self.results[e.request][e.sample].token_ids)] if e else 0.5
            for e in self.rows
        ]
        return torch.tensor(numbers, device=self._device)

    def release(self, row: int) -> None:
        """Free a row whose sample has ended."""
        self.rows[row] = None

    def admit(self, decoder: Decoder) -> None:
        """Give free rows to waiting samples, once there are enough of both for the prompts' pass to be worth it."""
        free = [row for row, entry in enumerate(self.rows) if entry is None]
        free += range(len(self.rows), self._max_rows)
        if not self._waiting or len(free) < min(ROW_BLOCK, len(self._waiting), self._max_rows):
            return
        self._drop_unused()
        unused = sorted(set(range(self._max_prompts)) - set(self._slot_of.values()))
        new: list[int] = []
        rows: list[int] = []
        for row in free:
            if not self._waiting:
                break
            request = self._waiting[0].request
            if request not in self._slot_of:
                if not unused:
                    break
                self._slot_of[request] = unused.pop(0)
                new.append(request)
            entry = self._waiting.popleft()
            if row < len(self.rows):
                self.rows[row] = entry
            else:
                self.rows.append(entry)
            rows.append(row)
        if new:
            decoder.enter_prompts([self._slot_of[r] for r in new], new)
        if rows:
            decoder.enter_rows(rows, [self._slot_of[self.rows[row].request] for row in rows])  # type: ignore[union-attr]
        self._fill_block()

    def narrow(self, decoder: Decoder) -> None:
        """Make the batch narrower once a whole block of rows has ended."""
        num_live = sum(entry is not None for entry in self.rows)
        width = min(len(self.rows), -(-num_live // ROW_BLOCK) * ROW_BLOCK)
        if width == len(self.rows):
            return
        targets = [row for row in range(width) if self.rows[row] is None]
        sources = [row for row in range(width, len(self.rows)) if self.rows[row] is not None]
        targets = targets[: len(sources)]
        if sources:
            decoder.move_rows(sources, targets)
        for source, target in zip(sources, targets, strict=True):
            self.rows[target] = self.rows[source]
        del self.rows[width:]

    def _fill_block(self) -> None:
        """Append empty rows until the width is a multiple of the block, where there is room."""
        width = min(self._max_rows, -(-len(self.rows) // ROW_BLOCK) * ROW_BLOCK)
        self.rows += [None] * (width - len(self.rows))

    def _drop_unused(self) -> None:
        live = {entry.request for entry in self.rows if entry}
        self._slot_of = {request: slot for request, slot in self._slot_of.items() if request in live}


def drawing_numbers(seeds: Sequence[int], count: int) -> np.ndarray:
    """Uniform numbers (samples, count), float32 in [0, 1), one for each token that may be drawn."""
    numbers = uniforms(np.array(seeds, dtype=np.uint64), count).astype(np.float32)
    return np.minimum(numbers, np.float32(1 - 2**-24))  # float32 rounds the largest doubles up to 1
