"""Scoring processes as the driver sees them: start, hand out work, watch the clock, kill, replace.

Their half of the protocol is in `worker.py`.
"""

from __future__ import annotations

import math
import os
import pickle
import time
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from rlft.common.child_process import ChildProcess
from rlft.common.variables import mentioned
from rlft.reward.answers import ANSWER_LIMIT, Invalid, Loaded, read_outcomes, read_start
from rlft.reward.contract import failed
from rlft.reward.worker import main
from rlft.types import Failed, Outcome, RewardSpec

STARTUP_LIMIT_S = 120.0
"""Time that a process may take to import the rewards; no sample is charged for it."""
FINISH_LIMIT_S = 1.0
"""Time that an idle process has for its exit handlers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One call of one reward."""

    key: Any
    """For the caller: what the call is for."""
    reward: int
    """Index of the reward among the specs."""
    size: int
    """How many trajectories it covers, so how many outcomes it gives."""
    arguments: bytes
    """Pickled keyword arguments."""
    limit_s: float
    """Seconds that it may take."""


Done: TypeAlias = tuple[Job, list[Outcome], float]
"""A job, its outcomes, and the seconds that it took."""
Start: TypeAlias = list[Loaded] | Invalid
"""What a process says of its rewards."""


class ScoringProcess:
    """One process, working on one job at a time; after `kill` it is not used any more."""

    ready: bool = False
    """Whether it has reported that its rewards are loaded."""
    job: Job | None = None
    """What it works on."""
    started: float
    """When it got its job, or was started itself."""
    expires: float
    """When it has to be done with that; infinite while idle."""
    calls: int = 0
    """Jobs that it got so far; an answer says which of them it is of."""

    def __init__(self, specs: Sequence[RewardSpec], log: Path | None, variables: Mapping[str, str]) -> None:
        """Start it and send the specs.

        Args:
            log: what it prints is appended there, or dropped.
            variables: its environment.
        """
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
        # The order of a set of strings must not depend on which process looks at it.
        defaults = {"PYTHONHASHSEED": "0"}
        self._child = ChildProcess(main, log=log or Path(os.devnull), inherited=variables, defaults=defaults)
        self._rewards = len(specs)
        self.started = time.monotonic()
        self.expires = self.started + STARTUP_LIMIT_S
        self._child.send(list(specs))

    @property
    def handles(self) -> list[Connection | int]:
        """What becomes readable when it has answered or died."""
        return self._child.handles

    @property
    def idle(self) -> bool:
        """Whether it can take a job."""
        return self.ready and self.job is None

    def send(self, job: Job) -> None:
        """Give it a job and start the clock."""
        self.calls += 1
        with suppress(OSError):  # it died while idle; that shows when it is waited for
            self._child.connection.send_bytes(pickle.dumps((self.calls, job.reward, job.size, job.arguments)))
        self.job, self.started = job, time.monotonic()
        self.expires = self.started + job.limit_s

    def receive(self) -> Start | tuple[list[Outcome], float]:
        """What it answered, after one of `handles` became readable.

        Raises:
            EOFError: it died.
            TimeoutError: a part of the answer is still missing.
            ValueError: what it sent is no answer to what it was asked.
        """
        answer = self._child.receive_bytes(0.0, ANSWER_LIMIT)
        if not self.ready:
            return read_start(answer, self._rewards)
        if self.job is None:
            raise ValueError("nothing was asked")
        return read_outcomes(answer, number=self.calls, size=self.job.size)

    def ask_to_finish(self) -> None:
        """Let an idle process run its exit handlers; `kill` follows."""
        if self.idle:
            with suppress(OSError):
                self._child.connection.send_bytes(b"")
                self.expires = time.monotonic() + FINISH_LIMIT_S

    def kill(self) -> str:
        """Kill it and everything that it started, and say how it ended. Waits if it was asked to finish."""
        if self.idle and self.expires < math.inf:
            self._child.wait(self.expires - time.monotonic())
        return self._child.kill()

    def printed(self) -> str:
        """The end of what it printed; empty where that is dropped."""
        return self._child.printed()


class ScoringPool:
    """A fixed number of scoring processes; one that dies or is killed is replaced."""

    def __init__(
        self, specs: Sequence[RewardSpec], *, workers: int, log_dir: Path | None, variables: Mapping[str, str]
    ) -> None:
        """Start them and wait until all have loaded the rewards; ValueError if one cannot."""
        self.restarts = 0
        """Processes replaced so far."""
        self.loaded: list[Loaded] = []
        """What the processes reported about the rewards."""
        self._specs, self._log_dir, self._variables = specs, log_dir, variables
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
        """Do the jobs; gives each with its outcomes and its seconds, in the order of completion.

        Raises:
            ValueError: if the rewards could not be loaded again, or had changed, when a process was replaced.
        """
        list(self._wait(0.0))  # replaces a process that died while idle, before it is given a job
        remaining = iter(jobs)
        job = next(remaining, None)
        try:
            while job is not None or any(process.job for process in self._processes):
                for process in self._processes:
                    if job is not None and process.idle:
                        process.send(job)
                        job = next(remaining, None)
                yield from self._wait(math.inf)
        finally:  # left early: nobody will read what the busy ones answer
            for process in [process for process in self._processes if process.job]:
                process.kill()
                self._replace(process)

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
        owners = {handle: process for process in self._processes for handle in process.handles}
        readable = wait(list(owners), None if limit_s == math.inf else max(0.0, limit_s))
        answered = {owners[handle] for handle in readable}  # type: ignore[index]  # it returns what it was given
        for process in list(self._processes):
            if process in answered:
                yield from self._settle(process)
            elif process.expires <= time.monotonic():
                yield from self._expire(process)

    def _settle(self, process: ScoringProcess) -> Iterator[Done]:
        seconds = time.monotonic() - process.started
        try:
            answer = process.receive()
        except TimeoutError:
            if process.expires <= time.monotonic():
                yield from self._expire(process)
        except EOFError:
            yield from self._lose(process, process.kill(), seconds)
        except ValueError as error:
            process.kill()
            yield from self._lose(process, f"was killed, since it sent what is no answer: {error}", seconds)
        else:
            process.expires = math.inf
            if isinstance(answer, tuple):
                outcomes, taken = answer
                job, process.job = process.job, None
                assert job
                yield job, [self._explained(outcome) for outcome in outcomes], min(taken, seconds)
            else:
                self._greet(process, answer)

    def _greet(self, process: ScoringProcess, start: Start) -> None:
        if isinstance(start, Invalid):
            self._give_up(start.message)
        if self.loaded and start != self.loaded:
            self._give_up(
                "a reward's file changed while the run used it, so later scores would not compare with "
                "earlier ones: restore the file, or start a new run"
            )
        self.loaded, process.ready = start, True

    def _lose(self, process: ScoringProcess, ending: str, seconds: float) -> Iterator[Done]:
        """Replace a process that has ended; its job, if it had one, has crashed."""
        if not process.ready:
            self._give_up(f"a scoring process {ending} while it imported the rewards{self._printed_by(process)}")
        self._replace(process)
        if process.job:
            printed = f"; what it printed is in {self._log_dir}" if self._log_dir else ""
            yield process.job, [failed("crash", f"its process {ending}{printed}")] * process.job.size, seconds

    def _expire(self, process: ScoringProcess) -> Iterator[Done]:
        seconds, job = time.monotonic() - process.started, process.job
        process.kill()
        if job is None:
            printed = self._printed_by(process)
            self._give_up(f"importing the rewards took longer than {STARTUP_LIMIT_S:g} s{printed}")
        else:
            self._replace(process)
            yield job, [failed("timeout", f"no result within {job.limit_s:g} s")] * job.size, seconds

    def _start(self, index: int) -> ScoringProcess:
        log = self._log_dir and self._log_dir / _log_name(index)
        return ScoringProcess(self._specs, log, self._variables)

    def _replace(self, process: ScoringProcess) -> None:
        index = self._processes.index(process)
        self._processes[index] = self._start(index)
        self.restarts += 1

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

    def _give_up(self, problem: str) -> NoReturn:
        self.close()
        raise ValueError(problem + self._hint(problem))


def _stop(processes: list[ScoringProcess], owner: int) -> None:
    if os.getpid() == owner:  # not in a fork of the driver that exits
        for process in processes:
            process.ask_to_finish()
        for process in processes:
            process.kill()
        processes.clear()


def _log_name(index: int) -> str:
    return f"scoring-{index}.log"
