"""The formats of a run directory: what each record holds, in which units, and how it is written and read.

    runs/NAME/  config.yaml  provenance.json  summary.json  metrics.jsonl  events.jsonl  tasks.jsonl
                rollouts/step-000012.parquet   evals/base.json, sft.json, step-000010.json, each with a .parquet
                evals/sets/NAME/: the same of each of `evaluations`, and tasks.jsonl, its tasks
                adapters/sft, v000012          checkpoints/step-000010

Whoever writes a run directory and whoever reads one uses this file. A run that is still going, or that was killed, has
to be readable: what does not exist yet is empty, and the last line of a log may be torn. Everything else that is not as
expected is a ValueError that says where it is and what to do. What a record has beyond its fields, as one of a newer
rlft may, is kept and handed on.
Numbers, which may be averaged over samples and steps, and texts for people are kept apart.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

FORMAT = 2
"""Number of these formats, written into provenance.json; a directory without one has format 1."""

CONFIG, PROVENANCE, SUMMARY = "config.yaml", "provenance.json", "summary.json"
BEFORE_TRAINING = ("base", "sft")
"""Names of the evaluations of the policies before the training that a run is about."""
METRICS, EVENTS, TASKS = "metrics.jsonl", "events.jsonl", "tasks.jsonl"
ROLLOUTS, EVALS, ADAPTERS, CHECKPOINTS = "rollouts", "evals", "adapters", "checkpoints"
SETS = f"{EVALS}/sets"
"""Evaluation sets: a folder of its own for each."""
LOGS, SKIPPED, ASIDE, LOCK = "logs", "skipped", "aside", ".lock"
"""What processes print, updates not made, what a resume moved away instead of deleting it, and its driver's lock."""
REFERENCE, REWARD_MODEL, HEAD = "reference", "reward-model", "head"
"""Log-probs of the reference over preference data, a trained reward model, and a trained head with its trunk."""

_NUMBERED = re.compile(r"(?:[a-z]+-|v)(\d+)")


def step_name(step: int) -> str:
    """`step-000012`: name of a step's rollouts, evaluation or checkpoint."""
    return f"step-{step:06d}"


def adapter_folder(step: int | None) -> str:
    """`adapters/v000012`, that after a step, or `adapters/sft`, that of the warm start: folder below the run's own."""
    return f"{ADAPTERS}/{'sft' if step is None else f'v{step:06d}'}"


def evaluations_folder(set_name: str) -> str:
    """`evals/sets/NAME`, that of an evaluation set, or for an empty name `evals`: folder below the run's own."""
    return f"{SETS}/{set_name}" if set_name else EVALS


def step_of(name: str) -> int | None:
    """The step in a name such as `step-000012` or `v000012`; None in others."""
    match = _NUMBERED.fullmatch(name)
    return int(match[1]) if match else None


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """(step, file or folder) of all in `folder` that is named by a step, ascending; empty if it does not exist."""
    found = ((step_of(path.stem), path) for path in folder.glob("[!.]*"))
    return sorted((step, path) for step, path in found if step is not None)


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean with the bounds of its confidence interval; a bound is nan where the data cannot give one."""

    mean: float
    """The estimate; nan without any value."""
    low: float
    """Lower bound."""
    high: float
    """Upper bound."""
    n: int
    """How many independent units (tasks) are behind it."""

    @property
    def bounded(self) -> bool:
        """Whether there are bounds at all."""
        return math.isfinite(self.low) and math.isfinite(self.high)

    def as_dict(self) -> dict[str, float | int | None]:
        """Plain data for JSON, which has no nan: what is not known is None."""
        numbers = {"mean": self.mean, "low": self.low, "high": self.high}
        return {**{k: v if math.isfinite(v) else None for k, v in numbers.items()}, "n": self.n}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Interval:
        """The inverse of `as_dict`. Raises ValueError on a missing key or a value that is not a number."""
        try:
            mean, low, high = (math.nan if data[key] is None else float(data[key]) for key in ("mean", "low", "high"))
            return cls(mean, low, high, int(data["n"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"expected mean, low, high and n as numbers, got {data!r}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsLine:
    """One line of metrics.jsonl: what was measured in a step."""

    step: int
    """RL steps, or updates of a preference run, behind it."""
    metrics: Mapping[str, float]
    """Numbers by `group/name`: seconds in `time/`, tokens in lengths, nats per token in KL and entropy."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Texts for people by name; they are never averaged."""

    def line(self) -> str:
        """The line as JSON. Names come in alphabetical order, so that equal steps are equal bytes."""
        texts = {"texts": dict(sorted(self.texts.items()))} if self.texts else {}
        return json.dumps({"step": self.step, **dict(sorted(self.metrics.items())), **texts})

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> MetricsLine:
        """The inverse of `line`; a metric that is null is absent. Raises ValueError on anything else."""
        step = row.get("step")
        if not isinstance(step, int) or isinstance(step, bool):
            raise ValueError(f"expected an integer 'step', got {step!r}")
        texts = row.get("texts", {})
        if not isinstance(texts, dict):
            raise ValueError(f"'texts' is not a mapping of texts but {texts!r}")
        metrics = {}
        for name, value in row.items():
            if name in ("step", "texts") or value is None:
                continue
            if not isinstance(value, int | float):
                raise ValueError(f"metric {name!r} is not a number but {value!r}")
            metrics[name] = value
        return cls(step=step, metrics=metrics, texts={name: str(text) for name, text in texts.items()})


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One line of events.jsonl: something that happened to the run."""

    time: str
    """ISO 8601, UTC."""
    kind: str
    """Short name, such as `resumed`."""
    message: str
    """One sentence."""
    step: int | None = None
    """Step that it is marked at on the curves, where it has one."""

    def line(self) -> str:
        """The line as JSON."""
        row: dict[str, Any] = {"time": self.time, "kind": self.kind, "message": self.message}
        return json.dumps(row if self.step is None else {**row, "step": self.step})

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> Event:
        """The inverse of `line`; what is missing is empty."""
        step = row.get("step")
        texts = {key: str(row.get(key, "")) for key in ("time", "kind", "message")}
        return cls(**texts, step=step if isinstance(step, int) else None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """`evals/NAME.json` or `evals/sets/SET/NAME.json`: one measurement on held-out tasks or preferences."""

    name: str
    """`base`, `sft` or `step-000010`."""
    step: int
    """RL steps behind the evaluated policy; 0 for `base` and `sft`."""
    adapter_version: int
    """Version of the evaluated adapter."""
    adapter_hash: str
    """Content hash of the evaluated adapter."""
    metric: str
    """Name of the reward or part that is the headline (`evaluation.metric`): `accuracy` is its mean."""
    accuracy: Interval
    """Mean of the metric over tasks, with its 95 % interval, whether or not its values are only 0 and 1: see `word`."""
    failed: int
    """Samples for which the metric has no value because a reward failed; they are in no mean."""
    length: float
    """Mean completion length in tokens; nan if there was none."""
    truncated: float
    """Share of completions that were cut at the length limit."""
    by_task: Mapping[str, Sequence[float]]
    """Values of each task's scored samples."""
    samples: int = 0
    """All samples that were made, failed ones too; 0 where the file does not say."""
    stage: str = "RL"
    """What trains the policy: RL, SFT on a table, or a preference loss such as DPO."""
    loss: float = math.nan
    """Mean loss of held-out preferences, or of SFT that of held-out rows, nats per token; nan in RL."""
    margin: float = math.nan
    """Mean margin of held-out preferences; nan in RL."""
    rewards: Mapping[str, Interval] = field(default_factory=dict)
    """Mean over tasks of every reward and named part, with its 95 % interval; empty where the file does not say."""
    failed_parts: Mapping[str, int] = field(default_factory=dict)
    """Samples on which each reward failed, whatever its weight; rewards that never failed are absent."""
    set_name: str = ""
    """Name of the evaluation set that it is of; empty is the measurement that decides the verdict."""
    same: Mapping[str, str] = field(default_factory=dict)
    """Id of the first task that asks the same, by id of each later one: both count as one in means and intervals."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says."""

    @property
    def label(self) -> str:
        """What to call it in a sentence or a table."""
        return {"base": "base", "sft": "SFT"}.get(self.name, f"{self.stage}, step {self.step}")

    @property
    def is_before(self) -> bool:
        """Whether it measured the base or the warm start."""
        return self.name in BEFORE_TRAINING

    @property
    def word(self) -> str:
        """What the mean may be called: `accuracy` if all values are 0 or 1, else `mean`; of SFT `log-probability`."""
        word = {"RL": "mean", "SFT": "mean" if self.set_name else "log-probability"}.get(self.stage, "accuracy")
        return "accuracy" if all(v in (0, 1) for values in self.by_task.values() for v in values) else word

    @property
    def missing(self) -> str:
        """How many samples are missing in the accuracy, such as `29 of 40 samples failed`; empty if none is."""
        return f"{self.failed}{f' of {self.samples}' if self.samples else ''} samples failed" if self.failed else ""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, of RL without what only preferences have."""
        of_preferences = {"stage": self.stage, "loss": self.loss, "margin": self.margin}
        names = [each.name for each in fields(self) if each.name not in ("extra", *of_preferences)]
        optional = ("failed_parts", "rewards", "set_name", "samples", "same")
        kept = {name: value for name in names if (value := getattr(self, name)) or name not in optional}
        if self.rewards:
            kept["rewards"] = {name: interval.as_dict() for name, interval in self.rewards.items()}
        if self.stage != "RL":
            kept |= of_preferences
        kept["accuracy"] = self.accuracy.as_dict()
        kept["by_task"] = {task: list(values) for task, values in self.by_task.items()}
        return {**{key: None if _is_unknown(value) else value for key, value in kept.items()}, **self.extra}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Evaluation:
        """The inverse of `as_dict`. Raises KeyError on a missing field, ValueError on one of another type."""
        try:
            return cls(
                name=str(data["name"]),
                step=int(data["step"]),
                adapter_version=int(data["adapter_version"]),
                adapter_hash=str(data["adapter_hash"]),
                metric=str(data["metric"]),
                accuracy=Interval.from_dict(data["accuracy"]),
                failed=int(data["failed"]),
                length=_number(data["length"]),
                truncated=_number(data["truncated"]),
                samples=int(data.get("samples", 0)),
                by_task={str(task): [float(v) for v in values] for task, values in data["by_task"].items()},
                stage=str(data.get("stage", "RL")),
                loss=_number(data.get("loss")),
                margin=_number(data.get("margin")),
                rewards={str(name): Interval.from_dict(each) for name, each in data.get("rewards", {}).items()},
                failed_parts={str(name): int(count) for name, count in data.get("failed_parts", {}).items()},
                set_name=str(data.get("set_name", "")),
                same={str(task): str(first) for task, first in data.get("same", {}).items()},
                extra=_beyond(cls, data),
            )
        except (TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Provenance:
    """provenance.json: what made a run's numbers, so that resuming can tell whether that is still there."""

    format: int = FORMAT
    """Number of the directory's formats."""
    config: Mapping[str, Any] = field(default_factory=dict)
    """The resolved config that the run was last started or resumed with, as config.yaml holds it; empty in format 1."""
    sha256: Mapping[str, str] = field(default_factory=dict)
    """Hash of each file that the config names: rewards, environment, data; for a package its name and version."""
    tasks: str = ""
    """Hash of all tasks, or of the preferences; empty in format 1."""
    model: str = ""
    """Hash of the model's weights and tokenizer; empty in format 1."""
    kernels: str = ""
    """What computes the operations between matrix products."""
    operations: Sequence[str] | None = None
    """Operations that compiled kernels compute, such as `rms_norm bfloat16`; None where they were not written down."""
    device: str = ""
    """What the learner computes on and in which type, such as `cpu, bfloat16`; empty in format 1."""
    packages: Mapping[str, str] = field(default_factory=dict)
    """Versions by name."""
    python: str = ""
    """Version."""
    machine: str = ""
    """Kind of processor."""
    processor: str = ""
    """The processor's own name; empty where the run was made by an rlft that did not write it down."""
    system: str = ""
    """Operating system."""
    cpus: int = 0
    """Cores."""
    cwd: str = ""
    """Working directory that relative paths in the config start from."""
    started: str = ""
    """ISO 8601, UTC."""
    lineage: Sequence[Mapping[str, Any]] = ()
    """Runs that this one continues, the nearest first: `run`, `step`, `changes` (texts)."""
    earlier: Sequence[Mapping[str, Any]] = ()
    """What computed the run before it was last resumed with other versions, the latest first."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What else the file says."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        named = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "extra"}
        return {**named, **self.extra}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Provenance:
        """The inverse of `as_dict`; what is missing is empty, and a missing format is 1."""
        known = {each.name for each in fields(cls)} - {"extra"}
        given = {name: value for name, value in data.items() if name in known}
        return cls(**{"format": 1, **given}, extra=_beyond(cls, data))


def word_for(evaluations: Iterable[Evaluation]) -> str:
    """What the means of several evaluations may be called together, see `Evaluation.word`."""
    return words.pop() if len(words := {each.word for each in evaluations} or {"accuracy"}) == 1 else "mean"


class Column(NamedTuple):
    """A column of the rollout table."""

    type: str
    """Name of the Arrow type."""
    meaning: str
    """What it holds, with its unit."""


ROLLOUT_COLUMNS = {
    "step": Column("int64", "RL step that the sample was made for"),
    "task_id": Column("string", "task that it answers"),
    "group_index": Column("int64", "its group within the step"),
    "sample_index": Column("int64", "its position within the group"),
    "seed": Column("uint64", "seed of its random stream"),
    "prompt": Column("string", "content of the prompt's last message"),
    "messages": Column("string", "the whole prompt, JSON list of messages"),
    "completion": Column("string", "the last completion as text, without special tokens"),
    "conversation": Column("string", "an episode from its first message to its last, JSON; null for a single turn"),
    "turns": Column("int64", "actions of the policy"),
    "action_ends": Column("list<int32>", "tokens after the first prompt up to the end of each action"),
    "stop_reason": Column("string", "why the episode ended, `types.StopReason`"),
    "environment_reward": Column("float64", "what the environment gave, summed; null where it gave nothing"),
    "turn_rewards": Column("string", "the same for each action, JSON list with nulls; null where it gave nothing"),
    "answer": Column("string", "the task's answer, JSON"),
    "outcome": Column("string", "`score`, `abstain` or `failed`"),
    "reward": Column("float64", "weighted sum of the rewards; null unless scored"),
    "parts": Column("string", "unweighted value of each reward and named part that has one, scored or not, JSON"),
    "turn_values": Column("string", "what each action adds to it, JSON list; null where rewards do not say"),
    "extras": Column("string", "what rewards noted about it (`log_extra`), JSON object; null where they did not"),
    "failure_kind": Column("string", "`types.FailureKind`; null unless failed"),
    "failure_message": Column("string", "why there is no score; null unless failed"),
    "failure_fault": Column("string", "`types.Fault`: reward, server or environment; null unless failed"),
    "failure_where": Column("string", "file and line of the user's code, `mine.py:12`; null where it is not known"),
    "reproduce": Column("string", "Python that repeats the failed call; null unless failed"),
    "failed_parts": Column("string", "each reward that failed on it, whatever its weight, JSON; null where none did"),
    "advantage": Column("float64", "mean over the sample's actions; null where none was computed"),
    "baseline": Column("float64", "score of the greedy answer to its task; null where the algorithm asks for none"),
    "learner_logprobs": Column("list<float32>", "of each action before the first update, nats; null if not asked"),
    "reference_logprobs": Column("list<float32>", "of each action under the reference, nats; null without one"),
    "values": Column("list<float32>", "the critic's value before each action; null without one"),
    "finish_reason": Column("string", "how the last action ended, `types.FinishReason`"),
    "prompt_tokens": Column("int64", "tokens of the first prompt"),
    "completion_tokens": Column("int64", "tokens that the policy sampled"),
    "token_ids": Column("list<int32>", "everything after the first prompt"),
    "action_mask": Column("list<bool>", "true on tokens that the policy sampled"),
    "logprobs": Column("list<float32>", "log-probability of each token when it was sampled, nats; 0 on others"),
    "adapter_version": Column("int64", "adapter that made the last action"),
    "adapter_hash": Column("string", "content hash of that adapter"),
}
"""A row of `rollouts/step-000012.parquet` and of the `.parquet` beside each evaluation: one sample, failed ones too.
Files of other versions may have fewer or further columns."""

SOURCES = "rlft:sources"
"""Key of the metadata of such a file: JSON of what made its rewards and its tasks, `rewards` by name and `environment`,
each with `path`, `args`, and `files`: sha256 by path, of the file and of what it imports of its folder. A checkpoint's
state.json has the same as `sources`."""


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _is_unknown(value: Any) -> bool:
    return isinstance(value, float) and not math.isfinite(value)


def _beyond(kind: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in data.items() if name not in {each.name for each in fields(kind)}}
