"""The policy objective: ratio, surrogate, KL, weights; by hand, against formulas, and against TRL's GRPO loss.

TRL is asked itself: `GRPOTrainer._compute_loss` runs on a bare object that has only the settings which the loss reads,
and gives back log-probs that we choose. So the numbers of both sides come from the same leaves of the graph.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import GRPOTrainer

from rlft.objectives.policy import (
    aggregation_weights,
    importance_ratio,
    kl_penalty,
    policy_loss,
    surrogate_loss,
    value_loss,
)
from rlft.objectives.presets import PRESETS, Algorithm, preset_fields

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
        logprobs=logprobs,
        entropy=torch.zeros_like(logprobs),
        old_logprobs=double([-1.1, -2.3, -2.9, -3.9]),
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


# The whole loss


def test_policy_loss_by_hand() -> None:
    # Two tokens of one sequence, weights 1/2 each, advantage 1, k3 with coefficient 0.1, entropy bonus 0.01:
    #   token 0: ratio e, clipped to 1.2: -1.2; r_ref = e^(-1.5 + 1) = 0.606531: k3 = 0.606531 - 1 + 0.5 = 0.106531
    #   token 1: ratio 1: -1; r_ref = 1: k3 = 0
    #   entropies 2 and 3: bonuses 0.02 and 0.03
    # loss = ((-1.2 + 0.0106531 - 0.02) + (-1 + 0 - 0.03)) / 2 = -1.119673
    algorithm = replace(GRPO, kl_coef=0.1, entropy_coef=0.01)
    index = torch.tensor([0, 0])
    loss, sums = policy_loss(
        algorithm,
        logprobs=double([-1.0, -2.0]),
        entropy=double([2.0, 3.0]),
        old_logprobs=double([-2.0, -2.0]),
        ref_logprobs=double([-1.5, -2.0]),
        advantages=double([1.0, 1.0]),
        weights=aggregation_weights("sequence_mean", index, max_new_tokens=8),
        sequence_index=index,
    )
    assert loss.item() == pytest.approx(-1.119673, abs=1e-6)
    assert sums == pytest.approx(
        {
            "policy/entropy": 5.0,  # 2 + 3
            "policy/clip_fraction": 1.0,  # token 0
            "policy/ratio_max": E,
            "policy/kl_ref": 0.106531,
        },
        abs=1e-6,
    )


def test_clip_fraction_counts_only_tokens_whose_gradient_is_gone() -> None:
    # Above 1.28 with A > 0 and below 0.8 with A < 0 are held back: tokens 0 and 3.
    ratios, advantages = [1.3, 1.3, 0.7, 0.7, 1.25], [1.0, -1.0, 1.0, -1.0, 1.0]
    logprobs = double([math.log(ratio) for ratio in ratios], grad=True)
    algorithm = replace(GRPO, kl="none", kl_coef=0.0, clip_high=0.28)
    loss, sums = policy_loss(
        algorithm,
        logprobs=logprobs,
        entropy=torch.zeros(5, dtype=torch.float64),
        old_logprobs=torch.zeros(5, dtype=torch.float64),
        ref_logprobs=None,
        advantages=double(advantages),
        weights=torch.ones(5, dtype=torch.float64),
        sequence_index=torch.zeros(5, dtype=torch.int64),
    )
    assert sums["policy/clip_fraction"] == 2
    (slope,) = torch.autograd.grad(loss, logprobs)
    assert (slope == 0).tolist() == [True, False, False, True, False]


def test_the_sum_does_not_depend_on_how_it_is_split() -> None:
    index = torch.tensor([0, 0, 0, 1, 2, 2])
    generator = torch.Generator().manual_seed(1)
    old, new, ref, advantages = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(4))
    weights = aggregation_weights("sequence_mean", index, max_new_tokens=8)

    def loss(rows: slice) -> float:
        value, _ = policy_loss(
            GRPO,
            logprobs=new[rows],
            entropy=new[rows],
            old_logprobs=old[rows],
            ref_logprobs=ref[rows],
            advantages=advantages[rows],
            weights=weights[rows],
            sequence_index=index[rows],
        )
        return value.item()

    assert loss(slice(0, 4)) + loss(slice(4, 6)) == pytest.approx(loss(slice(0, 6)), abs=1e-12)


# TRL


def trl_settings(algorithm: Algorithm, loss_type: str, *, max_new_tokens: int) -> SimpleNamespace:
    """What `GRPOTrainer._compute_loss` reads of its trainer, for one process and no gradient accumulation."""
    # TRL's CISPO bound is the ratio itself, not its distance from 1.
    epsilon_high = 1 + algorithm.clip_high if loss_type == "cispo" else algorithm.clip_high
    return SimpleNamespace(
        loss_type=loss_type,
        beta=algorithm.kl_coef,
        epsilon_low=algorithm.clip_low,
        epsilon_high=epsilon_high,
        importance_sampling_level=algorithm.ratio,
        max_completion_length=max_new_tokens,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        _entropy_bonus_enabled=algorithm.entropy_coef != 0,
        entropy_coef=algorithm.entropy_coef,
        use_adaptive_entropy=False,
        aux_loss_enabled=False,
        current_gradient_accumulation_steps=1,
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        accelerator=SimpleNamespace(
            num_processes=1,
            sync_gradients=True,
            gather=lambda tensor: tensor,
            reduce=lambda tensor, reduction: tensor,
        ),
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
    )


def trl_loss(
    algorithm: Algorithm,
    loss_type: str,
    lengths: list[int],
    *,
    logprobs: Tensor,
    entropy: Tensor,
    old_logprobs: Tensor | None,
    ref_logprobs: Tensor | None,
    advantages: Tensor,
    max_new_tokens: int,
) -> tuple[Tensor, dict[str, list[float]]]:
    """TRL's loss and metrics of flat tensors; advantages are per sequence. What it pads is filled with 0 and masked."""
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]

    def padded(flat: Tensor) -> Tensor:
        return torch.zeros(mask.shape, dtype=flat.dtype).masked_scatter(mask, flat)

    trainer = trl_settings(algorithm, loss_type, max_new_tokens=max_new_tokens)
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (padded(logprobs), padded(entropy), None)
    inputs = {
        "prompt_ids": torch.ones(len(lengths), 1, dtype=torch.int64),
        "prompt_mask": torch.ones(len(lengths), 1, dtype=torch.int64),
        "completion_ids": torch.ones(mask.shape, dtype=torch.int64),
        "completion_mask": mask.long(),
        "advantages": advantages,
        "num_items_in_batch": torch.tensor(sum(lengths)),
    }
    if old_logprobs is not None:
        inputs["old_per_token_logps"] = padded(old_logprobs)
    if ref_logprobs is not None:
        inputs["ref_per_token_logps"] = padded(ref_logprobs)
    return GRPOTrainer._compute_loss(trainer, None, inputs), trainer._metrics["train"]


TRL_ROWS = {
    "grpo": ("grpo", GRPO),
    "grpo without KL": ("grpo", replace(GRPO, kl="none", kl_coef=0.0)),
    "bnpo": ("bnpo", replace(GRPO, aggregate="token_mean")),
    "dapo": ("dapo", replace(GRPO, aggregate="token_mean", clip_high=0.28, kl="none", kl_coef=0.0)),
    "dr_grpo": ("dr_grpo", replace(GRPO, aggregate="constant_length", kl_coef=0.1)),
    "gspo": ("grpo", replace(GRPO, ratio="sequence", kl="none", kl_coef=0.0, clip_low=0.1, clip_high=0.15)),
    "gspo with KL": ("grpo", replace(GRPO, ratio="sequence", clip_low=0.1, clip_high=0.15)),
    "luspo": ("luspo", replace(GRPO, ratio="sequence", aggregate="sequence_sum", kl="none", kl_coef=0.0)),
    "cispo": (
        "cispo",
        replace(GRPO, surrogate="clipped_weight", aggregate="token_mean", clip_low=1.0, kl="none", kl_coef=0.0),
    ),
    "entropy bonus": ("bnpo", replace(GRPO, aggregate="token_mean", entropy_coef=0.02)),
}


@pytest.mark.parametrize("is_on_policy", [False, True], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("row", TRL_ROWS)
def test_loss_and_gradient_equal_those_of_trl(row: str, is_on_policy: bool) -> None:
    loss_type, algorithm = TRL_ROWS[row]
    # The weights are float32: lengths, their sum and the bound are powers of two, so that no rounding hides anything.
    lengths, max_new_tokens = [4, 8, 2, 2], 8
    generator = torch.Generator().manual_seed(len(row))
    count = sum(lengths)

    def noise(scale: float, size: int = count) -> Tensor:
        return scale * torch.randn(size, generator=generator, dtype=torch.float64)

    old = -3 + noise(1.0)
    new = (old + (0 if is_on_policy else noise(0.4))).requires_grad_()
    entropy = (2 + noise(0.3)).requires_grad_()
    ref = None if algorithm.kl == "none" else old + noise(0.3)
    advantages = noise(1.5, len(lengths))
    index = torch.repeat_interleave(torch.tensor(lengths))
    tensors = {"logprobs": new, "entropy": entropy, "ref_logprobs": ref}

    ours, sums = policy_loss(
        algorithm,
        **tensors,
        old_logprobs=new.detach() if is_on_policy else old,
        advantages=advantages[index],
        weights=aggregation_weights(algorithm.aggregate, index, max_new_tokens=max_new_tokens),
        sequence_index=index,
    )
    theirs, metrics = trl_loss(
        algorithm,
        loss_type,
        lengths,
        **tensors,
        old_logprobs=None if is_on_policy else old,
        advantages=advantages,
        max_new_tokens=max_new_tokens,
    )
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    leaves = [new, entropy] if algorithm.entropy_coef else [new]
    for own, other in zip(torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves), strict=True):
        assert float(other.abs().max()) > 1e-3
        assert torch.allclose(own, other, rtol=0, atol=1e-9)
    if ref is not None:
        assert sums["policy/kl_ref"] / count == pytest.approx(metrics["kl"][0], abs=1e-9)
    if loss_type != "cispo" and algorithm.ratio == "token":
        assert sums["policy/clip_fraction"] / count == pytest.approx(metrics["clip_ratio/region_mean"][0], abs=1e-6)
        assert is_on_policy or sums["policy/clip_fraction"] > 0  # the case holds clipped tokens


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo"])
def test_ragged_lengths_equal_those_of_trl(loss_type: str) -> None:
    # Lengths whose reciprocals float32 rounds: the weights add a relative error of 6e-8 to sums of about 1.
    aggregate = {"grpo": "sequence_mean", "bnpo": "token_mean", "dr_grpo": "constant_length"}[loss_type]
    algorithm = replace(GRPO, aggregate=aggregate)
    lengths, generator = [3, 7, 1, 5, 11], torch.Generator().manual_seed(3)
    index = torch.repeat_interleave(torch.tensor(lengths))
    new, old, ref = (0.3 * torch.randn(len(index), generator=generator, dtype=torch.float64) - 2 for _ in range(3))
    advantages = torch.randn(len(lengths), generator=generator, dtype=torch.float64)
    tensors = {"logprobs": new, "entropy": -new, "old_logprobs": old, "ref_logprobs": ref}
    weights = aggregation_weights(algorithm.aggregate, index, max_new_tokens=13)
    ours, _ = policy_loss(algorithm, **tensors, advantages=advantages[index], weights=weights, sequence_index=index)
    theirs, _ = trl_loss(algorithm, loss_type, lengths, **tensors, advantages=advantages, max_new_tokens=13)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-7)


# The critic's loss


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        # Old value 1, return 3, clip 0.2, coefficient 0.5, weight 1: 0.5 * 0.5 * max((V - 3)^2, (clip(V) - 3)^2).
        (1.1, 0.25 * 1.9**2),  # inside the clip
        (2.5, 0.25 * 1.8**2),  # moved past 1.2 towards the return: counted as if it stood at 1.2
        (0.0, 0.25 * 3.0**2),  # moved away: the larger error counts
    ],
)
def test_value_loss_by_hand(value: float, expected: float) -> None:
    algorithm = replace(PPO, value_clip=0.2, value_coef=0.5)
    tensors = {"old_values": double([1.0]), "returns": double([3.0]), "weights": double([1.0])}
    values = double([value], grad=True)
    loss = value_loss(algorithm, values=values, **tensors)
    assert loss.item() == pytest.approx(expected)
    # d/dV of 0.25 (V - 3)^2 is 0.5 (V - 3); a clipped value has none.
    (slope,) = torch.autograd.grad(loss, values)
    assert slope.item() == pytest.approx(0.0 if value == 2.5 else 0.5 * (value - 3))


def test_value_loss_without_clip_is_half_the_weighted_squared_error() -> None:
    # 2 * 0.5 * (0.25 * (2 - 3)^2 + 0.75 * (5 - 1)^2) = 0.25 + 12 = 12.25
    algorithm = replace(PPO, value_clip=0.0, value_coef=2.0)
    loss = value_loss(
        algorithm,
        values=double([2, 5]),
        old_values=double([0, 0]),
        returns=double([3, 1]),
        weights=double([0.25, 0.75]),
    )
    assert loss.item() == pytest.approx(12.25)


# The rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratio": "sequence", "surrogate": "score_function"}, "surrogate: clipped"),
        ({"ratio": "sequence", "aggregate": "token_mean"}, "sequence_mean"),
        ({"ratio": "sequence", "aggregate": "constant_length"}, "sequence_mean"),
        ({"kl": "none"}, "kl_coef: 0"),
        ({"kl_in": "reward"}, "kl: k1"),
        ({"kl_in": "reward", "kl": "k2"}, "kl: k1"),
        ({"baseline": "critic"}, "batch_std"),
        ({"clip_low": -0.1}, "clip_low must not be negative"),
        ({"clip_high": -0.1}, "clip_high must not be negative"),
        ({"kl_coef": -0.1}, "kl_coef must not be negative"),
        ({"entropy_coef": -0.1}, "entropy_coef must not be negative"),
        ({"value_clip": -0.1}, "value_clip must not be negative"),
        ({"value_coef": -0.1}, "value_coef must not be negative"),
        ({"gamma": 1.1}, "gamma must lie between 0 and 1"),
        ({"gae_lambda": -0.1}, "gae_lambda must lie between 0 and 1"),
    ],
)
def test_combinations_that_contradict_themselves_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(GRPO, **changes)


def test_grpo_is_the_row_of_its_paper() -> None:
    # https://arxiv.org/abs/2402.03300: equation 3 averages over the group and over each output's length and subtracts
    # beta times the KL; equation 4 is k3; section 4.1.2 normalises by the group's mean and standard deviation; section
    # 4.2 sets the KL coefficient to 0.04. The clip distance, which it does not tell, is PPO's.
    assert (GRPO.baseline, GRPO.scale) == ("group_mean", "group_std")
    assert (GRPO.ratio, GRPO.surrogate, GRPO.aggregate) == ("token", "clipped", "sequence_mean")
    assert (GRPO.kl, GRPO.kl_in, GRPO.kl_coef) == ("k3", "loss", 0.04)
    assert GRPO.clip_low == GRPO.clip_high == 0.2
    assert not GRPO.needs_critic
    assert GRPO.needs_reference
    assert GRPO.is_group_relative


def test_ppo_is_the_row_of_its_papers() -> None:
    # https://arxiv.org/abs/1707.06347: equation 7 with epsilon 0.2 (table 1), equation 11 with lambda 0.95 (table 3);
    # https://arxiv.org/abs/1909.08593, equation 2: the reward is r - beta log(pi / rho), which is k1.
    assert (PPO.baseline, PPO.gae_lambda) == ("critic", 0.95)
    assert (PPO.ratio, PPO.surrogate, PPO.aggregate) == ("token", "clipped", "token_mean")
    assert (PPO.kl, PPO.kl_in) == ("k1", "reward")
    assert PPO.kl_coef > 0
    assert PPO.clip_low == PPO.clip_high == 0.2
    assert PPO.value_coef > 0
    assert PPO.needs_critic
    assert PPO.needs_reference
    assert not PPO.is_group_relative


@pytest.mark.parametrize("name", PRESETS)
def test_a_row_is_what_the_config_starts_from(name: str) -> None:
    assert Algorithm(**preset_fields(name)) == PRESETS[name]
    assert asdict(PRESETS[name])["preset"] == name


def test_unknown_preset() -> None:
    with pytest.raises(KeyError):
        preset_fields("grop")
