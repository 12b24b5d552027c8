"""Training on compared completions: what online preferences (`rl.py`) and `rlft dpo` share.

Completions come in groups that share a prompt; `Batch.rewards` are their labels, above 0 for chosen or good. In groups
of two (all losses but kto) the larger label is the chosen one.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from rlft.learner.batch import mismatched
from rlft.learner.core import Roles
from rlft.objectives.algorithm import Preference
from rlft.objectives.measures import Mean, Measure, Measures, Weighted
from rlft.objectives.preference import preference_loss
from rlft.types import Batch


def with_reference(roles: Roles, batch: Batch) -> Batch:
    """Add the reference's log-probs to a batch, where there is a reference and the batch has none yet."""
    if roles.reference is None or batch.ref_logprobs is not None:
        return batch
    return replace(batch, ref_logprobs=roles.logprobs(batch, roles.reference))


def reference_point(roles: Roles, preference: Preference, batch: Batch, *, max_length: int) -> float:
    """KTO's z0 of the batch's prompts, each with a completion of another one; 0 for the other losses.

    Args:
        max_length: most tokens of a prompt and one completion.
    """
    if preference.is_paired:
        return 0.0
    return roles.reference_point(mismatched(batch, max_length=max_length))


def backward_preference(
    roles: Roles, preference: Preference, batch: Batch, *, kl: float, is_sampled: bool
) -> tuple[Weighted, dict[str, Measure]]:
    """Add the gradient of the loss of labelled completions.

    Args:
        batch: labelled by its rewards, with the reference's log-probs if the loss needs them.
        kl: KTO's z0, see `reference_point`.
        is_sampled: whether an engine sampled the completions, so that its log-probs can be compared with the policy's.

    Returns:
        (the mean loss of the pairs, for kto of the completions; what was measured beside it), of all microbatches and
        processes
    """
    num_examples = batch.num_sequences // 2 if preference.is_paired else batch.num_sequences

    def loss(part: Batch, logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Measures]:
        value, measures = preference_loss(
            preference,
            logprobs=logprobs,
            ref_logprobs=part.ref_logprobs,
            sequence_index=part.sequence_index,
            labels=part.rewards.to(logprobs.device),
            num_examples=num_examples,
            kl=kl,
        )
        measures["policy/entropy"] = Mean.of(entropy.detach())
        if is_sampled:
            old = logprobs.detach() if part.old_logprobs is None else part.old_logprobs
            engine = part.rollout_logprobs if part.policy_logprobs is None else part.policy_logprobs
            measures["policy/mismatch"] = Mean.of((old - engine).abs())
        return value, measures

    total, measures = roles.backward_policy(batch, loss, whole_groups=preference.is_paired, entropy_gradient=False)
    if not preference.is_paired:
        measures["preference/z0"] = Weighted(kl, num_examples)
    return Weighted(total, num_examples), measures
