"""Drawing one token per row from logits, with one uniform number per row."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_BLOCK = 256


def sample(logits: Tensor, uniform: Tensor, *, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """Inverse-CDF sampling: the token whose cumulative probability first exceeds the row's uniform number.

    The cumulative sum runs over block sums first and then inside one block per row, so that the vocabulary is passed
    over
    a few times only.

    Args:
        logits: (R, V) any float type. uniform: (R,) float32 in [0, 1). temperature: 0 means greedy.
        top_p: keep the smallest set of most probable tokens with at least this mass
            (https://arxiv.org/abs/1904.09751); 1 keeps all.

    Returns:
        (tokens (R,) int64, logprobs (R,) float32 under the sampled distribution; under softmax(logits) when greedy)
    """
    x = logits.float()
    if temperature == 0:
        tokens = x.argmax(dim=-1)
        return tokens, x.gather(1, tokens[:, None]).squeeze(1) - x.logsumexp(dim=-1)
    if temperature != 1:
        x = x / temperature
    if top_p < 1:
        x = _keep_top_p(x, top_p)
    maximum = x.amax(dim=-1, keepdim=True)
    mass = (x - maximum).exp_()
    if padding := -mass.shape[1] % _BLOCK:
        mass = F.pad(mass, (0, padding))
    blocks = mass.view(mass.shape[0], -1, _BLOCK)
    cumulative = blocks.sum(dim=-1, dtype=torch.float64).cumsum(dim=-1)
    total = cumulative[:, -1]
    target = uniform.double() * total
    block = torch.searchsorted(cumulative, target[:, None], right=True).clamp_(max=cumulative.shape[1] - 1)
    before = torch.where(block > 0, cumulative.gather(1, (block - 1).clamp(min=0)), 0.0)
    inside = blocks.gather(1, block[:, :, None].expand(-1, 1, _BLOCK)).squeeze(1).double().cumsum(dim=-1)
    offset = torch.searchsorted(inside, target[:, None] - before, right=True)
    # Rounding may carry the target past the last token with mass; step back to it.
    last = (inside < inside[:, -1:]).sum(dim=-1, keepdim=True)
    tokens = (block * _BLOCK + torch.minimum(offset, last)).squeeze(1)
    logprobs = x.gather(1, tokens[:, None]).squeeze(1) - maximum.squeeze(1) - total.log().float()
    return tokens, logprobs


def _keep_top_p(x: Tensor, top_p: float) -> Tensor:
    ordered, order = x.sort(dim=-1, descending=True)
    probabilities = ordered.softmax(dim=-1)
    outside = probabilities.cumsum(dim=-1) - probabilities >= top_p
    return x.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), float("-inf"))
