"""From rewards to advantages. Everything is flat: S sequences, A action tokens in sequence order.

    advantage = (reward - baseline) / scale          or GAE over a critic

Sequences without a score (failed, abstained) are not in the batch, so they enter no baseline.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rlft.objectives.algorithm import Baseline, PolicyObjective, Scale
from rlft.objectives.policy import kl_penalty
from rlft.objectives.turn_credit import turn_advantages

STD_EPSILON = 1e-4
"""Added to a standard deviation before dividing; the value GRPO implementations share."""


def group_baseline(
    rewards: Tensor, group_index: Tensor, baseline: Baseline, baseline_rewards: Tensor | None = None
) -> Tensor:
    """The baseline that is subtracted from each sequence's reward.

    Args:
        rewards: (S,) float.
        group_index: (S,) int64.
        baseline: `group_mean` (https://arxiv.org/abs/2402.03300), `leave_one_out` = mean of the others
            (https://arxiv.org/abs/2402.14740; 0 for a sequence that is alone), `greedy` = the greedy answer's reward
            (https://arxiv.org/abs/2310.10505), or `none`.
        baseline_rewards: (S,) float, the `baseline_score` of each sequence's group; needed by `greedy`.

    Returns:
        (S,) float.
    """
    if baseline == "none":
        return torch.zeros_like(rewards)
    if baseline == "greedy":
        assert baseline_rewards is not None
        return baseline_rewards
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


def sequence_advantages(
    rewards: Tensor,
    group_index: Tensor,
    baseline: Baseline,
    scale: Scale,
    baseline_rewards: Tensor | None = None,
) -> Tensor:
    """Advantage of each sequence, (reward - baseline) / scale, for all scales but `batch_std`, which is `whiten`'s.

    `group_mean` divides by the group's mean reward (https://arxiv.org/abs/2602.02710, algorithm 1).

    Returns:
        (S,) float. A group whose rewards are all equal gets exactly 0.

    Raises:
        ValueError: `scale` is `group_mean` and a reward is negative, which would turn the sign of the advantage.
    """
    divisor = torch.ones_like(rewards)
    if scale == "group_std":
        divisor = group_std(rewards, group_index) + STD_EPSILON
    elif scale == "group_mean":
        if bool((rewards < 0).any()):
            raise ValueError(
                f"algorithm.scale: 'group_mean' (MaxRL) needs rewards of at least 0, one is {float(rewards.min())}; "
                "shift the reward, or use scale: group_std"
            )
        divisor = group_baseline(rewards, group_index, "group_mean") + STD_EPSILON
    if baseline in ("group_mean", "leave_one_out"):
        # The advantage does not depend on a constant added to a group's rewards, so take away the group's first one:
        # equal rewards then cancel to exactly 0, which `0.1 - mean([0.1, 0.1, 0.1])` does not.
        rewards = rewards - rewards[_first_of_group(group_index)]
    return (rewards - group_baseline(rewards, group_index, baseline, baseline_rewards)) / divisor


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
    # Plain numbers: a loop over tensor elements takes 50 times as long.
    r, v, sequence = rewards.tolist(), values.tolist(), sequence_index.tolist()
    advantages = [0.0] * len(r)
    for t in reversed(range(len(r))):
        is_last = t + 1 == len(r) or sequence[t + 1] != sequence[t]
        delta = r[t] - v[t] + (0.0 if is_last else gamma * v[t + 1])
        advantages[t] = delta + (0.0 if is_last else gamma * lam * advantages[t + 1])
    result = torch.tensor(advantages, dtype=rewards.dtype)
    return result, result + values


def rewards_to_go(rewards: Tensor, sequence_index: Tensor, gamma: float) -> Tensor:
    """Discounted sum of each action's and all later rewards, R_t = r_t + gamma R_{t+1} within a sequence, (A,)."""
    returns, sequence = rewards.tolist(), sequence_index.tolist()
    for t in reversed(range(len(returns) - 1)):
        if sequence[t + 1] == sequence[t]:
            returns[t] += gamma * returns[t + 1]
    return torch.tensor(returns, dtype=rewards.dtype)


def overlong_penalty(lengths: Tensor, *, max_new_tokens: int) -> Tensor:
    """Penalty on long completions: 0 up to 4/5 of max_new_tokens, then falling linearly to -1 at max_new_tokens, (S,).

    Soft overlong punishment, https://arxiv.org/abs/2503.14476, equation 13; its buffer there is a fifth too (4,096 of
    20,480 tokens).
    """
    buffer = max_new_tokens / 5
    return -((lengths.double() - (max_new_tokens - buffer)).clamp(min=0) / buffer).clamp(max=1).float()


def best_and_worst(rewards: Tensor, group_index: Tensor) -> list[tuple[int, int]]:
    """Index of the best and of the worst sequence of every group whose rewards differ; of equals the first."""
    pairs = []
    for group in range(int(group_index.max()) + 1):
        members = (group_index == group).nonzero().squeeze(1)
        scores = rewards[members]
        if bool(scores.max() > scores.min()):
            pairs.append((int(members[scores.argmax()]), int(members[scores.argmin()])))
    return pairs


def above_or_below(rewards: Tensor, group_index: Tensor) -> Tensor:
    """Sign of each sequence's distance from its group's mean reward, (S,): 1, -1, or 0 within the rewards' rounding."""
    distance = sequence_advantages(rewards.double(), group_index, "group_mean", "none")
    rounding = 2 * torch.finfo(torch.float32).eps * rewards.abs().max()
    return torch.where(distance.abs() <= rounding, 0.0, distance.sign()).to(rewards.dtype)


def token_advantages(
    algorithm: PolicyObjective,
    *,
    kl_coef: float,
    rewards: Tensor,
    group_index: Tensor,
    sequence_index: Tensor,
    policy_logprobs: Tensor,
    ref_logprobs: Tensor | None,
    values: Tensor | None,
    baseline_rewards: Tensor | None = None,
    turn_rewards: Tensor | None = None,
    turn_index: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Advantages of every action token under `algorithm`, and the critic's targets where there is one.

    Args:
        kl_coef: weight of a KL in the reward; `algorithm.kl_coef`, or what it was adapted to.
        rewards: (S,). group_index: (S,). sequence_index: (A,).
        policy_logprobs: (A,) log-probs of the policy that made the rollouts; used by a KL in the reward.
        ref_logprobs: (A,) or None. values: (A,) or None. baseline_rewards: (S,) or None.
        turn_rewards, turn_index: (A,), needed by `credit: turn`; what is in `rewards`, on the last token of each turn.

    Returns:
        (advantages (A,), returns (A,) or None)
    """
    token_rewards = torch.zeros_like(policy_logprobs)
    # The outcome is weighed where it meets the KL, or else at the end, where no scale divides the weight out again.
    weight, final_weight = 1.0, algorithm.reward_coef
    if algorithm.kl_in != "loss" and algorithm.kl != "none":
        assert ref_logprobs is not None
        token_rewards = -kl_coef * kl_penalty(policy_logprobs, ref_logprobs, algorithm.kl)
        weight, final_weight = final_weight, weight

    returns = None
    is_by_turn = algorithm.credit == "turn"
    if is_by_turn:
        assert turn_rewards is not None
        token_rewards = token_rewards + weight * turn_rewards
    if algorithm.baseline == "critic":
        assert values is not None
        if not is_by_turn:
            token_rewards = token_rewards.index_add(0, last_actions(sequence_index), weight * rewards)
        advantages, returns = gae(
            token_rewards, values, sequence_index, gamma=algorithm.gamma, lam=algorithm.gae_lambda
        )
    elif is_by_turn:
        assert turn_index is not None
        advantages = turn_advantages(
            token_rewards,
            turn_index=turn_index,
            sequence_index=sequence_index,
            group_index=group_index,
            compare=lambda values, groups: sequence_advantages(values, groups, algorithm.baseline, algorithm.scale),
        )
    elif algorithm.kl_in == "reward_to_go":
        outcomes = sequence_advantages(rewards, group_index, algorithm.baseline, algorithm.scale, baseline_rewards)
        token_rewards = token_rewards.index_add(0, last_actions(sequence_index), weight * outcomes)
        advantages = rewards_to_go(token_rewards, sequence_index, algorithm.gamma)
    else:
        # The KL penalty of a whole sequence is part of its reward, as in RLOO.
        totals = (weight * rewards).index_add(0, sequence_index, token_rewards)
        given = None if baseline_rewards is None else weight * baseline_rewards
        outcomes = sequence_advantages(totals, group_index, algorithm.baseline, algorithm.scale, given)
        advantages = outcomes[sequence_index]
    if algorithm.scale == "batch_std":
        advantages = whiten(advantages)
    advantages = final_weight * advantages
    if algorithm.advantage_clip:
        advantages = advantages.clamp(-algorithm.advantage_clip, algorithm.advantage_clip)
    return advantages, returns


def last_actions(sequence_index: Tensor) -> Tensor:
    """Index of the last action of each sequence, (S,) for sequences that all have actions."""
    ends = torch.ones_like(sequence_index, dtype=torch.bool)
    ends[:-1] = sequence_index[1:] != sequence_index[:-1]
    return ends.nonzero().squeeze(1)


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
