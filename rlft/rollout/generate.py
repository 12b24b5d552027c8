"""Generating a chunk: from tasks to unscored trajectories.

A single-turn task is one action; `episodes` has the episodes that go on.
"""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from rlft.environment.contract import Environment
from rlft.model import chat
from rlft.rollout.chunk import Chunk
from rlft.rollout.engines.contract import Engine, Request
from rlft.rollout.episodes import run_episodes
from rlft.types import Group, Trajectory, Turn


def run_chunk(
    engine: Engine, tokenizer: PreTrainedTokenizerBase, chunk: Chunk, environment: Environment | None = None
) -> list[Group]:
    """Generate a chunk's groups, unscored.

    Args:
        environment: whose episodes the tasks are; None, or one without episodes, for single-turn tasks.

    Raises:
        ValueError: see `Engine.generate`; an episode that cannot start.
    """
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
