"""Advantages: sums by hand, and the same numbers from loops that share no code with them."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from rlft.batch import collate
from rlft.objectives.advantages import (
    STD_EPSILON,
    explained_variance,
    gae,
    group_baseline,
    group_std,
    last_actions,
    sequence_advantages,
    token_advantages,
    whiten,
)
from rlft.objectives.presets import PRESETS, Algorithm, Baseline, Scale
from rlft.types import Abstain, Failed
from tests.fakes import made_up_group

GRPO, PPO = PRESETS["grpo"], PRESETS["ppo"]


def double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ragged(seed: int, sizes: list[int]) -> tuple[Tensor, Tensor, list[list[float]]]:
    """Random numbers in groups of these sizes: flat, their group index, and as nested lists."""
    random_ = random.Random(seed)
    nested = [[random_.gauss(0, 2) for _ in range(size)] for size in sizes]
    index = torch.tensor([group for group, size in enumerate(sizes) for _ in range(size)])
    return double([value for group in nested for value in group]), index, nested


def advantages_of(algorithm: Algorithm, rewards: list[float], group_index: list[int], lengths: list[int]) -> Tensor:
    """Advantage of every action token without KL and critic, float64."""
    sequence_index = torch.repeat_interleave(torch.tensor(lengths))
    advantages, returns = token_advantages(
        algorithm,
        rewards=double(rewards),
        group_index=torch.tensor(group_index),
        sequence_index=sequence_index,
        policy_logprobs=torch.zeros(len(sequence_index), dtype=torch.float64),
        ref_logprobs=torch.zeros(len(sequence_index), dtype=torch.float64),
        values=None,
    )
    assert returns is None
    return advantages


def test_group_mean_and_std_by_hand() -> None:
    # Group 0: mean (1 + 0 + 0 + 1) / 4 = 0.5; deviations 0.5, -0.5, -0.5, 0.5; std sqrt(4 * 0.25 / 3) = 0.577350.
    # Group 1: mean (2 + 6) / 2 = 4; deviations -2, 2; std sqrt((4 + 4) / 1) = 2.828427.
    rewards, group = double([1, 0, 0, 1, 2, 6]), torch.tensor([0, 0, 0, 0, 1, 1])
    assert group_baseline(rewards, group, "group_mean").tolist() == [0.5, 0.5, 0.5, 0.5, 4, 4]
    assert group_std(rewards, group).tolist() == pytest.approx([0.577350] * 4 + [2.828427] * 2, abs=1e-6)
    # 0.5 / (0.577350 + 0.0001) = 0.865876 and 2 / (2.828427 + 0.0001) = 0.707082.
    advantages = sequence_advantages(rewards, group, "group_mean", "group_std")
    expected = [0.865876, -0.865876, -0.865876, 0.865876, -0.707082, 0.707082]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-6)


def test_leave_one_out_by_hand() -> None:
    # Mean of the others: (0 + 5) / 2 = 2.5, (1 + 5) / 2 = 3, (1 + 0) / 2 = 0.5; in the pair: 6 and 2.
    rewards, group = double([1, 0, 5, 2, 6]), torch.tensor([0, 0, 0, 1, 1])
    assert group_baseline(rewards, group, "leave_one_out").tolist() == [2.5, 3, 0.5, 6, 2]
    assert sequence_advantages(rewards, group, "leave_one_out", "none").tolist() == [-1.5, -3, 4.5, -4, 4]


def test_no_baseline_leaves_the_reward() -> None:
    rewards, group = double([1, -2, 5]), torch.tensor([0, 0, 1])
    assert sequence_advantages(rewards, group, "none", "none").tolist() == [1, -2, 5]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("scale", ["none", "group_std"])
@pytest.mark.parametrize("baseline", ["none", "group_mean", "leave_one_out"])
def test_advantages_equal_those_of_a_loop(baseline: Baseline, scale: Scale, seed: int) -> None:
    rewards, group, nested = ragged(seed, [2, 5, 3, 8])
    expected = []
    for values in nested:
        for own, value in enumerate(values):
            others = [other for position, other in enumerate(values) if position != own]
            subtracted = {
                "none": 0.0,
                "group_mean": statistics.fmean(values),
                "leave_one_out": statistics.fmean(others),
            }[baseline]
            divisor = statistics.stdev(values) + STD_EPSILON if scale == "group_std" else 1.0
            expected.append((value - subtracted) / divisor)
    assert sequence_advantages(rewards, group, baseline, scale).tolist() == pytest.approx(expected, rel=1e-12)


def test_leave_one_out_is_the_centred_reward_times_n_over_n_minus_one() -> None:
    # r - mean of the others = (r - mean) n / (n - 1), https://arxiv.org/abs/2402.14740
    rewards, group, _ = ragged(3, [4, 4])
    centred = sequence_advantages(rewards, group, "group_mean", "none")
    assert torch.allclose(sequence_advantages(rewards, group, "leave_one_out", "none"), centred * 4 / 3, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1.0, 100.1, -1 / 3])
@pytest.mark.parametrize("size", [2, 3, 5, 7, 16])
@pytest.mark.parametrize(
    ("baseline", "scale"), [("group_mean", "none"), ("group_mean", "group_std"), ("leave_one_out", "none")]
)
def test_equal_rewards_give_exactly_zero(baseline: Baseline, scale: Scale, size: int, value: float) -> None:
    # In float32, as the learner computes: (7 * 0.1) / 7 is not 0.1, and dividing the difference by a standard
    # deviation of the same size would make noise of it.
    rewards = torch.full((size,), value, dtype=torch.float32)
    advantages = sequence_advantages(rewards, torch.zeros(size, dtype=torch.int64), baseline, scale)
    assert advantages.tolist() == [0.0] * size


def test_a_sample_that_is_alone_has_no_advantage_over_the_group_mean() -> None:
    # Its standard deviation is 0, not nan: 0 / (0 + 0.0001) = 0.
    rewards, group = double([3, 1, 2]), torch.tensor([0, 1, 1])
    assert group_std(rewards, group).tolist()[0] == 0
    assert sequence_advantages(rewards, group, "group_mean", "group_std").tolist()[0] == 0


@pytest.mark.parametrize("preset", ["grpo", "ppo"])
def test_failed_and_abstained_samples_enter_no_baseline(preset: str) -> None:
    failed = Failed(kind="timeout", message="slow", reproduce="")
    with_holes = collate([made_up_group([1.0, failed, 0.0, Abstain(reason="not mine")], lengths=[2, 3, 1, 2])])
    # The mean of what is left is 0.5; with zeros for the two holes it would be 0.25.
    assert group_baseline(with_holes.rewards, with_holes.group_index, "group_mean").tolist() == [0.5, 0.5]
    algorithm = replace(PRESETS[preset], kl="none", kl_coef=0.0)
    values = torch.zeros(3) if preset == "ppo" else None
    advantages, _ = token_advantages(
        algorithm,
        rewards=with_holes.rewards,
        group_index=with_holes.group_index,
        sequence_index=with_holes.sequence_index,
        policy_logprobs=with_holes.rollout_logprobs,
        ref_logprobs=None,
        values=values,
    )
    if preset == "grpo":
        # +-0.5 / (0.707107 + 0.0001) = +-0.707007 on the 2 + 1 tokens
        assert advantages.tolist() == pytest.approx([0.707007, 0.707007, -0.707007], abs=1e-6)
    else:
        # GAE with zero values and lambda 0.95 gives 0.95, 1 and 0: mean 0.65, std sqrt((0.09 + 0.1225 + 0.4225) / 2)
        # = 0.563471; (0.95 - 0.65) / 0.563471 = 0.532414, 0.35 / 0.563471 = 0.621150, -0.65 / 0.563471 = -1.153564
        assert advantages.tolist() == pytest.approx([0.532414, 0.621150, -1.153564], abs=1e-6)


def test_every_action_of_a_sequence_has_its_advantage() -> None:
    # Dr. GRPO's row: rewards 1 and 3 minus their mean 2, on 3 and 1 tokens.
    algorithm = replace(GRPO, scale="none")
    assert advantages_of(algorithm, [1, 3], [0, 0], [3, 1]).tolist() == [-1, -1, -1, 1]


def test_batch_std_whitens_over_tokens_not_sequences() -> None:
    # Centred rewards -1 and 1 on 3 and 1 tokens: mean -0.5; deviations -0.5 (three times) and 1.5;
    # variance (3 * 0.25 + 2.25) / 3 = 1, so the whitened advantages are the deviations.
    algorithm = replace(GRPO, scale="batch_std")
    assert advantages_of(algorithm, [1, 3], [0, 0], [3, 1]).tolist() == pytest.approx([-0.5, -0.5, -0.5, 1.5], abs=1e-7)


@pytest.mark.parametrize("count", [2, 3, 100])
def test_whitened_advantages_have_mean_zero_and_std_one(count: int) -> None:
    values, _, _ = ragged(count, [count])
    white = whiten(values * 5 + 3).tolist()
    assert statistics.fmean(white) == pytest.approx(0, abs=1e-12)
    assert statistics.stdev(white) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("value", [0.1, 0.3, 100.1])
@pytest.mark.parametrize("count", [3, 7, 50, 1000])
def test_whitening_equal_advantages_gives_no_noise(count: int, value: float) -> None:
    # The rounding of the mean, 1e-8 for 0.1, must not be divided by a standard deviation of 0 + 1e-8.
    assert float(whiten(torch.full((count,), value)).abs().max()) == 0.0


def slow_gae(
    rewards: list[list[float]], values: list[list[float]], gamma: float, lam: float
) -> tuple[list[float], list[float]]:
    """A_t = sum over k >= t of (gamma lam)^(k - t) delta_k; the returns are A_t + V_t."""
    advantages, returns = [], []
    for r, v in zip(rewards, values, strict=True):
        for t in range(len(r)):
            total = 0.0
            for k in range(t, len(r)):
                following = v[k + 1] if k + 1 < len(r) else 0.0
                total += (gamma * lam) ** (k - t) * (r[k] + gamma * following - v[k])
            advantages.append(total)
            returns.append(total + v[t])
    return advantages, returns


@pytest.mark.parametrize("sizes", [[1], [6], [1, 4, 2, 7], [3, 1, 1, 5]])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_gae_equals_the_explicit_double_sum(gamma: float, lam: float, sizes: list[int]) -> None:
    rewards, index, nested_rewards = ragged(5, sizes)
    values, _, nested_values = ragged(6, sizes)
    advantages, returns = gae(rewards, values, index, gamma=gamma, lam=lam)
    expected_advantages, expected_returns = slow_gae(nested_rewards, nested_values, gamma, lam)
    assert advantages.tolist() == pytest.approx(expected_advantages, abs=1e-12)
    assert returns.tolist() == pytest.approx(expected_returns, abs=1e-12)


def test_gae_by_hand() -> None:
    # Two sequences, gamma 0.5, lambda 0.5. First: rewards 0, 1; values 2, 4.
    #   delta_1 = 1 + 0 - 4 = -3; delta_0 = 0 + 0.5 * 4 - 2 = 0; A_0 = 0 + 0.25 * -3 = -0.75; returns 1.25 and 1.
    # Second: reward 5, value 1: A = 4, return 5. Nothing leaks over the border.
    advantages, returns = gae(double([0, 1, 5]), double([2, 4, 1]), torch.tensor([0, 0, 1]), gamma=0.5, lam=0.5)
    assert advantages.tolist() == [-0.75, -3, 4]
    assert returns.tolist() == [1.25, 1, 5]


def test_gae_with_lambda_one_is_the_return_to_go_minus_the_value() -> None:
    rewards, index, nested = ragged(7, [4, 2])
    values, _, _ = ragged(8, [4, 2])
    to_go = [math.fsum(group[t:]) for group in nested for t in range(len(group))]
    _, returns = gae(rewards, values, index, gamma=1.0, lam=1.0)
    assert returns.tolist() == pytest.approx(to_go, abs=1e-12)


def test_ppo_puts_the_reward_on_the_last_action_and_the_kl_on_every_action() -> None:
    # kl_coef 0.5, two sequences of 2 and 1 actions, rewards 1 and 2, log-ratios 0.2, -0.4 | 0.6.
    #   token rewards: -0.5 * 0.2 = -0.1, 0.2 + 1 = 1.2 | -0.3 + 2 = 1.7
    # gamma 1, lambda 1, values 0: returns to go -0.1 + 1.2 = 1.1, 1.2 | 1.7; no whitening.
    algorithm = replace(PPO, scale="none", kl_coef=0.5, gae_lambda=1.0)
    advantages, returns = token_advantages(
        algorithm,
        rewards=double([1, 2]),
        group_index=torch.tensor([0, 1]),
        sequence_index=torch.tensor([0, 0, 1]),
        policy_logprobs=double([-1.0, -1.4, -0.4]),
        ref_logprobs=double([-1.2, -1.0, -1.0]),
        values=double([0, 0, 0]),
    )
    assert advantages.tolist() == pytest.approx([1.1, 1.2, 1.7], abs=1e-12)
    assert returns is not None
    assert returns.tolist() == pytest.approx([1.1, 1.2, 1.7], abs=1e-12)


def test_kl_in_the_reward_of_a_group_baseline_is_summed_over_the_sequence() -> None:
    # RLOO's row: rewards 1 and 2; penalties -0.5 * (0.2 - 0.4) = 0.1 and -0.5 * 0.6 = -0.3: totals 1.1 and 1.7.
    # Each minus the other: -0.6 and 0.6.
    algorithm = replace(
        GRPO, baseline="leave_one_out", scale="none", kl="k1", kl_in="reward", kl_coef=0.5, aggregate="sequence_sum"
    )
    advantages, _ = token_advantages(
        algorithm,
        rewards=double([1, 2]),
        group_index=torch.tensor([0, 0]),
        sequence_index=torch.tensor([0, 0, 1]),
        policy_logprobs=double([-1.0, -1.4, -0.4]),
        ref_logprobs=double([-1.2, -1.0, -1.0]),
        values=None,
    )
    assert advantages.tolist() == pytest.approx([-0.6, -0.6, 0.6], abs=1e-12)


def test_kl_in_the_loss_leaves_the_advantages_alone() -> None:
    batch = {
        "rewards": double([1, 2]),
        "group_index": torch.tensor([0, 0]),
        "sequence_index": torch.tensor([0, 0, 1]),
        "policy_logprobs": double([-1.0, -1.4, -0.4]),
        "values": None,
    }
    far, _ = token_advantages(GRPO, ref_logprobs=double([-9.0, -9.0, -9.0]), **batch)
    near, _ = token_advantages(GRPO, ref_logprobs=batch["policy_logprobs"], **batch)
    assert torch.equal(far, near)


def test_last_actions() -> None:
    assert last_actions(torch.tensor([0, 0, 0, 1, 2, 2])).tolist() == [2, 3, 5]


def test_explained_variance_by_hand() -> None:
    returns = double([0, 2, 4, 6])  # variance (9 + 1 + 1 + 9) / 4 = 5
    assert explained_variance(returns, returns) == 1
    assert explained_variance(returns + 7, returns) == 1  # an offset is no lack of explanation
    assert explained_variance(double([3, 3, 3, 3]), returns) == 0
    # Errors 0, 2, 2, 0 around their mean 1: variance 1, so 1 - 1 / 5.
    assert explained_variance(double([0, 0, 2, 6]), returns) == pytest.approx(0.8)
    # Twice the returns with the sign turned: errors 3 * returns, variance 9 * 5, so 1 - 9.
    assert explained_variance(-2 * returns, returns) == pytest.approx(-8)
    assert explained_variance(returns, double([1, 1, 1, 1])) == 0  # nothing to explain
