"""Named algorithms as rows of choices; a config takes a row by name and may replace any single choice of it
(`algorithm: {preset: grpo, kl_coef: 0}`). This file needs no torch: the config reads it.
"""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

from rlft.objectives.algorithm import Algorithm, PolicyObjective, PreferenceObjective
from rlft.objectives.contradictions import unused_choices


def _row(preset: str, **choices: Any) -> PolicyObjective:
    return PolicyObjective(preset=preset, **choices)


PRESETS: dict[str, Algorithm] = {
    row.preset: row
    for row in (
        # Williams 1992, https://link.springer.com/article/10.1007/BF00992696
        _row("reinforce", baseline="none", scale="none", surrogate="score_function", aggregate="sequence_sum"),
        # Schulman et al. 2017, https://arxiv.org/abs/1707.06347, with GAE, https://arxiv.org/abs/1506.02438, and the KL
        # in the reward as in https://arxiv.org/abs/1909.08593
        _row(
            "ppo",
            baseline="critic",
            scale="batch_std",
            surrogate="clipped",
            aggregate="token_mean",
            kl="k1",
            kl_coef=0.05,
            kl_in="reward",
            gae_lambda=0.95,
            value_clip=0.2,
        ),
        # DeepSeekMath, equations 3 and 4, https://arxiv.org/abs/2402.03300
        _row(
            "grpo",
            baseline="group_mean",
            scale="group_std",
            surrogate="clipped",
            aggregate="sequence_mean",
            kl="k3",
            kl_coef=0.04,
        ),
        # Liu et al. 2025, section 3.2, https://arxiv.org/abs/2503.20783
        _row("dr_grpo", baseline="group_mean", scale="none", surrogate="clipped", aggregate="constant_length"),
        # Yu et al. 2025, section 3, https://arxiv.org/abs/2503.14476
        _row(
            "dapo",
            baseline="group_mean",
            scale="group_std",
            surrogate="clipped",
            clip_high=0.28,
            aggregate="token_mean",
            overlong="penalize",
            max_refills=2,
        ),
        # Ahmadian et al. 2024, equations 6 and 8, https://arxiv.org/abs/2402.14740
        _row(
            "rloo",
            baseline="leave_one_out",
            scale="none",
            surrogate="score_function",
            aggregate="sequence_sum",
            kl="k1",
            kl_coef=0.05,
            kl_in="reward",
        ),
        # Hu et al. 2025, section 3, https://arxiv.org/abs/2501.03262
        _row(
            "reinforce_pp",
            baseline="none",
            scale="batch_std",
            surrogate="clipped",
            aggregate="token_mean",
            kl="k1",
            kl_coef=0.01,
            kl_in="reward_to_go",
        ),
        # The same paper's variant for several samples per task: the group's mean first, then the batch's deviation
        _row(
            "reinforce_pp_baseline",
            baseline="group_mean",
            scale="batch_std",
            surrogate="clipped",
            aggregate="token_mean",
            kl="k2",
            kl_coef=0.01,
        ),
        # Li et al. 2023, algorithm 1, https://arxiv.org/abs/2310.10505
        _row(
            "remax",
            baseline="greedy",
            scale="none",
            surrogate="score_function",
            aggregate="sequence_sum",
            kl="k1",
            kl_coef=0.01,
            kl_in="reward_to_go",
        ),
        # Zheng et al. 2025, equations 5 and 7 and section 5.1, https://arxiv.org/abs/2507.18071
        _row(
            "gspo",
            baseline="group_mean",
            scale="group_std",
            ratio="sequence",
            surrogate="clipped",
            clip_low=3e-4,
            clip_high=4e-4,
            aggregate="sequence_mean",
        ),
        # MiniMax-M1, equations 4 and 5, https://arxiv.org/abs/2506.13585: no lower bound on the weight
        _row(
            "cispo",
            baseline="group_mean",
            scale="group_std",
            surrogate="clipped_weight",
            clip_low=1.0,
            clip_high=4.0,
            aggregate="token_mean",
        ),
        # Tajwar et al. 2026, algorithm 1, https://arxiv.org/abs/2602.02710, for rewards of 0 and 1
        _row("maxrl", baseline="group_mean", scale="group_mean", surrogate="score_function", aggregate="sequence_sum"),
        # https://thinkingmachines.ai/blog/on-policy-distillation and https://arxiv.org/abs/2306.13649: the reverse KL
        # to a teacher, token by token; the teacher is the config's `reference`
        _row(
            "opd",
            baseline="none",
            scale="none",
            surrogate="score_function",
            aggregate="token_mean",
            reward_coef=0.0,
            kl="k1",
            kl_coef=1.0,
            kl_in="reward_to_go",
            gamma=0.0,
        ),
        # Guo et al. 2024, https://arxiv.org/abs/2402.04792: DPO, https://arxiv.org/abs/2305.18290, on pairs that the
        # policy sampled and the rewards ranked
        PreferenceObjective(preset="online_dpo", loss="sigmoid", beta=0.1),
    )
}
"""Algorithms by name; `rlft list` shows them."""


def preset_fields(name: str) -> dict[str, Any]:
    """The choices of a preset as a plain dict, which a config's own choices are laid over.

    Raises:
        KeyError: no such preset.
    """
    return asdict(PRESETS[name])


def kind_of(algorithm: Any) -> str:
    """Name of the class that an algorithm, or its plain dict, belongs to by its preset; GRPO's for an unknown one."""
    name = algorithm.get("preset") if isinstance(algorithm, dict) else getattr(algorithm, "preset", None)
    return type(PRESETS.get(str(name), PRESETS["grpo"])).__name__


def refuse_unused(algorithm: Algorithm) -> Algorithm:
    """Refuse an algorithm that replaces choices of its preset without any effect; else return it.

    Raises:
        ValueError: a choice has none, with what it goes with.
    """
    if isinstance(algorithm, PreferenceObjective):
        return algorithm  # it refuses them itself
    row, defaults = PRESETS[algorithm.preset], {field.name: field.default for field in fields(PolicyObjective)}
    for name, needs in unused_choices(algorithm).items():
        if (value := getattr(algorithm, name)) not in (getattr(row, name), defaults[name]):
            raise ValueError(f"algorithm.{name} is {value}, which nothing uses; it goes with {needs}")
    return algorithm
