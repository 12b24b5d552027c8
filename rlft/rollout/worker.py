"""A rollout worker: one engine and its tokenizer. A plain class; pools put it into Ray actors or use it directly."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import psutil
import torch

from rlft.common.cluster import node_id
from rlft.config import EnvironmentConfig, RunConfig
from rlft.environment import loading
from rlft.environment.contract import Environment
from rlft.model import chat
from rlft.model.memory import keep_freed_memory
from rlft.rollout.chunk import Chunk
from rlft.rollout.engines.by_name import make_engine
from rlft.rollout.engines.contract import Engine
from rlft.rollout.generate import run_chunk
from rlft.rollout.weight_proof import Prover
from rlft.types import Adapter, Group


class Worker(Protocol):
    """What a pool needs of a worker."""

    def load_adapter(self, adapter: Adapter) -> int:
        """Generate with this adapter from now on; returns its version."""
        ...

    def run_chunk(self, chunk: Chunk) -> list[Group]:
        """Generate the groups of a chunk, unscored."""
        ...


MakeWorker = Callable[[RunConfig, str], Worker]
"""Makes a worker from the config and the model's folder."""


class RolloutWorker:
    """An engine, its tokenizer and the environment, which generate chunks with one adapter at a time."""

    def __init__(self, config: RunConfig, model_folder: str) -> None:
        """Load the tokenizer and the engine that the config names."""
        keep_freed_memory()
        torch.set_num_threads(config.rollout.threads)
        self._tokenizer = chat.load_tokenizer(model_folder, special_tokens_in_text=config.model.special_tokens_in_text)
        self._engine: Engine = make_engine(config, model_folder, self._tokenizer)
        self._prove = Prover(self._engine)
        # The driver has loaded it too; here it is needed for its episodes, which never travel.
        self._environments = [(config.environment, loading.load(config.environment))]

    def load_adapter(self, adapter: Adapter) -> int:
        """Load an adapter into the engine, which has to prove that it computes with it; returns its version.

        Raises:
            ValueError: see `Engine.load_adapter`.
            RuntimeError: see `weight_proof.Prover`.
        """
        self._engine.load_adapter(adapter)
        self._prove(adapter)
        return adapter.version

    def unload(self) -> None:
        """Let go of memory, if the engine can, until the next adapter is loaded."""
        if callable(unload := getattr(self._engine, "unload", None)):
            unload()

    def run_chunk(self, chunk: Chunk) -> list[Group]:
        """Generate the groups of a chunk, unscored."""
        return run_chunk(self._engine, self._tokenizer, chunk, self._environment(chunk.environment))

    @property
    def slow_paths(self) -> tuple[str, ...]:
        """Why the engine is slower than it could be, as far as that has come up."""
        return tuple(getattr(self._engine, "slow_paths", ()))

    def _environment(self, wanted: EnvironmentConfig | None) -> Environment:
        """The run's environment, or that of an evaluation set, which is loaded when it is first asked for."""
        found = next((e for c, e in self._environments if wanted is None or c == wanted), None)
        if found is None:
            assert wanted is not None
            found = loading.load(wanted)
            self._environments.append((wanted, found))
        return found

    def close(self) -> None:
        """End the engine, where it has processes or connections of its own."""
        if callable(close := getattr(self._engine, "close", None)):
            close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a worker's process sends back for a chunk."""

    groups: list[Group]
    """The chunk's groups, unscored."""
    seconds: float
    """How long the worker took, without the transfer."""
    rss_mb: float
    """Resident memory of the process in MB of 10^6 bytes."""
    slow_paths: tuple[str, ...] = ()
    """Why its engine is slower than it could be."""


class WorkerProcess:
    """A worker in a Ray actor. A call of its own loads it, so that an error there is not one of starting the actor."""

    def where(self) -> tuple[int, str]:
        """Where this process runs; Ray answers as soon as it has found resources for it.

        Returns:
            (process id, Ray's id of the node that it runs on)
        """
        return os.getpid(), node_id()

    def load(self, make_worker: MakeWorker, config: RunConfig, model_folder: str) -> None:
        """Make the worker, which loads its model."""
        self._process = psutil.Process()
        self._worker = make_worker(config, model_folder)

    def load_adapter(self, adapter: Adapter) -> int:
        """Generate with this adapter from now on; returns its version."""
        return self._worker.load_adapter(adapter)

    def run_chunk(self, chunk: Chunk) -> Reply:
        """Generate a chunk, and measure time and memory."""
        began = time.perf_counter()
        groups = self._worker.run_chunk(chunk)
        seconds, rss_mb = time.perf_counter() - began, self._process.memory_info().rss / 1e6
        slow_paths = tuple(getattr(self._worker, "slow_paths", ()))
        return Reply(groups=groups, seconds=seconds, rss_mb=rss_mb, slow_paths=slow_paths)
