"""Credit by turn: each action of an episode is judged by what came from it on, not by the whole episode.

    return of turn k = reward of turn k + rewards of all later turns
    advantage        = (return - baseline) / scale, the baseline being that of the group's samples at the same turn

Turn-level credit for group baselines, as in https://arxiv.org/abs/2505.11821. A pair is a turn of a sequence; the
action tokens of a pair stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def turn_advantages(
    token_rewards: Tensor,
    *,
    turn_index: Tensor,
    sequence_index: Tensor,
    group_index: Tensor,
    compare: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Advantage of each action token, that of its turn.

    Args:
        token_rewards: (A,) float, whose sums over a turn are its reward.
        turn_index: (A,) int64, each token's turn within its sequence. sequence_index: (A,) int64, ascending.
        group_index: (S,) int64.
        compare: advantages (P,) of values (P,) in groups (P,), equal numbers of which are adjacent.

    Returns:
        (A,) float.
    """
    starts = torch.ones_like(sequence_index, dtype=torch.bool)
    starts[1:] = (sequence_index[1:] != sequence_index[:-1]) | (turn_index[1:] != turn_index[:-1])
    pair_of_token = starts.cumsum(0) - 1
    sequence, turn = sequence_index[starts], turn_index[starts]
    returns = token_rewards.new_zeros(len(sequence)).index_add(0, pair_of_token, token_rewards)
    later = 0.0
    values = returns.tolist()
    for pair in reversed(range(len(values))):
        is_last = pair + 1 == len(values) or sequence[pair + 1] != sequence[pair]
        later = values[pair] = values[pair] + (0.0 if is_last else later)
    # The samples of a group at the same turn are compared with each other.
    compared = group_index[sequence] * (int(turn_index.max()) + 1) + turn
    order = torch.argsort(compared, stable=True)
    numbers = torch.unique_consecutive(compared[order], return_inverse=True)[1]
    advantages = torch.empty_like(returns)
    advantages[order] = compare(torch.tensor(values, dtype=returns.dtype)[order], numbers)
    return advantages[pair_of_token]
