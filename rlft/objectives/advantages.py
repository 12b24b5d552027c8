"""From rewards to advantages. Everything is flat: S sequences, A action tokens in sequence order.

    advantage = (reward - baseline) / scale          or GAE over a critic

Sequences without a score (failed, abstained) are not in the batch, so they enter no baseline.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlft.objectives.presets import Algorithm, Baseline, Scale

STD_EPSILON = 1e-4
"""Added to a standard deviation before dividing; the value GRPO implementations share."""


def group_baseline(rewards: Tensor, group_index: Tensor, baseline: Baseline) -> Tensor:
    """What each sequence's reward is compared with.

    Args:
        rewards: (S,) float.
        group_index: (S,) int64.
        baseline: `group_mean` (https://arxiv.org/abs/2402.03300), `leave_one_out` = mean of the others
            (https://arxiv.org/abs/2402.14740; 0 for a sequence that is alone), or `none`.

    Returns:
        (S,) float.
    """
    if baseline == "none":
        return torch.zeros_like(rewards)
    sums, counts = _group_sums(rewards, group_index)
    if baseline == "group_mean":
        return (sums / counts)[group_index]
    return torch.where(
        counts[group_index] > 1,
        (sums[group_index] - rewards) / (counts[group_index] - 1).clamp(min=1),
        torch.zeros_like(rewards),
    )


def group_std(rewards: Tensor, group_index: Tensor) -> Tensor:
    """Sample standard deviation (n - 1) of each sequence's group, (S,); 0 for a sequence that is alone."""
    sums, counts = _group_sums(rewards, group_index)
    deviations = rewards - (sums / counts)[group_index]
    squares, _ = _group_sums(deviations.square(), group_index)
    return (squares / (counts - 1).clamp(min=1)).sqrt()[group_index]


def sequence_advantages(rewards: Tensor, group_index: Tensor, baseline: Baseline, scale: Scale) -> Tensor:
    """(reward - baseline) / scale for scales within a group; `batch_std` is left to `whiten`.

    Returns:
        (S,) float. A group whose rewards are all equal gets exactly 0.
    """
    if baseline != "none":
        # The advantage does not depend on a constant added to a group's rewards, so take away the group's first one:
        # equal rewards then cancel to exactly 0, which `0.1 - mean([0.1, 0.1, 0.1])` does not.
        rewards = rewards - rewards[_first_of_group(group_index)]
    advantages = rewards - group_baseline(rewards, group_index, baseline)
    if scale == "group_std":
        advantages = advantages / (group_std(rewards, group_index) + STD_EPSILON)
    return advantages


def whiten(advantages: Tensor) -> Tensor:
    """Centre the action tokens' advantages and divide by their standard deviation over the batch, (A,)."""
    if advantages.numel() < 2:
        return advantages
    advantages = advantages - advantages[0]  # equal ones then give exactly 0, as in `sequence_advantages`
    return (advantages - advantages.mean()) / (advantages.std() + 1e-8)


def gae(rewards: Tensor, values: Tensor, sequence_index: Tensor, *, gamma: float, lam: float) -> tuple[Tensor, Tensor]:
    """Generalized advantage estimation (https://arxiv.org/abs/1506.02438, equation 16), per sequence.

        delta_t = r_t + gamma V_{t+1} - V_t,   A_t = delta_t + gamma lam A_{t+1},   V after the last action = 0

    Args:
        rewards: (A,) reward of each action; the outcome sits on the sequence's last action.
        values: (A,) critic's value of the state before each action.
        sequence_index: (A,) int64, ascending.

    Returns:
        (advantages, returns), both (A,); returns = advantages + values.
    """
    advantages = torch.zeros_like(rewards)
    running = rewards.new_zeros(())
    for t in range(rewards.numel() - 1, -1, -1):
        is_last = t + 1 == rewards.numel() or bool(sequence_index[t + 1] != sequence_index[t])
        next_value = rewards.new_zeros(()) if is_last else values[t + 1]
        delta = rewards[t] + gamma * next_value - values[t]
        running = delta if is_last else delta + gamma * lam * running
        advantages[t] = running
    return advantages, advantages + values


def token_advantages(
    algorithm: Algorithm,
    *,
    rewards: Tensor,
    group_index: Tensor,
    sequence_index: Tensor,
    policy_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    values: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Advantages of every action token under `algorithm`, and the critic's targets where there is one.

    Args:
        rewards: (S,). group_index: (S,). sequence_index: (A,).
        policy_logprobs: (A,) log-probs of the policy that made the rollouts; used by a KL in the reward.
        ref_logprobs: (A,) or None. values: (A,) or None.

    Returns:
        (advantages (A,), returns (A,) or None)
    """
    token_rewards = torch.zeros_like(policy_logprobs)
    if algorithm.kl_in == "reward" and algorithm.kl != "none":
        assert ref_logprobs is not None
        token_rewards = -algorithm.kl_coef * (policy_logprobs - ref_logprobs)

    if algorithm.baseline == "critic":
        assert values is not None
        token_rewards = token_rewards.index_add(0, last_actions(sequence_index), rewards)
        advantages, returns = gae(
            token_rewards, values, sequence_index, gamma=algorithm.gamma, lam=algorithm.gae_lambda
        )
        return (whiten(advantages) if algorithm.scale == "batch_std" else advantages), returns

    # Without a critic the KL penalty of a whole sequence is part of its reward, as in RLOO.
    penalties = torch.zeros_like(rewards).index_add(0, sequence_index, token_rewards)
    advantages = sequence_advantages(rewards + penalties, group_index, algorithm.baseline, algorithm.scale)[
        sequence_index
    ]
    return (whiten(advantages) if algorithm.scale == "batch_std" else advantages), None


def last_actions(sequence_index: Tensor) -> Tensor:
    """Index of the last action of each sequence, (S,) for sequences that all have actions."""
    ends = torch.ones_like(sequence_index, dtype=torch.bool)
    ends[:-1] = sequence_index[1:] != sequence_index[:-1]
    return ends.nonzero().squeeze(1)


def explained_variance(values: Tensor, returns: Tensor) -> float:
    """1 - Var(returns - values) / Var(returns); 1 is a perfect critic, 0 one that knows only the mean."""
    variance = returns.var(unbiased=False)
    if variance == 0:
        return 0.0
    return float(1 - (returns - values).var(unbiased=False) / variance)


def _first_of_group(group_index: Tensor) -> Tensor:
    """Index of the first sequence of each sequence's group, (S,); groups are adjacent."""
    starts = torch.ones_like(group_index, dtype=torch.bool)
    starts[1:] = group_index[1:] != group_index[:-1]
    return starts.nonzero().squeeze(1)[starts.cumsum(0) - 1]


def _group_sums(values: Tensor, group_index: Tensor) -> tuple[Tensor, Tensor]:
    num_groups = int(group_index.max()) + 1 if group_index.numel() else 0
    sums = values.new_zeros(num_groups).index_add(0, group_index, values)
    counts = values.new_zeros(num_groups).index_add(0, group_index, torch.ones_like(values))
    return sums, counts.clamp(min=1)
