"""Scoring in killable processes: every trajectory gets an outcome, whatever the rewards do.

    with Scorer(specs, workers=4, deadline_s=10, log_dir=run / "logs", columns=("difficulty",)) as scorer:
        groups = scorer.score(groups)
        groups[0].trajectories[0].outcome         # Score(value=1.2, parts={"exact_answer": 1.0, ...})
        groups[0].trajectories[0].failed_parts    # {"brevity": Failed(kind="timeout", ...)}

A unit of work is one call of one reward: one trajectory for a per-sample reward, one group for a batched or
comparative one. The driver watches the clock of each unit: when its deadline passes or its process dies, that
unit is `Failed`, the process is killed with everything that it started, and a new one goes on with the others.
A process works on one unit at a time, and on up to `max_concurrent` where the reward is `async def`. Results are
placed by position, so they depend neither on the number of processes nor on who finishes first.

Reward models on the learner's base are scored there, not in these processes (`LearnerScores`); their scores
stand in the same sums.

`workers=0` calls the rewards in the driver, so that breakpoints work; nothing can be killed there, so there
are no deadlines. A `Scorer` serves one thread.
"""

from __future__ import annotations

import math
import os
import pickle
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

from rlft.common.by_path import describe_error
from rlft.common.variables import passed
from rlft.reward.answers import Result
from rlft.reward.contract import CallPlan, call_arguments, check_columns, refuse_untrainable, unsupplied
from rlft.reward.loading import absolute_path_of, reproduce
from rlft.reward.outcomes import check_turns, failed, read
from rlft.reward.process import STARTUP_LIMIT_S, Job
from rlft.reward.processes import Done, ScoringPool
from rlft.reward.result_table import ResultTable, applies
from rlft.reward.worker import Call, Reward, close_rewards, open_rewards, run
from rlft.types import Failed, Group, RewardSpec, Score


@dataclass(frozen=True, slots=True, kw_only=True)
class Slowest:
    """The call that took longest."""

    reward: str
    """Name of the reward."""
    task_id: str
    """Task that it scored."""
    sample_index: int | None
    """The trajectory's `sample_index`; None when the call covered the whole group."""
    seconds: float
    """How long it ran, or until it was killed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoringStats:
    """How the processes did in one call of `Scorer.score`; how the rewards did is in the trajectories."""

    restarts: int = 0
    """Processes that died or were killed, and were replaced."""
    seconds: float = 0.0
    """Duration of the whole call."""
    slowest: Slowest | None = None
    """None if nothing was called."""
    logged: Mapping[str, float] = field(default_factory=dict)
    """Means over the calls of what the rewards logged, by `reward name/name`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Unit:
    """What one call of one reward is for."""

    reward: int
    group: int
    members: range
    """Positions of the trajectories in their group."""


ScoreGroups: TypeAlias = Callable[[Sequence[Group]], list[list[list[float]]]]
"""Gives the scores of the reward models on the learner's base, by reward, group and trajectory."""


class LearnerScores:
    """A `ScoreGroups` for a scorer that is made before the learner: `bind` gives it the learner's."""

    def __init__(self) -> None:
        self._score: ScoreGroups | None = None

    def bind(self, score: ScoreGroups) -> None:
        """Let the learner score from here on."""
        self._score = score

    def __call__(self, groups: Sequence[Group]) -> list[list[list[float]]]:
        """The learner's scores.

        Raises:
            ValueError: there is no learner yet.
        """
        if self._score is None:
            raise ValueError(
                "rewards on the learner's base cannot be scored before there is a learner; load it, and hand its "
                "scores to LearnerScores.bind first"
            )
        return self._score(groups)


class Scorer:
    """Fills in the outcomes of trajectories."""

    def __init__(
        self,
        specs: Sequence[RewardSpec],
        *,
        workers: int,
        deadline_s: float,
        log_dir: Path | None,
        keeps_logs: bool = True,
        environment: Collection[str] = (),
        columns: Collection[str] | None = None,
        learner: ScoreGroups | None = None,
        max_failed: float = 1.0,
        max_concurrent: int = 64,
        memory_mb: int = 0,
        startup_s: float = STARTUP_LIMIT_S,
    ) -> None:
        """Start the processes and check that every reward can be loaded and called.

        Args:
            specs: rewards with distinct names, at least one with a weight.
            workers: number of processes; 0 scores in this process, without deadlines.
            deadline_s: seconds that one trajectory may take; a call for a whole group may take their sum.
            log_dir: what the rewards print is appended to `scoring-N.log` there, up to a bound; None drops it.
            keeps_logs: whether these files stay, so that a failure may say where they are.
            environment: names of environment variables that the processes get besides harmless ones.
            columns: the tasks' columns, to check parameters right away; None waits for the first groups.
            learner: scores the reward models on the learner's base, in the order of `specs`.
            max_failed: share of the trajectories after whose failure the others are not scored any more.
            max_concurrent: most calls of `async def` rewards that a process makes at once.
            memory_mb: resident memory above which a process is killed; 0 for no bound.
            startup_s: seconds that a process may take to import the rewards.

        Raises:
            ValueError: if a reward cannot be loaded, has a parameter that nothing supplies, or needs a learner
                where there is none; or if a variable of `environment` is not set.
        """
        _check(specs, workers, deadline_s)
        variables = passed(os.environ, environment)
        # A process that starts later must find the same files, wherever the driver has moved in the meantime.
        self._called = [replace(spec, path=absolute_path_of(spec.path)) for spec in specs if not spec.folder]
        on_learner = [spec for spec in specs if spec.folder]
        self._specs = [*self._called, *on_learner]
        self._learner = _needed(learner, on_learner)
        self._deadline_s, self._columns_checked, self._closed = deadline_s, columns is not None, False
        self._max_failed = max_failed
        self._pool: ScoringPool | None = None
        self.stats = ScoringStats()
        """How the processes did in the last call of `score`."""
        if workers and self._called:
            self._pool = ScoringPool(
                self._called,
                workers=workers,
                log_dir=log_dir,
                keeps_logs=keeps_logs,
                variables=variables,
                max_concurrent=max_concurrent,
                memory_mb=memory_mb,
                startup_s=startup_s,
            )
            self._loaded = self._pool.loaded
            self._here: list[Reward] = []
        else:
            self._here = open_rewards(self._called)
            self._loaded = [reward.loaded for reward in self._here]
        self._arguments_of = [
            replace(spec, args={}) if loaded.is_built else spec
            for spec, loaded in zip(self._called, self._loaded, strict=True)
        ]
        """The rewards with the arguments that each call gets."""
        if columns is not None:
            try:
                self.check_columns(columns)
            except ValueError:
                self.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def sources(self) -> dict[str, Mapping[str, str]]:
        """Reward -> sha256 of the file that defines it and of what that imports of its folder, as they were loaded."""
        return {spec.label: loaded.sources for spec, loaded in zip(self._called, self._loaded, strict=True)}

    @property
    def plans(self) -> dict[str, CallPlan]:
        """Reward -> how it is called, but for those on the learner's base."""
        return {spec.label: loaded.plan for spec, loaded in zip(self._called, self._loaded, strict=True)}

    def move_logs(self, folder: Path) -> None:
        """Move `scoring-N.log` to another folder on the same disk; what is printed from here on arrives there, too."""
        if self._pool:
            self._pool.move_logs(folder)

    def close(self) -> None:
        """End the processes and everything that they started; also happens when the driver exits."""
        if not self._closed and self._here:
            close_rewards(self._called, self._here)
        self._closed = True
        if self._pool:
            self._pool.close()

    def score(
        self,
        groups: Sequence[Group],
        *,
        step: int = 0,
        earlier: Sequence[Group] = (),
        max_failed: float | None = None,
        deadline_s: float = math.inf,
    ) -> list[Group]:
        """Score every trajectory: the groups in their order, with all outcomes filled in.

        A trajectory that has failed already, since its environment raised, stays as it is and no reward sees it.

        Args:
            step: of training, which rewards may ask for; 0 outside of it.
            earlier: groups that were scored before, which count for `max_failed`, too.
            max_failed: instead of the scorer's.
            deadline_s: for one trajectory, where that is less than the scorer's.

        Raises:
            ValueError: if a parameter has no column; or if a process had to be replaced and its rewards could
                not be loaded again or had changed, which closes the scorer.
        """
        if self._closed or (self._pool and self._pool.closed):
            raise ValueError("this Scorer is closed")
        if not self._columns_checked and groups:
            self.check_columns({column for group in groups for column in group.task.columns})
            self._columns_checked = True
        began, restarts = time.monotonic(), self._pool.restarts if self._pool else 0
        whole, groups = groups, [_without_failed(group) for group in groups]
        limit = self._max_failed if max_failed is None else max_failed
        table = ResultTable(self._specs, groups, of=[*earlier, *whole], max_failed=limit)
        slowest: tuple[float, _Unit] | None = None
        jobs = self._jobs(groups, table, step, min(deadline_s, self._deadline_s))
        for job, result in self._pool.run(jobs) if self._pool else self._run_here(jobs):
            unit: _Unit = job.key
            table.enter(unit.group, unit.members, unit.reward, self._explained(unit, groups, result, step))
            if slowest is None or result.seconds > slowest[0]:
                slowest = result.seconds, unit
            if table.has_too_many_failed:
                break
        else:
            self._score_on_learner(groups, table)
        scored = [table.scored(index, group) for index, group in enumerate(groups)]
        self.stats = ScoringStats(
            slowest=self._describe(slowest, groups),
            restarts=self._pool.restarts - restarts if self._pool else 0,
            seconds=time.monotonic() - began,
            logged=table.logged(),
        )
        return [_with_failed(group, own) for group, own in zip(whole, scored, strict=True)]

    def _score_on_learner(self, groups: Sequence[Group], table: ResultTable) -> None:
        if self._learner is None:
            return
        for reward, by_group in enumerate(self._learner(groups), start=len(self._called)):
            for g, values in enumerate(by_group):
                for member, value in enumerate(values if applies(self._specs[reward], groups[g]) else ()):
                    outcome = read(value)
                    if isinstance(outcome, Failed):
                        program = self._reproduce_on_learner(self._specs[reward], groups[g], member)
                        outcome = replace(outcome, reproduce=program)
                    table.enter(g, range(member, member + 1), reward, Result(outcomes=[outcome]))

    def _reproduce_on_learner(self, spec: RewardSpec, group: Group, member: int) -> str:
        """A reward model on the learner's base as a function that loads a base of its own."""
        reply = {"role": "assistant", "content": group.trajectories[member].text}
        arguments = {"prompts": [[*map(dict, group.task.messages)]], "completions": [[reply]]}
        path = "rewards.reward_model:reward_model"
        return reproduce(path, {**arguments, **spec.args, "folder": spec.folder}, is_async=False)

    def _jobs(self, groups: Sequence[Group], table: ResultTable, step: int, deadline_s: float) -> Iterator[Job]:
        """The calls to make; one that cannot be made is entered in the table as failed."""
        for unit in self._units(groups):
            size = len(unit.members)
            try:
                arguments = pickle.dumps(self._arguments(unit, groups, step))
            except Exception as error:  # this task lacks a column, or has a value that cannot be sent
                result = Result(outcomes=[failed("error", describe_error(error))] * size)
                table.enter(unit.group, unit.members, unit.reward, self._explained(unit, groups, result, step))
            else:
                limit_s = deadline_s * size
                yield Job(key=unit, call=Call(reward=unit.reward, size=size, limit_s=limit_s, arguments=arguments))

    def _units(self, groups: Sequence[Group]) -> Iterator[_Unit]:
        for r, loaded in enumerate(self._loaded):
            for g, group in enumerate(groups):
                if not applies(self._specs[r], group):
                    continue
                everyone = range(len(group.trajectories))
                if loaded.plan.kind == "sample":
                    yield from (_Unit(reward=r, group=g, members=range(m, m + 1)) for m in everyone)
                elif everyone:
                    yield _Unit(reward=r, group=g, members=everyone)

    def _run_here(self, jobs: Iterator[Job]) -> Iterator[Done]:
        for job in jobs:
            reward = self._here[job.call.reward]
            # Unpickled like in a process: a reward that changes its arguments changes them for nobody else.
            yield job, run(reward.loaded.plan, reward.function, pickle.loads(job.call.arguments), job.call.size)

    def _arguments(self, unit: _Unit, groups: Sequence[Group], step: int) -> dict[str, Any]:
        plan, spec, group = self._loaded[unit.reward].plan, self._arguments_of[unit.reward], groups[unit.group]
        return call_arguments(plan, spec, group, unit.members[0] if plan.kind == "sample" else None, step)

    def _explained(self, unit: _Unit, groups: Sequence[Group], result: Result, step: int) -> Result:
        """The result, whose failures have a program that repeats the call, and whose turns are the episode's."""
        if not any(isinstance(o, Failed) or (isinstance(o, Score) and o.turns) for o in result.outcomes):
            return result
        members = [groups[unit.group].trajectories[member] for member in unit.members]
        outcomes = [check_turns(o, len(t.turns)) for o, t in zip(result.outcomes, members, strict=True)]
        if any(isinstance(outcome, Failed) for outcome in outcomes):
            program = self._reproduce(unit, groups, step)
            outcomes = [replace(o, reproduce=program) if isinstance(o, Failed) else o for o in outcomes]
        return replace(result, outcomes=outcomes)

    def _reproduce(self, unit: _Unit, groups: Sequence[Group], step: int) -> str:
        try:
            arguments = self._arguments(unit, groups, step)
        except ValueError as error:
            return f"raise SystemExit({str(error)!r})"
        loaded, spec = self._loaded[unit.reward], self._specs[unit.reward]
        made_with = spec.args if loaded.is_built else None
        return reproduce(spec.path, arguments, is_async=loaded.plan.is_async, made_with=made_with)

    def _describe(self, slowest: tuple[float, _Unit] | None, groups: Sequence[Group]) -> Slowest | None:
        if slowest is None:
            return None
        seconds, unit = slowest
        group, alone = groups[unit.group], self._loaded[unit.reward].plan.kind == "sample"
        return Slowest(
            reward=self._specs[unit.reward].label,
            task_id=group.task.id,
            sample_index=group.trajectories[unit.members[0]].sample_index if alone else None,
            seconds=seconds,
        )

    def check_columns(self, columns: Collection[str]) -> None:
        """Raise ValueError if a reward has a parameter that tasks with these columns do not supply."""
        for spec, loaded in zip(self._arguments_of, self._loaded, strict=True):
            check_columns(loaded.plan, spec, columns)

    def unsupplied(self, columns: Collection[str]) -> dict[str, list[str]]:
        """Reward -> its parameters that tasks with these columns do not supply, where there are some."""
        rewards = zip(self._arguments_of, self._loaded, strict=True)
        found = {spec.label: unsupplied(loaded.plan, spec, columns) for spec, loaded in rewards}
        return {label: names for label, names in found.items() if names}


def _without_failed(group: Group) -> Group:
    return replace(group, trajectories=tuple(t for t in group.trajectories if not isinstance(t.outcome, Failed)))


def _with_failed(group: Group, scored: Group) -> Group:
    """The whole group again, in its order."""
    others = iter(scored.trajectories)
    return replace(
        group,
        trajectories=tuple(t if isinstance(t.outcome, Failed) else next(others) for t in group.trajectories),
    )


def _needed(learner: ScoreGroups | None, on_learner: Sequence[RewardSpec]) -> ScoreGroups | None:
    if on_learner and learner is None:
        raise ValueError(
            f"reward {on_learner[0].path} is scored on a learner, which is not there; use the reward "
            "rewards.reward_model:reward_model with args.folder"
        )
    return learner if on_learner else None


def _check(specs: Sequence[RewardSpec], workers: int, deadline_s: float) -> None:
    refuse_untrainable(specs)
    if workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}")
    if not deadline_s > 0:
        raise ValueError(f"deadline_s must be more than 0 seconds, got {deadline_s}")
