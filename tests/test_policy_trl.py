"""The policy objectives against TRL: GRPOTrainer's and RLOOTrainer's own code on the same numbers.

TRL is asked itself: methods of its trainers run on a bare object that has only the settings which they read, and that
gives them log-probs, rewards and completions that we choose. So the numbers of both sides come from the same leaves of
the graph. `_generate_and_score_completions` makes advantages and correction factors, `_compute_loss` the loss.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from trl import GRPOTrainer, RLOOTrainer

from rlft.objectives.advantages import token_advantages
from rlft.objectives.algorithm import PolicyObjective
from rlft.objectives.measures import numbers
from rlft.objectives.policy import DUAL_CLIP, aggregation_weights, policy_loss
from rlft.objectives.presets import PRESETS

GRPO = PRESETS["grpo"]
EOS, OTHER = 2, 1
"""Token ids of completions."""

LENGTHS = [3, 9, 1, 5, 7, 10, 3, 2]
MAX_NEW_TOKENS = 10
GROUP_SIZE = 4


pytestmark = pytest.mark.usefixtures("double_precision")


@dataclass(frozen=True)
class Case:
    """Samples in groups of four; log-probs are flat over their tokens."""

    new: Tensor
    entropy: Tensor
    old: Tensor
    ref: Tensor
    sampling: Tensor
    rewards: Tensor
    is_truncated: Tensor


INDEX = torch.repeat_interleave(torch.tensor(LENGTHS))
GROUPS = torch.arange(len(LENGTHS)) // GROUP_SIZE


def padded(flat: Tensor) -> Tensor:
    """(S, T) as TRL lays it out; what it pads is filled with 0 and masked."""
    mask = torch.arange(max(LENGTHS))[None, :] < torch.tensor(LENGTHS)[:, None]
    return torch.zeros(mask.shape).masked_scatter(mask, flat)


def make(*, is_on_policy: bool = False, spread: float = 0.4, seed: int = 0) -> Case:
    generator = torch.Generator().manual_seed(seed)

    def noise(scale: float, size: int = sum(LENGTHS)) -> Tensor:
        return scale * torch.randn(size, generator=generator)

    old = noise(1.0) - 3
    return Case(
        new=(old + (0 if is_on_policy else noise(spread))).requires_grad_(),
        entropy=(2 + noise(0.3)).requires_grad_(),
        old=old,
        ref=old + noise(0.3),
        sampling=old + noise(0.6),
        rewards=noise(1.5, len(LENGTHS)),
        is_truncated=torch.zeros(len(LENGTHS), dtype=torch.bool),
    )


def our_loss(algorithm: PolicyObjective, case: Case) -> tuple[Tensor, dict[str, float], Tensor]:
    """(loss, metrics, advantages) from rewards, as the learner puts them together."""
    ref = case.ref if algorithm.needs_reference else None
    advantages, _ = token_advantages(
        algorithm,
        kl_coef=algorithm.kl_coef,
        rewards=case.rewards,
        group_index=GROUPS,
        sequence_index=INDEX,
        policy_logprobs=case.old,
        ref_logprobs=ref,
        values=None,
    )
    included = ~case.is_truncated[INDEX] if algorithm.overlong == "mask" else None
    loss, measures = policy_loss(
        algorithm,
        kl_coef=algorithm.kl_coef,
        logprobs=case.new,
        entropy=case.entropy,
        old_logprobs=case.old,
        rollout_logprobs=case.sampling,
        ref_logprobs=ref,
        advantages=advantages,
        weights=aggregation_weights(algorithm.aggregate, INDEX, max_new_tokens=MAX_NEW_TOKENS, included=included),
        sequence_index=INDEX,
    )
    return loss, numbers(measures), advantages


def trainer_for(algorithm: PolicyObjective, loss_type: str, case: Case, *, has_old: bool) -> SimpleNamespace:
    """What TRL's methods read of their trainer, for one process and no gradient accumulation."""
    policy, reference = SimpleNamespace(training=True, is_gradient_checkpointing=False), object()
    has_correction = algorithm.correction != "none"
    low, high = algorithm.correction_range

    def logprobs(model: object, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, None]:
        # `_compute_loss` is called with no model; the scoring pass asks the policy and the reference.
        flat = case.new if model is None else case.old if model is policy else case.ref
        return padded(flat), padded(case.entropy), None

    completions = [
        [OTHER] * (length - 1) + [OTHER if is_truncated else EOS]
        for length, is_truncated in zip(LENGTHS, case.is_truncated.tolist(), strict=True)
    ]
    sampling = [row.tolist() for row in case.sampling.split(LENGTHS)]

    def generate(prompts: list[str]) -> tuple[Any, ...]:
        prompt_ids = [[OTHER] for _ in prompts]
        if loss_type == "rloo":
            return prompt_ids, completions, prompts
        return prompt_ids, completions, None, prompts, sampling, {}, None, None

    return SimpleNamespace(
        # The algorithm
        loss_type=loss_type,
        beta=0.0 if algorithm.kl == "none" else algorithm.kl_coef,
        epsilon_low=algorithm.clip_low,
        # TRL's CISPO bound is the ratio itself, not its distance from 1.
        epsilon_high=1 + algorithm.clip_high if loss_type == "cispo" else algorithm.clip_high,
        importance_sampling_level=algorithm.ratio,
        scale_rewards={"group_std": "group", "none": "none"}[algorithm.scale],
        multi_objective_aggregation="sum_then_normalize",
        normalize_advantages=False,
        reward_clip_range=None,
        mask_truncated_completions=algorithm.overlong == "mask",
        use_vllm=has_correction,
        vllm_importance_sampling_correction=has_correction,
        vllm_importance_sampling_mode=algorithm.correction,
        vllm_importance_sampling_clip_min=low,
        vllm_importance_sampling_clip_max=high,
        max_completion_length=MAX_NEW_TOKENS,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        _entropy_bonus_enabled=algorithm.entropy_coef != 0,
        entropy_coef=algorithm.entropy_coef,
        use_adaptive_entropy=False,
        aux_loss_enabled=False,
        args=SimpleNamespace(
            use_bias_correction_kl=False,
            delta=DUAL_CLIP if algorithm.surrogate == "dual_clipped" else None,
            steps_per_generation=1,
            gradient_accumulation_steps=1,
            gradient_checkpointing_kwargs=None,
            per_device_train_batch_size=len(LENGTHS),
        ),
        num_iterations=2 if has_old else 1,  # more than one, and old log-probs are computed
        # The samples
        model=policy,
        ref_model=reference,
        num_generations=GROUP_SIZE,
        _generate=generate,
        _calculate_rewards=lambda *args: case.rewards[:, None],
        reward_weights=torch.ones(1),
        reward_funcs=[None],
        reward_func_names=["made_up"],
        _get_per_token_logps_and_entropies=logprobs,
        eos_token_ids=[EOS],
        _tokenizer=SimpleNamespace(pad_token_id=0),
        pad_to_multiple_of=None,
        # The machinery
        environment_factories=None,
        environments=None,
        tools=None,
        current_gradient_accumulation_steps=1,
        accelerator=SimpleNamespace(
            device=torch.device("cpu"),
            process_index=0,
            num_processes=1,
            sync_gradients=True,
            gather=lambda tensor: tensor,
            reduce=lambda tensor, reduction: tensor,
        ),
        log_multimodal=False,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _logs=defaultdict(list) | {"rewards": defaultdict(list), "extra": defaultdict(list)},
        _pending_extra_logs={},
        _pending_metrics={},
    )


def trl_loss(
    algorithm: PolicyObjective, loss_type: str, case: Case, *, has_old: bool = True
) -> tuple[Tensor, dict[str, list[float]], Tensor]:
    """(loss, metrics, advantages (S,)) of TRL, from rewards."""
    trainer_class = RLOOTrainer if loss_type == "rloo" else GRPOTrainer
    trainer = trainer_for(algorithm, loss_type, case, has_old=has_old)
    inputs = trainer_class._generate_and_score_completions(trainer, [{"prompt": "?"}] * len(LENGTHS))
    return trainer_class._compute_loss(trainer, None, inputs), trainer._metrics["train"], inputs["advantages"]


def assert_same_gradient(ours: Tensor, theirs: Tensor, leaf: Tensor) -> None:
    own, other = (torch.autograd.grad(loss, leaf, retain_graph=True)[0] for loss in (ours, theirs))
    assert float(other.abs().max()) > 1e-4
    assert torch.allclose(own, other, rtol=0, atol=1e-9)


# The loss types


ROWS = {
    "grpo": ("grpo", GRPO),
    "grpo without KL": ("grpo", replace(GRPO, kl="none", kl_coef=0.0)),
    "bnpo": ("bnpo", replace(GRPO, aggregate="token_mean")),
    "dapo": ("dapo", replace(PRESETS["dapo"], overlong="count")),
    "dr_grpo": ("dr_grpo", PRESETS["dr_grpo"]),
    "dr_grpo with KL": ("dr_grpo", replace(GRPO, aggregate="constant_length", kl_coef=0.1)),
    "gspo": ("grpo", PRESETS["gspo"]),
    "gspo with KL": ("grpo", replace(GRPO, ratio="sequence", clip_low=0.1, clip_high=0.15)),
    "luspo": ("luspo", replace(GRPO, ratio="sequence", aggregate="sequence_sum", kl="none", kl_coef=0.0)),
    "cispo": ("cispo", PRESETS["cispo"]),
    "dual clip": ("grpo", replace(GRPO, surrogate="dual_clipped")),
    "entropy bonus": ("bnpo", replace(GRPO, aggregate="token_mean", entropy_coef=0.02)),
}


@pytest.mark.parametrize("is_on_policy", [False, True], ids=["off-policy", "on-policy"])
@pytest.mark.parametrize("row", ROWS)
def test_advantages_loss_and_gradient_equal_those_of_trl(row: str, is_on_policy: bool) -> None:
    loss_type, algorithm = ROWS[row]
    # A wide spread holds ratios beyond the bounds of the dual clip (3) and of CISPO (5).
    case = make(is_on_policy=is_on_policy, spread=1.2 if row in ("dual clip", "cispo") else 0.4, seed=len(row))
    ours, own, advantages = our_loss(algorithm, case)
    theirs, metrics, their_advantages = trl_loss(algorithm, loss_type, case, has_old=not is_on_policy)
    assert torch.allclose(advantages, their_advantages[INDEX], rtol=0, atol=1e-9)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    assert_same_gradient(ours, theirs, case.new)
    if algorithm.entropy_coef:
        assert_same_gradient(ours, theirs, case.entropy)
    if algorithm.kl != "none":
        assert own["policy/kl_ref"] == pytest.approx(metrics["kl"][0], abs=1e-9)
    if loss_type != "cispo" and algorithm.ratio == "token":
        share = own["policy/clip_fraction"]
        assert share == pytest.approx(metrics["clip_ratio/region_mean"][0], abs=1e-6)
        assert is_on_policy or share > 0  # the case holds clipped tokens
    if row == "dual clip" and not is_on_policy:
        plain, _, _ = our_loss(replace(algorithm, surrogate="clipped"), case)
        assert abs(plain.item() - ours.item()) > 1e-3  # and some that only the second clip holds back


@pytest.mark.parametrize("kl", ["k1", "none"])
def test_rloo_advantages_and_gradient_equal_those_of_trl(kl: Any) -> None:
    # TRL clips the ratio of the whole sequence, ours is the plain score function. Where the policy is the one that
    # sampled both have the same slope, and other values: -A against -A log pi.
    algorithm = replace(PRESETS["rloo"], kl=kl, kl_coef=0.05 if kl == "k1" else 0.0)
    case = make(is_on_policy=True)
    ours, _, advantages = our_loss(algorithm, case)
    theirs, _, their_advantages = trl_loss(algorithm, "rloo", case)
    assert torch.allclose(advantages, their_advantages[INDEX], rtol=0, atol=1e-9)
    assert_same_gradient(ours, theirs, case.new)


@pytest.mark.parametrize("name", ["grpo", "dr_grpo", "rloo"])
def test_a_sample_without_a_score_is_left_out_of_the_baseline_as_in_trl(name: str) -> None:
    # TRL marks it nan and sets its advantage to 0; here it does not enter the batch.
    algorithm = replace(PRESETS[name], kl="none", kl_coef=0.0)
    case = make(is_on_policy=True)
    case.rewards[2] = torch.nan
    _, _, theirs = trl_loss(algorithm, "rloo" if name == "rloo" else "grpo", case)
    is_scored = ~case.rewards.isnan()
    ours, _ = token_advantages(
        algorithm,
        kl_coef=0.0,
        rewards=case.rewards[is_scored],
        group_index=GROUPS[is_scored],
        sequence_index=torch.arange(7),  # one token each
        policy_logprobs=torch.zeros(7),
        ref_logprobs=None,
        values=None,
    )
    assert torch.allclose(ours, theirs[is_scored], rtol=0, atol=1e-9)
    assert theirs[2] == 0


# Correction for another engine


@pytest.mark.parametrize("row", ["grpo", "dr_grpo", "cispo", "gspo with KL"])
@pytest.mark.parametrize("bounds", [(0.0, 2.0), (0.6, 1.5)])
@pytest.mark.parametrize("correction", ["token_truncate", "token_mask", "sequence_truncate", "sequence_mask"])
def test_correction_equals_that_of_trl(correction: Any, bounds: tuple[float, float], row: str) -> None:
    loss_type, algorithm = ROWS[row]
    algorithm = replace(algorithm, correction=correction, correction_range=bounds)
    case = make(seed=1)
    ours, own, _ = our_loss(algorithm, case)
    theirs, metrics, _ = trl_loss(algorithm, loss_type, case)
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-9)
    if algorithm.ratio == "token" or correction.startswith("sequence"):
        # With one ratio per sequence and a factor per token, TRL spreads the factors over the sequence; here a token
        # has its own in its slope (GSPO-token, https://arxiv.org/abs/2507.18071, equation 14).
        assert_same_gradient(ours, theirs, case.new)
    mismatch = metrics["sampling/sampling_logp_difference/mean"][0]
    assert own["policy/mismatch"] == pytest.approx(mismatch, abs=1e-9)
    if correction.startswith("token"):  # TRL averages a factor per sequence over sequences, we over tokens
        mean = metrics["sampling/importance_sampling_ratio/mean"][0]
        assert own["policy/correction"] == pytest.approx(mean, abs=1e-9)
    # The case holds factors inside and outside of the bounds.
    plain, _, _ = our_loss(replace(algorithm, correction="none"), case)
    unbounded, _, _ = our_loss(replace(algorithm, correction_range=(0.0, 1e9)), case)
    assert min(abs(ours.item() - plain.item()), abs(ours.item() - unbounded.item())) > 1e-3


# Masked completions


@pytest.mark.parametrize("loss_type", ["bnpo", "dapo", "grpo"])
def test_masked_completions_equal_those_of_trl(loss_type: str) -> None:
    # They stay in the baseline and leave the loss.
    aggregate = "sequence_mean" if loss_type == "grpo" else "token_mean"
    algorithm = replace(GRPO, aggregate=aggregate, overlong="mask")
    case = replace(make(), is_truncated=torch.tensor([0, 1, 0, 0, 0, 1, 1, 1]).bool())
    ours, _, _ = our_loss(algorithm, case)
    theirs, _, _ = trl_loss(algorithm, loss_type, case)
    # TRL's mean over sequences goes on counting the masked ones, as if their loss were 0: 8 instead of 4.
    factor = 2 if loss_type == "grpo" else 1
    assert ours.item() == pytest.approx(factor * theirs.item(), abs=1e-9)
    assert_same_gradient(ours, factor * theirs, case.new)
    (slope,) = torch.autograd.grad(ours, case.new)
    assert not slope[case.is_truncated[INDEX]].any()
