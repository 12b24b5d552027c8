"""Rollout pools for tests: actors that are lent instead of started, and workers that hang, die and dawdle on demand."""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from rlft.config import RunConfig
from rlft.rollout.chunk import Chunk, make_chunks
from rlft.rollout.engines.contract import EngineLostError
from rlft.rollout.ray_pool import RayPool
from rlft.types import Adapter, Completion, Group, SamplingParams, Task, Trajectory, Turn

STOCK: deque[Any] = deque()
"""Actors that no pool has at the moment."""


class LentPool(RayPool):
    """A Ray pool that takes its actors from a stock and gives them back: to start one takes seconds."""

    def _start_actor(self) -> Any:
        while STOCK:
            actor = STOCK.popleft()
            call = actor.__ray_ready__.remote()
            if not self._ray.wait([call], timeout=0.1)[0]:
                return actor  # is still starting, or busy
            with suppress(self._ray.exceptions.RayError):
                self._ray.get(call)
                return actor
        return super()._start_actor()

    def _release(self, actor: Any) -> None:
        STOCK.append(actor)


def process_ids(pool: RayPool) -> list[int]:
    """Process ids of a pool's idle workers, in order."""
    import ray

    return ray.get([slot.actor.__ray_call__.remote(lambda self: os.getpid()) for slot in pool.slots])


class FakeWorker:
    """Answers each sample with a token that follows from its seed and from the adapter's version.

    What it does besides is said by files in its "model folder" that are named after a task, or `load` or
    `load_adapter`: the first worker that gets the task, or loads, takes the file away and does what it says.
    """

    def __init__(self, config: RunConfig, model_folder: str) -> None:
        self.folder = Path(model_folder)
        self.version = -1
        if (self.folder / "broken").exists():
            raise ValueError("this model cannot be loaded")
        self.follow("load")

    def load_adapter(self, adapter: Adapter) -> int:
        self.follow("load_adapter")
        self.version, self.hash = adapter.version, adapter.hash
        return adapter.version

    def run_chunk(self, chunk: Chunk) -> list[Group]:
        if chunk.version != self.version:
            raise ValueError(f"asked for adapter {chunk.version}, but {self.version} is loaded")
        with (self.folder / "log").open("a") as log:
            log.write(f"{os.getpid()} {chunk.tasks[0].id} {chunk.version}\n")
        for task in chunk.tasks:
            self.follow(task.id)
        return [self.group(chunk, task) for task in chunk.tasks]

    @property
    def slow_paths(self) -> tuple[str, ...]:
        """What the file `slow` says, after every chunk."""
        file = self.folder / "slow"
        return (file.read_text(),) if file.exists() else ()

    def follow(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self.obey((self.folder / name).read_text(), self.folder / name)

    def obey(self, what: str, path: Path) -> None:
        if not what.startswith("always "):
            path.unlink()
        verb, _, argument = what.removeprefix("always ").partition(" ")
        if verb == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        elif verb == "sleep":
            time.sleep(float(argument))
        elif verb == "wait":
            while not (self.folder / argument).exists():
                time.sleep(0.02)
        elif verb == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        elif verb == "lose":
            raise EngineLostError(argument)
        elif verb == "raise":
            raise KeyError(argument)

    def group(self, chunk: Chunk, task: Task) -> Group:
        seeds = chunk.seeds(task)
        return Group(
            task=task,
            trajectories=tuple(
                Trajectory(task=task, sample_index=index, seed=seed, turns=(self.turn(seed),), text="")
                for index, seed in enumerate(seeds)
            ),
        )

    def turn(self, seed: int) -> Turn:
        completion = Completion(
            token_ids=(seed % 1000, self.version + 1),
            logprobs=(-1.0, -1.0),
            finish_reason="stop",
            adapter_version=self.version,
            adapter_hash=self.hash,
        )
        return Turn(prompt_ids=(1, 2), completion=completion)


def fake_chunks(names: Sequence[str], *, version: int = 0, step: int = 1, stream: str = "train") -> list[Chunk]:
    """A chunk of one task for each name."""
    return make_chunks(
        [Task(id=name, messages=({"role": "user", "content": name},)) for name in names],
        tasks_per_chunk=1,
        samples_per_task=2,
        params=SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=4),
        run_seed=0,
        stream=stream,
        step=step,
        version=version,
    )


def tokens(groups: Sequence[Group]) -> list[Any]:
    """What the samples of all groups say, in order."""
    return [(group.task.id, [t.token_ids for t in group.trajectories]) for group in groups]
