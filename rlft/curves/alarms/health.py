"""What is known of a run's health: alarms with their evidence, and what could not be told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Severity: TypeAlias = Literal["warning", "critical"]

SAMPLES = 5
"""How many samples an alarm shows where samples tell it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A stored rollout that shows what an alarm says."""

    step: int
    """Step that it was made for."""
    task: str
    """Its task."""
    index: int
    """Its position in the task's group."""
    reward: float
    """Weighted sum of the rewards; nan where it was not scored."""
    parts: Mapping[str, float]
    """Value of each reward and part that it has."""
    tokens: int
    """Tokens that the policy sampled."""
    excerpt: str
    """The completion, shortened; as the model wrote it, so escape it."""

    @property
    def id(self) -> str:
        """`step-000012/TASK/3`: the file in `rollouts/`, the task, the position in its group."""
        return f"step-{self.step:06d}/{self.task}/{self.index}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something that goes wrong in a run, measured against the run's own beginning."""

    name: str
    """One of `ALARMS`."""
    severity: Severity
    """`critical`: what is trained from the onset on is likely lost."""
    onset: int
    """Step at which it began, as estimated now; earlier than the step at which it could be told."""
    seen: int
    """The last step that was looked at."""
    evidence: str
    """The numbers behind it, in a sentence; may hold names from the config, so escape it."""
    numbers: Mapping[str, float]
    """The same numbers by name."""
    samples: tuple[Sample, ...] = ()
    """Rollouts that show it; empty where samples do not tell it, or none are stored."""

    @property
    def meaning(self) -> str:
        """What it means, in one sentence."""
        return ALARMS[self.name][0]

    @property
    def advice(self) -> str:
        """What to do."""
        return ALARMS[self.name][1]

    @property
    def line(self) -> str:
        """Name, onset and evidence in one line."""
        return f"{self.name} since step {self.onset}: {self.evidence}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, which has no nan: what is not known is None."""
        return {
            "name": self.name,
            "severity": self.severity,
            "onset": self.onset,
            "seen": self.seen,
            "evidence": self.evidence,
            "numbers": _known(self.numbers),
            "samples": [
                {
                    "id": sample.id,
                    "reward": sample.reward if math.isfinite(sample.reward) else None,
                    "parts": _known(sample.parts),
                    "tokens": sample.tokens,
                    "excerpt": sample.excerpt,
                }
                for sample in self.samples
            ],
            "meaning": self.meaning,
            "advice": self.advice,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Unable:
    """An alarm about which nothing can be told."""

    name: str
    """One of `ALARMS`."""
    reason: str
    """What is missing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What all alarms say of a run."""

    steps: int
    """Steps with metrics."""
    alarms: tuple[Alarm, ...]
    """Those that are raised, critical ones first, then by onset."""
    unable: tuple[Unable, ...]
    """Those about which nothing can be told; no alarms."""
    enough: bool = field(default=True)
    """Whether there is enough to say that nothing is wrong: steps, and samples that a shadow reward is read from."""
    notes: tuple[str, ...] = ()
    """What was left out of the files that it rests on."""

    @property
    def state(self) -> Literal["healthy", "alarm", "cant_tell"]:
        """`alarm` if there is one, else `cant_tell` of a run that has too little to be called healthy."""
        if self.alarms:
            return "alarm"
        return "healthy" if self.enough else "cant_tell"

    @property
    def exit_code(self) -> int:
        """0 healthy, 1 an alarm, 2 cannot tell."""
        return {"healthy": 0, "alarm": 1, "cant_tell": 2}[self.state]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "verdict": self.state,
            "exit_code": self.exit_code,
            "steps": self.steps,
            "alarms": [alarm.as_dict() for alarm in self.alarms],
            "unable": [{"name": each.name, "reason": each.reason} for each in self.unable],
            "notes": list(self.notes),
        }


def _known(numbers: Mapping[str, float]) -> dict[str, float | None]:
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}


ALARMS: dict[str, tuple[str, str]] = {
    "not_finite": (
        "A loss, a gradient or a metric was NaN or infinite, so updates were skipped or numbers are missing.",
        "Look at the batches in skipped/, use model.dtype=float32 or a lower learner.lr, and check rewards for very "
        "large values.",
    ),
    "entropy_collapse": (
        "The policy answers nearly the same each time and the reward no longer rises: it has stopped exploring before "
        "the tasks were learnt.",
        "Go on from a checkpoint before the onset with a lower learner.lr, an entropy term (algorithm.entropy_coef) or "
        "a wider upper clip (preset dapo).",
    ),
    "kl_without_reward": (
        "The policy moves ever further from where it started and gets no reward for it.",
        "Stop at the onset's adapter, or go on from there with a lower learner.lr or a larger algorithm.kl_coef.",
    ),
    "length_with_reward": (
        "Completions grow and the reward grows with them, which is how a reward that pays for length looks.",
        "Read the longest samples; observe a reward that does not see the length (role: shadow), or "
        "let long completions cost something (rewards.soft_overlong).",
    ),
    "part_against_part": (
        "One part of the reward is driven up while another falls or stops: the policy earns what is easiest to earn.",
        "Lower the weight of the part that rises, or make the other a condition of it; replay the change on stored "
        "rollouts with `rlft reward replay`.",
    ),
    "shadow_gap": (
        "The reward that is trained on rises and the shadow reward, which is what is wanted, does not follow it.",
        "Read the samples: what earns the reward there is what the reward pays for. Mend the reward before training "
        "on; the adapter from before the onset is the better one.",
    ),
    "repetition": (
        "Completions repeat themselves, within one text or among the samples of a task.",
        "Read the samples; raise sampling.temperature if it is below 1, add a penalty for repetition, and go on from "
        "before the onset.",
    ),
    "truncation": (
        "Many completions are cut at the length limit, so their reward is not that of an answer.",
        "Raise sampling.max_new_tokens, or let overlong samples be masked or penalised (algorithm.overlong).",
    ),
    "no_signal": (
        "Most groups have equal rewards and teach nothing; their rollouts are paid for in vain.",
        "Take tasks that are neither solved nor out of reach, or let them be replaced (preset dapo: "
        "algorithm.max_refills).",
    ),
    "reward_spike": (
        "The reward jumped in single steps far beyond its noise: a fault in a reward, in the data or in a batch.",
        "Read the samples of these steps and check the reward on them: rlft reward check.",
    ),
    "reward_collapse": (
        "The reward has lost most of what the run had gained.",
        "Take the adapter from before the onset and go on from there with a lower learner.lr.",
    ),
    "gradient_spikes": (
        "Gradients burst again and again: single batches move the policy much further than the others.",
        "Check learner.max_grad_norm, look at the rewards of these steps, and lower learner.lr.",
    ),
    "clip_saturation": (
        "A large share of the tokens is clipped: updates ask for more than the trust region allows.",
        "Lower learner.lr or updates_per_step, or take more samples per update.",
    ),
    "critic_diverges": (
        "The critic predicts returns worse than their mean does, so advantages are noise.",
        "Lower learner.critic_lr, or use an algorithm without a critic (grpo, rloo).",
    ),
    "mismatch": (
        "Engine and learner disagree about the log-probs of the same tokens more than they did: samples come from "
        "another policy than the one that is trained.",
        "Use model.dtype=float32, a lower max_staleness or a correction (algorithm.correction), and check the "
        "engine's version.",
    ),
    "throughput": (
        "Steps take longer than they did and sample fewer tokens in a second.",
        "Look at time/rollout, time/learn and time/wait_rollout, at memory, and at what else the machines do.",
    ),
}
"""Every alarm: what it means, and what to do."""
