"""The loss of a policy objective: importance ratio, surrogate, KL, aggregation over tokens.

All per-token tensors are flat over the action tokens of a batch, (A,). Losses are sums weighted by a tensor that
`aggregation_weights` fixes once per optimizer update, before the batch is split, so that microbatches and data-parallel
workers add up to exactly the same gradient.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlft.objectives.algorithm import KL, Aggregate, PolicyObjective, Ratio, Surrogate
from rlft.objectives.measures import EffectiveShare, Largest, Mean, Measure

DUAL_CLIP = 3.0
"""Bound on the ratio of actions with a negative advantage; the value of https://arxiv.org/abs/1912.09729."""


def aggregation_weights(
    aggregate: Aggregate, sequence_index: Tensor, *, max_new_tokens: int, included: Tensor | None = None
) -> Tensor:
    """Weight of every action token, (A,), such that the loss is a plain weighted sum.

    token_mean: 1 / A (https://arxiv.org/abs/2503.14476, equation 8). sequence_mean: 1 / (S |o_i|)
    (https://arxiv.org/abs/2402.03300, equation 3). sequence_sum: 1 / S. constant_length: 1 / (S max_new_tokens)
    (https://arxiv.org/abs/2503.20783). S counts the sequences of this update that have actions.

    Args:
        included: (A,) bool; whole sequences that are left out get 0 and are not counted.
    """
    if included is None:
        included = torch.ones_like(sequence_index, dtype=torch.bool)
    count = aggregation_count(aggregate, sequence_index, included)
    if aggregate == "token_mean":
        weight = torch.full(sequence_index.shape, 1 / count)
    elif aggregate == "sequence_mean":
        lengths = torch.bincount(sequence_index[included], minlength=int(sequence_index.max()) + 1)
        weight = 1 / lengths.clamp(min=1)[sequence_index] / count
    elif aggregate == "sequence_sum":
        weight = torch.full(sequence_index.shape, 1 / count)
    else:
        weight = torch.full(sequence_index.shape, 1 / (count * max_new_tokens))
    return torch.where(included, weight, 0.0)


def aggregation_count(aggregate: Aggregate, sequence_index: Tensor, included: Tensor) -> int:
    """The number of things that a loss is the mean of: included tokens or sequences, at least 1.

    Losses of several updates, weighted by it, add up to the loss of one update over their data.
    """
    counted = sequence_index[included]
    return max(1, counted.numel() if aggregate == "token_mean" else counted.unique().numel())


def importance_ratio(logprobs: Tensor, old_logprobs: Tensor, sequence_index: Tensor, ratio: Ratio) -> Tensor:
    """Importance ratio pi_new / pi_old of every action token, (A,).

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


def correction_factor(
    old_logprobs: Tensor, rollout_logprobs: Tensor, sequence_index: Tensor, algorithm: PolicyObjective
) -> Tensor:
    """Weight pi_old / pi_rollout of every action token, (A,), for samples that another distribution drew.

    token_truncate: TIS, https://fengyao.notion.site/off-policy-rl. token_mask: IcePop,
    https://ringtech.notion.site/icepop. sequence_truncate, sequence_mask: the same for the product over the sequence,
    https://richardli.xyz/rl-collapse. `pi_old` is the learner's policy before the step's first update.
    """
    if algorithm.correction == "none":
        return torch.ones_like(old_logprobs)
    log_ratio = old_logprobs - rollout_logprobs
    if algorithm.correction.startswith("sequence"):
        sums = log_ratio.new_zeros(int(sequence_index.max()) + 1).index_add(0, sequence_index, log_ratio)
        log_ratio = sums[sequence_index]
    low, high = algorithm.correction_range
    factor = log_ratio.exp()
    if algorithm.correction.endswith("truncate"):
        return factor.clamp(low, high)
    return torch.where((factor >= low) & (factor <= high), factor, 0.0)


def surrogate_loss(
    surrogate: Surrogate,
    ratio: Tensor,
    logprobs: Tensor,
    advantages: Tensor,
    *,
    low: float,
    high: float,
) -> Tensor:
    """Negative surrogate objective of every action token, (A,).

    score_function: -A log pi. clipped: -min(r A, clip(r, 1 - low, 1 + high) A) (https://arxiv.org/abs/1707.06347,
    equation 7). dual_clipped: for A < 0 at most -DUAL_CLIP A (https://arxiv.org/abs/1912.09729, equation 4).
    clipped_weight: -sg[clip(r)] A log pi (CISPO, https://arxiv.org/abs/2506.13585, equation 4).
    """
    if surrogate == "score_function":
        return -advantages * logprobs
    clipped_ratio = ratio.clamp(1 - low, 1 + high)
    if surrogate == "clipped_weight":
        return -clipped_ratio.detach() * advantages * logprobs
    objective = torch.minimum(ratio * advantages, clipped_ratio * advantages)
    if surrogate == "dual_clipped":
        objective = torch.where(advantages < 0, torch.maximum(objective, DUAL_CLIP * advantages), objective)
    return -objective


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
    algorithm: PolicyObjective,
    *,
    kl_coef: float,
    logprobs: Tensor,
    entropy: Tensor,
    old_logprobs: Tensor,
    rollout_logprobs: Tensor,
    policy_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    weights: Tensor,
    sequence_index: Tensor,
) -> tuple[Tensor, dict[str, Measure]]:
    """The loss of the policy as a weighted sum, and what is measured beside it.

    Args:
        kl_coef: weight of a KL in the loss; `algorithm.kl_coef`, or what it was adapted to.
        logprobs, entropy: (A,) of the policy being trained, with gradient.
        old_logprobs: (A,) of that policy before the step's first update; `logprobs.detach()` in the first one.
        rollout_logprobs: (A,) of the engine at sampling time, of the distribution that was sampled.
        policy_logprobs: (A,) of the engine before top-p, top-k and min-p, which the learner's should equal; None where
            both are one.
        ref_logprobs: (A,) or None when the algorithm has no KL.
        advantages, weights: (A,), no gradient.

    Returns:
        (scalar loss, measures by metric name). Most are means over tokens. `policy/ess` is the effective share of the
        samples under the learner's policy, with the weights pi_old / pi_rollout: 1 when the engine sampled what the
        learner trains. For a correction that masks see `_masked`.
    """
    ratio = importance_ratio(logprobs, old_logprobs, sequence_index, algorithm.ratio)
    loss = surrogate_loss(
        algorithm.surrogate,
        ratio,
        logprobs,
        advantages,
        low=algorithm.clip_low,
        high=algorithm.clip_high,
    )
    factor = correction_factor(old_logprobs, rollout_logprobs, sequence_index, algorithm)
    loss = loss * factor
    if algorithm.kl != "none" and algorithm.kl_in == "loss":
        assert ref_logprobs is not None
        loss = loss + kl_coef * kl_penalty(logprobs, ref_logprobs, algorithm.kl)
    if algorithm.entropy_coef:
        loss = loss - algorithm.entropy_coef * entropy

    with torch.no_grad():
        is_high = (ratio > 1 + algorithm.clip_high) & (advantages > 0)
        is_low = (ratio < 1 - algorithm.clip_low) & (advantages < 0)
        mismatch = old_logprobs - (rollout_logprobs if policy_logprobs is None else policy_logprobs)
        # The factor that every token would have: of the samples, pi_old / pi_rollout; its spread gives the ESS.
        sampled = (old_logprobs - rollout_logprobs).exp()
        measures: dict[str, Measure] = {
            "policy/entropy": Mean.of(entropy),
            "policy/clip_fraction": Mean.of(is_high | is_low),
            "policy/ratio_max": Largest(float(ratio.max()) if ratio.numel() else 0.0),
            "policy/mismatch": Mean.of(mismatch.abs()),
            "policy/mismatch_kl": Mean.of(mismatch.exp() - 1 - mismatch),
            "policy/correction": Mean.of(factor),
            "policy/ess": EffectiveShare(float(sampled.sum()), float(sampled.square().sum()), sampled.numel()),
        }
        if algorithm.correction.endswith("mask"):
            measures |= _masked(factor == 0, sequence_index)
        if ref_logprobs is not None:
            measures["policy/kl_ref"] = Mean.of(kl_penalty(logprobs, ref_logprobs, "k3"))
    return (loss * weights).sum(), measures


def _masked(is_masked: Tensor, sequence_index: Tensor) -> dict[str, Measure]:
    """`policy/masked`: share of the tokens that a correction took out of the loss.

    `policy/length_masked` and `policy/length_kept` are the mean lengths of sequences that are masked and that are not
    (one that is masked in part counts in parts): a mask that falls on long sequences biases the policy towards short
    ones.
    """
    lengths = torch.bincount(sequence_index)[sequence_index].double()
    return {
        "policy/masked": Mean.of(is_masked),
        "policy/length_masked": Mean(float(is_masked.sum()), float((is_masked / lengths).sum())),
        "policy/length_kept": Mean(float((~is_masked).sum()), float((~is_masked / lengths).sum())),
    }


def adapted_kl_coef(kl_coef: float, kl: float, target: float) -> float:
    """Steer the KL coefficient towards a target KL: by at most 10 % in a step, less near the target.

    A proportional controller on the relative error, clipped at 20 %, as in https://arxiv.org/abs/1909.08593, section
    2.2, with one step for its horizon.
    """
    return kl_coef * (1 + 0.5 * min(0.2, max(-0.2, kl / target - 1)))


def value_loss(
    algorithm: PolicyObjective, *, values: Tensor, old_values: Tensor, returns: Tensor, weights: Tensor
) -> Tensor:
    """The critic's loss as a weighted sum: half the squared error, with PPO's pessimistic clip around the old value.

    As in the PPO implementation notes, https://iclr-blog-track.github.io/2022/03/25/ppo-implementation-details/, item
    9.
    """
    squared_error = (values - returns).square()
    if algorithm.value_clip:
        clipped = old_values + (values - old_values).clamp(-algorithm.value_clip, algorithm.value_clip)
        squared_error = torch.maximum(squared_error, (clipped - returns).square())
    return (0.5 * squared_error * weights).sum()
