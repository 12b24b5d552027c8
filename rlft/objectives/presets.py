"""Named algorithms are rows of choices. This file needs no torch: the config reads it.

Every axis is a closed set of names; `advantages.py` and `policy.py` give them their meaning. A preset is a row, and a
config may replace any single choice of it (`algorithm: {preset: grpo, kl_coef: 0}`). Combinations that contradict
themselves are refused when the value is made, with what to do instead.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

Baseline = Literal["none", "group_mean", "leave_one_out", "critic"]
Scale = Literal["none", "group_std", "batch_std"]
Ratio = Literal["token", "sequence"]
Surrogate = Literal["score_function", "clipped", "clipped_weight"]
Aggregate = Literal["token_mean", "sequence_mean", "sequence_sum", "constant_length"]
KL = Literal["none", "k1", "k2", "k3"]
KLPlace = Literal["loss", "reward"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Algorithm:
    """An RL algorithm as a value: how advantages are made and which objective they enter."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    preset: str
    """Name of the row that this started from."""
    baseline: Baseline
    """What is subtracted from the reward: nothing, the group's mean, the mean of the other samples, or a critic's
    value (then advantages are GAE)."""
    scale: Scale
    """What the difference is divided by: nothing, the group's standard deviation, or that of the batch's action
    tokens (after centring them)."""
    ratio: Ratio
    """Importance ratio per token, or its geometric mean over the sequence."""
    surrogate: Surrogate
    """score_function: A log pi; clipped: PPO's pessimistic clip; clipped_weight: the clipped ratio as a constant
    weight of A log pi."""
    clip_low: float
    """Lower clip distance: the ratio is held above 1 - clip_low."""
    clip_high: float
    """Upper clip distance: the ratio is held below 1 + clip_high."""
    aggregate: Aggregate
    """How token losses become one number: mean over tokens, mean of sequence means, mean of sequence sums, or sum
    over a constant length."""
    kl: KL
    """Estimator of the KL to the reference: none, k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r, with r =
    pi_ref / pi."""
    kl_coef: float
    """Weight of the KL term."""
    kl_in: KLPlace
    """Whether the KL is a loss term or is subtracted from the per-token reward."""
    entropy_coef: float
    """Weight of an entropy bonus; 0 leaves it out."""
    gamma: float
    """Discount per token."""
    gae_lambda: float
    """GAE's lambda; used with `baseline: critic`."""
    value_clip: float
    """Clip distance of the critic's update around its old value; 0 means off."""
    value_coef: float
    """Weight of the critic's loss."""

    def __post_init__(self) -> None:
        if self.ratio == "sequence" and self.surrogate == "score_function":
            raise ValueError("algorithm.ratio: 'sequence' needs a ratio in the surrogate; use surrogate: clipped")
        if self.ratio == "sequence" and self.aggregate not in ("sequence_mean", "sequence_sum"):
            raise ValueError("algorithm.ratio: 'sequence' needs aggregate: sequence_mean (one ratio per sequence)")
        if self.kl == "none" and self.kl_coef != 0:
            raise ValueError("algorithm.kl_coef is set but algorithm.kl is 'none'; choose k1, k2 or k3, or kl_coef: 0")
        if self.kl_in == "reward" and self.kl in ("k2", "k3"):
            raise ValueError("algorithm.kl_in: 'reward' takes kl: k1, the unbiased log-ratio; k2 and k3 are loss terms")
        if self.baseline == "critic" and self.scale == "group_std":
            raise ValueError("algorithm.scale: 'group_std' goes with a group baseline; with a critic use batch_std")
        if self.baseline == "critic" and self.value_coef == 0:
            raise ValueError("algorithm.value_coef is 0, so the critic would never learn; use 0.1, or another baseline")
        for name in ("clip_low", "clip_high", "kl_coef", "entropy_coef", "value_clip", "value_coef"):
            if getattr(self, name) < 0:
                raise ValueError(f"algorithm.{name} must not be negative, got {getattr(self, name)}")
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"algorithm.{name} must lie between 0 and 1, got {getattr(self, name)}")

    @property
    def needs_critic(self) -> bool:
        """Whether a value head is trained and asked."""
        return self.baseline == "critic"

    @property
    def needs_reference(self) -> bool:
        """Whether log-probs under the frozen reference enter anywhere."""
        return self.kl != "none"

    @property
    def is_group_relative(self) -> bool:
        """Whether a group with equal rewards gives no gradient."""
        return self.baseline in ("group_mean", "leave_one_out")


GRPO = Algorithm(
    preset="grpo",
    baseline="group_mean",
    scale="group_std",
    ratio="token",
    surrogate="clipped",
    clip_low=0.2,
    clip_high=0.2,
    aggregate="sequence_mean",
    kl="k3",
    kl_coef=0.04,
    kl_in="loss",
    entropy_coef=0.0,
    gamma=1.0,
    gae_lambda=1.0,
    value_clip=0.0,
    value_coef=0.0,
)
"""DeepSeekMath, equations 3 and 4, https://arxiv.org/abs/2402.03300"""

PPO = Algorithm(
    preset="ppo",
    baseline="critic",
    scale="batch_std",
    ratio="token",
    surrogate="clipped",
    clip_low=0.2,
    clip_high=0.2,
    aggregate="token_mean",
    kl="k1",
    kl_coef=0.05,
    kl_in="reward",
    entropy_coef=0.0,
    gamma=1.0,
    gae_lambda=0.95,
    value_clip=0.2,
    value_coef=0.1,
)
"""Schulman et al. 2017, https://arxiv.org/abs/1707.06347, with GAE, https://arxiv.org/abs/1506.02438, and the KL in
the reward as in https://arxiv.org/abs/1909.08593"""

PRESETS: dict[str, Algorithm] = {algorithm.preset: algorithm for algorithm in (GRPO, PPO)}
"""Algorithms by name; `rlft list` shows them."""


def preset_fields(name: str) -> dict[str, Any]:
    """The row `name` as a plain dict, for the config to lay a user's choices over.

    Raises:
        KeyError: no such preset.
    """
    return asdict(PRESETS[name])
