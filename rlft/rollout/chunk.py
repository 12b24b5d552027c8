"""Chunks, the unit of rollout work, and cutting tasks into them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlft.config import EnvironmentConfig
from rlft.rollout.seeds import episode_seed, sample_seed
from rlft.types import SamplingParams, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Tasks whose samples are generated together by one worker. The result does not depend on which worker that is."""

    tasks: tuple[Task, ...]
    """In order."""
    samples_per_task: int
    """Samples of each, the size of its group."""
    params: SamplingParams
    """How tokens are drawn."""
    run_seed: int
    """The run's seed, which all others follow from."""
    stream: str
    """What the samples are for; keeps the randomness of training, refills and evaluation apart."""
    step: int
    """Step that the seeds are made from; 0 for evaluations, so that they are comparable sample by sample."""
    version: int
    """Adapter version that must generate."""
    environment_stream: str = ""
    """Stream whose environment the episodes meet, where samples are compared with those of another stream; empty: its
    own."""
    environment: EnvironmentConfig | None = None
    """Whose episodes the tasks are; None: the run's."""

    def seeds(self, task: Task) -> tuple[int, ...]:
        """One seed for each sample of a task."""
        return tuple(
            sample_seed(self.run_seed, self.stream, self.step, task.id, index) for index in range(self.samples_per_task)
        )

    def environment_seed(self, task: Task) -> int:
        """The seed that all episodes of a task start with."""
        return episode_seed(self.run_seed, self.environment_stream or self.stream, self.step, task.id)


def make_chunks(
    tasks: Sequence[Task],
    *,
    tasks_per_chunk: int,
    samples_per_task: int,
    params: SamplingParams,
    run_seed: int,
    stream: str,
    step: int,
    version: int,
    environment_stream: str = "",
    environment: EnvironmentConfig | None = None,
) -> list[Chunk]:
    """Cut tasks into chunks of a fixed number, in order."""
    return [
        Chunk(
            tasks=tuple(tasks[start : start + tasks_per_chunk]),
            samples_per_task=samples_per_task,
            params=params,
            run_seed=run_seed,
            stream=stream,
            step=step,
            version=version,
            environment_stream=environment_stream,
            environment=environment,
        )
        for start in range(0, len(tasks), tasks_per_chunk)
    ]
