"""One scoring process as the driver sees it: what it works on, when it has to be done, and how it is ended.

Its half of the protocol is in `worker.py`; `processes.py` keeps several of them.
"""

from __future__ import annotations

import math
import os
import pickle
import sys
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import psutil

from rlft.common.child_process import ChildProcess
from rlft.reward.answers import ANSWER_LIMIT, Answer, Invalid, Loaded, read_results, read_start
from rlft.reward.progress import SIZE, Progress, shared_file
from rlft.reward.stack import users_line
from rlft.reward.worker import Call, main
from rlft.types import RewardSpec

STARTUP_LIMIT_S = 120.0
"""Time that a process may take to import the rewards and set them up; no sample is charged for it."""
FINISH_LIMIT_S = 1.0
"""Time that an idle process has for its exit handlers."""
LATE_S = 5.0
"""Time that may pass between sending calls and the last of them that is begun before an answer; see `TURN_S` of
`worker.py`. What a process says beyond that is not believed."""
GRACE_S = 0.5
"""Time after a coroutine's deadline in which its process has to have cancelled it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One call of one reward."""

    key: Any
    """For the caller: what the call is for."""
    call: Call
    """What the process gets."""
    most: int = sys.maxsize
    """Most jobs of a message that it may be in: fewer, once one of a message ended a process and may be this."""


Start: TypeAlias = tuple[list[Loaded], int] | Invalid
"""What a process says of its rewards, and its id."""


class ScoringProcess:
    """One process, working on one message with calls at a time; after `kill` it is not used any more."""

    ready: bool = False
    """Whether it has reported that its rewards are loaded."""
    messages: int = 0
    """Messages that it got so far; an answer says which of them it is of."""
    pid: int = 0
    """Its own id, 0 until it is ready: `ChildProcess.pid` is its guard's."""

    def __init__(
        self, specs: Sequence[RewardSpec], log: Path | None, variables: Mapping[str, str], *, startup_s: float
    ) -> None:
        """Start it and send the specs.

        Args:
            log: what it prints is appended there, or dropped.
            variables: its environment.
            startup_s: seconds that importing the rewards may take.
        """
        if log:
            log.parent.mkdir(parents=True, exist_ok=True)
        # The order of a set of strings must not depend on which process looks at it, and what a reward prints of a text
        # must not fail by what the text holds, or by the locale.
        defaults = {"PYTHONHASHSEED": "0", "PYTHONIOENCODING": "utf-8:backslashreplace"}
        self.is_concurrent = False
        """Whether it works on all its jobs at once."""
        self.jobs: dict[int, Job] = {}
        """What it works on and has not answered, by position in the message."""
        self._sizes: list[int] = []
        self._present = -1, 0.0
        with shared_file() as shared:
            self._progress, self._shared = Progress(shared.fileno()), os.dup(shared.fileno())
            weakref.finalize(self, os.close, self._shared)
            self._child = ChildProcess(
                main,
                log=log or Path(os.devnull),
                inherited=variables,
                defaults=defaults,
                pass_fds=(shared.fileno(),),
            )
            self._rewards = len(specs)
            self._began = time.monotonic()
            self._expires = self._began + startup_s
            self._child.send((list(specs), shared.fileno()))

    @property
    def handles(self) -> list[Connection | int]:
        """What becomes readable when it has answered or died."""
        return self._child.handles

    @property
    def idle(self) -> bool:
        """Whether it can take jobs."""
        return self.ready and not self.busy

    @property
    def busy(self) -> bool:
        """Whether it has a message that it has not answered to the end."""
        return bool(self._sizes)

    def send(self, jobs: Sequence[Job], *, is_concurrent: bool) -> None:
        """Give it jobs and start the clock."""
        self.messages += 1
        self.jobs, self._sizes = dict(enumerate(jobs)), [job.call.size for job in jobs]
        self.is_concurrent, self._began = is_concurrent, time.monotonic()
        self._progress.begin(-1)  # it has begun none
        self._present = -1, self._began
        self._expires = self._began + max(job.call.limit_s for job in jobs) + GRACE_S if is_concurrent else math.inf
        with suppress(OSError):  # it died while idle; that shows when it is waited for
            self._child.connection.send_bytes(pickle.dumps((self.messages, [job.call for job in jobs])))

    @property
    def expires(self) -> float:
        """When it has to be done with what it does now; infinite while idle."""
        position, began = self.present()
        if self.is_concurrent or not self.jobs:
            return self._expires
        left = self.jobs.values() if position is None else [self.jobs[position]]
        return began + max(job.call.limit_s for job in left)

    def present(self) -> tuple[int | None, float]:
        """Position of the job that it works on, and when that began.

        The position is None where it works on none or on several, and where nobody knows: it answers, has begun none
        yet, or says what cannot be true. Positions only grow, each has begun once, all of them soon after they were
        sent.
        """
        alone = next(iter(self.jobs)) if len(self.jobs) == 1 else None
        if self.is_concurrent or not self.jobs:
            return alone, self._began
        position, began = self._progress.read()
        last, since = self._present
        if not (last <= position <= len(self._sizes) and self._began <= began <= time.monotonic()):
            return alone, since
        if position > last:
            self._present = last, since = position, min(began, self._began + LATE_S)
        return (last if last in self.jobs else alone), since

    def receive(self) -> Start | Answer:
        """What it answered, after one of `handles` became readable.

        Raises:
            EOFError: it died.
            TimeoutError: a part of the answer is still missing.
            ValueError: what it sent is no answer to what it was asked.
        """
        answer = self._child.receive_bytes(0.0, ANSWER_LIMIT)
        if not self.ready:
            return read_start(answer, self._rewards)
        if not self.busy:
            raise ValueError("nothing was asked")
        return read_results(answer, message=self.messages, sizes=self._sizes)

    @property
    def has_more(self) -> bool:
        """Whether another answer has been received with the last one."""
        return self._child.has_more

    def answered(self) -> None:
        """Give what it works on at once another deadline, now that one of them has been answered: it is not stuck."""
        if self.is_concurrent and self.jobs:
            self._expires = time.monotonic() + max(job.call.limit_s for job in self.jobs.values()) + GRACE_S

    def rest(self) -> list[Job]:
        """Take back what it has not answered; it is idle then."""
        left = list(self.jobs.values())
        self.jobs, self._sizes, self._expires = {}, [], math.inf
        return left

    def memory_mb(self) -> float:
        """Resident memory of the process itself."""
        try:
            return float(psutil.Process(self.pid).memory_info().rss) / 2**20 if self.pid else 0.0
        except psutil.Error:  # it has just ended; that shows when it is waited for
            return 0.0

    def users_line(self) -> str:
        """`file.py:12`, the line of the user's code at which it is, if it says so."""
        return users_line(self.pid or self._oldest_child(), self._shared, start=SIZE, parent=self._child.pid)

    def _oldest_child(self) -> int:
        """The id of a process that has not said it yet: what its guard started first; 0 where that is gone."""
        try:
            children = psutil.Process(self._child.pid).children()
            return min(children, key=lambda child: child.create_time()).pid if children else 0
        except psutil.Error:
            return 0

    def ask_to_finish(self) -> None:
        """Let an idle process run its exit handlers; `kill` follows."""
        if self.idle:
            with suppress(OSError):
                self._child.connection.send_bytes(b"")
                self._expires = time.monotonic() + FINISH_LIMIT_S

    def kill(self) -> str:
        """Kill it and everything that it started, and say how it ended. Waits if it was asked to finish."""
        if self.idle and self._expires < math.inf:
            self._child.wait(self._expires - time.monotonic())
        return self._child.kill()

    def printed(self) -> str:
        """The end of what it printed; empty where that is dropped."""
        return self._child.printed()
