"""The whole config of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, model_validator

from rlft.common.by_path import did_you_mean
from rlft.config.sections import (
    AdapterConfig,
    CheckpointConfig,
    EnvironmentConfig,
    EvaluationConfig,
    EvaluationSetConfig,
    GuardsConfig,
    ModelConfig,
    PolicyAdapterConfig,
    RLLearnerConfig,
    RolloutConfig,
    SamplingConfig,
    ScoringConfig,
    SFTStageConfig,
    Strict,
    TrackerConfig,
)
from rlft.objectives.algorithm import Loss, PolicyObjective, PreferenceObjective
from rlft.objectives.presets import PRESETS, kind_of, preset_fields, refuse_unused
from rlft.types import RewardSpec


def _expand_preset(value: Any) -> Any:
    """Lay the user's choices over the row that they name."""
    choices = {"preset": value} if isinstance(value, str) else value
    if not isinstance(choices, dict):
        return value
    name = choices.get("preset", "grpo")
    if not (isinstance(name, str) and name in PRESETS):
        raise ValueError(f"unknown preset {name!r}; one of {', '.join(PRESETS)}.{did_you_mean(str(name), PRESETS)}")
    loss = choices.get("surrogate")
    if isinstance(PRESETS[name], PolicyObjective) and loss in get_args(Loss):
        raise ValueError(f"surrogate: {loss} is a preference loss; write {{preset: online_dpo, loss: {loss}}}")
    fields = preset_fields(name)
    if choices.get("kl") == "none" and "kl_coef" in fields:
        fields["kl_coef"] = 0.0  # the preset's belongs to the preset's KL
    return {**fields, **choices}


_Algorithm = Annotated[
    Annotated[PolicyObjective, Tag(PolicyObjective.__name__)]
    | Annotated[PreferenceObjective, Tag(PreferenceObjective.__name__)],
    Discriminator(kind_of),
    BeforeValidator(_expand_preset),
    AfterValidator(refuse_unused),
]


def _each_once(trackers: tuple[TrackerConfig, ...]) -> tuple[TrackerConfig, ...]:
    names = [tracker.name for tracker in trackers]
    if doubled := next((name for name in names if names.count(name) > 1), ""):
        raise ValueError(f"{doubled} stands twice; a run is sent to each tracker once")
    return trackers


class BaseRunConfig(Strict):
    """The settings that every kind of run has."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder is output_dir/name."""
    output_dir: str = "runs"
    """Folder that holds the runs."""
    seed: int = Field(0, ge=0)
    """Seed of everything random in the run."""
    model: ModelConfig
    """The language model."""
    adapter: AdapterConfig = AdapterConfig()  # type: ignore[call-arg]
    """What is trained of it."""
    trackers: Annotated[tuple[TrackerConfig, ...], AfterValidator(_each_once)] = ()
    """Experiment trackers that get the run's numbers, too; none of them can stop it."""

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return Path(self.output_dir) / self.name


class PolicyRunConfig(BaseRunConfig):
    """The settings that runs share which train a policy."""

    adapter: PolicyAdapterConfig = PolicyAdapterConfig()  # type: ignore[call-arg]
    """What is trained of it."""


class RunConfig(PolicyRunConfig):
    """The config of an RL run."""

    steps: int = Field(ge=1)
    """RL steps; each makes rollouts, scores them and updates the adapter."""
    tasks_per_step: int = Field(8, ge=1)
    """Tasks (prompts) per step."""
    samples_per_task: int = Field(8, ge=1)
    """Completions per task: the group size."""
    updates_per_step: int = Field(1, ge=1)
    """Optimizer updates per step; each uses its own share of the step's tasks. 1 is strictly on-policy."""
    max_staleness: int = Field(0, ge=0)
    """Adapter versions that a sample may be behind the policy that it trains. 0 is strictly on-policy; above 0 the
    learner and the rollout workers work at the same time."""
    backend: Literal["ray", "inline"] = "ray"
    """ray: rollout workers are Ray actors. inline: everything in this process, the same numbers."""
    ray_address: str = ""
    """Address of a Ray cluster to join; empty starts a private one on this machine."""
    environment: EnvironmentConfig
    """The tasks."""
    rewards: tuple[RewardSpec, ...] = Field(min_length=1)
    """The reward functions; all are measured on held-out tasks, too."""
    scoring: ScoringConfig = ScoringConfig()  # type: ignore[call-arg]
    """How rewards are run."""
    sampling: SamplingConfig = SamplingConfig()  # type: ignore[call-arg]
    """How rollouts are sampled."""
    rollout: RolloutConfig = RolloutConfig()  # type: ignore[call-arg]
    """Who generates them."""
    reference: str = ""
    """Adapter folder or model that the KL compares with (for opd the teacher); empty is where RL starts."""
    algorithm: _Algorithm = PRESETS["grpo"]
    """A preset, and any of its choices replaced."""
    learner: RLLearnerConfig = RLLearnerConfig()  # type: ignore[call-arg]
    """The optimizer."""
    sft: SFTStageConfig | None = None
    """Supervised warm start before RL; null goes straight to RL."""
    evaluation: EvaluationConfig = EvaluationConfig()  # type: ignore[call-arg]
    """The held-out measurement that decides the verdict."""
    evaluations: tuple[EvaluationSetConfig, ...] = ()
    """Further ones: other tasks, temperatures or metrics, each at steps of its own."""
    guards: GuardsConfig = GuardsConfig()  # type: ignore[call-arg]
    """What a diverged policy is told by."""
    checkpoint: CheckpointConfig = CheckpointConfig()  # type: ignore[call-arg]
    """Snapshots."""

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.algorithm.is_group_relative and self.samples_per_task < 2:
            raise ValueError(
                f"samples_per_task is {self.samples_per_task}, but preset {self.algorithm.preset!r} compares the "
                "samples of a group; use at least 2, or a preset without a group's baseline, such as ppo"
            )
        if self.environment.order == "by_signal" and self.samples_per_task < 2:
            raise ValueError(
                "environment.order: by_signal asks whether the samples of a task differ, and samples_per_task is 1; "
                "use at least 2, or another order"
            )
        problem = self.algorithm.misfit(
            has_reference=bool(self.reference),
            tasks_per_update=self.tasks_per_step / self.updates_per_step,
            updates_per_step=self.updates_per_step,
            max_staleness=self.max_staleness,
        )
        if problem:
            raise ValueError(problem)
        if self.adapter.kind == "head":
            raise ValueError("adapter.kind: head trains no policy, only a reward model's output; use lora or full")
        if self.adapter.kind == "full" and self.algorithm.needs_critic:
            raise ValueError(
                "adapter.kind: full leaves no frozen base that the critic could share; use adapter.kind: lora, or an "
                "algorithm without a critic"
            )
        if self.tasks_per_step % self.updates_per_step:
            raise ValueError(
                f"updates_per_step ({self.updates_per_step}) must divide tasks_per_step ({self.tasks_per_step}): "
                "each update uses an equal share of the tasks"
            )
        if self.adapter.kind == "full" and (folders := self.learner_rewards):
            raise ValueError(
                f"reward {folders[0].path} lies on the learner's frozen base, and adapter.kind: full has none; use "
                "adapter.kind: lora, or the reward rewards.reward_model:reward_model with args.folder"
            )
        if self.rollout.update_in_flight and (not self.max_staleness or self.backend == "inline"):
            raise ValueError(
                "rollout.update_in_flight is for rollouts that run while the learner learns; set max_staleness to at "
                "least 1 and backend: ray, or update_in_flight: false"
            )
        if self.learner.processes and self.backend == "inline":
            raise ValueError("learner.workers above 1 and learner.gpus_per_worker need processes; use backend: ray")
        names = [reward.label for reward in self.rewards]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rewards: the name {doubled[0]!r} stands twice; give one of them another `name`")
        known = self.environment.names
        for reward in self.rewards:
            if unknown := next((name for name in reward.only if name not in known), ""):
                there = f"there are: {', '.join(known)}" if known else "the config has no `environment.mix`"
                raise ValueError(
                    f"reward {reward.label!r}: `only` names the environment {unknown!r}.{did_you_mean(unknown, known)} "
                    f"{there[0].upper()}{there[1:]}"
                )
        names = [*known, *(each.name for each in self.evaluations)]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"evaluations: the name {doubled[0]!r} stands twice; give one of them another `name`")
        return self

    def for_set(self, measured: EvaluationSetConfig) -> RunConfig:
        """This config with what a set measures in the place of what `evaluation` measures."""
        names = ("tasks", "samples_per_task", "temperature", "top_p", "every")
        chosen = {name: getattr(measured, name) for name in names}
        chosen["metric"] = measured.metric or self.evaluation.metric
        changes: dict[str, Any] = {"evaluation": self.evaluation.model_copy(update=chosen), "evaluations": ()}
        if (source := measured.environment) is not None:
            changes["environment"] = EnvironmentConfig(
                path=source.path, args=source.args, overlong=self.environment.overlong
            )
        return self.model_copy(update=changes)

    @property
    def processes(self) -> int:
        """Actors of the run, besides the driver."""
        return self.rollout.workers + self.learner.processes

    @property
    def learner_rewards(self) -> tuple[RewardSpec, ...]:
        """The reward models that are scored on the learner's base."""
        return tuple(reward for reward in self.rewards if reward.folder)
