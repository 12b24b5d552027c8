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
from rlft.config import RunConfig
from rlft.environment import loading
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
        """See `Engine.load_adapter`; returns the version now held."""
        ...

    def run_chunk(self, chunk: Chunk) -> list[Group]:
        """See `generate.run_chunk`."""
        ...


MakeWorker = Callable[[RunConfig, str], Worker]
"""Makes a worker from the config and the model's folder."""


class RolloutWorker:
    """Holds an adapter and runs chunks with it."""

    def __init__(self, config: RunConfig, model_folder: str) -> None:
        """Load the tokenizer and the engine that the config names."""
        keep_freed_memory()
        torch.set_num_threads(config.rollout.threads)
        self._tokenizer = chat.load_tokenizer(model_folder, special_tokens_in_text=config.model.special_tokens_in_text)
        self._engine: Engine = make_engine(config, model_folder, self._tokenizer)
        self._prove = Prover(self._engine)
        # The driver has loaded it too; here it is needed for its episodes, which never travel.
        self._environment = loading.load(config.environment)

    def load_adapter(self, adapter: Adapter) -> int:
        """See `Engine.load_adapter` and `weight_proof.Prover`; returns the version now held."""
        self._engine.load_adapter(adapter)
        self._prove(adapter)
        return adapter.version

    def run_chunk(self, chunk: Chunk) -> list[Group]:
        """See `generate.run_chunk`."""
        return run_chunk(self._engine, self._tokenizer, chunk, self._environment)

    def close(self) -> None:
        """End the engine, where it has processes or connections of its own."""
        if callable(close := getattr(self._engine, "close", None)):
            close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What a worker's process sends back for a chunk."""

    groups: list[Group]
    seconds: float
    """What it took, without the way there and back."""
    rss_mb: float
    """Resident memory of the process in MB of 10^6 bytes."""


class WorkerProcess:
    """A worker in a Ray actor. It is loaded by a call of its own, whose error is then the worker's and not Ray's."""

    def where(self) -> tuple[int, str]:
        """Answers as soon as the process has its resources.

        Returns:
            (process id, Ray's id of the node that it runs on)
        """
        return os.getpid(), node_id()

    def load(self, make_worker: MakeWorker, config: RunConfig, model_folder: str) -> None:
        """Make the worker."""
        self._process = psutil.Process()
        self._worker = make_worker(config, model_folder)

    def load_adapter(self, adapter: Adapter) -> int:
        """See `Worker`."""
        return self._worker.load_adapter(adapter)

    def run_chunk(self, chunk: Chunk) -> Reply:
        """See `Worker`."""
        began = time.perf_counter()
        groups = self._worker.run_chunk(chunk)
        return Reply(groups=groups, seconds=time.perf_counter() - began, rss_mb=self._process.memory_info().rss / 1e6)
