"""Drawing one token per row from logits, with one uniform number per row."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rlft.types import SamplingParams

_BLOCK = 256
_ROWS = 16
"""Rows whose probabilities are computed together, so that their passes stay near the cache."""
_CANDIDATES = 1024
"""Most probable tokens that are sorted to find a nucleus; a row whose nucleus is larger sorts its whole vocabulary."""


class Drawn(NamedTuple):
    """Tokens and what their probabilities were."""

    tokens: Tensor
    """(R,) int64"""
    logprobs: Tensor
    """(R,) float32, under the distribution that was sampled; under softmax(logits) when greedy."""
    policy_logprobs: Tensor | None
    """(R,) float32, under softmax(logits / temperature); None where nothing was truncated and both are one."""


def sample(logits: Tensor, uniform: Tensor, params: SamplingParams) -> Drawn:
    """Inverse-CDF sampling: the token whose cumulative probability first exceeds the row's uniform number.

    The logits are divided by the temperature; then top-k keeps the k most probable tokens, top-p
    (https://arxiv.org/abs/1904.09751) the smallest set of most probable ones with that share of what is left, and min-p
    (https://arxiv.org/abs/2407.01082) those with that share of the most probable one's probability. Tokens that are
    equally probable as the last one kept are kept too, so that the order of sorting never decides.

    Args:
        logits: (R, V) any float type; left as they are. uniform: (R,) float32 in [0, 1).
        params: temperature 0 is greedy.
    """
    if params.temperature == 0:
        x = logits.float()
        tokens = x.argmax(dim=-1)
        return Drawn(tokens, x.gather(1, tokens[:, None]).squeeze(1) - x.logsumexp(dim=-1), None)
    parts = [
        _sample_rows(logits[start : start + _ROWS], uniform[start : start + _ROWS], params)
        for start in range(0, len(logits), _ROWS)
    ]
    return Drawn(
        torch.cat([part.tokens for part in parts]),
        torch.cat([part.logprobs for part in parts]),
        torch.cat([part.policy_logprobs for part in parts if part.policy_logprobs is not None])
        if params.is_truncating
        else None,
    )


def _sample_rows(logits: Tensor, uniform: Tensor, params: SamplingParams) -> Drawn:
    kept = kept_probabilities(logits, params)
    tokens, chosen = _draw(kept, uniform)
    if not params.is_truncating:
        return Drawn(tokens, chosen.log_(), None)
    policy = chosen.log()
    return Drawn(tokens, policy - kept.sum(dim=-1, dtype=torch.float64).log().float(), policy)


def kept_probabilities(logits: Tensor, params: SamplingParams) -> Tensor:
    """(R, V) float32, softmax(logits / temperature) with 0 for what top-k, top-p and min-p leave out; rows then add up
    to less than 1. The temperature is not 0."""
    x = logits if params.temperature == 1 else logits.float() / params.temperature
    probabilities = torch.softmax(x, dim=-1, dtype=torch.float32)
    if not params.is_truncating:
        return probabilities
    return probabilities.masked_fill(probabilities < _threshold(probabilities, params), 0.0)


def _draw(probabilities: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Draw a token of each row: (tokens, their entries); rows need not add up to 1.

    The cumulative sum runs over block sums first and then inside one block per row, so that the vocabulary is passed
    over once.
    """
    num_tokens = probabilities.shape[1]
    padding = -num_tokens % _BLOCK
    blocks = (F.pad(probabilities, (0, padding)) if padding else probabilities).unflatten(1, (-1, _BLOCK))
    cumulative = blocks.sum(dim=-1).double().cumsum(dim=-1)
    target = uniform.double() * cumulative[:, -1]
    block = torch.searchsorted(cumulative, target[:, None], right=True).clamp_(max=cumulative.shape[1] - 1)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, 1, _BLOCK)).squeeze(1).double().cumsum(dim=-1)
    offset = torch.searchsorted(inside, target[:, None] - before, right=True)
    # Rounding may carry the target past the last token with mass; step back to it.
    last = (inside < inside[:, -1:]).sum(dim=-1, keepdim=True)
    tokens = block * _BLOCK + torch.minimum(offset, last)
    return tokens.squeeze(1), probabilities.gather(1, tokens).squeeze(1)


def _threshold(probabilities: Tensor, params: SamplingParams) -> Tensor:
    """(R, 1) the smallest probability that is kept."""
    num_tokens = probabilities.shape[1]
    count = min(num_tokens, params.top_k or _CANDIDATES)
    ordered = probabilities.topk(count, dim=-1).values
    threshold = ordered[:, -1:].clone() if params.top_k else torch.zeros_like(ordered[:, -1:])
    if params.top_p < 1:
        total = ordered.sum(dim=-1, keepdim=True) if params.top_k else torch.ones_like(threshold)
        nucleus = _nucleus(ordered, params.top_p * total)
        if not params.top_k and count < num_tokens:
            is_wider = ordered.sum(dim=-1) < params.top_p
            if bool(is_wider.any()):
                whole = probabilities[is_wider].sort(dim=-1, descending=True).values
                nucleus[is_wider] = _nucleus(whole, params.top_p * whole.sum(dim=-1, keepdim=True))
        threshold = torch.maximum(threshold, nucleus)
    return torch.maximum(threshold, params.min_p * ordered[:, :1])


def _nucleus(ordered: Tensor, mass: Tensor) -> Tensor:
    """(R, 1) the last probability that is needed for the mass, of descending ones."""
    needed = ordered.cumsum(dim=-1) - ordered < mass
    return ordered.gather(1, needed.sum(dim=-1, keepdim=True) - 1)
