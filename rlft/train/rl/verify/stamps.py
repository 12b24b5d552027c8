"""Who made which sample, as the config says: tasks, streams, seeds and adapters of every stored sample, and the chunks
that they were generated in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rlft.config import EnvironmentConfig, RunConfig
from rlft.environment.contract import Environment
from rlft.rollout.chunk import Chunk
from rlft.rollout.seeds import sample_seed
from rlft.train.rl.evaluate import heldout_chunks
from rlft.train.rl.rollouts import GREEDY, TRAIN, refill_stream, step_chunks
from rlft.train.rl.task_choice import TaskChoice
from rlft.train.rl.verify.findings import Check
from rlft.types import Group, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Unit:
    """A chunk of a run: what is generated again together, since its samples share batches."""

    file: str
    """The file below the run's directory that has its samples."""
    step: int
    """Step of the file."""
    chunk: Chunk
    """Its version is that of the adapter which its samples name."""
    set_name: str = ""
    """The evaluation set that it is of; empty of training and of `evaluation`."""

    @property
    def samples(self) -> int:
        """How many it has."""
        return len(self.chunk.tasks) * self.chunk.samples_per_task


@dataclass(slots=True)
class Stamps:
    """Hashes that samples and evaluations name, by adapter version: who named each first."""

    named: dict[int, dict[str, str]] = field(default_factory=dict)

    def add(self, version: int, content_hash: str, where: str) -> None:
        """Enter what a sample or an evaluation says of the adapter that made it."""
        self.named.setdefault(version, {}).setdefault(content_hash, where)

    def check(self, check: Check) -> None:
        """Every version has one hash."""
        for version, hashes in sorted(self.named.items()):
            if len(hashes) > 1:
                (one, first), (other, second) = list(hashes.items())[:2]
                check.differ(second, f"adapter {version} is {other[:12]}, and in {first} it is {one[:12]}")


def check_step_stamps(
    config: RunConfig,
    choice: TaskChoice | None,
    *,
    file: str,
    step: int,
    groups: Sequence[Group],
    is_greedy: bool,
    check: Check,
    stamps: Stamps,
) -> list[Unit]:
    """Check the samples of a step's file, and find its chunks; none where the tasks are not here.

    Args:
        choice: has observed the steps before it; None where the tasks are not here.
    """
    of_stream: dict[str, list[Group]] = {}
    for group in groups:
        stream = _stream_of(config, step, group, is_greedy)
        if stream is None:
            where = f"{file}, {step}/{group.task.id}"
            check.differ(
                where, "its seeds are not those of the run's seed, the step and the task", len(group.trajectories)
            )
            continue
        of_stream.setdefault(stream, []).append(group)
        allowed = _allowed_versions(config, step, stream)
        for trajectory in group.trajectories:
            _check_sample(
                f"{file}, {step}/{group.task.id}/{trajectory.sample_index}", trajectory, allowed, check, stamps
            )
    units: list[Unit] = []
    for stream, members in sorted(of_stream.items()):
        if choice is None:
            check.skip("whether the step has the tasks that its seed chooses: the environment's tasks are not here", 0)
            continue
        round_number = int(stream.partition("-")[2] or 0)
        tasks = choice.of_step(step, round_number)
        expected = tasks[: len(members)] if round_number else tasks
        by_task = {group.task.id: group for group in members}
        if {task.id for task in expected} != by_task.keys() or len(by_task) != len(members):
            unlike = sorted({task.id for task in expected} ^ by_task.keys())[:3]
            check.differ(f"{file}", f"its tasks are not those that the seed chooses: {', '.join(unlike)}")
            continue
        for chunk in step_chunks(config, expected, step=step, version=0, stream=stream):
            units += _unit(file, step, chunk, by_task, check)
    return units


def check_heldout_stamps(
    config: RunConfig,
    environment: Environment | None,
    *,
    file: str,
    step: int,
    version: int,
    groups: Sequence[Group],
    check: Check,
    stamps: Stamps,
    set_name: str = "",
    episodes: EnvironmentConfig | None = None,
) -> list[Unit]:
    """Check the samples of an evaluation, and find its chunks; none where the tasks are not here.

    Args:
        set_name: the evaluation set that it is of, whose config and environment these are.
        episodes: whose episodes its samples are, if not the run's.
    """
    altered: set[str] = set()
    for group in groups:
        for trajectory in group.trajectories:
            where = f"{file}, {group.task.id}/{trajectory.sample_index}"
            seed = sample_seed(config.seed, "evaluate", 0, group.task.id, trajectory.sample_index)
            if trajectory.seed != seed:
                altered.add(group.task.id)
                check.differ(where, "its seed is not that of the run's seed and the task")
            else:
                _check_sample(where, trajectory, range(version, version + 1), check, stamps)
    if environment is None:
        return []
    by_task = {group.task.id: group for group in groups}
    if [task.id for task in environment.heldout[: config.evaluation.tasks]] != list(by_task):
        check.differ(file, "its tasks are not the first ones of the held-out tasks")
        return []
    units: list[Unit] = []
    for chunk in heldout_chunks(config, environment.heldout, version=version, environment=episodes):
        if altered.isdisjoint(task.id for task in chunk.tasks):  # else it has no samples that could be made again
            units += _unit(file, step, chunk, by_task, check)
    return [replace(unit, set_name=set_name) for unit in units]


def _check_sample(where: str, trajectory: Trajectory, allowed: range, check: Check, stamps: Stamps) -> None:
    made_by = trajectory.turns[-1].completion
    stamps.add(made_by.adapter_version, made_by.adapter_hash, where)
    lengths = {len(trajectory.token_ids), len(trajectory.logprobs), len(trajectory.action_mask)}
    if made_by.adapter_version not in allowed:
        versions = f"{allowed.start}" if len(allowed) == 1 else f"{allowed.start} to {allowed.stop - 1}"
        check.differ(where, f"adapter {made_by.adapter_version} made it, by the config {versions} has to")
    elif len(lengths) > 1:
        check.differ(where, f"tokens, log-probs and mask have lengths {sorted(lengths)}")
    else:
        check.agree()


def _unit(file: str, step: int, chunk: Chunk, by_task: Mapping[str, Group], check: Check) -> list[Unit]:
    """The unit of a chunk, of the version that its samples name; none where they name several."""
    versions = {t.turns[-1].completion.adapter_version for task in chunk.tasks for t in by_task[task.id].trajectories}
    if len(versions) != 1 or any(len(by_task[task.id].trajectories) != chunk.samples_per_task for task in chunk.tasks):
        check.differ(file, f"a chunk of it was made by adapters {sorted(versions)}, or lacks samples")
        return []
    return [Unit(file=file, step=step, chunk=replace(chunk, version=versions.pop()))]


def _stream_of(config: RunConfig, step: int, group: Group, is_greedy: bool) -> str | None:
    """The stream whose seeds all samples of a group have; None where there is none."""
    refills = [refill_stream(number) for number in range(1, 1 + config.algorithm.max_refills)]
    for stream in [GREEDY] if is_greedy else [TRAIN, *refills]:
        if all(
            t.seed == sample_seed(config.seed, stream, step, group.task.id, t.sample_index) for t in group.trajectories
        ):
            return stream
    return None


def _allowed_versions(config: RunConfig, step: int, stream: str) -> range:
    """Adapters that may make a step's samples, see `train.rl.rollouts`."""
    submitted = max(0, step - 1 - config.max_staleness)
    if stream not in (TRAIN, GREEDY):
        return range(step - 1, step)
    return range(submitted, step if config.rollout.update_in_flight else submitted + 1)
