"""Pools of rollout workers: Ray actors, or one worker in this process. Both give the same groups.

A worker that dies is replaced and exactly the chunk that it had is redone; what it had finished is kept. Since a
chunk's
result depends on nothing but the chunk, the curve does not show it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rlft.cluster import Cluster
from rlft.config import RunConfig
from rlft.rollout.chunk import Chunk
from rlft.rollout.worker import RolloutWorker
from rlft.types import Adapter, Group

OnChunk = Callable[[int, int], None]
"""Called with (chunks done, chunks in all)."""
OnEvent = Callable[[str, str], None]
"""Called with (kind, message) when something noteworthy happens."""


class RolloutPool(Protocol):
    """Generates groups with the adapter that was published last."""

    def publish(self, adapter: Adapter) -> None:
        """Give every worker this adapter."""
        ...

    def run(self, chunks: Sequence[Chunk], on_chunk: OnChunk | None = None) -> list[Group]:
        """The groups of all chunks, in order.

        Raises:
            RuntimeError: workers died more often than `rollout.max_restarts` allows.
        """
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...


class InlinePool:
    """One worker in this process: breakpoints work, and Ray is not needed."""

    def __init__(self, config: RunConfig, model_folder: str) -> None:
        """Load the worker."""
        self._worker = RolloutWorker(config, model_folder)

    def publish(self, adapter: Adapter) -> None:
        """See `RolloutPool`."""
        self._worker.load_adapter(adapter)

    def run(self, chunks: Sequence[Chunk], on_chunk: OnChunk | None = None) -> list[Group]:
        """See `RolloutPool`."""
        groups: list[Group] = []
        for done, chunk in enumerate(chunks, start=1):
            groups += self._worker.run_chunk(chunk)
            if on_chunk:
                on_chunk(done, len(chunks))
        return groups

    def close(self) -> None:
        """See `RolloutPool`."""


class RayPool:
    """Ray actors. The adapter is put into the object store once and read there by every worker."""

    def __init__(self, config: RunConfig, model_folder: str, on_event: OnEvent | None = None) -> None:
        """Join or start a cluster and start the workers.

        Raises:
            ConnectionError: `ray_address` does not answer.
        """
        self._cluster = Cluster(config)
        self._ray = self._cluster.ray
        self._config = config
        self._model_folder = model_folder
        self._on_event = on_event or (lambda kind, message: None)
        self._adapter: Any = None
        self._restarts = 0
        self._workers = [self._start_worker() for _ in range(config.rollout.workers)]

    def publish(self, adapter: Adapter) -> None:
        """See `RolloutPool`."""
        self._adapter = self._ray.put(adapter)
        loading = [worker.load_adapter.remote(self._adapter) for worker in self._workers]
        for index, done in enumerate(loading):
            self._await_adapter(index, done)

    def run(self, chunks: Sequence[Chunk], on_chunk: OnChunk | None = None) -> list[Group]:
        """See `RolloutPool`."""
        results: dict[int, list[Group]] = {}
        waiting = deque(range(len(chunks)))
        running: dict[Any, tuple[int, int]] = {}
        idle = deque(range(len(self._workers)))
        while len(results) < len(chunks):
            while waiting and idle:
                number, index = waiting.popleft(), idle.popleft()
                running[self._workers[index].run_chunk.remote(chunks[number])] = (number, index)
            done, _ = self._ray.wait(list(running), num_returns=1)
            number, index = running.pop(done[0])
            try:
                results[number] = self._ray.get(done[0])
            except self._ray.exceptions.RayActorError as error:
                self._replace(index, error)
                waiting.appendleft(number)
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause from None  # the worker's own exception, as if it had run here
            else:
                if on_chunk:
                    on_chunk(len(results), len(chunks))
            idle.append(index)
        return [group for number in range(len(chunks)) for group in results[number]]

    def close(self) -> None:
        """See `RolloutPool`."""
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers = []
        self._cluster.close()

    def _start_worker(self) -> Any:
        rollout = self._config.rollout
        actor = self._cluster.actor(RolloutWorker, threads=rollout.threads, gpus=rollout.gpus_per_worker)
        return actor.remote(self._config, self._model_folder)

    def _await_adapter(self, index: int, done: Any) -> None:
        try:
            self._ray.get(done)
        except self._ray.exceptions.RayActorError as error:
            self._replace(index, error)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from None

    def _replace(self, index: int, error: Exception) -> None:
        self._restarts += 1
        if self._restarts > self._config.rollout.max_restarts:
            raise RuntimeError(
                f"rollout workers died {self._restarts} times, more than rollout.max_restarts="
                f"{self._config.rollout.max_restarts} allows; the last one: {error}"
            ) from error
        self._on_event("worker_restarted", f"rollout worker {index} died and was replaced; its chunk is redone")
        self._workers[index] = self._start_worker()
        if self._adapter is not None:
            self._await_adapter(index, self._workers[index].load_adapter.remote(self._adapter))


def make_pool(config: RunConfig, model_folder: str, on_event: OnEvent | None = None) -> RolloutPool:
    """The pool that `backend` names."""
    if config.backend == "inline":
        return InlinePool(config, model_folder)
    return RayPool(config, model_folder, on_event)
