"""An algorithm is a row of choices: what the rewards become, and which objective they enter. This file needs no torch.

There are two kinds of objective. A policy objective weighs the log-prob of every token by an advantage; a preference
objective compares whole completions. Every axis is a closed set of names; `advantages.py`, `policy.py` and
`preference.py` give them their meaning, `presets.py` names rows. Combinations that contradict themselves are refused
when the value is made, with what to do instead.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Literal, TypeAlias, get_args

from rlft.objectives.contradictions import contradictions

Baseline = Literal["none", "group_mean", "leave_one_out", "greedy", "critic"]
Scale = Literal["none", "group_std", "group_mean", "batch_std"]
Ratio = Literal["token", "sequence"]
Surrogate = Literal["score_function", "clipped", "dual_clipped", "clipped_weight"]
Loss = Literal["sigmoid", "ipo", "hinge", "simpo", "orpo", "kto"]
Aggregate = Literal["token_mean", "sequence_mean", "sequence_sum", "constant_length"]
KL = Literal["none", "k1", "k2", "k3"]
KLPlace = Literal["loss", "reward", "reward_to_go"]
Overlong = Literal["count", "mask", "penalize"]
Credit = Literal["episode", "turn"]
Correction = Literal["none", "token_truncate", "token_mask", "sequence_truncate", "sequence_mask"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """A preference loss as a value."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    loss: Loss = "sigmoid"
    """sigmoid: DPO; ipo; hinge: SLiC; simpo and orpo: without a reference; kto: single completions, no pairs."""
    beta: float = 0.1
    """How strongly the policy is held to the reference (DPO, IPO, hinge, KTO), the reward's scale (SimPO), or the
    weight of the odds-ratio term (ORPO)."""
    label_smoothing: float = 0.0
    """Probability that a pair's labels are swapped (cDPO); used by sigmoid."""
    margin: float = 0.0
    """SimPO's gamma: by how much the chosen reward should exceed the rejected one."""
    desirable_weight: float = 1.0
    """KTO's weight of completions labelled good."""
    undesirable_weight: float = 1.0
    """KTO's weight of completions labelled bad."""

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, got {self.beta}; 0.1 is usual, 2 for simpo")
        if not 0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must lie in [0, 0.5), got {self.label_smoothing}")
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing goes with loss: sigmoid, not {self.loss}")
        if self.margin < 0 or (self.margin and self.loss != "simpo"):
            raise ValueError("margin is SimPO's gamma: at least 0, and only with loss: simpo")
        for name in ("desirable_weight", "undesirable_weight"):
            value = getattr(self, name)
            if value < 0 or (value != 1 and self.loss != "kto"):
                raise ValueError(f"{name} is KTO's: at least 0, and only with loss: kto")

    @property
    def needs_reference(self) -> bool:
        """Whether the loss asks for the frozen reference's log-probs."""
        return self.loss not in ("simpo", "orpo")

    @property
    def is_paired(self) -> bool:
        """Whether a chosen and a rejected completion of the same prompt are compared."""
        return self.loss != "kto"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyObjective:
    """An RL algorithm as a value: how advantages are made, and how the policy's tokens are weighed by them."""

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}
    ELSEWHERE: ClassVar[Mapping[str, str]] = {
        "loss": "a preference loss is chosen by {preset: online_dpo, loss: sigmoid}",
        "beta": "it belongs to {preset: online_dpo}; the weight of a KL term is `kl_coef`",
        **dict.fromkeys(
            ("label_smoothing", "margin", "desirable_weight", "undesirable_weight"),
            "it is a choice of preference losses; use it with {preset: online_dpo}",
        ),
    }
    """Keys that users look for here, and where they are."""

    preset: str
    """Name of the row that this started from."""
    baseline: Baseline
    """What is subtracted from the reward: nothing, the group's mean, the mean of the other samples, the reward of the
    greedy answer (one more sample per task), or a critic's value (then advantages are GAE)."""
    scale: Scale
    """What the difference is divided by: nothing, the group's standard deviation, the group's mean reward (rewards must
    not be negative), or the standard deviation over the batch's action tokens (after centring them)."""
    ratio: Ratio = "token"
    """Importance ratio per token, or its geometric mean over the sequence."""
    surrogate: Surrogate
    """score_function: A log pi; clipped: PPO's pessimistic clip; dual_clipped: the same, and the loss of a bad action
    stops growing at three times its advantage; clipped_weight: the clipped ratio as a constant weight of A log pi."""
    clip_low: float = 0.2
    """Lower clip distance: the ratio is held above 1 - clip_low."""
    clip_high: float = 0.2
    """Upper clip distance: the ratio is held below 1 + clip_high."""
    aggregate: Aggregate
    """How token losses become one number: mean over tokens, mean of sequence means, mean of sequence sums, or sum
    over a constant length."""
    reward_coef: float = 1.0
    """Weight of the outcome's advantage; 0 learns from the KL alone, which is distillation."""
    advantage_clip: float = 0.0
    """Advantages are held within plus and minus this; 0 is off."""
    kl: KL = "none"
    """Estimator of the KL to the reference: none, k1 = -log r, k2 = (log r)^2 / 2, k3 = r - 1 - log r, with r =
    pi_ref / pi."""
    kl_coef: float = 0.0
    """Weight of the KL term."""
    kl_in: KLPlace = "loss"
    """loss: a term of the loss. reward: subtracted from the reward, of each token with a critic, of the whole sequence
    without. reward_to_go: every action pays for the KL from itself on, discounted by gamma."""
    kl_target: float = 0.0
    """KL per token in nats that kl_coef is steered to, from its configured start; 0 keeps it fixed."""
    entropy_coef: float = 0.0
    """Weight of an entropy bonus; 0 leaves it out."""
    gamma: float = 1.0
    """Discount per token of GAE and of reward_to_go."""
    gae_lambda: float = 1.0
    """GAE's lambda; used with `baseline: critic`."""
    value_clip: float = 0.0
    """Clip distance of the critic's update around its old value; 0 means off."""
    correction: Correction = "none"
    """Factor pi_old / pi_rollout against sampling from other weights or another engine: of each token or of the whole
    sequence, truncated to correction_range or, outside it, replaced by 0."""
    correction_range: tuple[float, float] = (0.0, 2.0)
    """Lowest and highest factor of `correction`."""
    credit: Credit = "episode"
    """Of episodes: episode: every action gets the reward of the whole. turn: it gets the rewards of its turn and of
    later ones, compared with the group's samples at the same turn, or with the critic's values."""
    overlong: Overlong = "count"
    """Completions cut at max_new_tokens: count: as any other; mask: out of the loss, though still in the baseline;
    penalize: the reward falls linearly by 1 over the last fifth of max_new_tokens."""
    max_refills: int = 0
    """Further rounds of rollouts per step that replace groups whose rewards are all equal; 0 keeps them."""

    def __post_init__(self) -> None:
        for is_wrong, message in contradictions(self):
            if is_wrong:
                raise ValueError("algorithm." + message)

    @property
    def needs_all_sequences(self) -> bool:
        """Whether sequences whose advantages are 0 have a term in the loss, of KL or entropy, that moves the policy."""
        return self.entropy_coef > 0 or (self.kl != "none" and self.kl_in == "loss")

    @property
    def needs_critic(self) -> bool:
        """Whether a value head is trained and asked."""
        return self.baseline == "critic"

    @property
    def needs_greedy(self) -> bool:
        """Whether a greedy answer to each task is sampled, too."""
        return self.baseline == "greedy"

    @property
    def needs_reference(self) -> bool:
        """Whether log-probs under the frozen reference enter anywhere."""
        return self.kl != "none"

    @property
    def has_kl_in_reward(self) -> bool:
        """Whether the KL to the reference lowers rewards, which asks for the policy's log-probs before the update."""
        return self.kl != "none" and self.kl_in != "loss"

    @property
    def credits_turns(self) -> bool:
        """Whether each turn of an episode is judged by what came from it on."""
        return self.credit == "turn"

    @property
    def is_group_relative(self) -> bool:
        """Whether a group with equal rewards gives no gradient from them."""
        return self.baseline in ("group_mean", "leave_one_out")

    def misfit(self, *, has_reference: bool, tasks_per_update: float, updates_per_step: int, max_staleness: int) -> str:
        """Why a run with these settings cannot have this objective, and what to do instead; empty if it can."""
        if has_reference and not self.needs_reference:
            return f"reference is set, but preset {self.preset!r} has no KL; set algorithm.kl"
        if not has_reference and self.reward_coef == 0:
            return (
                "algorithm.reward_coef is 0, so the policy learns from the reference alone, which is itself; name the "
                "teacher in `reference`"
            )
        if updates_per_step > 1 and self.surrogate == "score_function":
            return (
                "after its first update the policy is not the one that sampled, and surrogate: score_function has no "
                "ratio for that; use algorithm.surrogate: clipped, or updates_per_step: 1"
            )
        if max_staleness and self.correction == "none":
            return (
                f"max_staleness is {max_staleness}: samples come from an older policy, and without a correction "
                "the objective takes them for the present one's; set algorithm.correction to one of "
                f"{', '.join(get_args(Correction)[1:])} (docs/actors.md), or max_staleness: 0"
            )
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceObjective:
    """An RL algorithm as a value: the policy's own samples, ranked by their rewards, enter a preference loss.

    Losses of pairs compare the best with the worst sample of each group; kto takes all samples, which are good above
    the mean reward of their group and bad below it.
    """

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}
    ELSEWHERE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            (each.name for each in fields(PolicyObjective)),
            "a preference loss compares whole samples and has no such choice; leave it out",
        ),
        "kl_coef": "a preference loss has no KL term; how strongly it holds to the reference is `beta`",
        "surrogate": "a preference loss is named by `loss`: sigmoid, ipo, hinge, simpo, orpo or kto",
    }
    """Keys that users look for here, and what to write instead."""

    preset: str
    """Name of the row that this started from."""
    loss: Loss = "sigmoid"
    """sigmoid: DPO; ipo; hinge: SLiC; simpo and orpo: without a reference; kto: of single samples instead of pairs."""
    beta: float = 0.1
    """How strongly the policy is held to the reference (DPO, IPO, hinge, KTO), the reward's scale (SimPO), or the
    weight of the odds-ratio term (ORPO)."""
    label_smoothing: float = 0.0
    """Probability that the rewards rank a pair wrongly (cDPO); used by sigmoid."""
    margin: float = 0.0
    """SimPO's gamma: by how much the implicit reward of the best sample should exceed that of the worst."""
    desirable_weight: float = 1.0
    """KTO's weight of samples above the mean reward."""
    undesirable_weight: float = 1.0
    """KTO's weight of samples below the mean reward."""
    overlong: Literal["count", "penalize"] = "count"
    """Completions cut at max_new_tokens: count: as any other; penalize: the reward falls linearly by 1 over the last
    fifth of max_new_tokens."""
    max_refills: int = 0
    """Further rounds of rollouts per step that replace groups whose rewards are all equal; 0 keeps them."""

    def __post_init__(self) -> None:
        if self.max_refills < 0:
            raise ValueError(f"max_refills must not be negative, got {self.max_refills}")
        _ = self.preference  # which refuses what contradicts itself

    @property
    def preference(self) -> Preference:
        """The loss alone."""
        return Preference(**{each.name: getattr(self, each.name) for each in fields(Preference)})

    @property
    def needs_reference(self) -> bool:
        """Whether the loss asks for the frozen reference's log-probs."""
        return self.preference.needs_reference

    @property
    def needs_all_sequences(self) -> bool:
        """Whether sequences outside of any pair have a term in the loss: an update computes all of them."""
        return True

    @property
    def needs_critic(self) -> bool:
        """Whether a value head is trained and asked: never."""
        return False

    @property
    def needs_greedy(self) -> bool:
        """Whether a greedy answer to each task is sampled, too: never."""
        return False

    @property
    def has_kl_in_reward(self) -> bool:
        """Whether the KL to the reference lowers rewards: never."""
        return False

    @property
    def credits_turns(self) -> bool:
        """Whether each turn of an episode is judged by what came from it on: never."""
        return False

    @property
    def is_group_relative(self) -> bool:
        """Whether a group with equal rewards gives no gradient from them: always, for it cannot be ranked."""
        return True

    def misfit(self, *, has_reference: bool, tasks_per_update: float, updates_per_step: int, max_staleness: int) -> str:
        """Why a run with these settings cannot have this objective, and what to do instead; empty if it can."""
        if has_reference and not self.needs_reference:
            return f"reference is set, but algorithm.loss: {self.loss} compares with none; leave it out"
        if self.loss == "kto" and tasks_per_update < 2:
            return (
                f"tasks_per_step / updates_per_step is {tasks_per_update:g}, but kto estimates its KL from other "
                "tasks' completions; use at least 2 tasks for each update"
            )
        if max_staleness:
            return (
                f"max_staleness is {max_staleness}, but preset {self.preset!r} compares whole samples and has no "
                "correction for those of an older policy; use max_staleness: 0"
            )
        return ""


Algorithm: TypeAlias = PolicyObjective | PreferenceObjective
"""What the config's `algorithm` is."""
