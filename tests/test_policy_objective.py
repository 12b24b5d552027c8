"""The policy objective by hand: ratio, surrogate, correction, KL, weights, metrics.

`test_presets.py` computes whole rows from their papers, `test_policy_trl.py` asks TRL for the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlft.objectives.measures import Measures, join, numbers
from rlft.objectives.policy import (
    adapted_kl_coef,
    aggregation_weights,
    correction_factor,
    importance_ratio,
    kl_penalty,
    policy_loss,
    surrogate_loss,
    value_loss,
)
from rlft.objectives.presets import PRESETS

GRPO, PPO = PRESETS["grpo"], PRESETS["ppo"]
E = math.e


def double(values: list[float], *, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


# Ratio, surrogate and KL, token by token


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # Bounds 0.8 and 1.2. loss = -min(r A, clip(r) A); d/d log pi of r A is r A, that of the clipped term is 0.
        (E, 1.0, -1.2, 0.0),  # -min(2.718, 1.2): above the bound and good: held back
        (E, -1.0, E, E),  # -min(-2.718, -1.2): above the bound and bad: pushed down in full
        (1 / E, 1.0, -1 / E, -1 / E),  # -min(0.368, 0.8): below the bound and good: pulled up in full
        (1 / E, -1.0, 0.8, 0.0),  # -min(-0.368, -0.8): below the bound and bad: held back
        (1.1, 2.0, -2.2, -2.2),  # inside the bounds
        (1.0, -0.5, 0.5, 0.5),  # on-policy: the gradient is that of -A log pi
    ],
)
def test_clipped_surrogate_by_hand(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    logprobs = double([math.log(ratio)], grad=True)
    result = surrogate_loss("clipped", logprobs.exp(), logprobs, double([advantage]), low=0.2, high=0.2)
    assert result.item() == pytest.approx(loss)
    (slope,) = torch.autograd.grad(result.sum(), logprobs)
    assert slope.item() == pytest.approx(gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient"),
    [
        # As above, but the loss of a bad action is at most 3 |A|: max(min(r A, clip(r) A), 3 A).
        (4.0, -1.0, 3.0, 0.0),  # -max(-4, -3): no longer pushed down
        (E, -2.0, 2 * E, 2 * E),  # -max(-5.437, -6): not there yet
        (4.0, 1.0, -1.2, 0.0),  # good actions are as with the plain clip
        (1 / E, -1.0, 0.8, 0.0),
        (1.1, 2.0, -2.2, -2.2),
    ],
)
def test_dual_clipped_surrogate_by_hand(ratio: float, advantage: float, loss: float, gradient: float) -> None:
    logprobs = double([math.log(ratio)], grad=True)
    result = surrogate_loss("dual_clipped", logprobs.exp(), logprobs, double([advantage]), low=0.2, high=0.2)
    assert result.item() == pytest.approx(loss)
    (slope,) = torch.autograd.grad(result.sum(), logprobs)
    assert slope.item() == pytest.approx(gradient)


@pytest.mark.parametrize(
    ("ratio", "advantage", "weight"),
    [
        (E, 1.0, 1.28),  # min(2.718, 1 + 0.28): the weight is clipped, the token keeps its gradient
        (E, -1.0, 1.28),  # the same for bad tokens
        (1 / E, 1.0, 0.9),  # max(0.368, 1 - 0.1)
        (1.05, -2.0, 1.05),
    ],
)
def test_clipped_weight_keeps_the_gradient_of_clipped_tokens(ratio: float, advantage: float, weight: float) -> None:
    logprobs = double([math.log(ratio) - 3.0], grad=True)  # the old log-prob was -3
    result = surrogate_loss("clipped_weight", (logprobs + 3).exp(), logprobs, double([advantage]), low=0.1, high=0.28)
    assert result.item() == pytest.approx(-weight * advantage * (math.log(ratio) - 3.0))
    (slope,) = torch.autograd.grad(result.sum(), logprobs)
    assert slope.item() == pytest.approx(-weight * advantage)


def test_score_function_ignores_the_ratio() -> None:
    # -A log pi = -(2 * -3) = 6, and -(-1 * -0.5) = -0.5; the slopes are -A.
    logprobs = double([-3.0, -0.5], grad=True)
    result = surrogate_loss("score_function", double([9, 9]), logprobs, double([2, -1]), low=0.2, high=0.2)
    assert result.tolist() == [6, -0.5]
    assert torch.autograd.grad(result.sum(), logprobs)[0].tolist() == [-2, 1]


def test_sequence_ratio_by_hand() -> None:
    # Log-ratios 0.1, 0.3, -0.1 have mean 0.1; -0.6 stands alone.
    # Each token carries the gradient of its own log-prob: d s / d log pi_t = s.
    logprobs = double([-1.0, -2.0, -3.0, -4.0], grad=True)
    old = double([-1.1, -2.3, -2.9, -3.4])
    index = torch.tensor([0, 0, 0, 1])
    ratio = importance_ratio(logprobs, old, index, "sequence")
    expected = [math.exp(0.1)] * 3 + [math.exp(-0.6)]
    assert ratio.tolist() == pytest.approx(expected)
    jacobian = torch.stack([torch.autograd.grad(r, logprobs, retain_graph=True)[0] for r in ratio])
    assert torch.allclose(jacobian, torch.diag(double(expected)))


def test_sequence_mean_of_sequence_ratios_has_the_gradient_of_gspo() -> None:
    # GSPO, https://arxiv.org/abs/2507.18071, equation 10: grad of (1 / S) sum s_i A_i = (1 / S) sum s_i A_i (1 / |o_i|)
    # sum_t grad log pi_t. With |o| = 3 and 1, S = 2, A = 2 and -1, all inside the bounds:
    # tokens of the first: e^0.1 * 2 / 3 / 2 = 0.368390, the second: e^-0.1 * -1 / 1 / 2 = -0.452419.
    # The loss is minus the objective.
    algorithm = replace(GRPO, ratio="sequence", kl="none", kl_coef=0.0)
    logprobs = double([-1.0, -2.0, -3.0, -4.0], grad=True)
    index = torch.tensor([0, 0, 0, 1])
    loss, _ = policy_loss(
        algorithm,
        kl_coef=0.0,
        logprobs=logprobs,
        entropy=torch.zeros_like(logprobs),
        old_logprobs=double([-1.1, -2.3, -2.9, -3.9]),
        rollout_logprobs=double([-1.1, -2.3, -2.9, -3.9]),
        ref_logprobs=None,
        advantages=double([2, 2, 2, -1]),
        weights=aggregation_weights("sequence_mean", index, max_new_tokens=8),
        sequence_index=index,
    )
    loss.backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == pytest.approx([-0.368390] * 3 + [0.452419], abs=1e-6)


def test_token_ratio_is_one_on_policy_and_has_slope_one() -> None:
    logprobs = double([-1.0, -2.0], grad=True)
    ratio = importance_ratio(logprobs, logprobs.detach(), torch.tensor([0, 0]), "token")
    assert ratio.tolist() == [1, 1]
    assert torch.autograd.grad(ratio.sum(), logprobs)[0].tolist() == [1, 1]


def test_kl_estimators_by_hand() -> None:
    # r = pi_ref / pi = 1/2, so log r = -0.693147: k1 = 0.693147, k2 = 0.693147^2 / 2 = 0.240227,
    # k3 = 0.5 - 1 + 0.693147 = 0.193147. With r = 2: k1 = -0.693147, k2 the same, k3 = 2 - 1 - 0.693147 = 0.306853.
    logprobs, ref = double([math.log(0.5), math.log(0.25)]), double([math.log(0.25), math.log(0.5)])
    assert kl_penalty(logprobs, ref, "k1").tolist() == pytest.approx([0.693147, -0.693147], abs=1e-6)
    assert kl_penalty(logprobs, ref, "k2").tolist() == pytest.approx([0.240227, 0.240227], abs=1e-6)
    assert kl_penalty(logprobs, ref, "k3").tolist() == pytest.approx([0.193147, 0.306853], abs=1e-6)


@pytest.mark.parametrize("kl", ["k1", "k3"])
def test_kl_estimators_are_unbiased(kl: Any) -> None:
    # The expectation over a small vocabulary, exactly: sum of p times the estimate = sum of p log(p / q).
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(7, generator=generator, dtype=torch.float64).log_softmax(0) for _ in range(2))
    exact = float((p.exp() * (p - q)).sum())
    assert float((p.exp() * kl_penalty(p, q, kl)).sum()) == pytest.approx(exact, abs=1e-12)


@pytest.mark.parametrize(
    ("kl", "divergence"),
    [
        # As a term of the loss an estimator is not what it is as a number: its slope, averaged over samples, is that
        # of ...
        ("k1", lambda p, q: 0 * p.sum()),  # nothing, which is why the loss refuses it
        ("k2", lambda p, q: (p.exp() * (p - q)).sum()),  # KL(pi || pi_ref)
        ("k3", lambda p, q: (q.exp() * (q - p)).sum()),  # KL(pi_ref || pi)
    ],
)
def test_expected_slope_of_each_kl_estimator(kl: Any, divergence: Any) -> None:
    logits, ref_logits = (
        torch.randn(7, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in (0, 1)
    )
    logits.requires_grad_()
    p, q = logits.log_softmax(0), ref_logits.log_softmax(0)
    (expected,) = torch.autograd.grad(divergence(p, q), logits, retain_graph=True)
    (slope,) = torch.autograd.grad((p.exp().detach() * kl_penalty(p, q, kl)).sum(), logits)
    assert torch.allclose(slope, expected, rtol=0, atol=1e-12)


# Correction: two sequences with pi_old / pi_rollout = 2, 1/4 | 1/2, 4, 3; their products are 1/2 and 6


CORRECTED = {
    "old_logprobs": double([-1, -2, -1, -2, -3]),
    "rollout_logprobs": double([-1, -2, -1, -2, -3])
    - double([math.log(2), math.log(0.25), math.log(0.5), math.log(4), math.log(3)]),
    "sequence_index": torch.tensor([0, 0, 1, 1, 1]),
}


@pytest.mark.parametrize(
    ("correction", "bounds", "expected"),
    [
        ("none", (0.0, 2.0), [1, 1, 1, 1, 1]),
        ("token_truncate", (0.0, 2.0), [2, 0.25, 0.5, 2, 2]),
        ("token_truncate", (0.5, 3.5), [2, 0.5, 0.5, 3.5, 3]),
        ("token_mask", (0.4, 3.5), [2, 0, 0.5, 0, 3]),
        ("sequence_truncate", (0.0, 2.0), [0.5, 0.5, 2, 2, 2]),
        ("sequence_truncate", (0.75, 10.0), [0.75, 0.75, 6, 6, 6]),
        ("sequence_mask", (0.0, 2.0), [0.5, 0.5, 0, 0, 0]),
        ("sequence_mask", (0.75, 10.0), [0, 0, 6, 6, 6]),
    ],
)
def test_correction_by_hand(correction: Any, bounds: tuple[float, float], expected: list[float]) -> None:
    algorithm = replace(GRPO, correction=correction, correction_range=bounds)
    factor = correction_factor(algorithm=algorithm, **CORRECTED)
    assert factor.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("correction", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_the_bounds_of_a_correction_belong_to_it(correction: Any) -> None:
    # A factor of exactly 1 between [0.5, 1] and [1, 2]; the engine that samples what is trained is not corrected.
    old = double([-1, -2, -3])
    for bounds in [(0.5, 1.0), (1.0, 2.0)]:
        algorithm = replace(GRPO, correction=correction, correction_range=bounds)
        assert correction_factor(old, old, torch.tensor([0, 0, 1]), algorithm).tolist() == [1, 1, 1]


@pytest.mark.parametrize("correction", ["token_mask", "token_truncate", "sequence_mask", "sequence_truncate"])
def test_a_factor_beyond_all_bounds_gives_a_finite_loss(correction: Any) -> None:
    # e^800 overflows; masked it is 0, truncated it is 2.
    algorithm = replace(GRPO, correction=correction, correction_range=(0.0, 2.0))
    factor = correction_factor(double([-1.0]), double([-801.0]), torch.tensor([0]), algorithm)
    assert factor.tolist() == ([0] if correction.endswith("mask") else [2])


# Aggregation


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [
        # Token losses 1, 2, 3 | 4 | 5, 7 in three sequences; the longest allowed completion has 10 tokens.
        ("token_mean", (1 + 2 + 3 + 4 + 5 + 7) / 6),
        ("sequence_mean", ((1 + 2 + 3) / 3 + 4 + (5 + 7) / 2) / 3),
        ("sequence_sum", ((1 + 2 + 3) + 4 + (5 + 7)) / 3),
        ("constant_length", (1 + 2 + 3 + 4 + 5 + 7) / (3 * 10)),
    ],
)
def test_aggregation_weights_equal_the_direct_formulas(aggregate: Any, expected: float) -> None:
    index = torch.tensor([0, 0, 0, 1, 2, 2])
    weights = aggregation_weights(aggregate, index, max_new_tokens=10)
    assert float((weights.double() * double([1, 2, 3, 4, 5, 7])).sum()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("aggregate", ["sequence_mean", "sequence_sum", "constant_length"])
def test_sequences_without_actions_are_not_counted(aggregate: Any) -> None:
    # Sequence 1 has none: there are 2 sequences, not 3.
    with_gap = aggregation_weights(aggregate, torch.tensor([0, 0, 2]), max_new_tokens=4)
    without = aggregation_weights(aggregate, torch.tensor([0, 0, 1]), max_new_tokens=4)
    assert torch.equal(with_gap, without)


@pytest.mark.parametrize("aggregate", ["token_mean", "sequence_mean", "sequence_sum", "constant_length"])
def test_sequences_left_out_count_nowhere(aggregate: Any) -> None:
    # Sequence 1 of three is masked: the others weigh what they would weigh alone.
    index, included = torch.tensor([0, 0, 0, 1, 1, 2]), torch.tensor([True, True, True, False, False, True])
    weights = aggregation_weights(aggregate, index, max_new_tokens=4, included=included)
    alone = aggregation_weights(aggregate, torch.tensor([0, 0, 0, 1]), max_new_tokens=4)
    assert torch.equal(weights[included], alone)
    assert weights[~included].tolist() == [0, 0]
    nothing = aggregation_weights(aggregate, index, max_new_tokens=4, included=torch.zeros_like(included))
    assert nothing.tolist() == [0] * 6


# The whole loss


def test_policy_loss_by_hand() -> None:
    # Two tokens of one sequence, weights 1/2 each, advantage 1, k3 with coefficient 0.1, entropy bonus 0.01:
    #   token 0: ratio e, clipped to 1.2: -1.2; r_ref = e^(-1.5 + 1) = 0.606531: k3 = 0.606531 - 1 + 0.5 = 0.106531
    #   token 1: ratio 1: -1; r_ref = 1: k3 = 0
    #   entropies 2 and 3: bonuses 0.02 and 0.03
    # loss = ((-1.2 + 0.0106531 - 0.02) + (-1 + 0 - 0.03)) / 2 = -1.119673
    # The engine gave both tokens log-prob -2.5, that is e^0.5 = 1.648721 times too little.
    algorithm = replace(GRPO, entropy_coef=0.01)
    index = torch.tensor([0, 0])
    loss, measures = policy_loss(
        algorithm,
        kl_coef=0.1,
        logprobs=double([-1.0, -2.0]),
        entropy=double([2.0, 3.0]),
        old_logprobs=double([-2.0, -2.0]),
        rollout_logprobs=double([-2.5, -2.5]),
        ref_logprobs=double([-1.5, -2.0]),
        advantages=double([1.0, 1.0]),
        weights=aggregation_weights("sequence_mean", index, max_new_tokens=8),
        sequence_index=index,
    )
    assert loss.item() == pytest.approx(-1.119673, abs=1e-6)
    assert numbers(measures) == pytest.approx(
        {
            "policy/entropy": 2.5,  # of 2 and 3
            "policy/clip_fraction": 0.5,  # token 0
            "policy/ratio_max": E,
            "policy/kl_ref": 0.0532655,
            "policy/mismatch": 0.5,
            "policy/mismatch_kl": 0.148721,  # e^0.5 - 1 - 0.5
            "policy/correction": 1.0,  # no correction
            "policy/ess": 1.0,  # both have the factor e^0.5
        },
        abs=1e-6,
    )


def test_a_correction_weighs_the_surrogate_and_neither_the_kl_nor_the_entropy() -> None:
    # The same tokens with the engine's log-probs -2 - log 0.5 and -2 - log 4, truncated at 2: factors 0.5 and 2.
    # loss = ((0.5 * -1.2 + 0.0106531 - 0.02) + (2 * -1 + 0 - 0.03)) / 2 = -1.319673
    algorithm = replace(GRPO, entropy_coef=0.01, correction="token_truncate")
    logprobs = double([-1.0, -2.0], grad=True)
    loss, measures = policy_loss(
        algorithm,
        kl_coef=0.1,
        logprobs=logprobs,
        entropy=double([2.0, 3.0]),
        old_logprobs=double([-2.0, -2.0]),
        rollout_logprobs=double([-2.0 - math.log(0.5), -2.0 - math.log(4)]),
        ref_logprobs=double([-1.5, -2.0]),
        advantages=double([1.0, 1.0]),
        weights=double([0.5, 0.5]),
        sequence_index=torch.tensor([0, 0]),
    )
    assert loss.item() == pytest.approx(-1.319673, abs=1e-6)
    assert measures["policy/correction"].value == pytest.approx(1.25)
    # Token 0 is clipped and keeps the KL's slope, 0.1 (1 - 0.606531) / 2; token 1 has its factor, -2 * 1 / 2.
    (slope,) = torch.autograd.grad(loss, logprobs)
    assert slope.tolist() == pytest.approx([0.0196735, -1.0], abs=1e-6)


def test_what_a_correction_masks_is_counted_with_its_length() -> None:
    # Sequences of 1, 3 and 2 tokens; all of the second and the last token of the third are out of range. 4 of 6 tokens;
    # 1 + 1/2 sequences of mean length 4 / 1.5, and the other 1.5 of mean length 2 / 1.5.
    algorithm = replace(GRPO, kl="none", kl_coef=0.0, correction="token_mask")
    index = torch.tensor([0, 1, 1, 1, 2, 2])
    gap = double([0.0, 5.0, 5.0, 5.0, 0.0, 5.0])

    def measures(chosen: slice) -> Measures:
        logprobs = double([-1.0] * 6)[chosen]
        return policy_loss(
            algorithm,
            kl_coef=0.0,
            logprobs=logprobs,
            entropy=logprobs,
            old_logprobs=logprobs,
            rollout_logprobs=(logprobs - gap[chosen]),
            ref_logprobs=None,
            advantages=logprobs,
            weights=logprobs,
            sequence_index=index[chosen],
        )[1]

    expected = {"policy/masked": 4 / 6, "policy/length_masked": 4 / 1.5, "policy/length_kept": 2 / 1.5}
    for parts in ([slice(0, 6)], [slice(0, 4), slice(4, 6)]):
        metrics = numbers(join([measures(part) for part in parts]))
        assert {name: metrics.get(name) for name in expected} == pytest.approx(expected)
    nothing = numbers(measures(slice(0, 1)))
    assert (nothing["policy/masked"], nothing["policy/length_kept"]) == (0, 1)
    assert "policy/length_masked" not in nothing
    everything = numbers(measures(slice(1, 4)))
    assert (everything["policy/masked"], everything["policy/length_masked"]) == (1, 3)
    assert "policy/length_kept" not in everything


def test_the_kl_coefficient_is_steered_to_its_target() -> None:
    # Error (kl - target) / target, held within 20 %, times 1 / 2.
    assert adapted_kl_coef(0.1, kl=0.05, target=0.05) == pytest.approx(0.1)
    assert adapted_kl_coef(0.1, kl=0.055, target=0.05) == pytest.approx(0.105)  # 10 % too much: 5 % more
    assert adapted_kl_coef(0.1, kl=5.0, target=0.05) == pytest.approx(0.11)  # 10 % at most
    assert adapted_kl_coef(0.1, kl=0.0, target=0.05) == pytest.approx(0.09)
    # A policy whose KL is 0.01 / coefficient comes to rest where that is the target, from both sides.
    for coefficient in (0.01, 10.0):
        for _ in range(200):
            coefficient = adapted_kl_coef(coefficient, kl=0.01 / coefficient, target=0.05)
        assert coefficient == pytest.approx(0.2, rel=1e-3)


def test_clip_fraction_counts_only_tokens_whose_gradient_is_gone() -> None:
    # Above 1.28 with A > 0 and below 0.8 with A < 0 are held back: tokens 0 and 3.
    ratios, advantages = [1.3, 1.3, 0.7, 0.7, 1.25], [1.0, -1.0, 1.0, -1.0, 1.0]
    logprobs = double([math.log(ratio) for ratio in ratios], grad=True)
    algorithm = replace(GRPO, kl="none", kl_coef=0.0, clip_high=0.28)
    loss, measures = policy_loss(
        algorithm,
        kl_coef=0.0,
        logprobs=logprobs,
        entropy=torch.zeros(5, dtype=torch.float64),
        old_logprobs=torch.zeros(5, dtype=torch.float64),
        rollout_logprobs=torch.zeros(5, dtype=torch.float64),
        ref_logprobs=None,
        advantages=double(advantages),
        weights=torch.ones(5, dtype=torch.float64),
        sequence_index=torch.zeros(5, dtype=torch.int64),
    )
    assert measures["policy/clip_fraction"].value == pytest.approx(2 / 5)
    (slope,) = torch.autograd.grad(loss, logprobs)
    assert (slope == 0).tolist() == [True, False, False, True, False]


SPLIT = {
    "grpo": GRPO,
    "sequence ratio": replace(GRPO, ratio="sequence"),
    "dual clip": replace(GRPO, surrogate="dual_clipped", kl="k2"),
    "cispo": replace(GRPO, surrogate="clipped_weight", entropy_coef=0.1),
    "score function": replace(GRPO, surrogate="score_function"),
    **{
        name: replace(GRPO, correction=name, correction_range=(0.3, 3.0))
        for name in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    },
}


@pytest.mark.parametrize("name", SPLIT)
def test_loss_and_metrics_do_not_depend_on_how_the_tokens_are_split(name: str) -> None:
    index = torch.tensor([0, 0, 0, 1, 2, 2])
    generator = torch.Generator().manual_seed(1)
    old, new, ref, advantages, noise = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(5))
    weights = aggregation_weights("sequence_mean", index, max_new_tokens=8)

    def part(rows: slice) -> tuple[float, Measures]:
        value, measures = policy_loss(
            SPLIT[name],
            kl_coef=0.1,
            logprobs=new[rows],
            entropy=new[rows],
            old_logprobs=old[rows],
            rollout_logprobs=(old + noise)[rows],
            ref_logprobs=ref[rows],
            advantages=advantages[rows],
            weights=weights[rows],
            sequence_index=index[rows] - index[rows][0],
        )
        return value.item(), measures

    whole, parts = part(slice(0, 6)), [part(slice(0, 3)), part(slice(3, 4)), part(slice(4, 6))]
    assert sum(value for value, _ in parts) == pytest.approx(whole[0], abs=1e-12)
    metrics = numbers(join([measures for _, measures in parts]))
    assert metrics == pytest.approx(numbers(whole[1]), abs=1e-12)


# The critic's loss


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # Old value 1, return 3, clip 0.2, weight 1/2: 1/2 * 1/2 * max((V - 3)^2, (clip(V) - 3)^2).
        (1.1, 0.25 * 1.9**2),  # inside the clip
        (2.5, 0.25 * 1.8**2),  # moved past 1.2 towards the return: counted as if it stood at 1.2
        (0.0, 0.25 * 3.0**2),  # moved away: the larger error counts
    ],
)
def test_value_loss_by_hand(value: float, expected: float) -> None:
    algorithm = replace(PPO, value_clip=0.2)
    tensors = {"old_values": double([1.0]), "returns": double([3.0]), "weights": double([0.5])}
    values = double([value], grad=True)
    loss = value_loss(algorithm, values=values, **tensors)
    assert loss.item() == pytest.approx(expected)
    # d/dV of 0.25 (V - 3)^2 is 0.5 (V - 3); a clipped value has none.
    (slope,) = torch.autograd.grad(loss, values)
    assert slope.item() == pytest.approx(0.0 if value == 2.5 else 0.5 * (value - 3))


def test_value_loss_without_clip_is_half_the_weighted_squared_error() -> None:
    # 0.5 * (0.25 * (2 - 3)^2 + 0.75 * (5 - 1)^2) = 0.125 + 6 = 6.125
    loss = value_loss(
        replace(PPO, value_clip=0.0),
        values=double([2, 5]),
        old_values=double([0, 0]),
        returns=double([3, 1]),
        weights=double([0.25, 0.75]),
    )
    assert loss.item() == pytest.approx(6.125)
