"""The config of a run: one frozen tree, read from YAML, with `a.b=c` overrides from the command line.

Unknown keys are errors with file, line and a suggestion. A batch is three numbers: `tasks_per_step` tasks, each
answered `samples_per_task` times, used for `updates_per_step` optimizer updates. Everything else is derived.
"""

from __future__ import annotations

import io
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from rlft.imports import did_you_mean
from rlft.objectives.presets import PRESETS, Algorithm, preset_fields


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class ModelConfig(_Strict):
    """Which language model is trained."""

    source: str
    """A catalogue name (`rlft models`), a local folder, a GGUF file, or a hub id."""
    revision: str = ""
    """Commit or tag of a hub model; empty means its default branch."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the frozen weights; auto is bfloat16 where the machine computes it natively. Adapters are float32."""


class AdapterConfig(_Strict):
    """The LoRA adapter that is trained (https://arxiv.org/abs/2106.09685)."""

    rank: int = Field(16, ge=1)
    """Rank of the update."""
    alpha: float = Field(32.0, gt=0)
    """The update is scaled by alpha / rank."""
    target_modules: str | tuple[str, ...] = "all-linear"
    """`all-linear` (every linear layer but the output projection) or a list of module names."""


class EnvironmentConfig(_Strict):
    """Where the tasks come from."""

    path: str
    """`package.module:function` or `file.py:function`; the function returns an `Environment`."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments of that function."""


class RewardConfig(_Strict):
    """One reward function and its weight."""

    path: str
    """`package.module:function` or `file.py:function`."""
    name: str = ""
    """Label in metrics; empty means the function's name."""
    weight: float = 1.0
    """Factor in the total; 0 only observes."""
    args: dict[str, Any] = Field(default_factory=dict)
    """Keyword arguments passed to the function besides those taken from the sample."""


class ScoringConfig(_Strict):
    """How rewards are run."""

    workers: int = Field(1, ge=0)
    """Scoring processes; 0 scores in the driver (breakpoints work, deadlines do not)."""
    deadline_s: float = Field(10.0, gt=0)
    """Seconds that one sample may take before its process is killed."""
    max_failed: float = Field(0.1, ge=0, le=1)
    """Share of a step's samples that may fail to be scored before the run stops."""


class SamplingConfig(_Strict):
    """How training rollouts are sampled."""

    temperature: float = Field(1.0, gt=0)
    """Softmax temperature of sampling and of every log-probability in the objective."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Nucleus mass; below 1 the sampled distribution is no longer the policy's."""
    max_new_tokens: int = Field(64, ge=1)
    """Longest completion in tokens."""


class RolloutConfig(_Strict):
    """The engines that generate."""

    engine: Literal["transformers"] = "transformers"
    """Which engine generates."""
    workers: int = Field(1, ge=1)
    """Ray actors, each with its own engine; the curve does not depend on their number."""
    threads: int = Field(2, ge=1)
    """CPU threads of each worker."""
    gpus_per_worker: float = Field(0.0, ge=0)
    """GPUs that Ray reserves for each worker."""
    tasks_per_chunk: int = Field(8, ge=1)
    """Tasks that are generated together; the unit of work that is redone when a worker dies."""
    max_restarts: int = Field(3, ge=0)
    """Worker deaths that a run survives before it stops."""
    max_mismatch: float = Field(0.5, gt=0)
    """Largest mean |log-prob difference| in nats between engine and learner on the same tokens before the run stops."""


class LearnerConfig(_Strict):
    """The optimizer and its batches."""

    lr: float = Field(2e-4, gt=0)
    """Peak learning rate of the policy adapter."""
    critic_lr: float = Field(5e-4, gt=0)
    """Learning rate of the critic adapter and its head."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate falls over the run's updates after the warm-up."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the rate rises linearly from 0."""
    weight_decay: float = Field(0.0, ge=0)
    """AdamW's decoupled weight decay."""
    beta2: float = Field(0.99, gt=0, lt=1)
    """AdamW's second-moment decay; RL runs are short, so it forgets faster than 0.999."""
    max_grad_norm: float = Field(1.0, gt=0)
    """The gradient's norm is clipped to this."""
    tokens_per_microbatch: int = Field(4096, ge=1)
    """Packed tokens that are forwarded together; smaller saves memory, the numbers stay the same."""
    threads: int = Field(2, ge=1)
    """CPU threads of the learner."""


class SFTStageConfig(_Strict):
    """The supervised warm start on the environment's demonstrations (TRL's SFTTrainer)."""

    examples: int = Field(256, ge=1)
    """How many demonstrations are used; the first ones, in the environment's order."""
    epochs: float = Field(1.0, gt=0)
    """Passes over them."""
    batch_size: int = Field(16, ge=1)
    """Examples per optimizer update."""
    lr: float = Field(5e-4, gt=0)
    """Peak learning rate; linear decay."""


class EvaluationConfig(_Strict):
    """The held-out measurements."""

    tasks: int = Field(200, ge=1)
    """Held-out tasks, the first ones of the held-out set."""
    samples_per_task: int = Field(1, ge=1)
    """Completions per task."""
    temperature: float = Field(0.0, ge=0)
    """0 is greedy."""
    every: int = Field(0, ge=0)
    """Evaluate each so many steps; 0 means only at the start and at the end."""
    reward: str = ""
    """Name of the reward whose mean is the accuracy; empty means the first one."""


class CheckpointConfig(_Strict):
    """Snapshots for `rlft resume`."""

    every: int = Field(5, ge=1)
    """Steps between snapshots; the last step is always saved."""
    keep: int = Field(2, ge=1)
    """Newest snapshots that are kept."""


def _expand_preset(value: Any) -> Any:
    """Lay the user's choices over the row that they name."""
    if isinstance(value, str):
        value = {"preset": value}
    if not isinstance(value, Mapping):
        return value
    name = value.get("preset", "grpo")
    if name not in PRESETS:
        raise ValueError(f"unknown preset {name!r}; one of {', '.join(PRESETS)}.{did_you_mean(str(name), PRESETS)}")
    return {**preset_fields(name), **value}


class RunConfig(_Strict):
    """A whole run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder is output_dir/name."""
    output_dir: str = "runs"
    """Folder that holds the runs."""
    seed: int = Field(0, ge=0)
    """Seed of everything random in the run."""
    steps: int = Field(ge=1)
    """RL steps; each makes rollouts, scores them and updates the adapter."""
    tasks_per_step: int = Field(8, ge=1)
    """Tasks (prompts) per step."""
    samples_per_task: int = Field(8, ge=1)
    """Completions per task: the group size."""
    updates_per_step: int = Field(1, ge=1)
    """Optimizer updates per step; each uses its own share of the step's tasks. 1 is strictly on-policy."""
    backend: Literal["ray", "inline"] = "ray"
    """ray: rollout workers are Ray actors. inline: everything in this process, the same numbers."""
    ray_address: str = ""
    """Address of a Ray cluster to join; empty starts a private one on this machine."""
    model: ModelConfig
    """The language model."""
    adapter: AdapterConfig = AdapterConfig()  # type: ignore[call-arg]
    """The LoRA adapter."""
    environment: EnvironmentConfig
    """The tasks."""
    rewards: tuple[RewardConfig, ...] = Field(min_length=1)
    """The reward functions."""
    scoring: ScoringConfig = ScoringConfig()  # type: ignore[call-arg]
    """How rewards are run."""
    sampling: SamplingConfig = SamplingConfig()  # type: ignore[call-arg]
    """How rollouts are sampled."""
    rollout: RolloutConfig = RolloutConfig()  # type: ignore[call-arg]
    """Who generates them."""
    algorithm: Annotated[Algorithm, BeforeValidator(_expand_preset)] = PRESETS["grpo"]
    """A preset, and any of its choices replaced."""
    learner: LearnerConfig = LearnerConfig()  # type: ignore[call-arg]
    """The optimizer."""
    sft: SFTStageConfig | None = None
    """Supervised warm start before RL; null goes straight to RL."""
    evaluation: EvaluationConfig = EvaluationConfig()  # type: ignore[call-arg]
    """Held-out measurements."""
    checkpoint: CheckpointConfig = CheckpointConfig()  # type: ignore[call-arg]
    """Snapshots."""

    @model_validator(mode="after")
    def _check(self) -> RunConfig:
        if self.algorithm.is_group_relative and self.samples_per_task < 2:
            raise ValueError(
                f"samples_per_task is {self.samples_per_task}, but preset {self.algorithm.preset!r} "
                "compares the samples "
                "of a group; use at least 2, or algorithm.baseline: critic or none"
            )
        if self.tasks_per_step % self.updates_per_step:
            raise ValueError(
                f"updates_per_step ({self.updates_per_step}) must divide tasks_per_step ({self.tasks_per_step}): "
                "each update uses an equal share of the tasks"
            )
        names = [reward.name or reward.path.rpartition(":")[2] for reward in self.rewards]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"rewards: the name {doubled[0]!r} stands twice; give one of them another `name`")
        if self.evaluation.reward and self.evaluation.reward not in names:
            raise ValueError(
                f"evaluation.reward is {self.evaluation.reward!r}, but the rewards are {', '.join(names)}."
                + did_you_mean(self.evaluation.reward, names)
            )
        return self

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return Path(self.output_dir) / self.name

    @property
    def accuracy_reward(self) -> str:
        """Name of the reward whose mean is the held-out accuracy."""
        return self.evaluation.reward or self.rewards[0].name or self.rewards[0].path.rpartition(":")[2]


def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a config file, apply `key.sub=value` overrides, validate.

    Raises:
        ValueError: every problem at once, each with file, line, key and what to do instead.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ValueError(f"no config file {path}.{did_you_mean(str(path), near)}")
    try:
        tree = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ValueError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not UTF-8 text in YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a mapping of keys to values, found {type(tree).__name__}")
    for override in overrides:
        _apply(tree, override)
    try:
        return RunConfig.model_validate(_plain(tree))
    except ValidationError as error:
        raise ValueError(_explain(error, tree, str(path))) from None


def dump(config: RunConfig) -> str:
    """The resolved config as YAML; `load` of it gives an equal config."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(config.model_dump(mode="json"), stream)
    return stream.getvalue()


def schema() -> dict[str, Any]:
    """JSON Schema of a config file, for editors."""
    tree = RunConfig.model_json_schema()
    algorithm = tree["$defs"]["Algorithm"]
    del algorithm["required"]  # what a config leaves out comes from the preset
    algorithm["properties"]["preset"]["enum"] = list(PRESETS)
    field = tree["properties"]["algorithm"]
    tree["properties"]["algorithm"] = {
        "description": field.get("description", ""),
        "anyOf": [{"enum": list(PRESETS)}, {"$ref": "#/$defs/Algorithm"}],
    }
    return tree


def _apply(tree: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r}: expected key.sub=value")
    *parents, last = key.split(".")
    node = tree
    for part in parents:
        if isinstance(node, list):
            node = node[_index(part, node, override)]
        else:
            if not isinstance(node.get(part), dict | list):
                node[part] = {}
            node = node[part]
    try:
        value = YAML(typ="safe").load(text) if text else ""
    except YAMLError as error:
        raise ValueError(f"override {override!r}: the value is not valid YAML: {error}") from None
    if isinstance(node, list):
        node[_index(last, node, override)] = value
    else:
        node[last] = value


def _index(part: str, node: list[Any], override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ValueError(f"override {override!r}: {part!r} is not a position in a list of {len(node)}")
    return int(part)


def _plain(node: Any) -> Any:
    """ruamel's round-trip containers as plain dicts and lists."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return node


def _explain(error: ValidationError, tree: Any, path: str) -> str:
    lines = []
    for problem in error.errors():
        loc = tuple(part for part in problem["loc"] if not str(part).startswith("function-"))
        where = ".".join(map(str, loc)) or "config"
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            message = "unknown key." + did_you_mean(str(loc[-1]), _field_names(loc[:-1]))
        elif problem["type"] == "missing":
            message = "this key is required"
        elif not isinstance(problem["input"], dict | list) and message != str(problem["input"]):
            message += f" (got {problem['input']!r})"
        lines.append(f"{path}:{_line(tree, loc)}: {where}: {message}")
    return "\n".join(lines)


def _line(tree: Any, loc: tuple[Any, ...]) -> int:
    """1-based line of the deepest part of `loc` that the file has."""
    line, node = 1, tree
    for part in loc:
        position = getattr(node, "lc", None)
        try:
            line = position.key(part)[0] + 1 if isinstance(node, dict) else position.item(part)[0] + 1  # type: ignore[union-attr]
            node = node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _field_names(loc: tuple[Any, ...]) -> list[str]:
    """Names of the fields that may stand at `loc`."""
    node: Any = RunConfig
    for part in loc:
        if isinstance(part, int):
            node = typing.get_args(node)[0]
        else:
            hints = typing.get_type_hints(node)
            node = hints.get(part)
        if typing.get_origin(node) in (typing.Union, types.UnionType):
            node = next(arg for arg in typing.get_args(node) if arg is not type(None))
    if is_dataclass(node):
        return [field.name for field in dataclass_fields(node)]
    return list(getattr(node, "model_fields", {}))
