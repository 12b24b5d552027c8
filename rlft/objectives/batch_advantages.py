"""The advantages of a batch under any algorithm: the learner trains on them, and a replay of stored rollouts repeats
them to the bit."""

from __future__ import annotations

from itertools import groupby

import torch
from torch import Tensor

from rlft.objectives.advantages import above_or_below, best_and_worst, last_actions, overlong_penalty, token_advantages
from rlft.objectives.algorithm import Algorithm, Preference, PreferenceObjective
from rlft.types import Batch


def batch_advantages(
    algorithm: Algorithm, batch: Batch, *, kl_coef: float, max_new_tokens: int
) -> tuple[Tensor, Tensor | None]:
    """Advantages of every action token of a batch, and the critic's targets where there is a critic.

    Of a preference loss they are the labels of the samples, see `labels_of`.

    Args:
        batch: with the log-probs and values that the algorithm needs.
        kl_coef: weight of a KL in the reward.
        max_new_tokens: bound on an action's length, for `overlong: penalize`.

    Returns:
        (advantages (A,), returns (A,) or None)
    """
    rewards = shaped_rewards(algorithm, batch, max_new_tokens=max_new_tokens)
    if isinstance(algorithm, PreferenceObjective):
        return labels_of(algorithm.preference, rewards, batch.group_index)[batch.sequence_index], None
    return token_advantages(
        algorithm,
        kl_coef=kl_coef,
        rewards=rewards,
        group_index=batch.group_index,
        sequence_index=batch.sequence_index,
        policy_logprobs=batch.rollout_logprobs if batch.old_logprobs is None else batch.old_logprobs,
        ref_logprobs=batch.ref_logprobs,
        values=batch.values,
        baseline_rewards=batch.baseline_rewards,
        turn_rewards=_shaped_turns(batch, rewards),
        turn_index=batch.turn_index,
    )


def shaped_rewards(algorithm: Algorithm, batch: Batch, *, max_new_tokens: int) -> Tensor:
    """The rewards that advantages are made of, (S,): with the overlong penalty where it is asked for."""
    if algorithm.overlong != "penalize":
        return batch.rewards
    return batch.rewards + overlong_penalty(_longest_actions(batch), max_new_tokens=max_new_tokens)


def _shaped_turns(batch: Batch, rewards: Tensor) -> Tensor | None:
    """The turns' rewards, (A,), where an episode's last turn bears what its reward is changed by."""
    if batch.turn_rewards is None or rewards is batch.rewards:
        return batch.turn_rewards
    return batch.turn_rewards.index_add(0, last_actions(batch.sequence_index), rewards - batch.rewards)


def labels_of(preference: Preference, rewards: Tensor, group_index: Tensor) -> Tensor:
    """Labels of scored samples, (S,): 1 for those that are preferred, -1 for those rejected, 0 for those left out.

    Of a group: the best and the worst for losses of pairs, else those above and those below its mean reward.

    Args:
        rewards: (S,) float. group_index: (S,) int64.
    """
    if not preference.is_paired:
        return above_or_below(rewards, group_index)
    labels = torch.zeros(len(rewards))
    for best, worst in best_and_worst(rewards, group_index):
        labels[best], labels[worst] = 1.0, -1.0
    return labels


def included_actions(algorithm: Algorithm, batch: Batch) -> Tensor:
    """(A,) bool, whether an action's sequence is in the loss: all but those cut short under `overlong: mask`."""
    if algorithm.overlong != "mask":
        return torch.ones_like(batch.sequence_index, dtype=torch.bool)
    return ~batch.is_truncated[batch.sequence_index]


def sequence_means(values: Tensor, sequence_index: Tensor, num_sequences: int) -> list[float]:
    """Mean of an action token's value over each sequence, in float32; 0 for a sequence without actions.

    Args:
        values: (A,). sequence_index: (A,) int64.
    """
    sums = torch.zeros(num_sequences).index_add(0, sequence_index, values)
    return (sums / torch.bincount(sequence_index, minlength=num_sequences).clamp(min=1)).tolist()


def _longest_actions(batch: Batch) -> Tensor:
    """Tokens of each sequence's longest action, (S,): `max_new_tokens` is a bound on one action, not on an episode."""
    runs = ([sum(1 for _ in run) for is_action, run in groupby(mask) if is_action] for mask in batch.action_mask)
    return torch.tensor([max(lengths, default=0) for lengths in runs])
