"""Scoring processes together: work is handed out, the clock and the memory are watched, what died is replaced."""

from __future__ import annotations

import math
import os
import sys
import time
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from multiprocessing.connection import wait
from pathlib import Path
from typing import NoReturn, TypeAlias

from rlft.common.variables import mentioned
from rlft.reward.answers import Answer, Invalid, Loaded, Result
from rlft.reward.outcomes import failed
from rlft.reward.process import Job, ScoringProcess, Start
from rlft.types import Failed, Outcome, RewardSpec

LARGEST_MESSAGE = 256
"""Most calls of ordinary functions in one message."""
LARGEST_ARGUMENTS = 2**20
"""Bytes of arguments after which a message is full."""
LOOK_S = 0.25
"""How often the memory of the processes is looked at."""

Done: TypeAlias = tuple[Job, Result]
"""A job and what it gave."""


class SlowImportError(ValueError):
    """Importing the rewards takes longer than it may."""


class ScoringPool:
    """A fixed number of scoring processes; one that dies or is killed is replaced."""

    def __init__(
        self,
        specs: Sequence[RewardSpec],
        *,
        workers: int,
        log_dir: Path | None,
        keeps_logs: bool,
        variables: Mapping[str, str],
        max_concurrent: int,
        memory_mb: int,
        startup_s: float,
    ) -> None:
        """Start them and wait until all have loaded the rewards; ValueError if one cannot.

        Args:
            keeps_logs: whether a failure may say where the logs are.
            max_concurrent: most calls of `async def` rewards that a process makes at once.
            memory_mb: resident memory above which a process is killed; 0 for no bound.
            startup_s: seconds that importing the rewards may take.
        """
        self.restarts = 0
        """Processes that died or were killed for what they did, and were replaced, so far."""
        self.loaded: list[Loaded] = []
        """What the processes reported about the rewards."""
        self._specs, self._log_dir, self._variables = specs, log_dir, variables
        self._keeps_logs, self._startup_s = keeps_logs, startup_s
        self._max_concurrent, self._memory_mb, self._looked = max_concurrent, memory_mb, time.monotonic()
        self._sizes = [1] * len(specs)
        """Calls of each reward that are sent in one message: as many as it makes in one turn."""
        self._queue: deque[Job] = deque()
        """Jobs that were taken from those to do, and that no process has."""
        self._processes: list[ScoringProcess] = []
        # Also runs when the interpreter exits.
        self._finalizer = weakref.finalize(self, _stop, self._processes, os.getpid())
        try:
            for index in range(workers):
                self._processes.append(self._start(index))
            while not all(process.ready for process in self._processes):
                list(self._wait(math.inf))
        except BaseException:
            self.close()
            raise

    @property
    def closed(self) -> bool:
        """Whether it was closed, or closed itself because its processes cannot be replaced."""
        return not self._finalizer.alive

    def run(self, jobs: Iterable[Job]) -> Iterator[Done]:
        """Do the jobs; gives each with its result, in the order of completion. Jobs of one reward should be adjacent.

        Raises:
            ValueError: if the rewards could not be loaded again, or had changed, when a process was replaced.
        """
        list(self._wait(0.0))  # replaces a process that died while idle, before it is given a job
        self._queue.clear()
        waiting = iter(jobs)
        done: list[Done] = []
        try:
            is_done = False
            while True:
                for process in self._processes:
                    if process.idle:
                        if message := self._next_message(waiting):
                            process.send(message, is_concurrent=self.loaded[message[0].call.reward].plan.is_async)
                        else:
                            is_done = True
                yield from done  # only now, so that no process waits for what becomes of its last results
                self._prepare(waiting)
                if is_done and not self._queue and not any(process.busy for process in self._processes):
                    return
                done = list(self._wait(math.inf))
        finally:  # left early: nobody will read what the busy ones answer
            for process in [process for process in self._processes if process.busy]:
                process.kill()
                self._replace(process, is_fault=False)

    def _prepare(self, waiting: Iterator[Job]) -> None:
        """Take the jobs of the next message from those to do: making them costs time for which a process would wait."""
        total = sum(len(job.call.arguments) for job in self._queue)
        while len(self._queue) < LARGEST_MESSAGE and total < LARGEST_ARGUMENTS:
            if (job := next(waiting, None)) is None:
                return
            self._queue.append(job)
            total += len(job.call.arguments)

    def _next_message(self, waiting: Iterator[Job]) -> list[Job]:
        """The jobs that an idle process gets next: of one reward, as many as it may have at once; empty at the end."""
        message: list[Job] = []
        total, most = 0, sys.maxsize
        while (job := self._queue.popleft() if self._queue else next(waiting, None)) is not None:
            reward = job.call.reward
            most = min(most, self._size_of(reward), job.most)
            is_full = len(message) >= most or total >= LARGEST_ARGUMENTS
            if message and (is_full or message[0].call.reward != reward):
                self._queue.appendleft(job)
                break
            message.append(job)
            total += len(job.call.arguments)
        return message

    def _size_of(self, reward: int) -> int:
        return self._max_concurrent if self.loaded[reward].plan.is_async else self._sizes[reward]

    def move_logs(self, folder: Path) -> None:
        """Move the logs to a folder on the same disk; what is printed from here on arrives there, too."""
        if self._log_dir is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        for index in range(len(self._processes)):  # a renamed file stays open, so no line is lost
            (self._log_dir / _log_name(index)).rename(folder / _log_name(index))
        self._log_dir = folder

    def close(self) -> None:
        """End the processes and everything that they started."""
        self._finalizer()

    def _wait(self, limit_s: float) -> Iterator[Done]:
        """Wait until a process answers, dies or expires, and deal with all that did."""
        limit_s = min(limit_s, *(process.expires - time.monotonic() for process in self._processes))
        if self._memory_mb:
            limit_s = min(limit_s, LOOK_S)
        owners = {handle: process for process in self._processes for handle in process.handles}
        readable = wait(list(owners), None if limit_s == math.inf else max(0.0, limit_s))
        answered = {owners[handle] for handle in readable}  # type: ignore[index]  # it returns what it was given
        for process in list(self._processes):
            if process in answered:
                yield from self._settle(process)
            elif process.expires <= time.monotonic():
                yield from self._expire(process)
        if self._memory_mb and time.monotonic() >= self._looked + LOOK_S:
            self._looked = time.monotonic()
            for process in list(self._processes):
                yield from self._look_at_memory(process)

    def _settle(self, process: ScoringProcess) -> Iterator[Done]:
        try:
            while True:
                answer = process.receive()
                if isinstance(answer, Answer):
                    yield from self._take(process, answer)
                else:
                    self._greet(process, answer)
                if not process.has_more:
                    return
        except TimeoutError:
            if process.expires <= time.monotonic():
                yield from self._expire(process)
        except EOFError:
            yield from self._lose(process, process.kill())
        except ValueError as error:
            if self.closed:
                raise
            process.kill()
            yield from self._lose(process, f"was killed, since it sent what is no answer: {error}")

    def _take(self, process: ScoringProcess, answer: Answer) -> Iterator[Done]:
        """Give out the results of a process. Jobs that it has not done go back to the queue.

        Of several that were worked on at once, those were held up by another one: they are done again among fewer.
        """
        done = [(process.jobs.pop(position), result) for position, result in answer.results.items()]
        process.answered()
        if answer.is_last:
            left = process.rest()
            self._queue.extendleft(reversed(_halved(left) if process.is_concurrent else left))
            if done and not process.is_concurrent:
                reward = done[0][0].call.reward
                self._sizes[reward] = max(1, len(done)) if left else min(LARGEST_MESSAGE, 2 * self._sizes[reward])
        for job, result in done:
            if any(isinstance(outcome, Failed) for outcome in result.outcomes):
                result = replace(result, outcomes=[self._explained(outcome) for outcome in result.outcomes])
            yield job, result

    def _greet(self, process: ScoringProcess, start: Start) -> None:
        if isinstance(start, Invalid):
            self._give_up(start.message)
        loaded, process.pid = start
        if self.loaded and loaded != self.loaded:
            self._give_up(
                "a reward's file changed while the run used it, so later scores would not compare with "
                "earlier ones: restore the file, or start a new run"
            )
        self.loaded, process.ready = loaded, True
        process.rest()
        if self._memory_mb and (used := process.memory_mb()) > self._memory_mb:
            self._give_up(
                f"loading the rewards takes {used:.0f} MB, more than scoring.memory_mb={self._memory_mb} allows a "
                "scoring process"
            )

    def _lose(self, process: ScoringProcess, ending: str) -> Iterator[Done]:
        """Replace a process that has ended; the job that it was at has crashed."""
        if not process.ready:
            self._give_up(f"a scoring process {ending} while it imported the rewards{self._printed_by(process)}")
        printed = f"; what it printed is in {self._log_dir}" if self._log_dir and self._keeps_logs else ""
        yield from self._blame(process, *process.present(), failed("crash", f"its process {ending}{printed}"))

    def _expire(self, process: ScoringProcess) -> Iterator[Done]:
        if not process.ready:
            where = process.users_line()
            process.kill()
            what = f"reward {self._specs[0].path}: importing it" if len(self._specs) == 1 else "importing the rewards"
            place = f", at {where}" if where else ""
            text = f"{what} takes longer than {self._startup_s:g} s{place}{self._printed_by(process)}"
            self._give_up(text, SlowImportError)
        position, began = process.present()
        if process.expires > time.monotonic():  # it came to the next call just now
            return
        limit_s = max((job.call.limit_s for job in process.jobs.values()), default=0.0)
        if position is not None:
            limit_s = process.jobs[position].call.limit_s
        where = "" if position is None else process.users_line()
        yield from self._blame(
            process, position, began, failed("timeout", f"no result within {limit_s:g} s", where=where)
        )

    def _look_at_memory(self, process: ScoringProcess) -> Iterator[Done]:
        """Replace a process that has grown beyond its bound; what it works on has failed, if it works."""
        if process.ready and (used := process.memory_mb()) > self._memory_mb:
            text = f"its process used {used:.0f} MB, more than scoring.memory_mb={self._memory_mb} allows"
            yield from self._blame(process, *process.present(), failed("crash", text))

    def _blame(self, process: ScoringProcess, position: int | None, began: float, failure: Failed) -> Iterator[Done]:
        """Replace a process and fail the job that it works on since `began`; the others are done again.

        Where nobody knows which one that is they are done again in halves, so that the one that is to blame shows.
        """
        seconds = time.monotonic() - began
        process.kill()
        job = None if position is None else process.jobs.pop(position)
        left = process.rest()
        self._queue.extendleft(reversed(_halved(left) if job is None else left))
        self._replace(process)
        if job is not None:
            yield job, Result(outcomes=[failure] * job.call.size, seconds=seconds)

    def _start(self, index: int) -> ScoringProcess:
        log = self._log_dir and self._log_dir / _log_name(index)
        return ScoringProcess(self._specs, log, self._variables, startup_s=self._startup_s)

    def _replace(self, process: ScoringProcess, *, is_fault: bool = True) -> None:
        index = self._processes.index(process)
        self._processes[index] = self._start(index)
        self.restarts += is_fault

    def _printed_by(self, process: ScoringProcess) -> str:
        """The end of what a process printed, to follow a sentence; empty where it is not kept."""
        if self._log_dir is None:
            return ""
        text = process.printed()
        return f". The last that it printed:\n{text}" if text else "; it printed nothing"

    def _explained(self, outcome: Outcome) -> Outcome:
        """The outcome, with what to do where it failed for want of a variable."""
        if isinstance(outcome, Failed) and (hint := self._hint(outcome.message)):
            return replace(outcome, message=outcome.message + hint)
        return outcome

    def _hint(self, problem: str) -> str:
        """What to do about a problem that mentions a variable which is set here alone; else empty."""
        names = mentioned(problem, os.environ.keys() - self._variables.keys())
        if not names or "scoring.environment" in problem:
            return ""
        return f"\n{names[0]} is set, but scoring processes get it only with `scoring: {{environment: [{names[0]}]}}`"

    def _give_up(self, problem: str, kind: type[ValueError] = ValueError) -> NoReturn:
        self.close()
        raise kind(problem + self._hint(problem))


def _stop(processes: list[ScoringProcess], owner: int) -> None:
    if os.getpid() == owner:  # not in a fork of the driver that exits
        for process in processes:
            process.ask_to_finish()
        for process in processes:
            process.kill()
        processes.clear()


def _halved(jobs: Sequence[Job]) -> list[Job]:
    """The jobs of a message, to be sent in messages of half as many."""
    return [replace(job, most=max(1, len(jobs) // 2)) for job in jobs]


def _log_name(index: int) -> str:
    return f"scoring-{index}.log"
