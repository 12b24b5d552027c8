"""Advantages: sums by hand, and the same numbers from loops that share no code with them."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from trl.rewards import get_soft_overlong_punishment

from rlft.learner.batch import collate
from rlft.objectives.advantages import (
    STD_EPSILON,
    above_or_below,
    best_and_worst,
    gae,
    group_baseline,
    group_std,
    last_actions,
    overlong_penalty,
    rewards_to_go,
    sequence_advantages,
    token_advantages,
    whiten,
)
from rlft.objectives.algorithm import Baseline, PolicyObjective, Scale
from rlft.objectives.presets import PRESETS
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


def advantages_of(
    algorithm: PolicyObjective, rewards: list[float], group_index: list[int], lengths: list[int]
) -> Tensor:
    """Advantage of every action token without KL and critic, float64."""
    sequence_index = torch.repeat_interleave(torch.tensor(lengths))
    advantages, returns = token_advantages(
        algorithm,
        kl_coef=algorithm.kl_coef,
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
@pytest.mark.parametrize("scale", ["none", "group_std", "group_mean"])
@pytest.mark.parametrize("baseline", ["none", "group_mean", "leave_one_out", "greedy"])
def test_advantages_equal_those_of_a_loop(baseline: Baseline, scale: Scale, seed: int) -> None:
    sizes = [2, 5, 3, 8]
    rewards, group, nested = ragged(seed, sizes)
    rewards, nested = rewards.abs(), [[abs(value) for value in values] for values in nested]
    greedy = [0.5, -1.0, 2.0, 0.0]
    expected = []
    for number, values in enumerate(nested):
        for own, value in enumerate(values):
            others = [other for position, other in enumerate(values) if position != own]
            subtracted = {
                "none": 0.0,
                "group_mean": statistics.fmean(values),
                "leave_one_out": statistics.fmean(others),
                "greedy": greedy[number],
            }[baseline]
            divisor = {
                "none": 1.0,
                "group_std": statistics.stdev(values) + STD_EPSILON,
                "group_mean": statistics.fmean(values) + STD_EPSILON,
            }[scale]
            expected.append((value - subtracted) / divisor)
    advantages = sequence_advantages(rewards, group, baseline, scale, double(greedy)[group])
    assert advantages.tolist() == pytest.approx(expected, rel=1e-12)


def test_greedy_baseline_by_hand() -> None:
    # Two tasks whose greedy answers got 1 and -0.5: 1 - 1, 0 - 1 | 2 + 0.5.
    rewards, group, greedy = double([1, 0, 2]), torch.tensor([0, 0, 1]), double([1, 1, -0.5])
    assert group_baseline(rewards, group, "greedy", greedy).tolist() == [1, 1, -0.5]
    assert sequence_advantages(rewards, group, "greedy", "none", greedy).tolist() == [0, -1, 2.5]


def test_maxrl_scale_by_hand() -> None:
    # Group 0: mean 1/4, so (1 - 1/4) / (1/4) = 3 and (0 - 1/4) / (1/4) = -1; the 0.0001 makes 2.998801 and -0.999600.
    # Group 1: mean 1, nothing to learn. Group 2: mean 0, and 0 / (0 + 0.0001) = 0.
    rewards, group = double([1, 0, 0, 0, 1, 1, 0, 0]), torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    advantages = sequence_advantages(rewards, group, "group_mean", "group_mean").tolist()
    assert advantages == pytest.approx([2.998801, -0.999600, -0.999600, -0.999600, 0, 0, 0, 0], abs=1e-6)
    assert advantages[4:] == [0, 0, 0, 0]


def test_maxrl_advantages_are_the_mean_score_of_the_successes_minus_that_of_all() -> None:
    # https://arxiv.org/abs/2602.02710: the gradient of maximum likelihood is estimated by the mean score function of
    # the K successes among N samples, less that of all as a control variate. Score functions are made up here.
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(8, 5, generator=generator, dtype=torch.float64)  # of 8 samples, in 5 parameters
    rewards = double([0, 1, 0, 0, 1, 0, 1, 0])
    expected = scores[rewards == 1].mean(0) - scores.mean(0)
    advantages = sequence_advantages(rewards, torch.zeros(8, dtype=torch.int64), "group_mean", "group_mean")
    # The 0.0001 beside the mean of 3/8 takes 0.03 % away.
    assert torch.allclose((advantages[:, None] * scores).mean(0), expected * 0.375 / 0.3751, atol=1e-12)


def test_maxrl_scale_refuses_negative_rewards() -> None:
    with pytest.raises(ValueError, match=r"at least 0, one is -0.5; shift the reward, or use scale: group_std"):
        sequence_advantages(double([1, -0.5]), torch.tensor([0, 0]), "group_mean", "group_mean")


def test_leave_one_out_is_the_centred_reward_times_n_over_n_minus_one() -> None:
    # r - mean of the others = (r - mean) n / (n - 1), https://arxiv.org/abs/2402.14740
    rewards, group, _ = ragged(3, [4, 4])
    centred = sequence_advantages(rewards, group, "group_mean", "none")
    assert torch.allclose(sequence_advantages(rewards, group, "leave_one_out", "none"), centred * 4 / 3, atol=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 0.7, 1.0, 100.1, -1 / 3])
@pytest.mark.parametrize("size", [2, 3, 5, 7, 16])
@pytest.mark.parametrize(
    ("baseline", "scale"),
    [("group_mean", "none"), ("group_mean", "group_std"), ("leave_one_out", "none"), ("group_mean", "group_mean")],
)
def test_equal_rewards_give_exactly_zero(baseline: Baseline, scale: Scale, size: int, value: float) -> None:
    value = abs(value) if scale == "group_mean" else value
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
        kl_coef=0.0,
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


def test_rewards_to_go_by_hand() -> None:
    # gamma 0.5; first sequence 1, 2, 4: 4; 2 + 0.5 * 4 = 4; 1 + 0.5 * 4 = 3. Second: 8. Third: -2; 1 + 0.5 * -2 = 0.
    index = torch.tensor([0, 0, 0, 1, 2, 2])
    assert rewards_to_go(double([1, 2, 4, 8, 1, -2]), index, 0.5).tolist() == [3, 4, 4, 8, 0, -2]


@pytest.mark.parametrize("sizes", [[1], [6], [1, 4, 2, 7], [3, 1, 1, 5]])
@pytest.mark.parametrize("gamma", [0.0, 0.9, 1.0])
def test_rewards_to_go_equal_the_explicit_sum(gamma: float, sizes: list[int]) -> None:
    rewards, index, nested = ragged(9, sizes)
    expected = [
        math.fsum(gamma ** (k - t) * values[k] for k in range(t, len(values)))
        for values in nested
        for t in range(len(values))
    ]
    assert rewards_to_go(rewards, index, gamma).tolist() == pytest.approx(expected, abs=1e-12)
    # They are the returns of a critic that knows nothing and is not trusted (lambda 1).
    _, returns = gae(rewards, torch.zeros_like(rewards), index, gamma=gamma, lam=1.0)
    assert returns.tolist() == pytest.approx(expected, abs=1e-12)


def test_ppo_puts_the_reward_on_the_last_action_and_the_kl_on_every_action() -> None:
    # kl_coef 0.5, two sequences of 2 and 1 actions, rewards 1 and 2, log-ratios 0.2, -0.4 | 0.6.
    #   token rewards: -0.5 * 0.2 = -0.1, 0.2 + 1 = 1.2 | -0.3 + 2 = 1.7
    # gamma 1, lambda 1, values 0: returns to go -0.1 + 1.2 = 1.1, 1.2 | 1.7; no whitening.
    algorithm = replace(PPO, scale="none", kl_coef=0.5, gae_lambda=1.0)
    advantages, returns = token_advantages(
        algorithm,
        kl_coef=algorithm.kl_coef,
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
        kl_coef=algorithm.kl_coef,
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
        "kl_coef": 0.5,
        "rewards": double([1, 2]),
        "group_index": torch.tensor([0, 0]),
        "sequence_index": torch.tensor([0, 0, 1]),
        "policy_logprobs": double([-1.0, -1.4, -0.4]),
        "values": None,
    }
    far, _ = token_advantages(GRPO, ref_logprobs=double([-9.0, -9.0, -9.0]), **batch)
    near, _ = token_advantages(GRPO, ref_logprobs=batch["policy_logprobs"], **batch)
    assert torch.equal(far, near)


# Two sequences of one group: 2 actions and reward 1, 1 action and reward 3; log pi / pi_ref = 0.2, -0.4 | 0.6.
PAIR = {
    "rewards": double([1, 3]),
    "group_index": torch.tensor([0, 0]),
    "sequence_index": torch.tensor([0, 0, 1]),
    "policy_logprobs": double([-1.0, -1.4, -0.4]),
    "ref_logprobs": double([-1.2, -1.0, -1.0]),
    "values": None,
}


def pair_advantages(algorithm: PolicyObjective, *, kl_coef: float | None = None, greedy: float = 0.0) -> list[float]:
    coefficient = algorithm.kl_coef if kl_coef is None else kl_coef
    advantages, _ = token_advantages(algorithm, kl_coef=coefficient, baseline_rewards=double([greedy, greedy]), **PAIR)
    return advantages.tolist()


def test_remax_subtracts_the_greedy_reward_and_every_action_pays_for_the_kl_from_itself_on() -> None:
    # Greedy reward 2, KL coefficient 0.5:
    #   last actions: 1 - 2 + 0.5 * 0.4 = -0.8 and 3 - 2 - 0.5 * 0.6 = 0.7; the first one: -0.5 * 0.2 - 0.8 = -0.9
    algorithm = replace(PRESETS["remax"], kl_coef=0.5)
    assert pair_advantages(algorithm, greedy=2.0) == pytest.approx([-0.9, -0.8, 0.7], abs=1e-12)


def test_reinforce_pp_whitens_the_reward_less_the_kl_to_go_over_the_batch() -> None:
    # KL coefficient 0.5, no baseline: 1 + 0.2 = 1.2 and 1.2 - 0.1 = 1.1 | 3 - 0.3 = 2.7; mean 5 / 3 = 1.666667,
    # deviations -0.566667, -0.466667, 1.033333; std sqrt((0.321111 + 0.217778 + 1.067778) / 2) = 0.896289.
    algorithm = replace(PRESETS["reinforce_pp"], kl_coef=0.5)
    assert pair_advantages(algorithm) == pytest.approx([-0.632237, -0.520665, 1.152902], abs=1e-6)


def test_reinforce_pp_baseline_centres_the_group_before_it_whitens_the_batch() -> None:
    # Rewards minus their mean 2: -1, -1 | 1; mean -1 / 3, deviations -2/3, -2/3, 4/3; std sqrt((4 + 4 + 16) / 9 / 2)
    # = 1.154701. The KL is in the loss and leaves them alone.
    expected = [-0.577350, -0.577350, 1.154701]
    assert pair_advantages(PRESETS["reinforce_pp_baseline"]) == pytest.approx(expected, abs=1e-6)


def test_distillation_learns_from_each_token_s_own_log_ratio_and_not_from_the_reward() -> None:
    # log pi_ref - log pi of every token, whatever comes after it.
    assert pair_advantages(PRESETS["opd"]) == pytest.approx([-0.2, 0.4, -0.6], abs=1e-12)


@pytest.mark.parametrize(
    ("kl", "penalties"),
    [
        ("k1", [0.2, -0.4, 0.6]),
        ("k2", [0.02, 0.08, 0.18]),  # half the squares
        # e^-0.2 - 1 + 0.2 = 0.018731, e^0.4 - 1 - 0.4 = 0.091825, e^-0.6 - 1 + 0.6 = 0.148812
        ("k3", [0.018731, 0.091825, 0.148812]),
    ],
)
def test_every_estimator_can_stand_in_the_reward(kl: str, penalties: list[float]) -> None:
    algorithm = replace(PRESETS["opd"], kl=kl)
    assert pair_advantages(algorithm) == pytest.approx([-p for p in penalties], abs=1e-6)


def test_the_weight_of_a_kl_in_the_reward_is_the_one_handed_in() -> None:
    # The learner adapts it; the algorithm's own is where it starts.
    assert pair_advantages(PRESETS["opd"], kl_coef=10.0) == pytest.approx([-2, 4, -6], abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        # Leave-one-out with the KL in the reward: totals 2 * 1 + 0.1 = 2.1 and 2 * 3 - 0.3 = 5.7, each minus the other.
        ({"baseline": "leave_one_out", "kl_in": "reward"}, [-3.6, -3.6, 3.6]),
        # A reward of 0 leaves the KL: 0.1 and -0.3.
        ({"baseline": "leave_one_out", "kl_in": "reward", "reward_coef": 0.0}, [0.4, 0.4, -0.4]),
        # The greedy answer's reward 1 counts twice, too: 2 * (1 - 1) + 0.1 and 2 * (3 - 1) - 0.3.
        ({"baseline": "greedy", "kl_in": "reward"}, [0.1, 0.1, 3.7]),
        # To go: 2 * 1 + 0.2 and 2 * 3 - 0.3 at the ends; 2.2 - 0.1 before.
        ({"kl_in": "reward_to_go"}, [2.1, 2.2, 5.7]),
        # GAE with a critic that knows nothing: the same.
        ({"baseline": "critic", "kl_in": "reward"}, [2.1, 2.2, 5.7]),
        # No scale divides the weight out: +-1 / (sqrt(2) + 0.0001), twice.
        ({"baseline": "group_mean", "scale": "group_std", "kl": "k2"}, [-1.414114, -1.414114, 1.414114]),
        ({"baseline": "group_mean", "scale": "batch_std", "kl": "k2"}, [-1.154701, -1.154701, 2.309401]),
        ({"baseline": "group_mean", "kl": "k2"}, [-2, -2, 2]),
        ({"baseline": "group_mean", "kl": "k2", "reward_coef": 0.0}, [0, 0, 0]),
    ],
)
def test_the_reward_coefficient_weighs_the_outcome(changes: dict[str, object], expected: list[float]) -> None:
    row = {"baseline": "none", "scale": "none", "kl": "k1", "kl_coef": 0.5, "reward_coef": 2.0, **changes}
    algorithm = replace(PRESETS["reinforce"], **row)
    values = torch.zeros(3, dtype=torch.float64) if algorithm.needs_critic else None
    tensors = {**PAIR, "values": values, "baseline_rewards": double([1, 1])}
    advantages, _ = token_advantages(algorithm, kl_coef=0.5, **tensors)
    assert advantages.tolist() == pytest.approx(expected, abs=1e-6)


def test_advantages_are_clipped_last() -> None:
    # After the division by the batch's deviation, see above: -0.577350, -0.577350, 1.154701.
    algorithm = replace(PRESETS["reinforce_pp_baseline"], advantage_clip=0.9)
    assert pair_advantages(algorithm) == pytest.approx([-0.577350, -0.577350, 0.9], abs=1e-6)
    assert pair_advantages(replace(algorithm, advantage_clip=0.1)) == pytest.approx([-0.1, -0.1, 0.1])
    # The weight of the outcome counts before the bound: 0.5 * 1.154701 = 0.577350 is inside it.
    halved = replace(algorithm, reward_coef=0.5)
    assert pair_advantages(halved) == pytest.approx([-0.288675, -0.288675, 0.577350], abs=1e-6)


def test_the_overlong_penalty_by_hand() -> None:
    # max_new_tokens 10: nothing up to 8, then (8 - length) / 2, never below -1.
    lengths = torch.tensor([1, 7, 8, 9, 10, 11])
    assert overlong_penalty(lengths, max_new_tokens=10).tolist() == [0, 0, 0, -0.5, -1, -1]
    # max_new_tokens 4: nothing up to 3.2, so only the longest pays, (3.2 - 4) / 0.8 = -1.
    assert overlong_penalty(torch.tensor([1, 2, 3, 4]), max_new_tokens=4).tolist() == pytest.approx([0, 0, 0, -1])


@pytest.mark.parametrize("max_new_tokens", [5, 40, 1000, 64, 7])
def test_the_overlong_penalty_is_that_of_trl(max_new_tokens: int) -> None:
    lengths = sorted({*range(1, 41), *range(max_new_tokens - 20, max_new_tokens + 2)} - {*range(-20, 1)})
    # TRL's cache is a number of tokens; ours, a fifth, may fall between two.
    theirs = get_soft_overlong_punishment(max_new_tokens, max_new_tokens / 5)([[0] * length for length in lengths])
    ours = overlong_penalty(torch.tensor(lengths), max_new_tokens=max_new_tokens).tolist()
    assert min(ours) == -1
    assert ours == pytest.approx(theirs, abs=1e-6)


def test_above_or_below_by_hand() -> None:
    # Means 0.2 (of which float32 makes something else), 0.5 and 1/3.
    rewards = torch.tensor([0.1, 0.2, 0.3, 0.5, 0.5, 0.0, 0.0, 1.0])
    group = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2])
    assert above_or_below(rewards, group).tolist() == [-1, 0, 1, 0, 0, -1, -1, 1]
    assert above_or_below(rewards, torch.arange(8)).tolist() == [0] * 8
    for base in (1.3, 10.0, -250.0):
        middle = torch.tensor([base, base + 0.01, base + 0.02])
        assert above_or_below(middle, torch.zeros(3, dtype=torch.int64)).tolist() == [-1, 0, 1]


def test_best_and_worst_by_hand() -> None:
    # Group 0: 2 is best, 0 worst. Group 1: all equal, no pair. Group 2: the first of the two best and two worst ones.
    rewards = double([1, 0, 2, 5, 5, 3, 7, 3, 7])
    group = torch.tensor([0, 0, 0, 1, 1, 2, 2, 2, 2])
    assert best_and_worst(rewards, group) == [(2, 1), (6, 5)]
    assert best_and_worst(double([1]), torch.tensor([0])) == []


@settings(deadline=None, max_examples=60)
@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=1, max_size=5))
def test_best_and_worst_are_pairs_of_one_group_with_its_extreme_rewards(nested: list[list[int]]) -> None:
    rewards = double([float(value) for group in nested for value in group])
    index = torch.tensor([group for group, values in enumerate(nested) for _ in values])
    pairs = best_and_worst(rewards, index)
    assert len(pairs) == sum(len(set(values)) > 1 for values in nested)
    for best, worst in pairs:
        assert index[best] == index[worst]
        values = nested[int(index[best])]
        assert (rewards[best], rewards[worst]) == (max(values), min(values))


def test_last_actions() -> None:
    assert last_actions(torch.tensor([0, 0, 0, 1, 2, 2])).tolist() == [2, 3, 5]
