"""Log-probabilities and entropies of chosen tokens from logits, and the gradient of the log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from rlft.model.kernels.library import VECTOR, kernel
from rlft.model.kernels.sizes import slices

CHUNK_ELEMENTS = 1 << 19
"""Elements of the float32 scratch on a CPU: 2 MB, so that a chunk's few passes stay in the cores' caches."""
LARGE_CHUNK_ELEMENTS = 1 << 24
"""Elements of the scratch on other devices, where a call costs more than the memory."""


def token_logprobs(
    logits: Tensor,
    targets: Tensor,
    temperature: float,
    *,
    with_slopes: bool = False,
    entropy_slopes: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probs of `targets` and entropies of p = softmax(logits / temperature), without gradient.

    Args:
        logits: (N, V). targets: (N,). temperature: > 0.
        with_slopes: overwrite the logits with p - onehot(target), -temperature times the log-probs' gradient.
        entropy_slopes: (N, V), where p (log p + H) is written, -temperature times the entropies' gradient.

    Returns:
        (logprobs (N,), entropies (N,)) in float32 (float64 for float64 logits), nats.

    Raises:
        ValueError: a target is no column of the logits.
    """
    num_rows, num_tokens = logits.shape
    wide = torch.promote_types(logits.dtype, torch.float32)
    logprobs = torch.empty(targets.shape, dtype=wide, device=logits.device)
    entropies = torch.empty_like(logprobs)
    is_whole = entropy_slopes is None and num_tokens % VECTOR == 0
    if is_whole and (run := kernel("selected_logprobs", logits)) is not None:
        targets = targets.to("cpu", torch.int64).contiguous()
        if int(targets.min()) < 0 or int(targets.max()) >= num_tokens:
            raise ValueError(f"targets are from 0 to {num_tokens - 1}, the model's last token")
        pointers = [x.data_ptr() for x in (logits, targets, logprobs, entropies)]
        run(*pointers, num_rows, num_tokens, 1 / temperature, with_slopes)
        return logprobs, entropies
    for rows in chunks(logits):
        x = logits[rows].to(wide, copy=True)
        logprobs[rows], log_total, entropies[rows], p = distribution(x, targets[rows], temperature)
        if entropy_slopes is not None:
            entropy_slopes[rows] = x.sub_(log_total[:, None]).add_(entropies[rows, None]).mul_(p)
        if with_slopes:
            p.scatter_add_(1, targets[rows, None], torch.full_like(logprobs[rows, None], -1.0))
            logits[rows] = p
    return logprobs, entropies


def distribution(x: Tensor, targets: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of p = softmax(x / temperature): log-probs of the targets, log-normalizers, entropies, all (n,), and p itself.

    Overwrites x with x / temperature minus its row's maximum, which is what the log-normalizers refer to.
    """
    if temperature != 1:
        x.div_(temperature)
    x.sub_(x.amax(dim=1, keepdim=True))
    chosen = x.gather(1, targets[:, None]).squeeze(1)
    p = torch.softmax(x, dim=1)
    log_total = p.amax(dim=1).log_().neg_()  # the largest p is exp(0) / total
    # H = log Z - sum p x with x at most 0: no difference of large numbers.
    return chosen - log_total, log_total, log_total - torch.mul(p, x).sum(dim=1), p


def chunks(logits: Tensor) -> list[slice]:
    """Rows of logits (N, V) that go through several passes together."""
    elements = CHUNK_ELEMENTS if logits.device.type == "cpu" else LARGE_CHUNK_ELEMENTS
    return slices(logits.shape[0], max(1, elements // max(1, logits.shape[1])))
