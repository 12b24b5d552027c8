"""The named algorithms: each row computes the formula of its paper, and what contradicts itself is refused.

The papers' objectives stand here as plain loops over tokens, with the papers' numbers in them, and share nothing with
the code. They are objectives, to be maximised, so a loss is minus one of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from rlft.objectives.advantages import best_and_worst, overlong_penalty, token_advantages
from rlft.objectives.algorithm import Algorithm, PolicyObjective, PreferenceObjective
from rlft.objectives.measures import numbers
from rlft.objectives.policy import aggregation_weights, policy_loss
from rlft.objectives.preference import preference_loss
from rlft.objectives.presets import PRESETS, preset_fields

GRPO = PRESETS["grpo"]

# Made-up samples: two groups of four.
LENGTHS = [3, 9, 1, 5, 7, 10, 3, 2]
GROUPS = [0, 0, 0, 0, 1, 1, 1, 1]
REWARDS = [1.0, 0.0, 0.25, 0.5, 0.0, 1.0, 1.0, 0.5]
GREEDY = [0.5, 0.5, 0.5, 0.5, 0.25, 0.25, 0.25, 0.25]
MAX_NEW_TOKENS = 10


pytestmark = pytest.mark.usefixtures("double_precision")


@dataclass(frozen=True)
class Sample:
    """One completion as the formulas see it; the lists run over its tokens."""

    group: int
    reward: float
    greedy: float
    new: list[Tensor]
    old: list[float]
    ref: list[float]
    values: list[float]


@dataclass(frozen=True)
class Made:
    """The same numbers flat, as the code takes them, and as samples."""

    new: Tensor
    old: Tensor
    ref: Tensor
    values: Tensor
    samples: list[Sample]


def make() -> Made:
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(sum(LENGTHS), generator=generator) for _ in range(4)]
    old = noise[0] - 3
    new = old + 0.4 * noise[1]
    new[5] = old[5] + 2  # a ratio of 7.4, above all bounds
    new.requires_grad_()
    ref, values = old + 0.3 * noise[2], 0.5 + 0.3 * noise[3]
    samples = []
    for number, length in enumerate(LENGTHS):
        start = sum(LENGTHS[:number])
        tokens = slice(start, start + length)
        flat = (old[tokens].tolist(), ref[tokens].tolist(), values[tokens].tolist())
        samples.append(Sample(GROUPS[number], REWARDS[number], GREEDY[number], list(new[tokens]), *flat))
    return Made(new, old, ref, values, samples)


def groups_of(samples: list[Sample]) -> list[list[Sample]]:
    return [[s for s in samples if s.group == group] for group in sorted({s.group for s in samples})]


def clipped(ratio: Tensor, advantage: float, low: float, high: float) -> Any:
    """min(r A, clip(r, 1 - low, 1 + high) A)"""
    return min(ratio * advantage, min(max(ratio, 1 - low), 1 + high) * advantage)


def normalised(values: list[float]) -> list[float]:
    """Minus the mean, divided by the standard deviation, as in GRPO's section 4.1.2."""
    return [(v - statistics.fmean(values)) / (statistics.stdev(values) + 1e-4) for v in values]


def whitened(values: list[list[float]]) -> list[list[float]]:
    """The same over all tokens of the batch."""
    flat = [v for row in values for v in row]
    return [[(v - statistics.fmean(flat)) / (statistics.stdev(flat) + 1e-8) for v in row] for row in values]


def reinforce(samples: list[Sample]) -> Tensor:
    """Williams 1992: E[R sum_t log pi], its gradient is theorem 1's."""
    return sum(s.reward * sum(s.new) for s in samples) / len(samples)


def ppo(samples: list[Sample]) -> Tensor:
    """https://arxiv.org/abs/1707.06347, equations 7 and 11 with lambda 0.95, epsilon 0.2; gamma 1. The reward of
    https://arxiv.org/abs/1909.08593, equation 2: R at the end, minus beta log(pi / rho) at every token.
    """
    advantages = []
    for s in samples:
        rewards = [-0.05 * (old - ref) for old, ref in zip(s.old, s.ref, strict=True)]
        rewards[-1] += s.reward
        following = [*s.values[1:], 0.0]
        deltas = [r + later - now for r, later, now in zip(rewards, following, s.values, strict=True)]
        count = len(deltas)
        advantages.append([sum(0.95 ** (k - t) * deltas[k] for k in range(t, count)) for t in range(count)])
    terms = [
        clipped((new - old).exp(), a, 0.2, 0.2)
        for s, row in zip(samples, whitened(advantages), strict=True)
        for new, old, a in zip(s.new, s.old, row, strict=True)
    ]
    return sum(terms) / len(terms)


def grpo(samples: list[Sample]) -> Tensor:
    """https://arxiv.org/abs/2402.03300, equation 3 with the KL estimator of equation 4; section 4.2: beta 0.04."""
    total = 0.0
    for group in groups_of(samples):
        for s, a in zip(group, normalised([s.reward for s in group]), strict=True):
            row = 0.0
            for new, old, ref in zip(s.new, s.old, s.ref, strict=True):
                kl = (ref - new).exp() - (ref - new) - 1
                row = row + clipped((new - old).exp(), a, 0.2, 0.2) - 0.04 * kl
            total = total + row / len(s.new) / len(group)
    return total / len(groups_of(samples))


def dr_grpo(samples: list[Sample]) -> Tensor:
    """https://arxiv.org/abs/2503.20783, section 3.2: neither 1 / |o| nor 1 / std; a constant in place of |o|."""
    total = 0.0
    for group in groups_of(samples):
        mean = statistics.fmean(s.reward for s in group)
        for s in group:
            for new, old in zip(s.new, s.old, strict=True):
                total = total + clipped((new - old).exp(), s.reward - mean, 0.2, 0.2)
    return total / len(samples) / MAX_NEW_TOKENS


def dapo(samples: list[Sample]) -> Tensor:
    """https://arxiv.org/abs/2503.14476, equation 8 over the whole batch, epsilons 0.2 and 0.28, no KL; equation 13 in
    the reward, with a fifth of the length as its buffer.
    """
    terms = []
    for group in groups_of(samples):
        buffer = MAX_NEW_TOKENS / 5
        penalties = [min(0.0, (MAX_NEW_TOKENS - buffer - len(s.new)) / buffer) for s in group]
        rewards = [s.reward + penalty for s, penalty in zip(group, penalties, strict=True)]
        for s, a in zip(group, normalised(rewards), strict=True):
            terms += [clipped((new - old).exp(), a, 0.2, 0.28) for new, old in zip(s.new, s.old, strict=True)]
    return sum(terms) / len(terms)


def rloo(samples: list[Sample]) -> Tensor:
    """https://arxiv.org/abs/2402.14740: the reward of a whole completion less beta log(pi / pi_ref) (equation 3), minus
    the mean of the others, times its log-prob.
    """
    total = 0.0
    for group in groups_of(samples):
        rewards = [s.reward - 0.05 * (sum(s.old) - sum(s.ref)) for s in group]
        for number, s in enumerate(group):
            others = rewards[:number] + rewards[number + 1 :]
            total = total + (rewards[number] - statistics.fmean(others)) * sum(s.new)
    return total / len(samples)


def reinforce_pp(samples: list[Sample]) -> Tensor:
    """https://arxiv.org/abs/2501.03262, section 3: A_t = r - beta sum over i >= t of KL(i), normalised over the batch,
    in PPO's loss.
    """
    advantages = []
    for s in samples:
        kl = [old - ref for old, ref in zip(s.old, s.ref, strict=True)]
        advantages.append([s.reward - 0.01 * sum(kl[t:]) for t in range(len(kl))])
    terms = [
        clipped((new - old).exp(), a, 0.2, 0.2)
        for s, row in zip(samples, whitened(advantages), strict=True)
        for new, old, a in zip(s.new, s.old, row, strict=True)
    ]
    return sum(terms) / len(terms)


def reinforce_pp_baseline(samples: list[Sample]) -> Tensor:
    """The same paper with the group's mean as a baseline and k2 in the loss."""
    means = [statistics.fmean(s.reward for s in group) for group in groups_of(samples)]
    advantages = whitened([[s.reward - means[s.group]] * len(s.new) for s in samples])
    terms = [
        clipped((new - old).exp(), a, 0.2, 0.2) - 0.01 * (new - ref) ** 2 / 2
        for s, row in zip(samples, advantages, strict=True)
        for new, old, ref, a in zip(s.new, s.old, s.ref, row, strict=True)
    ]
    return sum(terms) / len(terms)


def remax(samples: list[Sample]) -> Tensor:
    """https://arxiv.org/abs/2310.10505, algorithm 1: (R - R of the greedy answer) log pi; every token pays for the KL
    from itself on.
    """
    total = 0.0
    for s in samples:
        kl = [old - ref for old, ref in zip(s.old, s.ref, strict=True)]
        for t, new in enumerate(s.new):
            total = total + (s.reward - s.greedy - 0.01 * sum(kl[t:])) * new
    return total / len(samples)


def gspo(samples: list[Sample]) -> Tensor:
    """https://arxiv.org/abs/2507.18071, equation 5 with the ratio of equation 7; section 5.1: 3e-4 and 4e-4."""
    total = 0.0
    for group in groups_of(samples):
        for s, a in zip(group, normalised([s.reward for s in group]), strict=True):
            ratio = ((sum(s.new) - sum(s.old)) / len(s.new)).exp()
            total = total + clipped(ratio, a, 3e-4, 4e-4) / len(group)
    return total / len(groups_of(samples))


def cispo(samples: list[Sample]) -> Tensor:
    """https://arxiv.org/abs/2506.13585, equations 4 and 5, over the whole batch: no lower bound, here at most 5."""
    terms = []
    for group in groups_of(samples):
        for s, a in zip(group, normalised([s.reward for s in group]), strict=True):
            terms += [min(math.exp(new.item() - old), 5.0) * a * new for new, old in zip(s.new, s.old, strict=True)]
    return sum(terms) / len(terms)


def maxrl(samples: list[Sample]) -> Tensor:
    """https://arxiv.org/abs/2602.02710, algorithm 1: (r - mean) / mean, times the log-prob."""
    total = 0.0
    for group in groups_of(samples):
        mean = statistics.fmean(s.reward for s in group)
        for s in group:
            total = total + (s.reward - mean) / (mean + 1e-4) * sum(s.new)
    return total / len(samples)


def opd(samples: list[Sample]) -> Tensor:
    """https://thinkingmachines.ai/blog/on-policy-distillation: the advantage of a token is -(log pi - log pi of the
    teacher) of that token alone (discount 0); no reward.
    """
    terms = [(ref - old) * new for s in samples for new, old, ref in zip(s.new, s.old, s.ref, strict=True)]
    return sum(terms) / len(terms)


def online_dpo(samples: list[Sample]) -> Tensor:
    """https://arxiv.org/abs/2305.18290, equation 7 with beta 0.1, on the best and the worst sample."""
    total = 0.0
    for group in groups_of(samples):
        best, worst = max(group, key=lambda s: s.reward), min(group, key=lambda s: s.reward)
        delta = (sum(best.new) - sum(best.ref)) - (sum(worst.new) - sum(worst.ref))
        total = total + torch.log(1 / (1 + torch.exp(-0.1 * delta)))
    return total / len(groups_of(samples))


PAPERS: dict[str, Callable[[list[Sample]], Tensor]] = {
    paper.__name__: paper
    for paper in (
        *(reinforce, ppo, grpo, dr_grpo, dapo, rloo, reinforce_pp, reinforce_pp_baseline, remax, gspo, cispo, maxrl),
        *(opd, online_dpo),
    )
}


def our_loss(algorithm: Algorithm, made: Made) -> tuple[Tensor, float]:
    """(the loss as the learner puts it together, the share of clipped tokens)"""
    index, group = torch.repeat_interleave(torch.tensor(LENGTHS)), torch.tensor(GROUPS)
    rewards = torch.tensor(REWARDS)
    if algorithm.overlong == "penalize":
        rewards = rewards + overlong_penalty(torch.tensor(LENGTHS), max_new_tokens=MAX_NEW_TOKENS)
    if isinstance(algorithm, PreferenceObjective):
        labels = torch.zeros(len(LENGTHS))
        for best, worst in best_and_worst(rewards, group):
            labels[best], labels[worst] = 1, -1
        kept = labels[index] != 0
        loss, _ = preference_loss(
            algorithm.preference,
            logprobs=made.new[kept],
            ref_logprobs=made.ref[kept],
            sequence_index=torch.unique(index[kept], return_inverse=True)[1],
            labels=labels[labels != 0],
            num_examples=2,
        )
        return loss, 0.0
    advantages, _ = token_advantages(
        algorithm,
        kl_coef=algorithm.kl_coef,
        rewards=rewards,
        group_index=group,
        sequence_index=index,
        policy_logprobs=made.old,
        ref_logprobs=made.ref if algorithm.needs_reference else None,
        values=made.values if algorithm.needs_critic else None,
        baseline_rewards=torch.tensor(GREEDY) if algorithm.baseline == "greedy" else None,
    )
    loss, measures = policy_loss(
        algorithm,
        kl_coef=algorithm.kl_coef,
        logprobs=made.new,
        entropy=torch.zeros_like(made.new),
        old_logprobs=made.old,
        rollout_logprobs=made.old,
        ref_logprobs=made.ref if algorithm.needs_reference else None,
        advantages=advantages,
        weights=aggregation_weights(algorithm.aggregate, index, max_new_tokens=MAX_NEW_TOKENS),
        sequence_index=index,
    )
    return loss, numbers(measures)["policy/clip_fraction"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_row_computes_the_formula_of_its_paper(name: str) -> None:
    made = make()
    ours, clip_fraction = our_loss(PRESETS[name], made)
    papers = -PAPERS[name](made.samples)
    assert ours.item() == pytest.approx(papers.item(), abs=1e-9)
    own, other = (torch.autograd.grad(loss, made.new)[0] for loss in (ours, papers))
    assert float(other.abs().max()) > 1e-3
    assert torch.allclose(own, other, rtol=0, atol=1e-9)
    if getattr(PRESETS[name], "surrogate", "") == "clipped":
        assert 0.05 < clip_fraction < 0.95  # the case holds tokens of both kinds


@pytest.mark.parametrize(
    ("name", "needs"),
    [
        ("reinforce", ""),
        ("ppo", "critic reference"),
        ("grpo", "reference groups"),
        ("dr_grpo", "groups"),
        ("dapo", "groups"),
        ("rloo", "reference groups"),
        ("reinforce_pp", "reference"),
        ("reinforce_pp_baseline", "reference groups"),
        ("remax", "reference"),
        ("gspo", "groups"),
        ("cispo", "groups"),
        ("maxrl", "groups"),
        ("opd", "reference"),
        ("online_dpo", "reference groups pairs"),
    ],
)
def test_what_a_row_needs(name: str, needs: str) -> None:
    row = PRESETS[name]
    flags = {
        "critic": row.needs_critic,
        "reference": row.needs_reference,
        "groups": row.is_group_relative,
        "pairs": isinstance(row, PreferenceObjective),
    }
    assert {flag for flag, is_set in flags.items() if is_set} == set(needs.split())


def test_choices_of_the_rows_that_are_not_in_the_loss() -> None:
    # Only DAPO refills (its section 3.2) and penalises length (3.4); only PPO has a critic to clip; no row adapts its
    # KL, corrects for another engine or clips advantages by itself.
    assert {name for name, row in PRESETS.items() if row.max_refills} == {"dapo"}
    assert {name: row.overlong for name, row in PRESETS.items() if row.overlong != "count"} == {"dapo": "penalize"}
    policies = {name: row for name, row in PRESETS.items() if isinstance(row, PolicyObjective)}
    assert {name: row.value_clip for name, row in policies.items() if row.value_clip} == {"ppo": 0.2}
    for row in policies.values():
        assert (row.kl_target, row.correction, row.advantage_clip, row.entropy_coef) == (0, "none", 0, 0)


def test_only_group_relative_rows_do_not_see_a_shift_of_a_group_s_rewards() -> None:
    # What "group relative" promises, and what a refill relies on. MaxRL divides by the mean and is the exception.
    index, group = torch.repeat_interleave(torch.tensor(LENGTHS)), torch.tensor(GROUPS)
    rewards, zeros = torch.tensor(REWARDS), torch.zeros(len(index))
    shift = torch.tensor([5.0, -3.0])[group]
    for name, row in PRESETS.items():
        if isinstance(row, PreferenceObjective) or row.needs_critic or name == "maxrl":
            continue
        plain, shifted = (
            token_advantages(
                row,
                kl_coef=row.kl_coef,
                rewards=r,
                group_index=group,
                sequence_index=index,
                policy_logprobs=zeros,
                ref_logprobs=zeros,
                values=None,
                baseline_rewards=torch.tensor(GREEDY),
            )[0]
            for r in (rewards, rewards + shift)
        )
        is_same = torch.allclose(plain, shifted, rtol=0, atol=1e-9)
        assert is_same == (row.is_group_relative or row.reward_coef == 0), name


# What is refused, and that what the message says instead is accepted

REFUSED: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"ratio": "sequence", "surrogate": "score_function"}, "use surrogate: clipped", {"surrogate": "clipped"}),
    ({"ratio": "sequence", "aggregate": "token_mean"}, "aggregate: sequence_mean", {"aggregate": "sequence_mean"}),
    ({"ratio": "sequence", "aggregate": "constant_length"}, "aggregate: sequence_mean", {"aggregate": "sequence_mean"}),
    ({"kl": "none"}, "choose k1, k2 or k3, or kl_coef: 0", {"kl_coef": 0}),
    ({"kl": "k1"}, "use k2 or k3 in the loss, or kl_in: reward", {"kl_in": "reward"}),
    (
        {"baseline": "critic", "scale": "batch_std", "kl_in": "reward_to_go"},
        "GAE spreads kl_in: reward by itself",
        {"kl_in": "reward"},
    ),
    ({"kl_target": 0.1, "kl_coef": 0}, "set kl, and kl_coef to where it starts", {"kl_coef": 0.01}),
    ({"kl_target": 0.1, "kl": "none", "kl_coef": 0}, "set kl, and kl_coef", {"kl": "k3", "kl_coef": 0.01}),
    (
        {"reward_coef": 0.0, "kl": "none", "kl_coef": 0},
        "set kl: k1 and kl_coef: 1",
        {"kl": "k1", "kl_coef": 1, "kl_in": "reward_to_go"},
    ),
    ({"reward_coef": 0.0, "kl_coef": 0}, "nothing would be learnt", {"kl_coef": 1}),
    ({"baseline": "critic"}, "with a critic use batch_std", {"scale": "batch_std"}),
    ({"baseline": "critic", "scale": "group_mean"}, "with a critic use batch_std", {"scale": "batch_std"}),
    ({"scale": "group_mean", "baseline": "none"}, "it needs baseline: group_mean", {"baseline": "group_mean"}),
    ({"scale": "group_mean", "baseline": "greedy"}, "it needs baseline: group_mean", {"baseline": "leave_one_out"}),
    ({"scale": "group_mean", "kl_in": "reward"}, "no KL in the reward", {"kl_in": "loss"}),
    ({"scale": "group_mean", "overlong": "penalize"}, "use overlong: mask", {"overlong": "mask"}),
    ({"correction_range": (2.0, 0.5)}, r"got \[2.0, 0.5\]", {"correction_range": (0.5, 2.0)}),
    ({"correction_range": (-1.0, 2.0)}, "0 <= low < high", {"correction_range": (0.0, 2.0)}),
    ({"correction_range": (2.0, 2.0)}, "0 <= low < high", {"correction_range": (1.9, 2.0)}),
    ({"baseline": "none"}, "use baseline: group_mean, or scale: none", {"baseline": "group_mean"}),
    ({"baseline": "greedy"}, "or scale: none or batch_std", {"scale": "batch_std"}),
    (
        {"max_refills": 1, "baseline": "greedy", "scale": "none"},
        "only a group baseline cannot use; use 0",
        {"max_refills": 0},
    ),
    (
        {"max_refills": 1, "baseline": "none", "scale": "none"},
        "only a group baseline cannot use; use 0",
        {"baseline": "group_mean"},
    ),
    ({"gamma": 1.1}, "gamma must lie between 0 and 1", {"gamma": 1.0}),
    ({"gae_lambda": -0.1}, "gae_lambda must lie between 0 and 1", {"gae_lambda": 0.0}),
    *(
        ({name: -1}, f"{name} must not be negative, got -1", {name: 0})
        for name in (
            "clip_low",
            "clip_high",
            "entropy_coef",
            "value_clip",
            "advantage_clip",
            "kl_target",
            "max_refills",
        )
    ),
    ({"kl_coef": -1}, "kl_coef must not be negative", {"kl_coef": 0}),
    ({"reward_coef": -1}, "reward_coef must not be negative", {"reward_coef": 0}),
]


@pytest.mark.parametrize(("changes", "message", "way_out"), REFUSED)
def test_what_contradicts_itself_is_refused_with_a_way_out(
    changes: dict[str, Any], message: str, way_out: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match=rf"^algorithm\..*{message}"):
        replace(GRPO, **changes)
    replace(GRPO, **{**changes, **way_out})


@pytest.mark.parametrize("name", PRESETS)
def test_a_row_is_what_the_config_starts_from(name: str) -> None:
    assert type(PRESETS[name])(**preset_fields(name)) == PRESETS[name]
    assert asdict(PRESETS[name])["preset"] == name


def test_unknown_preset() -> None:
    with pytest.raises(KeyError):
        preset_fields("grop")


def test_a_preference_objective_refuses_what_its_loss_does() -> None:
    row = PRESETS["online_dpo"]
    with pytest.raises(ValueError, match="beta must be above 0"):
        replace(row, beta=0.0)
    with pytest.raises(ValueError, match="label_smoothing goes with loss: sigmoid, not kto"):
        replace(row, loss="kto", label_smoothing=0.1)
    with pytest.raises(ValueError, match="max_refills must not be negative"):
        replace(row, max_refills=-1)
    assert replace(row, loss="simpo", margin=0.5).preference.margin == 0.5
