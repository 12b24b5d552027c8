"""A stored failed call made again: the reward on the same sample, in a killable process or here for a debugger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from rlft.common.by_path import is_users_code
from rlft.config import RunConfig
from rlft.curves.reading import read_rollouts
from rlft.reward.contract import call_arguments
from rlft.reward.loading import absolute_path_of
from rlft.reward.notes import Notes
from rlft.reward.outcomes import read, read_many
from rlft.reward.probe import Answered, Probe
from rlft.reward.stored import find_sample, is_environments_failure, parse_sample, read_step, read_tasks, unscored
from rlft.reward.worker import call_here, close_rewards, open_rewards
from rlft.types import Failed, Group, Outcome, RewardSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedSample:
    """A stored sample on which something failed."""

    name: str
    """`STEP/TASK/INDEX`."""
    step: int
    group: Group
    """Its group, unscored, without the samples that failed before any reward saw them."""
    member: int
    """Its position in that group; that in the whole group where the environment failed."""
    failures: Mapping[str, Failed]
    """What is stored of the failures, by reward; of the environment's under the empty name."""
    lost: str
    """What of the tasks' columns is not stored; empty where all is."""

    @property
    def is_environments(self) -> bool:
        """Whether the environment failed, so that no reward has seen the sample."""
        return self.failures.keys() == {""}


def failed_samples(run: Path) -> dict[str, str]:
    """Names of the stored samples on which something failed, with what it was in a few words.

    Raises:
        ValueError: the run has no rollouts, or a file of them is broken.
    """
    columns = ("step", "task_id", "sample_index", "outcome", "failure_kind", "failure_message")
    found = {}
    for row in read_rollouts(run, columns, optional=("failed_parts",)).to_pylist():
        if row["outcome"] != "failed" and not row.get("failed_parts"):
            continue
        said = (row["failure_message"] or "").strip().splitlines() or ["a reward that only observes failed"]
        name = f"{row['step']}/{row['task_id']}/{row['sample_index']}"
        found[name] = f"{row['failure_kind'] or 'observed'}: {said[-1]}"
    return found


def read_failed(run: Path, config: RunConfig, sample: str) -> FailedSample:
    """A stored sample on which something failed.

    Args:
        config: the run's.
        sample: `STEP/TASK/INDEX`.

    Raises:
        ValueError: there is no such sample, or nothing failed on it; says where something has.
    """
    step, task_id, sample_index = parse_sample(sample)
    tasks = read_tasks(run)
    stored = read_step(run, step, tasks)
    where, member = find_sample(stored, task_id, sample_index)
    group = stored.groups[where]
    trajectory = group.trajectories[member]
    failures = dict(trajectory.failed_parts)
    if isinstance(trajectory.outcome, Failed) and not failures:
        # It is of the environment or of the weighted sum, or an older rlft did not say which reward it was.
        is_known = is_environments_failure(trajectory)
        names = [""] if is_known else [spec.label for spec in config.rewards if spec.weight]
        failures = dict.fromkeys(names, trajectory.outcome)
    if not failures:
        known = failed_samples(run)
        raise ValueError(f"nothing failed on sample {sample} of {run}; {listed(known)}")
    seen = group
    if failures.keys() != {""}:
        member = sum(not is_environments_failure(each) for each in group.trajectories[:member])
        seen = replace(
            group,
            trajectories=tuple(t for t in unscored(group).trajectories if not is_environments_failure(t)),
        )
    lost = "" if tasks.lines else "the tasks' columns"
    return FailedSample(
        name=sample,
        step=step,
        group=seen,
        member=member,
        failures=failures,
        lost=", ".join(tasks.lost) or lost,
    )


def listed(known: Mapping[str, str], most: int = 10) -> str:
    """The samples that failed, in a sentence for an error."""
    if not known:
        return "no stored sample of this run has failed"
    shown = ", ".join(list(known)[:most])
    return f"what failed is {shown}" + (f" and {len(known) - most} more" if len(known) > most else "")


def rewards_to_repeat(failed: FailedSample, specs: Sequence[RewardSpec]) -> list[RewardSpec]:
    """The rewards that failed on a sample, each with a weight, so that it may be scored alone.

    Raises:
        ValueError: one of them is scored on the learner, or the config does not have it; says how to repeat that.
    """
    by_label = {spec.label: spec for spec in specs}
    wanted = []
    for label, failure in failed.failures.items():
        spec = by_label.get(label)
        if spec is None or spec.folder:
            why = "is a reward model on the learner's base" if spec else "is not in the run's config"
            raise ValueError(f"reward {label!r} {why}; this program repeats the call:\n{failure.reproduce}")
        wanted.append(replace(spec, role="train", weight=spec.weight or 1.0))
    return wanted


def repeat(failed: FailedSample, spec: RewardSpec, *, deadline_s: float, environment: Sequence[str]) -> Answered:
    """Score the sample again by a reward, in a process of its own with a deadline.

    Raises:
        ValueError: the reward cannot be loaded, or a column that it needs is not stored.
    """
    with Probe([spec], deadline_s=deadline_s, environment=environment) as probe:
        probe.printed()  # while it was imported
        group, member = _covered(failed, is_sample=probe.plans[spec.label].kind == "sample")
        try:
            return probe.score_member(group, member, step=failed.step)
        except ValueError as error:
            if not failed.lost or "nothing supplies" not in str(error):
                raise
            program = failed.failures[spec.label].reproduce
            text = f"{error} Not stored is: {failed.lost}. This program repeats the call:\n{program}"
            raise ValueError(text) from error


def repeat_here(failed: FailedSample, spec: RewardSpec) -> Outcome:
    """Make the call in this process, where a debugger can look at it and nothing ends it.

    Raises:
        ValueError: as of `repeat`.
        BaseException: whatever the reward raises.
    """
    spec = replace(spec, path=absolute_path_of(spec.path))
    (reward,) = opened = open_rewards([spec])
    try:
        plan = reward.loaded.plan
        is_sample = plan.kind == "sample"
        group, member = _covered(failed, is_sample=is_sample)
        called = replace(spec, args={}) if reward.loaded.is_built else spec
        arguments = call_arguments(plan, called, group, member if is_sample else None, failed.step)
        size = 1 if is_sample else len(group.trajectories)
        result: Any = call_here(reward.function, Notes(size, is_sample=is_sample).offered(arguments))
        return read(result) if is_sample else read_many(result, size)[member]
    finally:
        close_rewards([spec], opened)


def at_users_line(error: BaseException) -> TracebackType | None:
    """The traceback of an error, cut behind its innermost line in the user's code, for `pdb.post_mortem`."""
    last, trace = None, error.__traceback__
    while trace is not None:
        last = trace if is_users_code(trace.tb_frame.f_code.co_filename) else last
        trace = trace.tb_next
    if last is not None:
        last.tb_next = None
    return error.__traceback__


def _covered(failed: FailedSample, *, is_sample: bool) -> tuple[Group, int]:
    """What one call covers: the sample alone, or its group; and the sample's position in it."""
    if not is_sample:
        return failed.group, failed.member
    return replace(failed.group, trajectories=(failed.group.trajectories[failed.member],)), 0
