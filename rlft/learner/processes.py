"""Learners in several processes: Ray actors, each of which takes its share of every batch.

All of them make the same call at the same time and exchange sums (`ranks`); the first one's answer counts. A process
that dies or stops answering ends the group with an error that names it, since the others cannot go on without it.
`group.py` gives the two learners' methods to it.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from rlft.common import low_memory
from rlft.common.cluster import Cluster, node_address
from rlft.config import AdapterConfig, LearnerConfig
from rlft.learner.ranks import Ranks
from rlft.model.adapter import adapter_hash
from rlft.model.memory import keep_freed_memory
from rlft.types import Adapter

LIMIT = timedelta(minutes=30)
"""How long a process waits for another one in an exchange, and the driver for all of them to start."""
GRACE_S = 5.0
"""How long, after one process failed, the others are heard: its failure may follow from theirs."""


class HasLearner(Protocol):
    """The part of a run's config that the processes read; RL and preference configs have it."""

    @property
    def ray_address(self) -> str: ...

    @property
    def learner(self) -> LearnerConfig: ...

    @property
    def adapter(self) -> AdapterConfig: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One process's answer to a call."""

    result: Any
    """What the learner's method returned, in the first process."""
    digest: str
    """Hash of the tensors in the result; all processes must have the same."""


class LearnerWorker:
    """The Ray actor of one learner process."""

    def open_store(self, *, is_private: bool) -> tuple[str, int]:
        """Open, in the first process, the store that the others connect to; return its (host, port)."""
        host = "127.0.0.1" if is_private else node_address()
        listener = socket.create_server((host, 0))
        port = listener.getsockname()[1]
        self._store = TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())
        return host, port

    def start(
        self,
        ranks: Ranks,
        address: tuple[str, int],
        limit: timedelta,
        learner: type,
        arguments: Mapping[str, Any],
    ) -> None:
        """Meet the other processes and make the learner, of this class and with these arguments.

        Raises:
            ValueError: see the learner.
        """
        keep_freed_memory()
        if ranks.size > 1:
            store = self._store if ranks.rank == 0 else TCPStore(*address, is_master=False, timeout=limit)
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, store=store, rank=ranks.rank, world_size=ranks.size, timeout=limit)
        self._ranks = ranks
        self.learner = learner(**arguments, ranks=ranks)

    def call(self, method: str, *arguments: Any) -> Answer:
        """Call a method of this process's learner; all processes are called alike."""
        result = getattr(self.learner, method)(*arguments)
        return Answer(result=result if self._ranks.rank == 0 else None, digest=_digest(method, result))


class LearnerProcesses:
    """The `learner.workers` processes of a learner, called together from the driver."""

    def __init__(
        self,
        learner: type,
        config: HasLearner,
        *,
        processes: int,
        limit: timedelta = LIMIT,
        **arguments: Any,
    ) -> None:
        """Start the processes and make the learner in each of them.

        Args:
            learner: class of the learner, made from `config` and the further `arguments`.
            processes: all that the run has, for a private cluster.

        Raises:
            ValueError: see the learner.
            RuntimeError: they did not start within `limit`, or failed.
        """
        self._config = config
        self._cluster = Cluster(config.ray_address, processes=processes)
        self._ray = self._cluster.ray
        size = config.learner.workers
        self._workers = self._start_workers(size)
        opened = self._workers[0].open_store.remote(is_private=not config.ray_address)
        address = self._answers([opened], limit)[0]
        shared = self._ray.put({"config": config, **arguments})
        places = [Ranks(rank, size) for rank in range(size)]
        self._answers(
            [
                worker.start.remote(place, address, limit, learner, shared)
                for worker, place in zip(self._workers, places, strict=True)
            ],
            limit,
        )

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the learner in all processes at once, and return what the first one answers.

        Raises:
            RuntimeError: a process died or failed, by name; or it holds other numbers than the first one.
        """
        shared = [self._ray.put(argument) for argument in arguments]
        answers: list[Answer] = self._answers([worker.call.remote(method, *shared) for worker in self._workers])
        first = answers[0]
        # Weights that are split exist once: only the first process has them whole, and none could differ from it.
        if self._config.adapter.kind != "full":
            for rank, answer in enumerate(answers):
                if answer.digest != first.digest:
                    raise RuntimeError(
                        f"learner process {rank} holds other numbers than process 0 ({method}: {answer.digest[:12]} "
                        f"instead of {first.digest[:12]}), so they no longer train the same policy; look for different "
                        "GPUs or libraries among them. `rlft resume` continues from the last checkpoint"
                    )
        return first.result

    def adapter(self, version: int) -> Adapter:
        """A copy of the policy's adapter with its version and content hash."""
        result: Adapter = self.call("adapter", version)
        return result

    def slow_paths(self) -> list[str]:
        """Why the first process's models are slower than they could be, see `Roles`."""
        result: list[str] = self.call("slow_paths")
        return result

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a resumed run needs: tensors by name, and plain numbers."""
        result: tuple[dict[str, Tensor], dict[str, Any]] = self.call("state")
        return result

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Continue from a saved state, in all processes."""
        self.call("load_state", tensors, numbers)

    def close(self) -> None:
        """End the processes."""
        for worker in self._workers:
            self._ray.kill(worker)
        self._workers = []
        self._cluster.close()

    def _start_workers(self, size: int) -> list[Any]:
        learner = self._config.learner
        env = {} if learner.gpus_per_worker else {"CUDA_VISIBLE_DEVICES": ""}
        if not self._config.ray_address:  # nobody outside of this machine is to reach them
            env["GLOO_SOCKET_IFNAME"] = next(name for _, name in socket.if_nameindex() if name.startswith("lo"))
        actor = self._cluster.actor(LearnerWorker, threads=learner.threads, gpus=learner.gpus_per_worker, env=env)
        return [actor.remote() for _ in range(size)]

    def _answers(self, calls: Sequence[Any], limit: timedelta | None = None) -> list[Any]:
        """What the processes answer, in order of rank; the first failure ends all of them."""
        errors = self._ray.exceptions
        answers: dict[int, Any] = {}
        failed: dict[int, BaseException] = {}
        pending = {call: rank for rank, call in enumerate(calls)}
        wait_s = limit.total_seconds() if limit else None
        while pending:
            done, _ = self._ray.wait(list(pending), num_returns=1, timeout=GRACE_S if failed else wait_s)
            if not done:
                break
            rank = pending.pop(done[0])
            try:
                answers[rank] = self._ray.get(done[0])
            except errors.RayTaskError as error:
                failed[rank] = error.cause
            except errors.RayError as error:
                self.close()
                told = f"What Ray says: {error}"
                if isinstance(error, errors.OutOfMemoryError):
                    told = (
                        f"{low_memory.describe(str(error))}. Less memory is needed with fewer learner.workers, a "
                        "smaller learner.tokens_per_microbatch or fewer rollout.workers"
                    )
                raise RuntimeError(
                    f"{self._name(rank)} died; `rlft resume` continues from the last checkpoint. {told}"
                ) from error
        if not failed and not pending:
            return [answers[rank] for rank in sorted(answers)]
        self.close()
        silent = f"; no answer from {', '.join(self._name(rank) for rank in pending.values())}" if pending else ""
        if not failed:
            learner = self._config.learner
            raise RuntimeError(
                f"the learner did not start within {wait_s:.0f} s{silent}; besides the rollout workers the cluster has "
                f"to offer learner.workers={learner.workers} times the CPUs of learner.threads={learner.threads} (one, "
                f"where it was not joined) and learner.gpus_per_worker={learner.gpus_per_worker} GPUs"
            )
        rank, cause = next(iter(failed.items()))
        if isinstance(cause, ValueError):
            raise cause  # a mistake of the user, as if it had been found here
        raise RuntimeError(
            f"{self._name(rank)} failed ({type(cause).__name__}: {cause}){silent}; `rlft resume` continues from the "
            "last checkpoint"
        ) from cause

    def _name(self, rank: int) -> str:
        return f"learner process {rank} of {self._config.learner.workers}"


def _digest(method: str, result: Any) -> str:
    if method == "adapter":
        return str(result.hash)
    return adapter_hash(result[0]) if method == "state" else ""
