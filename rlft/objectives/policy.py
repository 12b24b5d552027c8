"""The policy objective: ratio, surrogate, KL, aggregation. Tensors in, a sum and its metrics out.

All per-token tensors are flat over the action tokens of a batch, (A,). Losses are sums weighted by a tensor that
`aggregation_weights` fixes once per optimizer update, before the batch is split, so that microbatches and data-parallel
workers add up to exactly the same gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlft.objectives.presets import KL, Aggregate, Algorithm, Ratio, Surrogate
from rlft.types import Metrics


def aggregation_weights(aggregate: Aggregate, sequence_index: Tensor, *, max_new_tokens: int) -> Tensor:
    """Weight of every action token, (A,), such that the loss is a plain weighted sum.

    token_mean: 1 / A (https://arxiv.org/abs/2503.14476, equation 8). sequence_mean: 1 / (S |o_i|)
    (https://arxiv.org/abs/2402.03300, equation 3). sequence_sum: 1 / S. constant_length: 1 / (S max_new_tokens)
    (https://arxiv.org/abs/2503.20783). S counts the sequences of this update that have actions.
    """
    lengths = torch.bincount(sequence_index)
    num_sequences = int((lengths > 0).sum())
    ones = torch.ones(sequence_index.shape, dtype=torch.float32, device=sequence_index.device)
    if aggregate == "token_mean":
        return ones / sequence_index.numel()
    if aggregate == "sequence_mean":
        return ones / lengths[sequence_index] / num_sequences
    if aggregate == "sequence_sum":
        return ones / num_sequences
    return ones / (num_sequences * max_new_tokens)


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor, sequence_index: Tensor, ratio: Ratio) -> Tensor:
    """pi_new / pi_old of every action token, (A,).

    `sequence` is the geometric mean over the sequence (https://arxiv.org/abs/2507.18071, equation 7), with the gradient
    carried by each token's own log-prob (equation 14, GSPO-token).
    """
    log_ratio = logprobs - old_logprobs
    if ratio == "token":
        return log_ratio.exp()
    num_sequences = int(sequence_index.max()) + 1
    sums = log_ratio.detach().new_zeros(num_sequences).index_add(0, sequence_index, log_ratio.detach())
    means = sums / torch.bincount(sequence_index, minlength=num_sequences).clamp(min=1)
    return (means[sequence_index] + logprobs - logprobs.detach()).exp()


def surrogate_loss(
    surrogate: Surrogate, ratio: Tensor, logprobs: Tensor, advantages: Tensor, *, low: float, high: float
) -> Tensor:
    """Negative surrogate objective of every action token, (A,).

    score_function: -A log pi. clipped: -min(r A, clip(r, 1 - low, 1 + high) A) (https://arxiv.org/abs/1707.06347,
    equation 7). clipped_weight: -sg[clip(r)] A log pi (CISPO, https://arxiv.org/abs/2506.13585, equation 4).
    """
    if surrogate == "score_function":
        return -advantages * logprobs
    clipped_ratio = ratio.clamp(1 - low, 1 + high)
    if surrogate == "clipped_weight":
        return -clipped_ratio.detach() * advantages * logprobs
    return -torch.minimum(ratio * advantages, clipped_ratio * advantages)


def kl_penalty(logprobs: Tensor, ref_logprobs: Tensor, kl: KL) -> Tensor:
    """Per-token estimate of KL(pi || pi_ref) from samples of pi, (A,), after http://joschu.net/blog/kl-approx.html.

    With r = pi_ref / pi: k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r (never negative).
    """
    log_r = ref_logprobs - logprobs
    if kl == "k1":
        return -log_r
    if kl == "k2":
        return log_r.square() / 2
    return log_r.exp() - 1 - log_r


def policy_loss(
    algorithm: Algorithm,
    *,
    logprobs: Tensor,
    entropy: Tensor,
    old_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    sequence_index: Tensor,
) -> tuple[Tensor, Metrics]:
    """The loss of the policy as a weighted sum, and sums for the metrics.

    Args:
        logprobs, entropy: (A,) of the policy being trained, with gradient.
        old_logprobs: (A,) of the policy that sampled; `logprobs.detach()` when strictly on-policy.
        ref_logprobs: (A,) or None when the algorithm has no KL.
        advantages, weights: (A,), no gradient.

    Returns:
        (scalar loss, sums over tokens keyed by metric name; divide by the number of tokens). `policy/ratio_max` is a
        maximum.
    """
    ratio = importance_ratio(logprobs, old_logprobs, sequence_index, algorithm.ratio)
    loss = surrogate_loss(
        algorithm.surrogate, ratio, logprobs, advantages, low=algorithm.clip_low, high=algorithm.clip_high
    )
    if algorithm.kl != "none" and algorithm.kl_in == "loss":
        assert ref_logprobs is not None
        loss = loss + algorithm.kl_coef * kl_penalty(logprobs, ref_logprobs, algorithm.kl)
    if algorithm.entropy_coef:
        loss = loss - algorithm.entropy_coef * entropy

    with torch.no_grad():
        is_high = (ratio > 1 + algorithm.clip_high) & (advantages > 0)
        is_low = (ratio < 1 - algorithm.clip_low) & (advantages < 0)
        sums = {
            "policy/entropy": float(entropy.sum()),
            "policy/clip_fraction": float((is_high | is_low).sum()),
            "policy/ratio_max": float(ratio.max()) if ratio.numel() else 0.0,
        }
        if ref_logprobs is not None:
            sums["policy/kl_ref"] = float(kl_penalty(logprobs, ref_logprobs, "k3").sum())
    return (loss * weights).sum(), sums


def value_loss(algorithm: Algorithm, *, values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor) -> Tensor:
    """The critic's loss as a weighted sum: half the squared error, with PPO's pessimistic clip around the old value.

    As in the PPO implementation notes, https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/, item
    9.
    """
    squared_error = (values - returns).square()
    if algorithm.value_clip:
        clipped = old_values + (values - old_values).clamp(-algorithm.value_clip, algorithm.value_clip)
        squared_error = torch.maximum(squared_error, (clipped - returns).square())
    return algorithm.value_coef * (0.5 * squared_error * weights).sum()
