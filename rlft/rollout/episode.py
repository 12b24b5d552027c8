"""From tasks to unscored trajectories: the part of a rollout that needs an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rlft import chat
from rlft.rollout.engine import Engine, Request
from rlft.rollout.seeds import sample_seed
from rlft.types import Group, SamplingParams, Task, Trajectory, Turn


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """The unit of work: tasks that are generated together. Its result does not depend on who computes it."""

    tasks: tuple[Task, ...]
    samples_per_task: int
    params: SamplingParams
    run_seed: int
    stream: str
    """What the samples are for; keeps the randomness of training, refills and evaluation apart."""
    step: int
    """Step that the seeds are made from; 0 for evaluations, so that they are comparable sample by sample."""
    version: int
    """Adapter version that must generate."""


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
        )
        for start in range(0, len(tasks), tasks_per_chunk)
    ]


def run_chunk(engine: Engine, tokenizer: PreTrainedTokenizerBase, chunk: Chunk) -> list[Group]:
    """Generate a chunk's groups, unscored.

    Raises:
        ValueError: see `Engine.generate`.
    """
    requests = [
        Request(
            prompt_ids=chat.render(tokenizer, task.messages),
            seeds=tuple(
                sample_seed(chunk.run_seed, chunk.stream, chunk.step, task.id, index)
                for index in range(chunk.samples_per_task)
            ),
        )
        for task in chunk.tasks
    ]
    completions = engine.generate(requests, chunk.params, version=chunk.version)
    return [
        Group(
            task=task,
            trajectories=tuple(
                Trajectory(
                    task=task,
                    sample_index=index,
                    seed=request.seeds[index],
                    turns=(Turn(prompt_ids=request.prompt_ids, completion=completion),),
                    text=chat.decode(tokenizer, completion.token_ids),
                )
                for index, completion in enumerate(samples)
            ),
        )
        for task, request, samples in zip(chunk.tasks, requests, completions, strict=True)
    ]
