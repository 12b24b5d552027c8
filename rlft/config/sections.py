"""The sections of a run's config; what stands under a field documents it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from rlft.common.by_path import did_you_mean
from rlft.common.variables import check_names


class Strict(BaseModel):
    """A frozen section of a config that refuses unknown keys; what stands under a field documents it."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ModelConfig(Strict):
    """Which language model is trained."""

    source: str
    """A catalogue name (`rlft models`), a local folder, a GGUF file, or a hub id; names also as name@revision."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the frozen weights; auto is bfloat16 where the machine computes it natively. Adapters are float32."""
    special_tokens_in_text: Literal["encode", "refuse", "allow"] = "encode"
    """What becomes of a special token, such as <|im_end|>, that a message spells: encode makes it the tokens of its
    characters, refuse stops, allow lets it act as that token. Plain text without messages is always taken as it is."""


class AdapterConfig(Strict):
    """Which weights are trained."""

    ELSEWHERE: ClassVar[Mapping[str, str]] = {"start": "a reward model starts from model.source; leave it out"}

    kind: Literal["lora", "dora", "rslora", "qlora", "full", "head"] = "lora"
    """lora (https://arxiv.org/abs/2106.09685), dora (https://arxiv.org/abs/2402.09353), rslora
    (https://arxiv.org/abs/2312.03732), qlora: lora on 4-bit weights (https://arxiv.org/abs/2305.14314; the extra
    `qlora`), full: all weights, head: nothing but a new output layer (reward models)."""
    rank: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer but the output projection) or a list of module names."""


class PolicyAdapterConfig(AdapterConfig):
    """Which weights of the policy are trained, and where they start."""

    start: str = ""
    """Folder of an adapter (of a model for `full`) that training starts from; empty starts from the model itself."""


class TaskSource(Strict):
    """A function that gives tasks."""

    path: str
    """`package.module:function` or `file.py:function`; the function returns an `Environment`. Or an environment of
    another system, `SYSTEM:NAME`, as in `gymnasium:FrozenLake-v1`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of that function."""


class MixedEnvironment(TaskSource):
    """One of several environments that a run trains on."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    """What it is called in metrics, in ids of tasks and in `rewards.only`: lower-case letters, digits, `-` and `_`."""
    weight: float = Field(1.0, gt=0)
    """Its share of the tasks of each step is weight / sum of all weights."""


class EnvironmentConfig(TaskSource):
    """Where the tasks come from."""

    path: str = ""
    """`package.module:function` or `file.py:function`; the function returns an `Environment`. Or an environment of
    another system, `SYSTEM:NAME`, as in `gymnasium:FrozenLake-v1`. Empty where `mix` names several."""
    mix: tuple[MixedEnvironment, ...] = ()
    """Several environments instead of the one that `path` names; every step has tasks of each."""
    overlong: Literal["error", "drop"] = "error"
    """Training tasks whose prompt and completion do not fit the model's context: refused before the run starts, or left
    out and counted."""
    order: Literal["shuffle", "listed", "easy_first", "by_signal"] = "shuffle"
    """Order of the training tasks: a new permutation each epoch, as listed, first the easy ones by the measured
    `difficulty` (`rlft env measure`), shuffled among their like, or drawn by how often their groups gave signal."""

    @model_validator(mode="after")
    def _check(self) -> EnvironmentConfig:
        if not self.path and not self.mix:
            raise ValueError("`path` is required: the function that gives the tasks; or `mix`, a list of several")
        if self.mix and (self.path or self.args):
            raise ValueError("`mix` has the path and args of each environment; take out those beside it (`path: null`)")
        names = [each.name for each in self.mix]
        if doubled := next((name for name in names if names.count(name) > 1), ""):
            raise ValueError(f"mix: the name {doubled!r} stands twice; give one of them another `name`")
        return self

    @property
    def entries(self) -> tuple[TaskSource, ...]:
        """The sources of the tasks: those of `mix`, or this one."""
        return self.mix or (self,)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the mixed environments; empty of a single one."""
        return tuple(each.name for each in self.mix)

    def source_of(self, name: Any) -> TaskSource:
        """The mixed environment of that name, or this one where there is none."""
        return next((each for each in self.mix if each.name == name), self)

    @property
    def told(self) -> str:
        """What it is, for a message."""
        return f"mix of {', '.join(self.names)}" if self.mix else self.path


class ScoringConfig(Strict):
    """How rewards are run."""

    workers: int = Field(1, ge=0)
    """Scoring processes; 0 scores in the driver (breakpoints work, deadlines do not)."""
    deadline_s: float = Field(10.0, gt=0)
    """Seconds that one sample may take before its process is killed."""
    max_failed: float = Field(0.1, ge=0, le=1)
    """Share of a step's or an evaluation's samples that may fail to be scored before the run stops."""
    max_concurrent: int = Field(64, ge=1)
    """Most calls of `async def` rewards that a process makes at once."""
    memory_mb: int = Field(8192, ge=0)
    """Resident memory above which a scoring process is killed, and its present sample has failed; 0 is no bound."""
    judge_calls: int = Field(0, ge=0)
    """Most requests that the run makes to judges (`rlft.reward.judge`) before it stops; 0 is no bound."""
    judge_tokens: int = Field(0, ge=0)
    """Most tokens of questions to judges and of their replies before the run stops; 0 is no bound."""
    check: Literal["stop", "warn", "off"] = "stop"
    """Whether a new run tries its rewards on made-up replies first; `warn` also starts where nothing can be learnt."""
    environment: Annotated[tuple[str, ...], AfterValidator(check_names)] = ()
    """Environment variables that scoring processes get besides harmless ones; keys reach them only so."""


class SamplingConfig(Strict):
    """How training rollouts are sampled."""

    temperature: float = Field(1.0, gt=0)
    """Softmax temperature of sampling and of every log-probability in the objective."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus mass; below 1 the sampled distribution is no longer the policy's."""
    top_k: int = Field(0, ge=0)
    """Only the k most probable tokens are drawn; 0 is off."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Only tokens with this share of the most probable one's probability are drawn; 0 is off."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Texts that end a completion."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest completion in tokens."""

    @property
    def is_truncating(self) -> bool:
        """Whether tokens that the policy could draw are never drawn."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0


class RolloutConfig(Strict):
    """The engines that generate."""

    engine: str = "transformers"
    """Which engine generates: transformers (any machine), vllm (the extra `vllm`), or openai: a server with that API,
    for evaluation only."""
    engine_args: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the engine, each of which has its own, see docs/rollouts.md."""
    workers: int = Field(1, ge=1)
    """Ray actors, each with its own engine; the curve does not depend on their number."""
    threads: int = Field(2, ge=1)
    """CPU threads of each worker; with ray_address Ray reserves a CPU for each of them."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs that Ray reserves for each worker."""
    tasks_per_chunk: int = Field(8, ge=1)
    """Tasks that are generated together; the unit of work that is redone when a worker dies."""
    max_restarts: int = Field(3, ge=0)
    """Workers that a run may lose, by death or by a hang, before it stops."""
    deadline_s: float = Field(1800.0, gt=0)
    """Seconds that a chunk, or loading the engine (at least 600), may take before the worker is killed and replaced."""
    hedge_after: float = Field(0.0, ge=0)
    """A chunk that takes so many times the median is also given to an idle worker; the first result counts. 0: off."""
    update_in_flight: bool = False
    """With max_staleness: workers take a new adapter between two chunks of a step, not only between two steps."""
    max_mismatch: float = Field(0.5, gt=0)
    """Largest mean |log-prob difference| in nats between engine and learner on the same tokens before the run stops."""


class LearnerConfig(Strict):
    """The optimizer and its batches."""

    ELSEWHERE: ClassVar[Mapping[str, str]] = {"critic_lr": "only RL trains a critic; leave it out"}

    lr: float = Field(2e-4, gt=0)
    """Peak learning rate of the policy adapter."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls over the run's updates after the warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the rate rises linearly from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient's norm is clipped to this."""
    activations: Literal["keep", "recompute", "offload"] = "keep"
    """What the backward pass needs of the forward pass: kept, computed again (less memory, about a third more time), or
    moved to CPU memory meanwhile (GPU only)."""
    tokens_per_microbatch: int | None = Field(None, ge=1)
    """Packed tokens that are forwarded together, by default 1280 on a CPU and 8192 on a GPU, more where rows repeat a
    long prompt; fewer save memory, the numbers stay the same."""
    workers: int = Field(1, ge=1)
    """Processes that share every update (1 is the driver itself); the numbers do not depend on their number."""
    gpus_per_worker: float = Field(0.0, ge=0, le=1)
    """GPU, or more than half of one, that Ray reserves for each of them; 0: a single one takes what it finds, several
    compute on CPUs."""
    threads: int = Field(2, ge=1)
    """CPU threads of each of them."""

    @model_validator(mode="after")
    def _check(self) -> LearnerConfig:
        if self.workers > 1 and 0 < self.gpus_per_worker <= 0.5:
            raise ValueError(
                f"gpus_per_worker is {self.gpus_per_worker}, so that two workers could get the same GPU, which NCCL "
                "refuses; use more than 0.5, or 0 for CPUs"
            )
        return self

    @property
    def processes(self) -> int:
        """Actors that it runs in; 0 where it runs in the driver."""
        return self.workers if self.workers > 1 or self.gpus_per_worker > 0 else 0


class RLLearnerConfig(LearnerConfig):
    """The optimizer of policy and critic, and its batches."""

    critic_lr: float = Field(5e-4, gt=0)
    """Peak learning rate of the critic adapter and its head."""


class SFTStageConfig(Strict):
    """The supervised warm start on the environment's demonstrations: the mean over all tokens of the replies."""

    examples: int = Field(256, ge=1)
    """How many demonstrations are used; the first ones, in the environment's order."""
    epochs: float = Field(1.0, gt=0)
    """Passes over them."""
    batch_size: int = Field(16, ge=1)
    """Examples per optimizer update; what does not fill the last one of a pass is left out of it."""
    lr: float = Field(5e-4, gt=0)
    """Peak learning rate; linear decay."""


class MeasurementConfig(Strict):
    """How answers to held-out tasks are sampled, and when."""

    tasks: int = Field(200, ge=1)
    """Held-out tasks, the first ones of the held-out set."""
    samples_per_task: int = Field(1, ge=1)
    """Completions per task."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus mass, where the temperature is not 0."""
    every: int = Field(0, ge=0)
    """Evaluate each so many steps; 0 means only at the start and at the end."""


class EvaluationConfig(MeasurementConfig):
    """The held-out measurement that decides the verdict."""

    metric: str = ""
    """The headline: NAME or NAME/PART of a reward. Empty is the first reward; all are measured in any case."""
    min_effect: float = Field(0.01, ge=0)
    """The smallest change of the headline that matters: the verdict is SHIP only if the whole interval lies above."""


class EvaluationSetConfig(MeasurementConfig):
    """A further held-out measurement, which decides nothing but may put the verdict in doubt."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")
    """What it is called: lower-case letters, digits, `-` and `_`."""
    metric: str = ""
    """Its headline, as in `evaluation`; empty is that of `evaluation`."""
    environment: TaskSource | None = None
    """Where its tasks come from: the held-out tasks there; null takes those of the run's environment."""


AlarmName = Literal[
    "not_finite",
    "entropy_collapse",
    "kl_without_reward",
    "length_with_reward",
    "part_against_part",
    "shadow_gap",
    "repetition",
    "truncation",
    "no_signal",
    "reward_spike",
    "reward_collapse",
    "gradient_spikes",
    "clip_saturation",
    "critic_diverges",
    "mismatch",
    "throughput",
]
"""The alarms of `rlft health`, docs/health.md."""


class GuardsConfig(Strict):
    """When a policy counts as diverged: an event on the curves, and where `stop` names it the run's end."""

    max_kl: float = Field(5.0, ge=0)
    """Largest KL to the policy that RL started from, nats per token; 0 is off. It needs an algorithm with a KL."""
    min_entropy: float = Field(0.005, ge=0)
    """Smallest entropy of the policy, nats per token; 0 is off."""
    steps_without_signal: int = Field(20, ge=0)
    """Most steps in a row in which all groups have equal rewards; 0 is off."""
    stop: tuple[Literal["kl", "entropy", "signal"], ...] = ("kl",)
    """Which of them stop the run; the last adapter from before is named. Parameters that are not finite always do."""
    alarms: Mapping[AlarmName, Literal["pause", "stop", "roll_back"]] = {}
    """What an alarm of `rlft health` does besides being told: pause until `rlft resume`, stop until it is taken out of
    here, or roll_back: end with the last adapter from before its onset as the result."""


class CheckpointConfig(Strict):
    """Snapshots for `rlft resume`."""

    every: int = Field(5, ge=1)
    """Steps between snapshots; the last step is always saved."""
    adapters: str = Field("all", pattern=r"^(all|(last|every) [1-9][0-9]*)$")
    """Which adapters stay in `adapters/`, where each snapshot leaves one: `all`, `last K`, or `every N` (of the steps
    that N divides, and the last one)."""


TrackerName = Literal["tensorboard", "wandb", "mlflow", "trackio"]


class TrackerConfig(Strict):
    """A tracker that the run's numbers are also sent to: a mapping, or its name alone."""

    name: TrackerName
    """Which one; each needs its extra, such as `pip install 'rlft[wandb]'`."""
    project: str = Field("rlft", min_length=1)
    """Project (of wandb also TEAM/PROJECT; the experiment of mlflow) that the run is put into; not for tensorboard."""
    to: str = ""
    """Where to: a folder for tensorboard, `online` or `offline` for wandb, a tracking URI for mlflow, a Space for
    trackio. Empty: on this machine, but for wandb and mlflow what their own environment variables say."""

    @model_validator(mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        tree = {"name": value} if isinstance(value, str) else value
        name, known = tree.get("name") if isinstance(tree, dict) else None, get_args(TrackerName)
        if isinstance(name, str) and name not in known:
            raise ValueError(f"unknown tracker {name!r}; one of {', '.join(known)}.{did_you_mean(name, known)}")
        return tree

    @model_validator(mode="after")
    def _check(self) -> TrackerConfig:
        if self.name == "wandb" and self.to not in ("", "online", "offline"):
            raise ValueError(
                f"wandb goes `online` or `offline`, not to {self.to!r}; another server is named by WANDB_BASE_URL"
            )
        return self
