"""Rollout workers as Ray actors, and the supervisor that feeds and replaces them.

Every slot among the workers is a coroutine: it starts an actor, gives it one chunk at a time, and when the actor is
lost (killed, hung, its node gone) puts the chunk back and starts the next one. What was finished is kept, and since a
chunk's result depends on nothing but the chunk, the curve does not show it. The coroutines live in a thread of their
own, so that workers are fed and watched while the driver learns.

The adapter is put into the object store once per version and fetched by every worker before its first chunk of that
version. A submission holds on to it; when nobody needs it any more Ray frees it.
"""

from __future__ import annotations

import asyncio
import json
import shlex
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar

from rlft.common import low_memory
from rlft.common.cluster import Cluster, Ref, RemoteMethod
from rlft.config import RunConfig
from rlft.model.layers.slow_paths import SLOW_PATH
from rlft.rollout.chunk import Chunk
from rlft.rollout.engines.contract import EngineLostError
from rlft.rollout.work_queue import Job, OnChunk, Publication, Submission, WorkQueue
from rlft.rollout.worker import MakeWorker, Reply, RolloutWorker, WorkerProcess
from rlft.types import Adapter, Group

OnEvent = Callable[[str, str], None]
"""Called with (kind, message) when something noteworthy happens; with `slow_path` after every chunk."""

PATIENCE_S = 60.0
"""How long a worker may take to start before the wait for it is noted."""
LIMIT_S = 1800.0
"""How long all of them may take to start while there is work and nobody does it."""
LOAD_S = 600.0
"""Loading may take as long as a chunk, and at least this long: a small deadline is meant for chunks."""
PAUSE_S = 10.0
"""How long a slot waits before it replaces the first worker that was ended for memory; for each later one 3 times as
long: the peak may be somebody else's."""
LONGEST_PAUSE_S = 120.0
NAMED = 8
"""Tasks of a chunk that an error names."""


T = TypeVar("T")


class WorkerActor(Protocol):
    """Ray's handle of an actor that runs a `WorkerProcess`."""

    where: RemoteMethod[[], tuple[int, str]]
    load: RemoteMethod[[MakeWorker, RunConfig, str], None]
    load_adapter: RemoteMethod[[Ref[Adapter]], int]
    run_chunk: RemoteMethod[[Chunk], Reply]


@dataclass(slots=True, kw_only=True)
class WorkerSlot:
    """One of the pool's workers; it keeps its number when its actor is lost and replaced."""

    number: int
    actor: WorkerActor
    process_id: int = 0
    """0 until it has its resources."""
    node_id: str = ""
    """Ray's id of the node that it runs on."""
    is_ready: bool = False
    """Whether it has loaded its model."""
    holds: int | None = None
    """Serial number of the publication that the actor has loaded."""
    rss_mb: float = 0.0
    """Resident memory in MB of 10^6 bytes, as it was after its last chunk."""


class RayPool:
    """Rollout workers that are Ray actors; a `pool.RolloutPool`."""

    def __init__(
        self,
        config: RunConfig,
        model_folder: str,
        on_event: OnEvent | None = None,
        *,
        make_worker: MakeWorker = RolloutWorker,
    ) -> None:
        """Join or start a cluster and start the workers, which load while the caller goes on.

        Args:
            make_worker: what runs in the actors.

        Raises:
            ConnectionError: `ray_address` does not answer.
        """
        self._cluster = Cluster(config.ray_address, processes=config.processes)
        self._ray = self._cluster.ray
        self._config = config
        self._model_folder = model_folder
        self._make_worker = make_worker
        self._on_event = on_event or (lambda kind, message: None)
        self._newest: Publication | None = None
        self._published = self._restarts = self._ended_for_memory = 0
        self._queue = WorkQueue(hedge_after=config.rollout.hedge_after)
        self.slots = [WorkerSlot(number=n, actor=self._start_actor()) for n in range(config.rollout.workers)]
        """The workers, in an order that stays."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rollout supervisor", daemon=True)
        self._thread.start()
        for slot in self.slots:
            asyncio.run_coroutine_threadsafe(self._guard(self._serve(slot)), self._loop)

    def publish(self, adapter: Adapter) -> None:
        """Put an adapter into the object store; workers load it before the chunks that are submitted from now on."""
        self._published += 1
        self._newest = Publication(serial=self._published, version=adapter.version, ref=self._ray.put(adapter))

    def rest(self) -> None:
        """Nothing: the workers' memory is their own, and they may be at work."""

    def submit(self, chunks: Sequence[Chunk]) -> Submission:
        """Hand in chunks, which idle workers take at once, while the caller goes on.

        Raises:
            ValueError: a chunk names another version than the one that was published last, or none was.
        """
        newest = self._newest
        if newest is None:
            raise ValueError("no adapter was published, so nothing can generate these chunks; publish one first")
        for chunk in chunks:
            if chunk.version != newest.version:
                raise ValueError(
                    f"a chunk asks for adapter version {chunk.version}, but {newest.version} was published last"
                )
        submission = Submission(chunks, newest)
        self._loop.call_soon_threadsafe(self._queue.add, submission)
        return submission

    def run(self, chunks: Sequence[Chunk], on_chunk: OnChunk | None = None) -> list[Group]:
        """Submit chunks and wait for their groups."""
        return self.submit(chunks).collect(on_chunk)

    @property
    def busy_s(self) -> float:
        """Seconds so far in which at least one worker was at work."""
        return self._queue.busy_s

    @property
    def worker_rss_mb(self) -> float:
        """Resident memory of the largest worker in MB, as it was after its last chunk."""
        return max(slot.rss_mb for slot in self.slots)

    def close(self) -> None:
        """End the workers, whatever they are at, and leave the cluster."""
        asyncio.run_coroutine_threadsafe(_end_all_others(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        for slot in self.slots:
            self._release(slot.actor)
        self.slots = []
        self._newest = None
        self._cluster.close()

    def _start_actor(self) -> WorkerActor:
        rollout = self._config.rollout
        cls = self._cluster.actor(WorkerProcess, threads=rollout.threads, gpus=rollout.gpus_per_worker)
        actor: WorkerActor = cls.remote()
        return actor

    def _release(self, actor: WorkerActor) -> None:
        self._ray.kill(actor)

    async def _guard(self, serving: Awaitable[None]) -> None:
        """Serve a slot; an error that ends it ends the pool, and `collect` raises it."""
        try:
            await serving
        except self._ray.exceptions.RayError as error:
            broken = RuntimeError(f"the Ray cluster no longer answers; `rlft resume` continues the run: {error}")
            broken.__cause__ = error
            self._queue.break_(broken)
        except Exception as error:  # whatever it is, `collect` raises it
            self._queue.break_(error)

    async def _serve(self, slot: WorkerSlot) -> None:
        """Run chunks on this slot; restart its actor when it is lost."""
        errors = self._ray.exceptions
        while True:
            job: Job | None = None
            try:
                await self._load(slot)
                while True:
                    job = None
                    job = await self._queue.take()
                    try:
                        reply = await self._attempt(slot, job)
                    except errors.RayTaskError as error:
                        self._queue.fail(job, error.cause)
                    else:
                        slot.rss_mb = reply.rss_mb
                        for reason in reply.slow_paths:
                            self._on_event(SLOW_PATH, f"rollout engine: {reason}")
                        self._queue.finish(job, reply.groups)
            except errors.RayTaskError as error:
                raise error.cause from None  # it could not load: the user's mistake, as if it had been found here
            except (errors.RayError, EngineLostError, TimeoutError) as error:
                # Also a full node's choice to kill it and a lost object: the chunk is whole and can be redone.
                if job is not None:
                    is_suspect = slot.holds is not None and not isinstance(error, errors.OutOfMemoryError)
                    self._queue.give_back(job, is_suspect=is_suspect)
                await self._replace(slot, job, error)

    async def _load(self, slot: WorkerSlot) -> None:
        """Wait until the actor has found its resources, however long that takes, and has loaded its model.

        Raises:
            TimeoutError: it hangs while it loads.
            RuntimeError: no worker could be started within `LIMIT_S`, and there is work.
        """
        starting = asyncio.ensure_future(self._answer(slot.actor.where.remote()))
        waited = 0.0
        while True:
            try:
                async with asyncio.timeout(PATIENCE_S) as timeout:
                    slot.process_id, slot.node_id = await asyncio.shield(starting)
                break
            except TimeoutError:
                if not timeout.expired():
                    raise
                waited += PATIENCE_S
                self._note_waiting(slot, waited)
        limit_s = max(self._config.rollout.deadline_s, LOAD_S)
        async with _within(limit_s, f"did not load its model within {limit_s:g} s"):
            await self._answer(slot.actor.load.remote(self._make_worker, self._config, self._model_folder))
        slot.is_ready = True

    def _note_waiting(self, slot: WorkerSlot, waited: float) -> None:
        rollout = self._config.rollout
        cpus = self._cluster.cpus(rollout.threads)
        needs = f"{'a CPU' if cpus == 1 else f'rollout.threads={cpus} CPUs'} and "
        needs += f"rollout.gpus_per_worker={rollout.gpus_per_worker:g} GPUs"
        message = f"rollout worker {slot.number} waits for {needs}, for {waited:.0f} s now"
        if waited >= LIMIT_S and self._queue.has_waiting and not any(p.process_id for p in self.slots):
            raise RuntimeError(f"{message}, and there is no other worker; the cluster must offer that for each of them")
        if waited == PATIENCE_S:
            self._on_event("worker_waiting", f"{message}; the others go on without it")

    async def _attempt(self, slot: WorkerSlot, job: Job) -> Reply:
        """Run a chunk on a worker within the deadline, after loading its adapter where the worker has another."""
        needed = job.adapter
        if self._config.rollout.update_in_flight and self._newest is not None:
            needed = self._newest
        deadline_s = self._config.rollout.deadline_s
        async with _within(deadline_s, f"did not finish a chunk within rollout.deadline_s={deadline_s:g}"):
            if slot.holds != needed.serial:
                slot.holds = None
                await self._answer(slot.actor.load_adapter.remote(needed.ref))
                slot.holds = needed.serial
            chunk = replace(job.chunk, version=needed.version)
            return await self._answer(slot.actor.run_chunk.remote(chunk))

    async def _answer(self, ref: Ref[T]) -> T:
        """Wait for the result of a call to an actor.

        Raises:
            RayError: the worker, or an argument of the call, is lost.
            EngineLostError: the worker's engine is lost.
            RayTaskError: the call raised anything else, its `cause`.
        """
        try:
            return await asyncio.wrap_future(ref.future())
        except self._ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, self._ray.exceptions.RayError | EngineLostError):
                raise error.cause from None
            raise

    async def _replace(self, slot: WorkerSlot, job: Job | None, error: Exception) -> None:
        """Start another actor in the slot of a lost one, after a pause if it was ended for memory.

        Raises:
            RuntimeError: that happened too often.
        """
        self._ray.kill(slot.actor)  # a hung one still has its resources
        self._restarts += 1
        is_out_of_memory = isinstance(error, self._ray.exceptions.OutOfMemoryError)
        happened = str(error) if isinstance(error, TimeoutError) else "died" if slot.is_ready else "died as it loaded"
        if is_out_of_memory:
            happened += f": {low_memory.describe(str(error))}"
        if self._restarts > self._config.rollout.max_restarts:
            raise RuntimeError(self._last_words(slot, job, happened, error)) from error
        redone = "; its chunk is redone" if job is not None else ""
        slot.process_id, slot.is_ready, slot.holds, slot.rss_mb = 0, False, None, 0.0
        if is_out_of_memory:
            pause_s = min(LONGEST_PAUSE_S, PAUSE_S * 3**self._ended_for_memory)
            self._ended_for_memory += 1
            told = f"rollout worker {slot.number} {happened}. It is replaced in {pause_s:g} s{redone}"
            self._on_event("low_memory", f"{told}. {_LESS_MEMORY}")
            await asyncio.sleep(pause_s)
        else:
            self._on_event("worker_restarted", f"rollout worker {slot.number} {happened} and was replaced{redone}")
        slot.actor = self._start_actor()

    def _last_words(self, slot: WorkerSlot, job: Job | None, happened: str, error: Exception) -> str:
        """The error that ends the run: a chunk that cost several workers, or workers that died for other reasons."""
        allowed = f"more than rollout.max_restarts={self._config.rollout.max_restarts} allows"
        if isinstance(error, self._ray.exceptions.OutOfMemoryError):
            return f"rollout workers died {self._restarts} times, {allowed}; the last one {happened}. {_LESS_MEMORY}"
        last = happened if isinstance(error, TimeoutError) else f"{happened}: {error}"
        suspect = self._queue.suspect
        if suspect is not None and suspect.losses > 1:
            return (
                f"{_name(suspect.chunk)} cost {suspect.losses} rollout workers, of {self._restarts} that were lost in "
                f"this run, {allowed}. {_advice(suspect.chunk, self._config)}. The last worker {last}"
            )
        words = f"rollout workers died {self._restarts} times, {allowed}; the last one {last}"
        if job is None or slot.holds is None:  # it had not begun with any tasks
            return words
        return f"{words}. It had {_name(job.chunk)}. {_advice(job.chunk, self._config)}"


_LESS_MEMORY = (
    "Less memory is needed with fewer rollout.workers, a smaller rollout.tasks_per_chunk, a lower "
    "sampling.max_new_tokens or a smaller model; or end other programs on that machine"
)


def _name(chunk: Chunk) -> str:
    ids = [repr(task.id) for task in chunk.tasks]
    more = f" and {len(ids) - NAMED} more" if len(ids) > NAMED else ""
    where = f"step {chunk.step}" if chunk.step else "an evaluation"
    return f"the chunk of {where} with the tasks {', '.join(ids[:NAMED])}{more}"


def _advice(chunk: Chunk, config: RunConfig) -> str:
    task, source = chunk.tasks[0], config.environment.source_of(chunk.tasks[0].columns.get("environment"))
    task_id = task.id.removeprefix(f"{getattr(source, 'name', '')}/")
    args = source.args.items()
    words = [source.path, *(f"--args={name}={json.dumps(value, default=str)}" for name, value in args)]
    return (
        "The environment (its step), or the engine, may hang or crash on them. To try the environment: "
        f"`rlft env play {shlex.join([*words, f'--task={task_id}'])}` or `rlft env check {shlex.join(words)}`"
    )


@asynccontextmanager
async def _within(seconds: float, otherwise: str) -> AsyncIterator[None]:
    """Limit what is within to so many seconds; the TimeoutError says `otherwise`."""
    limit = asyncio.timeout(seconds)
    try:
        async with limit:
            yield
    except TimeoutError:
        if not limit.expired():  # the worker's own
            raise
        raise TimeoutError(otherwise) from None


async def _end_all_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
