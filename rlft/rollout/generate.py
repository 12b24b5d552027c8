"""Generating a chunk: from tasks to unscored trajectories.

A single-turn task is one action; `episodes` has the episodes that go on.
"""

from __future__ import annotations

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from rlft.environment.contract import SOURCE, Environment
from rlft.model import chat
from rlft.rollout.chunk import Chunk
from rlft.rollout.engines.contract import Engine, Request
from rlft.rollout.episodes import run_episodes
from rlft.types import Group, Task, Trajectory, Turn


def run_chunk(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, chunk: Chunk, environment: Environment | None = None
) -> list[Group]:
    """Generate a chunk's groups, unscored.

    Args:
        environment: whose episodes the tasks are; None, or one without episodes, for single-turn tasks.

    Raises:
        ValueError: see `Engine.generate`; an episode that cannot start.
    """
    if environment is not None and environment.sources:
        return _run_mixed(engine, tokenizer, chunk, environment)
    if environment is not None and environment.episode is not None:
        return run_episodes(engine, tokenizer, chunk, environment)
    requests = [
        Request(prompt_ids=chat.render(tokenizer, task.messages), seeds=chunk.seeds(task), messages=task.messages)
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
                    text=chat.completion_text(tokenizer, completion),
                    stop_reason="length" if completion.finish_reason == "length" else "done",
                )
                for index, completion in enumerate(samples)
            ),
        )
        for task, request, samples in zip(chunk.tasks, requests, completions, strict=True)
    ]


def _run_mixed(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, chunk: Chunk, environment: Environment
) -> list[Group]:
    """The groups of a chunk whose tasks come from several environments: single-turn tasks are generated together."""
    parts: dict[str, list[Task]] = {}
    for task in chunk.tasks:
        has_episodes = environment.of(task).episode is not None
        parts.setdefault(str(task.columns[SOURCE]) if has_episodes else "", []).append(task)
    found: dict[str, Group] = {}
    for name, tasks in parts.items():
        own = environment.sources[name] if name else None
        found |= {g.task.id: g for g in run_chunk(engine, tokenizer, replace(chunk, tasks=tuple(tasks)), own)}
    return [found[task.id] for task in chunk.tasks]
