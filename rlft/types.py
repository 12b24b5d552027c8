"""The types that everything passes around. Read this file first.

A `Task` is one problem. The policy answers it `samples_per_task` times; each answer is a `Trajectory`, and the
trajectories of one task are a `Group`. A reward turns a trajectory into an `Outcome`. The learner sees a `Batch`.

    Task "sum-17-25"
      Group
        Trajectory 0   turns=(Turn(prompt_ids=P, completion=Completion(token_ids=C0, logprobs=L0)),)  Score(1.0)
        Trajectory 1   turns=(Turn(prompt_ids=P, completion=Completion(token_ids=C1, logprobs=L1)),)  Failed("timeout")

Convention fixed here and nowhere else: `logprobs[t]` is the log-probability OF `token_ids[t]`, in nats, under the
distribution that sampled it. Nothing outside `learner.batch` shifts anything by one.

Importing this module costs no torch, no ray and no pydantic: rewards and environments depend on it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NotRequired, TypeAlias, TypedDict, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")
Metrics: TypeAlias = dict[str, float]
"""Numbers of one step, named `group/name` (`reward/mean`, `policy/entropy`, `time/rollout`)."""


def whole_text(text: str) -> str:
    """The text with halves of surrogate pairs spelt out: tokenizers, parquet and servers take whole characters."""
    return text.encode("utf-8", "backslashreplace").decode()


FinishReason: TypeAlias = Literal["stop", "length"]
FailureKind: TypeAlias = Literal[
    "error", "timeout", "crash", "not_finite", "too_large", "type", "length", "server", "not_run"
]
Fault: TypeAlias = Literal["reward", "server", "environment"]
"""Whose failure it is: of the reward function, of a server that it asks, of the environment."""
ON_LEARNER = "adapter:"
"""Prefix of the path of a reward model on the learner's base; its folder follows."""
StopReason: TypeAlias = Literal["done", "length", "turns", "tokens", "error"]
"""Why an episode ended: it was over; an action was cut at `max_new_tokens`; the environment's budget of turns or the
budget of tokens (the environment's or the model's context) was used up; the environment raised."""


class Message(TypedDict):
    """One chat message in the form that chat templates take."""

    role: str
    content: str
    name: NotRequired[str]
    """Of a `tool` message: the tool that answers."""
    tool_calls: NotRequired[list[dict[str, Any]]]
    """Of an assistant's message: `{"type": "function", "function": {"name": ..., "arguments": {...}}}` each."""
    weight: NotRequired[float]
    """Of an assistant's message that is learnt from, as OpenAI has it: 0 for one that is only read, else 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem for the policy."""

    id: str
    """Unique within an environment; names the task in metrics, rollouts and seeds."""
    messages: tuple[Message, ...]
    """The prompt as chat messages; the last one is not the assistant's."""
    answer: Any = None
    """What a reward compares with; plain data (str, number, list, dict) or None."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Further columns of the data-set row, offered to rewards by name; plain data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How completions are drawn from the policy."""

    temperature: float
    """Softmax temperature; 0 means greedy."""
    top_p: float
    """Nucleus mass; 1 means off."""
    max_new_tokens: int
    """Upper bound on the completion's length in tokens, end token included."""
    top_k: int = 0
    """Only the k most probable tokens are drawn; 0 means all."""
    min_p: float = 0.0
    """Only tokens with at least this share of the most probable one's probability are drawn; 0 means all."""
    stop: tuple[str, ...] = ()
    """Texts that end a completion, which then ends with the token that completed the text."""

    @property
    def is_truncating(self) -> bool:
        """Whether tokens that the policy could draw are never drawn: then the sampled distribution is another one."""
        return self.temperature > 0 and (self.top_p < 1 or self.top_k > 0 or self.min_p > 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What an engine returns for one sample."""

    token_ids: tuple[int, ...]
    """Sampled tokens, the end token included when the model produced it."""
    logprobs: tuple[float, ...]
    """Log-probability of each token under the sampled distribution; same length as `token_ids`."""
    policy_logprobs: tuple[float, ...] | None = None
    """The same under the policy, before top-p, top-k and min-p; None where these are off and both are one."""
    text: str | None = None
    """What a server returned as text: `token_ids` only count it, `logprobs` are NaN. None where tokens were sampled."""
    finish_reason: FinishReason
    """`stop`: the model ended its turn or wrote a stop text; `length`: cut at `max_new_tokens`."""
    adapter_version: int
    """Version of the adapter that made it: the number of RL steps behind it; -1 is the bare base model."""
    adapter_hash: str
    """Content hash of that adapter's tensors, computed by the engine from the tensors that it loaded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One model action and what it was an answer to."""

    prompt_ids: tuple[int, ...]
    """Tokens since the action before: the templated prompt, later the environment's answer; they are only appended."""
    completion: Completion
    """The action."""
    observation: tuple[Message, ...] = ()
    """The environment's answer to the action; empty for a single-turn task."""
    reward: float | None = None
    """What the environment gave for the action; None where it gave nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSpec:
    """One reward function, or a reward model on the learner's base, and its weight."""

    # Read by pydantic, since this is also a section of the config.
    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid", "use_attribute_docstrings": True}

    path: str
    """`package.module:function` or `file.py:function`, behind a prefix as `trl:` if written for another system
    (docs/systems.md); or `adapter:FOLDER`: what `rlft reward-model` made of this model, scored on the learner's."""
    name: str = ""
    """Label in metrics; empty means the function's name, or the folder's."""
    weight: float = 1.0
    """Factor in the total; 0 only observes."""
    role: Literal["train", "shadow"] = "train"
    """`shadow`: what you want and do not train on. It has weight 0, and its gap to the trained reward is shown."""
    args: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of the function besides the sample's, or of what makes it; a folder takes `normalize`."""
    only: tuple[str, ...] = ()
    """Names in `environment.mix`: it is not asked about tasks of others. Empty: about all."""

    def __post_init__(self) -> None:
        if self.folder and self.args.keys() - {"normalize"}:
            raise ValueError(f"args of {self.path} can only be `normalize`, got {', '.join(self.args)}")
        if "/" in self.name:  # `name/part` is how named parts are labelled
            raise ValueError(f"reward name {self.name!r} contains '/'; give the reward a plain name")
        if self.role == "shadow":
            if self.weight not in (0, 1):  # 1 is what it is where the config says nothing
                raise ValueError(f"reward {self.label!r} is a shadow and not trained on; leave out its weight")
            object.__setattr__(self, "weight", 0.0)
        if not math.isfinite(self.weight):
            raise ValueError(f"reward {self.label!r}: weight must be a finite number, got {self.weight}")

    @property
    def folder(self) -> str:
        """Folder of a reward model on the learner's base; empty for a function."""
        return self.path.removeprefix(ON_LEARNER) if self.path.startswith(ON_LEARNER) else ""

    @property
    def label(self) -> str:
        """Name in metrics."""
        if self.folder:
            return self.name or Path(self.folder).name
        named = self.path.rpartition(":")[2]
        return self.name or (Path(named).stem if named.endswith(".json") else named)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """A reward that could be computed."""

    value: float
    """Weighted sum that the policy is trained on."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Unweighted value of each reward and of each named part, for the curves."""
    turns: tuple[float, ...] = ()
    """What each action adds to the value; empty where rewards give no more than the value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Abstain:
    """The reward does not apply to this sample; it leaves the group's baseline."""

    reason: str
    parts: Mapping[str, float] = field(default_factory=dict)
    """As in `Score`, of the rewards that could be computed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The reward could not be computed. Never a number: it enters no baseline and no loss."""

    kind: FailureKind
    """What went wrong: it raised, hung, died, or returned NaN, a number beyond `reward.outcomes.LARGEST`, a wrong type
    or a wrong number of values; a server that it asks failed; or it was not called, since too many had failed."""
    message: str
    """The reward's name and the last lines of the traceback, or what it returned."""
    reproduce: str
    """Python that calls the same reward on the same sample."""
    fault: Fault = "reward"
    """Whose failure it is."""
    where: str = ""
    """`file.py:12`: the innermost line of the user's code that raised, or hung; empty where none is known."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """As in `Score`, of the rewards that could be computed."""


Outcome: TypeAlias = Score | Abstain | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One sampled answer to a task."""

    task: Task
    sample_index: int
    """Position within the group, 0 to samples_per_task - 1."""
    seed: int
    """Seed of this sample's random stream: f(run seed, step, task id, sample index)."""
    turns: tuple[Turn, ...]
    text: str
    """The last completion as text, special tokens removed."""
    messages: tuple[Message, ...] = ()
    """A multi-turn episode's conversation from its first message to the last; empty for a single-turn task."""
    stop_reason: StopReason = "done"
    """Why it ended."""
    outcome: Outcome | None = None
    """None until it has been scored; `Failed` before that when the environment raised."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """What rewards noted about it for people (`log_extra`), by name; plain data."""
    failed_parts: Mapping[str, Failed] = field(default_factory=dict)
    """Rewards that failed on it, by name: `outcome` is `Failed` if one has a weight, else only parts are missing."""

    @property
    def parts(self) -> Mapping[str, float]:
        """Value of each reward and named part that could be computed, whatever the outcome."""
        return {} if self.outcome is None else self.outcome.parts

    @property
    def conversation(self) -> tuple[Message, ...]:
        """The prompt and everything after it as messages."""
        return self.messages or (*self.task.messages, Message(role="assistant", content=self.text))

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """Tokens of the first prompt, shared by the whole group."""
        return self.turns[0].prompt_ids

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Everything after the first prompt, in order."""
        return self._flat(lambda completion: completion.token_ids, tuple)

    @property
    def action_mask(self) -> tuple[bool, ...]:
        """True on tokens that the policy sampled; same length as `token_ids`."""
        return self._flat(lambda completion: (True,) * len(completion.token_ids), lambda ids: (False,) * len(ids))

    @property
    def logprobs(self) -> tuple[float, ...]:
        """Log-probability of each token when it was sampled, 0 where none was; length of `token_ids`."""
        return self._flat(lambda completion: completion.logprobs, lambda ids: (0.0,) * len(ids))

    @property
    def policy_logprobs(self) -> tuple[float, ...]:
        """Log-probability of each token under the policy, before top-p, top-k and min-p; 0 where none was sampled."""
        return self._flat(lambda of: of.policy_logprobs or of.logprobs, lambda ids: (0.0,) * len(ids))

    @property
    def num_actions(self) -> int:
        """Tokens that the policy sampled."""
        return sum(len(turn.completion.token_ids) for turn in self.turns)

    @property
    def environment_reward(self) -> float | None:
        """Sum of the turns' rewards; None when the environment gave none."""
        rewards = [turn.reward for turn in self.turns if turn.reward is not None]
        return sum(rewards) if rewards else None

    def _flat(
        self, actions: Callable[[Completion], tuple[T, ...]], between: Callable[[tuple[int, ...]], tuple[T, ...]]
    ) -> tuple[T, ...]:
        """A value for every token after the first prompt: of the completions, and of what stands between them."""
        values: list[T] = []
        for number, turn in enumerate(self.turns):
            values += [*(between(turn.prompt_ids) if number else ()), *actions(turn.completion)]
        return tuple(values)

    @property
    def finish_reason(self) -> FinishReason:
        """How the last action ended."""
        return self.turns[-1].completion.finish_reason


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The samples of one task within one step."""

    task: Task
    trajectories: tuple[Trajectory, ...]
    baseline_score: float | None = None
    """What the scores are compared with, where the algorithm takes a baseline that is not made of them."""

    @property
    def scores(self) -> list[float]:
        """Values of the trajectories that have one; failures and abstentions are absent, not zero."""
        return [t.outcome.value for t in self.trajectories if isinstance(t.outcome, Score)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A text, and what its tokens' log-probs have to be under an adapter; see `rollout.weight_proof`."""

    prompt_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """The learner's, at temperature 1, in nats."""
    tolerance: float
    """Largest mean |difference| in nats per token."""
    earlier: Mapping[int, tuple[float, ...]] = field(default_factory=dict)
    """The learner's log-probs under earlier versions, to say which one a wrong engine has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapter:
    """A snapshot of the policy's LoRA tensors, the only weights that travel."""

    version: int
    """Number of RL steps behind it; -1 with no tensors is the bare base model."""
    hash: str
    """sha256 over names, shapes and float32 bytes, see `model.adapter.adapter_hash`."""
    tensors: Mapping[str, Tensor]
    """PEFT state dict, float32, on the CPU."""
    canary: Canary | None = None
    """What the engine that loads it has to prove; None where no learner holds it, as in an evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """Scored sequences as the learner sees them: S sequences in groups, A action tokens.

    Per-token fields are flat over the action tokens of all sequences, in sequence order (A,): there is no padding
    and no position that means nothing. `sequence_index` says which sequence an action belongs to.
    """

    prompt_ids: tuple[tuple[int, ...], ...]
    """(S) prompt tokens; sequences of one group share the same tuple."""
    token_ids: tuple[tuple[int, ...], ...]
    """(S) tokens after the prompt."""
    action_mask: tuple[tuple[bool, ...], ...]
    """(S) True where the policy sampled the token."""
    group_index: Tensor
    """(S,) int64, which group a sequence belongs to; equal numbers are adjacent."""
    rewards: Tensor
    """(S,) float32."""
    sequence_index: Tensor
    """(A,) int64, 0 to S - 1, ascending."""
    rollout_logprobs: Tensor
    """(A,) float32, the engine's log-probabilities at sampling time, of the distribution that was sampled."""
    is_truncated: Tensor
    """(S,) bool, whether the last action was cut at `max_new_tokens`."""
    policy_logprobs: Tensor | None = None
    """(A,) float32, the engine's log-probs before top-p, top-k and min-p; None where these are off, as both are one."""
    baseline_rewards: Tensor | None = None
    """(S,) float32, the `baseline_score` of the sequence's group; None where its groups have none."""
    old_logprobs: Tensor | None = None
    """(A,) float32, the learner's log-probabilities before this step's first update; None when on-policy."""
    ref_logprobs: Tensor | None = None
    """(A,) float32, under the frozen reference; None when the algorithm has no KL term."""
    values: Tensor | None = None
    """(A,) float32, the critic's value of the state before each action; None without a critic."""
    turn_index: Tensor | None = None
    """(A,) int64, the turn of its sequence that each action token belongs to; None where no engine sampled it."""
    turn_rewards: Tensor | None = None
    """(A,) float32, what each turn adds to the reward, on its last token, and 0 on the others."""
    advantages: Tensor | None = None
    """(A,) float32."""
    returns: Tensor | None = None
    """(A,) float32, targets of the critic; None without a critic."""
    weights: Tensor | None = None
    """(A,) float32, aggregation weight of each action, fixed per optimizer update before any split."""

    @property
    def num_sequences(self) -> int:
        """S."""
        return len(self.token_ids)
