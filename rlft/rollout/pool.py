"""Pools of rollout workers: Ray actors (`ray_pool`), or one worker in this process. Both give the same groups."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import psutil

from rlft.config import RunConfig
from rlft.model.layers.slow_paths import SLOW_PATH
from rlft.rollout.chunk import Chunk
from rlft.rollout.ray_pool import OnEvent, RayPool
from rlft.rollout.work_queue import OnChunk
from rlft.rollout.worker import RolloutWorker
from rlft.types import Adapter, Group


class PendingGroups(Protocol):
    """Chunks that were submitted, and a way to wait for their groups."""

    def collect(self, on_chunk: OnChunk | None = None) -> list[Group]:
        """Wait for the groups of all chunks and return them in the chunks' order; call it once.

        An exception of an engine or of the environment is raised as if it had run here.

        Raises:
            RuntimeError: workers died more often than `rollout.max_restarts` allows, or none could be started.
        """
        ...


class RolloutPool(Protocol):
    """Rollout workers that generate groups, each with the adapter that was published last before it was submitted."""

    def publish(self, adapter: Adapter) -> None:
        """Give every worker this adapter, for what is submitted from now on."""
        ...

    def submit(self, chunks: Sequence[Chunk]) -> PendingGroups:
        """Hand in chunks, which name the adapter version that was published last."""
        ...

    def run(self, chunks: Sequence[Chunk], on_chunk: OnChunk | None = None) -> list[Group]:
        """Submit chunks and wait for their groups."""
        ...

    def rest(self) -> None:
        """The learner works now: let go of memory that it could use, until there is something to generate."""
        ...

    @property
    def busy_s(self) -> float:
        """Seconds so far in which at least one worker was at work."""
        ...

    @property
    def worker_rss_mb(self) -> float:
        """Resident memory of the largest worker in MB, as it was after its last chunk."""
        ...

    def close(self) -> None:
        """Stop the workers."""
        ...


MakePool = Callable[[RunConfig, str, OnEvent | None], RolloutPool]
"""Makes a pool from the config, the model's folder, and who is told of events."""


class InlinePool:
    """One worker in this process: breakpoints work, and Ray is not needed.

    Work is done when it is collected, or at the latest before another adapter is loaded.
    """

    def __init__(self, config: RunConfig, model_folder: str, on_event: OnEvent | None = None) -> None:
        """Load the engine."""
        self._worker = RolloutWorker(config, model_folder)
        self._on_event = on_event or (lambda kind, message: None)
        self._open: list[_InlineGroups] = []
        self._adapter: Adapter | None = None
        self._is_resting = False
        self._process = psutil.Process(os.getpid())
        self.busy_s = 0.0

    def publish(self, adapter: Adapter) -> None:
        """Load an adapter, after the chunks that were submitted for the one before are generated."""
        for pending in self._open:
            self._finish(pending)
        self._load(adapter)

    def submit(self, chunks: Sequence[Chunk]) -> PendingGroups:
        """Hand in chunks, to be generated when their groups are asked for."""
        self._open.append(_InlineGroups(chunks, self._finish))
        return self._open[-1]

    def run(self, chunks: Sequence[Chunk], on_chunk: OnChunk | None = None) -> list[Group]:
        """Generate chunks and return their groups."""
        return self.submit(chunks).collect(on_chunk)

    def rest(self) -> None:
        """Unload the adapter, unless chunks are left that it has to generate."""
        if not self._open:
            self._worker.unload()
            self._is_resting = True

    @property
    def worker_rss_mb(self) -> float:
        """Resident memory of this process in MB."""
        return float(self._process.memory_info().rss / 1e6)

    def close(self) -> None:
        """End the worker's engine."""
        self._worker.close()

    def _load(self, adapter: Adapter) -> None:
        self._worker.load_adapter(adapter)
        self._adapter, self._is_resting = adapter, False

    def _finish(self, pending: _InlineGroups, on_chunk: OnChunk | None = None) -> None:
        """Generate those of its groups that are not there yet."""
        began = time.monotonic()
        if self._is_resting and self._adapter is not None and pending.chunks:
            self._load(self._adapter)
        for done, chunk in enumerate(pending.chunks, start=1):
            pending.groups += self._worker.run_chunk(chunk)
            for reason in self._worker.slow_paths:
                self._on_event(SLOW_PATH, f"rollout engine: {reason}")
            if on_chunk:
                on_chunk(done, len(pending.chunks))
        pending.chunks = ()
        self._open = [other for other in self._open if other is not pending]
        self.busy_s += time.monotonic() - began


class _InlineGroups:
    """Chunks that wait, then their groups; a `PendingGroups`."""

    def __init__(self, chunks: Sequence[Chunk], finish: Callable[[_InlineGroups, OnChunk | None], None]) -> None:
        self.chunks = tuple(chunks)
        self.groups: list[Group] = []
        self._finish = finish

    def collect(self, on_chunk: OnChunk | None = None) -> list[Group]:
        self._finish(self, on_chunk)
        return self.groups


def make_pool(config: RunConfig, model_folder: str, on_event: OnEvent | None = None) -> RolloutPool:
    """Make the pool that `backend` names: Ray actors, or one worker in this process."""
    if config.backend == "inline":
        return InlinePool(config, model_folder, on_event)
    return RayPool(config, model_folder, on_event)
