"""Preference losses as functions of sequence log-probs: DPO and its relatives.

With s = log pi - log pi_ref summed over a completion's tokens, the implicit reward of a completion is beta s. A
pair's two stand next to each other. These losses are fed from a data set, or from the ranked samples of a group.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlft.objectives.algorithm import Preference
from rlft.objectives.measures import Mean, Measure


def sequence_sums(values: Tensor, sequence_index: Tensor, num_sequences: int) -> Tensor:
    """Sum of the action tokens' values of each sequence, (S,)."""
    return values.new_zeros(num_sequences).index_add(0, sequence_index, values)


def preference_loss(
    preference: Preference,
    *,
    logprobs: Tensor,
    ref_logprobs: Tensor | None,
    sequence_index: Tensor,
    labels: Tensor,
    num_examples: int,
    kl: float = 0.0,
) -> tuple[Tensor, dict[str, Measure]]:
    """The loss of labelled completions, a sum over examples divided by `num_examples`, and what is measured beside it.

    Args:
        num_examples: pairs (KTO: completions) of the whole update, of which these may be a part; the other arguments
            are those of `example_losses`.

    Returns:
        (scalar loss, measures by metric name: means over the examples, `_chosen` and `_rejected` over the completions
        so labelled)
    """
    losses, margins, rewards = example_losses(
        preference,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        sequence_index=sequence_index,
        labels=labels,
        kl=kl,
    )
    scores = sequence_sums(logprobs.detach(), sequence_index, labels.numel())
    is_chosen = _is_chosen(preference, labels)
    measures: dict[str, Measure] = {
        "preference/margin": Mean.of(margins),
        "preference/accuracy": Mean.of(is_right(margins)),
    }
    for name, values in (("reward", rewards), ("logprob", scores)):
        measures[f"preference/{name}_chosen"] = Mean.of(values[is_chosen])
        measures[f"preference/{name}_rejected"] = Mean.of(values[~is_chosen])
    return losses.sum() / num_examples, measures


def example_losses(
    preference: Preference,
    *,
    logprobs: Tensor,
    ref_logprobs: Tensor | None,
    sequence_index: Tensor,
    labels: Tensor,
    kl: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, margin and implicit reward of every pair, or for KTO of every completion.

    sigmoid: https://arxiv.org/abs/2305.18290, equation 7, with the label smoothing of
    https://ericmitchell.ai/cdpo.pdf. ipo: https://arxiv.org/abs/2310.12036, equation 17, on log-probs per token.
    hinge: https://arxiv.org/abs/2305.10425 in the form of https://arxiv.org/abs/2309.06657. simpo:
    https://arxiv.org/abs/2405.14734, equation 6. orpo: https://arxiv.org/abs/2403.07691, equations 6 and 7. kto:
    https://arxiv.org/abs/2402.01306, equation 8.

    Args:
        logprobs: (A,) of the policy being trained, with gradient. ref_logprobs: (A,), or None where none is needed.
        sequence_index: (A,) int64. labels: (S,), above 0 for chosen or good; a pair's two stand next to each other.
        kl: KTO's reference point z0 in nats, see `kto_reference_point`.

    Returns:
        (losses (N,), with gradient; margins (N,), by how much the policy sides with the label; implicit rewards (S,))
    """
    num_sequences = labels.numel()
    lengths = torch.bincount(sequence_index, minlength=num_sequences).clamp(min=1).to(logprobs.dtype)
    scores = sequence_sums(logprobs, sequence_index, num_sequences)
    policy_scores = scores
    if preference.needs_reference:
        assert ref_logprobs is not None
        scores = scores - sequence_sums(ref_logprobs, sequence_index, num_sequences)
    if preference.loss in ("ipo", "simpo", "orpo"):
        scores = scores / lengths
    rewards = preference.beta * scores
    is_chosen = _is_chosen(preference, labels)
    if preference.is_paired:
        better, worse = scores[is_chosen], scores[~is_chosen]
        losses = _pair_losses(preference, better, worse, (policy_scores / lengths)[is_chosen])
        margins = preference.beta * (better - worse)
    else:
        margins = torch.where(is_chosen, rewards - preference.beta * kl, preference.beta * kl - rewards)
        # Not of two plain numbers, which would be rounded to float32.
        weight = torch.where(is_chosen, rewards.new_tensor(preference.desirable_weight), preference.undesirable_weight)
        losses = weight * (1 - torch.sigmoid(margins))
    return losses, margins.detach(), rewards.detach()


def is_right(margins: Tensor) -> Tensor:
    """Whether the policy sides with the labels, by the margin's sign: 1 if so, 0 if not, 0.5 at a margin of 0."""
    return 0.5 * (1 + margins.sign())


def kto_reference_point(log_ratios: Tensor) -> float:
    """KTO's z0: the mean of log pi - log pi_ref over mismatched prompts and completions, at least 0, nats.

    Equation 9 of https://arxiv.org/abs/2402.01306; no gradient passes through it.
    """
    return max(0.0, float(log_ratios.mean()))


def _is_chosen(preference: Preference, labels: Tensor) -> Tensor:
    """(S,) bool; in a pair of neighbours the one with the larger label."""
    if not preference.is_paired:
        return labels > 0
    first_is_chosen = labels[0::2] > labels[1::2]
    return torch.stack([first_is_chosen, ~first_is_chosen], dim=1).flatten()


def _pair_losses(preference: Preference, chosen: Tensor, rejected: Tensor, chosen_mean: Tensor) -> Tensor:
    """Loss of every pair from its two scores, as the loss compares them; `chosen_mean` is the log-prob per token."""
    delta = chosen - rejected
    beta = preference.beta
    if preference.loss == "sigmoid":
        swapped = preference.label_smoothing
        return -(1 - swapped) * F.logsigmoid(beta * delta) - swapped * F.logsigmoid(-beta * delta)
    if preference.loss == "ipo":
        return (delta - 1 / (2 * beta)).square()
    if preference.loss == "hinge":
        return torch.relu(1 - beta * delta)
    if preference.loss == "simpo":
        return -F.logsigmoid(beta * delta - preference.margin)
    odds = delta - (_log1mexp(chosen) - _log1mexp(rejected))
    return -chosen_mean - beta * F.logsigmoid(odds)


def _log1mexp(x: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, without cancellation on either side of -log 2."""
    x = x.clamp(max=-1e-7)
    is_near_0 = x > -0.6931471805599453
    near = torch.log(-torch.expm1(torch.where(is_near_0, x, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(is_near_0, -1.0, x)))
    return torch.where(is_near_0, near, far)
