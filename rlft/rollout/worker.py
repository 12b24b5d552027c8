"""A rollout worker: one engine and its tokenizer. A plain class; `pool` puts it into Ray actors or uses it directly."""

from __future__ import annotations

from pathlib import Path

import torch

from rlft import chat
from rlft.config import RunConfig
from rlft.environment import loading
from rlft.memory import keep_freed_memory
from rlft.rollout.chunk import Chunk
from rlft.rollout.engine import Engine
from rlft.rollout.engines import make_engine
from rlft.rollout.episode import run_chunk
from rlft.types import Adapter, Group


class RolloutWorker:
    """Holds an adapter and runs chunks with it."""

    def __init__(self, config: RunConfig, model_folder: str) -> None:
        """Load the tokenizer and the engine that the config names."""
        keep_freed_memory()
        torch.set_num_threads(config.rollout.threads)
        self._tokenizer = chat.load_tokenizer(Path(model_folder))
        self._engine: Engine = make_engine(config, model_folder, self._tokenizer)
        # The driver has loaded it too; here it is needed for its episodes, which never travel.
        self._environment = loading.load(config.environment)

    def load_adapter(self, adapter: Adapter) -> int:
        """See `Engine.load_adapter`; returns the version now held."""
        self._engine.load_adapter(adapter)
        return adapter.version

    def run_chunk(self, chunk: Chunk) -> list[Group]:
        """See `episode.run_chunk`."""
        return run_chunk(self._engine, self._tokenizer, chunk, self._environment)
