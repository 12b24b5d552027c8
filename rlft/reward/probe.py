"""Made-up completions and what a reward says to them, in processes that can be killed.

    with Probe([RewardSpec(path="brevity.py:brevity")]) as probe:
        task = make_task("What is 17 + 25?", answer="42")
        probe.score(task, ["42", "It is not 42"])      # [Score(value=1.0, ...), Score(value=0.0, ...)]
        probe.score_one(task, "42").seconds            # with what the reward printed

A reward sees a trajectory as after a rollout, but no model has made it: every byte of a text counts as a token, and the
log-probs are 0. Many short texts cost no more than calling the reward, since the processes stay.
"""

from __future__ import annotations

import json
import math
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, cast

from rlft.reward.contract import CallPlan
from rlft.reward.process import STARTUP_LIMIT_S
from rlft.reward.scoring import Scorer
from rlft.reward.transcript import Transcript
from rlft.types import Completion, Failed, Group, Message, Outcome, RewardSpec, Task, Trajectory, Turn, whole_text

DEADLINE_S = 2.0
"""Seconds that a reward may take for one made-up completion, where nothing else is said."""
MOST_KILLED = 3
"""Processes that a probe loses to a reward before it gives the reward up."""
IMPORT_S = 30.0
"""Seconds that importing a reward may take where somebody waits for it."""
AT_ONCE = 64
"""Most texts in one call of the scorer: what hangs among them is noticed after it."""
_PRINTED_WITHIN_S, _SETTLED_S = 0.1, 0.03
"""Seconds that what was printed may take to be in the log, and that nothing comes in when all of it is there."""

Ask: TypeAlias = tuple[Task, Sequence[str]]
"""A task, and the completions that a reward sees as one group; a `Transcript` among them is an episode."""


class GaveUpError(RuntimeError):
    """A reward has hung, or ended its process, too often to go on with it."""

    def __init__(self, task: Task, text: str, outcome: Failed) -> None:
        """Remember the last sample that did it, as `task`, `text` and `outcome`."""
        super().__init__(outcome.message)
        self.task, self.text, self.outcome = task, text, outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """What came of one completion."""

    outcome: Outcome
    """Of all rewards together."""
    failed_parts: Mapping[str, Failed]
    """The rewards that failed, by name, those of weight 0 too."""
    seconds: float
    """How long scoring it took; with the way to the process and back, some tenths of a millisecond."""
    printed: str
    """What the rewards wrote to stdout and stderr meanwhile; of completions that were scored together on the last."""
    logged: Mapping[str, float] = field(default_factory=dict)
    """What the rewards gave to `log_metric`, by `reward name/name`; of completions that were scored together on the
    last, the means."""
    extras: Mapping[str, Any] = field(default_factory=dict)
    """What the rewards gave to `log_extra` for it, by `reward name/name`."""


class Probe:
    """Scores made-up completions with some rewards; a context manager, since it holds processes."""

    def __init__(
        self,
        specs: Sequence[RewardSpec],
        *,
        deadline_s: float = DEADLINE_S,
        workers: int = 1,
        environment: Collection[str] = (),
        most_killed: int = MOST_KILLED,
        startup_s: float = STARTUP_LIMIT_S,
    ) -> None:
        """Start the processes, which load the rewards.

        Args:
            specs: as for `Scorer`: with distinct names, one with a weight; none on the learner's base.
            deadline_s: seconds for one completion.
            workers: scoring processes; 0 calls the rewards here, where nothing can be killed.
            environment: variables that the processes get besides harmless ones.
            most_killed: processes that may hang or die before `GaveUpError`.
            startup_s: seconds that importing the rewards may take.

        Raises:
            ValueError: a reward cannot be loaded or called, see `Scorer`.
        """
        self._folder = tempfile.TemporaryDirectory(prefix="rlft-probe-")
        self._log, self._read = Path(self._folder.name) / "scoring-0.log", 0
        self._killed, self._most_killed, self._deadline_s = 0, float(most_killed), math.inf  # the scorer has it
        try:
            self._scorer = Scorer(
                specs,
                workers=workers,
                deadline_s=deadline_s,
                log_dir=Path(self._folder.name),
                keeps_logs=False,
                environment=environment,
                startup_s=startup_s,
            )
        except BaseException:
            self._folder.cleanup()
            raise

    @classmethod
    def of(cls, scorer: Scorer, *, deadline_s: float = math.inf, most_killed: float = math.inf) -> Self:
        """A probe that uses a scorer which the caller keeps and closes; it cannot tell what the rewards print.

        Args:
            deadline_s: seconds for one completion, where that is less than the scorer's.
            most_killed: processes that may hang or die before `GaveUpError`.
        """
        self = cls.__new__(cls)
        self._scorer, self._killed = scorer, 0
        self._deadline_s, self._most_killed = deadline_s, most_killed
        return self

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._scorer.close()
        self._folder.cleanup()

    @property
    def plans(self) -> dict[str, CallPlan]:
        """Reward -> how it is called."""
        return self._scorer.plans

    def unsupplied(self, columns: Collection[str]) -> dict[str, list[str]]:
        """Reward -> its parameters that tasks with these columns do not supply, where there are some."""
        return self._scorer.unsupplied(columns)

    @property
    def seconds(self) -> float:
        """How long the last call of the rewards took, with the way to the process and back."""
        return self._scorer.stats.seconds

    def score(self, task: Task, texts: Sequence[str]) -> list[Outcome]:
        """What each completion gets, every one in a group of its own.

        Raises:
            GaveUpError: too many processes were lost.
            ValueError: a reward has a parameter that the task has no column for.
        """
        return [outcomes[0] for outcomes in self.score_groups([(task, [text]) for text in texts])]

    def score_groups(
        self, asks: Sequence[Ask], *, at_once: int = AT_ONCE, ends: float = math.inf
    ) -> list[list[Outcome]]:
        """What the completions of each group get, in their order.

        Args:
            at_once: texts that are scored before lost processes are counted; it starts with 1 and doubles.
            ends: see `trajectories`.

        Raises:
            GaveUpError, ValueError: see `score`.
        """
        scored = self.trajectories(asks, at_once=at_once, ends=ends)
        return [[_outcome(trajectory) for trajectory in group] for group in scored]

    def trajectories(
        self, asks: Sequence[Ask], *, at_once: int = AT_ONCE, ends: float = math.inf
    ) -> list[tuple[Trajectory, ...]]:
        """Like `score_groups`, with all that scoring leaves in a trajectory: which rewards failed, too.

        Args:
            ends: time of `time.monotonic` after which no further group is scored; then those after it are missing.
        """
        groups = [made_up(task, texts) for task, texts in asks]
        scored: list[tuple[Trajectory, ...]] = []
        room = 1
        while len(scored) < len(groups) and (began := time.monotonic()) < ends:
            size, part = 0, groups[len(scored) : len(scored) + 1]
            for group in groups[len(scored) + 1 :]:
                size += len(part[-1].trajectories)
                if size >= room:
                    break
                part.append(group)
            scored += [group.trajectories for group in self._score(part)]
            room = 1 if self._scorer.stats.restarts else min(2 * room, at_once)
            if ends < math.inf:  # as many as there is time for, by what these have taken
                now, texts = time.monotonic(), sum(len(group.trajectories) for group in part)
                room = max(1, min(room, int((ends - now) / max(1e-9, now - began) * texts)))
        return scored

    def score_one(self, task: Task, text: str) -> Answered:
        """What one completion gets, how long it took, and what the rewards printed.

        Raises:
            GaveUpError, ValueError: see `score`.
        """
        return self.score_member(made_up(task, [text]), 0)

    def score_together(self, task: Task, texts: Sequence[str]) -> list[Answered]:
        """Like `score_one`, of several completions as the samples of one group, which a reward may compare."""
        return self._answered(made_up(task, texts), step=0)

    def score_member(self, group: Group, member: int, *, step: int = 0) -> Answered:
        """Like `score_one`, of a trajectory at a position of a group that there is, as in a step of training."""
        answered = self._answered(group, step=step)
        return replace(answered[member], printed=answered[-1].printed, logged=answered[-1].logged)

    def _answered(self, group: Group, *, step: int) -> list[Answered]:
        (scored,) = self._score([group], step=step)
        *others, last = (
            Answered(
                outcome=_outcome(trajectory),
                failed_parts=trajectory.failed_parts,
                seconds=self.seconds,
                printed="",
                extras=trajectory.extras,
            )
            for trajectory in scored.trajectories
        )
        return [*others, replace(last, printed=self.printed(), logged=self._scorer.stats.logged)]

    def printed(self) -> str:
        """What the rewards of the first process have printed since this was asked last."""
        ends = time.monotonic() + _PRINTED_WITHIN_S
        while (size := _size(self._log)) == self._read and time.monotonic() < ends:  # a guard writes it down
            time.sleep(0.01)
        if size <= self._read:
            return ""
        grown = -1
        while grown != size and time.monotonic() < ends + _PRINTED_WITHIN_S:  # a line may come in several parts
            grown = size
            time.sleep(_SETTLED_S)
            size = _size(self._log)
        with self._log.open("rb") as file:
            file.seek(self._read)
            data = file.read()
        self._read += len(data)
        return data.decode(errors="replace")

    def _score(self, groups: Sequence[Group], *, step: int = 0) -> list[Group]:
        # However many fail, the others are asked.
        scored = self._scorer.score(groups, step=step, max_failed=1.0, deadline_s=self._deadline_s)
        self._killed += self._scorer.stats.restarts
        if self._killed > self._most_killed:
            for trajectory in (t for group in scored for t in group.trajectories):
                for failure in (trajectory.outcome, *trajectory.failed_parts.values()):
                    if isinstance(failure, Failed) and failure.kind in ("timeout", "crash"):
                        raise GaveUpError(trajectory.task, trajectory.text, failure)
        return scored


def make_task(
    prompt: str, *, answer: Any = None, columns: Mapping[str, Any] | None = None, id: str = "made-up"
) -> Task:
    """A task with one message of the user."""
    return Task(id=id, messages=(Message(role="user", content=prompt),), answer=answer, columns=columns or {})


def made_up(task: Task, texts: Sequence[str]) -> Group:
    """A group as after a rollout, with these texts as completions, or transcripts as episodes; a byte is a token."""
    prompt = _bytes(task.messages)
    return Group(
        task=task,
        trajectories=tuple(_trajectory(task, prompt, index, text) for index, text in enumerate(texts)),
    )


def _trajectory(task: Task, prompt: tuple[int, ...], index: int, text: str) -> Trajectory:
    if isinstance(text, Transcript):
        return _episode(task, prompt, index, text)
    text = whole_text(text)
    turn = Turn(prompt_ids=prompt, completion=_completion(text))
    return Trajectory(task=task, sample_index=index, seed=index, turns=(turn,), text=text)


def _episode(task: Task, prompt: tuple[int, ...], index: int, of: Transcript) -> Trajectory:
    messages = [cast(Message, {**each, "content": whole_text(each["content"])}) for each in of.messages]
    actions = [place for place, message in enumerate(messages) if message["role"] == "assistant"]
    turns, before = [], prompt
    rewards = of.rewards or (None,) * len(actions)
    for start, end, reward in zip(actions, [*actions[1:], len(messages)], rewards, strict=True):
        said, calls = messages[start]["content"], messages[start].get("tool_calls")
        text = said + (json.dumps(calls, ensure_ascii=False) if calls else "")  # a template would write them somehow
        answer = tuple(messages[start + 1 : end])
        turns.append(Turn(prompt_ids=before, completion=_completion(text), observation=answer, reward=reward))
        before = _bytes(answer)
    return Trajectory(
        task=task,
        sample_index=index,
        seed=index,
        turns=tuple(turns),
        text=messages[-1]["content"],
        messages=(*task.messages, *messages),
    )


def _completion(text: str) -> Completion:
    tokens = tuple(text.encode(errors="backslashreplace"))
    return Completion(
        token_ids=tokens,
        logprobs=(0.0,) * len(tokens),
        finish_reason="stop",
        adapter_version=-1,
        adapter_hash="",
    )


def _bytes(messages: Sequence[Message]) -> tuple[int, ...]:
    return tuple("\n".join(message["content"] for message in messages).encode(errors="backslashreplace"))


def _outcome(trajectory: Trajectory) -> Outcome:
    assert trajectory.outcome is not None  # it was scored
    return trajectory.outcome


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
