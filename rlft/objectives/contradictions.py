"""Which choices of a policy objective contradict each other, and which have no effect beside the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlft.objectives.algorithm import PolicyObjective


def contradictions(a: PolicyObjective) -> list[tuple[bool, str]]:
    """(whether it holds, what is wrong and what to do instead) of every combination that makes no sense."""
    not_negative: tuple[str, ...] = (
        "clip_low",
        "clip_high",
        "kl_coef",
        "entropy_coef",
        "value_clip",
        "advantage_clip",
        "kl_target",
    )
    not_negative += ("max_refills", "reward_coef")
    low, high = a.correction_range
    is_relative = a.baseline in ("group_mean", "leave_one_out")
    return [
        *((getattr(a, n) < 0, f"{n} must not be negative, got {getattr(a, n)}") for n in not_negative),
        *((not 0 <= getattr(a, n) <= 1, f"{n} must lie between 0 and 1") for n in ("gamma", "gae_lambda")),
        (
            a.ratio == "sequence" and "clipped" not in a.surrogate,
            "ratio: 'sequence' needs a ratio in the surrogate; use surrogate: clipped",
        ),
        (
            a.ratio == "sequence" and a.aggregate not in ("sequence_mean", "sequence_sum"),
            "ratio: 'sequence' needs aggregate: sequence_mean (one ratio per sequence)",
        ),
        (
            a.kl == "none" and a.kl_coef != 0,
            "kl_coef is set but algorithm.kl is 'none'; choose k1, k2 or k3, or kl_coef: 0",
        ),
        (
            a.kl_in == "loss" and a.kl == "k1",
            "kl_in: 'loss' with kl: k1 has an expected gradient of 0; use k2 or k3 in the loss, or kl_in: reward",
        ),
        (
            a.kl_in == "reward_to_go" and a.baseline == "critic",
            "kl_in: 'reward_to_go' is for algorithms without a critic; GAE spreads kl_in: reward by itself",
        ),
        (
            a.credit == "turn" and a.baseline == "greedy",
            "credit: 'turn' has no baseline in a greedy answer, whose turns are others; use baseline: group_mean, "
            "leave_one_out or critic",
        ),
        (
            a.credit == "turn" and a.kl != "none" and a.kl_in == "reward_to_go",
            "credit: 'turn' already charges each turn with the KL from itself on under kl_in: reward; use that",
        ),
        (
            a.kl_target > 0 and (a.kl == "none" or a.kl_coef == 0),
            "kl_target needs a KL term that it can steer; set kl, and kl_coef to where it starts",
        ),
        (
            a.reward_coef == 0 and (a.kl == "none" or a.kl_coef == 0),
            "reward_coef is 0 and there is no KL term, so nothing would be learnt; set kl: k1 and kl_coef: 1",
        ),
        (
            a.baseline == "critic" and a.scale not in ("none", "batch_std"),
            f"scale: {a.scale!r} goes with a group baseline; with a critic use batch_std",
        ),
        (
            a.scale == "group_std" and not is_relative and a.baseline != "critic",
            "scale: 'group_std' goes with a group baseline: without one equal rewards, which have no deviation, are "
            "divided by almost 0; use baseline: group_mean, or scale: none or batch_std",
        ),
        (
            a.scale == "group_mean" and (not is_relative or (a.kl != "none" and a.kl_in == "reward")),
            "scale: 'group_mean' divides by the mean reward, so it needs baseline: group_mean and no KL in the reward",
        ),
        (
            a.scale == "group_mean" and a.overlong == "penalize",
            "scale: 'group_mean' needs rewards of at least 0, which overlong: 'penalize' lowers; use overlong: mask",
        ),
        (
            not 0 <= low < high,
            f"correction_range must be [low, high] with 0 <= low < high, got [{low}, {high}]",
        ),
        (
            a.max_refills > 0 and not a.is_group_relative,
            "max_refills replaces groups whose rewards are all equal, which only a group baseline cannot use; use 0",
        ),
    ]


def unused_choices(a: PolicyObjective) -> dict[str, str]:
    """Which choices have no effect beside the others, and what each goes with.

    A preset's own may be among them, when another choice was replaced.
    """
    has_ratio = a.surrogate in ("clipped", "dual_clipped", "clipped_weight")
    unused: list[tuple[bool, tuple[str, ...], str]] = [
        (not a.needs_critic, ("gae_lambda", "value_clip"), "baseline: critic"),
        (
            not (a.needs_critic or (a.kl_in == "reward_to_go" and a.kl != "none")),
            ("gamma",),
            "baseline: critic or kl_in: reward_to_go",
        ),
        (not has_ratio, ("clip_low", "clip_high"), "surrogate: clipped, dual_clipped or clipped_weight"),
        (a.kl == "none", ("kl_in",), "kl: k1, k2 or k3"),
        (a.correction == "none", ("correction_range",), "a `correction`"),
    ]
    return {name: needs for is_unused, names, needs in unused if is_unused for name in names}
