"""The queue of chunks: which one an idle worker gets next, also again after a loss or beside a slow worker.

It knows nothing of Ray but the type of a reference. All of it happens in one event loop, but for `Submission.collect`,
which another thread calls.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush
from queue import SimpleQueue
from statistics import median

from rlft.common.cluster import Ref
from rlft.rollout.chunk import Chunk
from rlft.types import Adapter, Group

OnChunk = Callable[[int, int], None]
"""Called with (chunks done, chunks in all)."""

MIN_FINISHED = 3
"""Chunks of a stream that must have finished before their median says which one is late."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Publication:
    """An adapter in the object store."""

    serial: int
    """Which publication it is; a version may be published again."""
    version: int
    """The adapter's version."""
    ref: Ref[Adapter]
    """Where workers fetch it; Ray keeps it for as long as somebody has this."""


class Submission:
    """Chunks that were handed in together; a `pool.PendingGroups`."""

    def __init__(self, chunks: Sequence[Chunk], adapter: Publication) -> None:
        """Make a job of each chunk.

        Args:
            adapter: the publication that the chunks name.
        """
        self.jobs = [Job(chunk=chunk, number=n, adapter=adapter, submission=self) for n, chunk in enumerate(chunks)]
        self._answers: SimpleQueue[tuple[int, list[Group]] | BaseException] = SimpleQueue()

    def collect(self, on_chunk: OnChunk | None = None) -> list[Group]:
        """Wait for the groups of all chunks and return them in the chunks' order; call it once."""
        results: dict[int, list[Group]] = {}
        while len(results) < len(self.jobs):
            answer = self._answers.get()
            if isinstance(answer, BaseException):
                raise answer
            number, groups = answer
            results[number] = groups
            if on_chunk:
                on_chunk(len(results), len(self.jobs))
        return [group for number in range(len(self.jobs)) for group in results[number]]

    def answer(self, job: Job, groups: list[Group]) -> None:
        """Hand over a chunk's groups."""
        self._answers.put((job.number, groups))

    def fail(self, error: BaseException) -> None:
        """End the submission: `collect` raises this error."""
        self._answers.put(error)


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """A chunk in the queue or with a worker, and what has happened to it."""

    chunk: Chunk
    number: int
    """Position among the chunks of its submission."""
    adapter: Publication
    """The adapter that generates it, which Ray keeps as long as this job does."""
    submission: Submission
    """Where its groups go."""
    attempts: int = 0
    """Workers that have it now."""
    started: float = 0.0
    """When the last of them began, in seconds of the monotonic clock."""
    losses: int = 0
    """Workers that were lost while they had its tasks."""
    is_done: bool = False
    """Whether its groups are there, or its submission has failed."""
    order: tuple[int, int] = (0, 0)
    """Priority; the lowest is taken first."""


@dataclass(slots=True)
class WorkQueue:
    """Jobs that wait for workers or are with them.

    The work of an earlier step comes first: a refill is needed before what was submitted ahead, and an evaluation,
    whose chunks are of step 0, before everything.
    """

    hedge_after: float = 0.0
    """See `RolloutConfig.hedge_after`."""
    running: set[Job] = field(default_factory=set)
    """Jobs that some worker has."""
    hedged: int = 0
    """Chunks that were given to a second worker."""
    error: BaseException | None = None
    """Why no job will be done any more."""
    _waiting: list[tuple[tuple[int, int], Job]] = field(default_factory=list)
    _durations: defaultdict[str, deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=64))  # by stream: evaluations take another time
    )
    _serial: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    _busy_since: float = 0.0
    _busy_s: float = 0.0

    @property
    def has_waiting(self) -> bool:
        """Whether a job waits for a worker."""
        return bool(self._waiting)

    @property
    def suspect(self) -> Job | None:
        """The unfinished job that most workers were lost with; None where none was lost with one."""
        jobs = [job for job in (*self.running, *(job for _, job in self._waiting)) if job.losses and not job.is_done]
        return max(jobs, key=lambda job: (job.losses, job.started), default=None)

    @property
    def busy_s(self) -> float:
        """Seconds so far in which at least one worker had a job."""
        return self._busy_s + (time.monotonic() - self._busy_since if self.running else 0.0)

    def add(self, submission: Submission) -> None:
        """Add a submission's jobs to those that wait."""
        if self.error is not None:
            submission.fail(self.error)
            return
        for job in submission.jobs:
            self._serial += 1
            job.order = (job.chunk.step, self._serial)
            heappush(self._waiting, (job.order, job))
        self._tell()

    async def take(self) -> Job:
        """Wait for the next job and give it to an idle worker."""
        while (job := self._next()) is None:
            news = self._news
            try:
                async with asyncio.timeout(self._until_late()):
                    await news.wait()
            except TimeoutError:
                continue
        now = time.monotonic()
        if not self.running:
            self._busy_since = now
        self.running.add(job)
        job.attempts += 1
        job.started = now
        return job

    def finish(self, job: Job, groups: list[Group]) -> None:
        """Enter the groups of a job; of two attempts the first one counts."""
        if not job.is_done:
            job.is_done = True
            if job.attempts == 1:  # of two it is not known whose time it was
                self._durations[job.chunk.stream].append(time.monotonic() - job.started)
            job.submission.answer(job, groups)
        self._leave(job)

    def fail(self, job: Job, error: BaseException) -> None:
        """End a job's whole submission with an error that the chunk raised; what waits of it is dropped."""
        if not job.is_done:
            for other in job.submission.jobs:
                other.is_done = True
            job.submission.fail(error)
        self._leave(job)

    def give_back(self, job: Job, *, is_suspect: bool = True) -> None:
        """Take back a job whose worker was lost: it is redone, unless another worker has it or has finished it.

        Args:
            is_suspect: the worker had begun with the tasks, so that they may be why.
        """
        job.losses += is_suspect
        self._leave(job)
        if not job.is_done and not job.attempts:
            heappush(self._waiting, (job.order, job))
            self._tell()

    def break_(self, error: BaseException) -> None:
        """End all unfinished submissions, and all later ones, with this error."""
        self.error = self.error or error
        jobs = [job for _, job in self._waiting] + list(self.running)
        for submission in {job.submission for job in jobs if not job.is_done}:
            submission.fail(error)
        for job in jobs:
            job.is_done = True
        self._waiting.clear()

    def _next(self) -> Job | None:
        while self._waiting:
            _, job = heappop(self._waiting)
            if not job.is_done:
                return job
        late = [job for job in self.running if self._seconds_left(job) <= 0]
        if not late:
            return None
        self.hedged += 1
        return min(late, key=lambda job: job.order)

    def _until_late(self) -> float | None:
        """Seconds until a running job will be late, None if none ever will be."""
        left = [seconds for job in self.running if (seconds := self._seconds_left(job)) < float("inf")]
        return min(left, default=None)

    def _seconds_left(self, job: Job) -> float:
        """Until the job is late and may be given to a second worker; infinite where it may not be."""
        durations = self._durations[job.chunk.stream]
        if not self.hedge_after or job.attempts != 1 or job.is_done or len(durations) < MIN_FINISHED:
            return float("inf")
        return job.started + self.hedge_after * median(durations) - time.monotonic()

    def _leave(self, job: Job) -> None:
        job.attempts -= 1
        if not job.attempts:
            self.running.discard(job)
            if not self.running:
                self._busy_s += time.monotonic() - self._busy_since
        if self.hedge_after:
            self._tell()  # the median is another one

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()
