"""What judges replied and what that cost, in one SQLite file that all scoring processes and all runs share.

A request that was answered before is not sent again: a resumed run, a replay and another run with the same samples get
the same reply. Replies are kept as they came, so that another way of reading them needs no new ones. The key is the
hash of model and request, whatever address they are sent to: a server may move to another port or node.

The file is `judge.sqlite` in rlft's cache; the environment variable RLFT_JUDGE_CACHE names another one.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shlex
import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rlft.common.chat_server import Reply, ServerError
from rlft.common.files import cache_root

BUDGET = "RLFT_JUDGE_BUDGET"
"""Environment variable of scoring processes: JSON of a `Budget`."""
_START = secrets.token_hex(8)
_BUSY_S = 10.0
"""How long another process may hold the file."""
_TABLES = """
create table if not exists replies (key text primary key, text text, finish text, tokens integer, asked real);
create table if not exists spent (scope text primary key, calls integer, tokens integer);
create table if not exists checked (start text, key text, primary key (start, key));
"""


class BudgetSpentError(ServerError):
    """A run has asked its judges as often as it may."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """What a run may ask of its judges in all."""

    scope: str = ""
    """The run's directory, absolute; its processes draw on one budget, and a resumed run goes on with it."""
    calls: int = 0
    """Requests; 0 is no bound, and below 0 only kept replies count."""
    tokens: int = 0
    """Tokens of questions and replies; 0 is no bound."""
    start_id: str = _START
    """Which start of a run it is: that of the process which made this, whose scoring processes share it."""

    @staticmethod
    def here() -> Budget:
        """That of this process."""
        return Budget(**json.loads(os.environ.get(BUDGET, "{}")))

    def start(self) -> None:
        """Let a run that starts over have all of it."""
        if self.calls or self.tokens:
            with _open() as database:
                database.execute("delete from spent where scope = ?", (self.scope,))

    @property
    def variables(self) -> dict[str, str]:
        """The environment variable that tells it to a process."""
        return {BUDGET: json.dumps(asdict(self))}


def key_of(request: Mapping[str, Any], label: str = "") -> str:
    """Hash of a request, which names the model; the label tells models apart that have the same name."""
    return hashlib.sha256(json.dumps([request, label], sort_keys=True).encode()).hexdigest()


def find(key: str) -> Reply | None:
    """The reply to a request that was made before."""
    with _open() as database:
        row = database.execute("select text, finish, tokens from replies where key = ?", (key,)).fetchone()
    return None if row is None else Reply(text=row[0], finish_reason=row[1], tokens=row[2])


def keep(key: str, reply: Reply) -> None:
    """Keep a reply, unless another process was faster."""
    row = (key, reply.text, reply.finish_reason, reply.tokens, time.time())
    with _open() as database:
        database.execute("insert or ignore into replies values (?, ?, ?, ?, ?)", row)


def is_first_check(start_id: str, key: str) -> bool:
    """Whether since a run was started no process of it has compared this reply with a new one; now it counts as so."""
    with _open() as database:
        return database.execute("insert or ignore into checked values (?, ?)", (start_id, key)).rowcount == 1


def take(budget: Budget) -> None:
    """Count a request before it is sent, so that what is under way counts, too.

    Raises:
        BudgetSpentError: the budget has nothing left; what was spent, and how to go on.
    """
    if budget.calls < 0:
        raise BudgetSpentError("no judge is asked here, and this reply is not among those that are kept")
    with _open() as database:
        database.execute("insert or ignore into spent values (?, 0, 0)", (budget.scope,))
        taken = database.execute(
            "update spent set calls = calls + 1 where scope = :scope and (:calls = 0 or calls < :calls) "
            "and (:tokens = 0 or tokens < :tokens)",
            {"scope": budget.scope, "calls": budget.calls, "tokens": budget.tokens},
        ).rowcount
    if not taken:
        calls, tokens = spent(budget.scope)
        raised = [
            f"scoring.{name}=N"
            for name, done, most in (("judge_calls", calls, budget.calls), ("judge_tokens", tokens, budget.tokens))
            if most and done >= most
        ]
        raise BudgetSpentError(
            f"the judges' budget is spent: {calls} requests, {tokens} tokens, of at most "
            f"scoring.judge_calls={budget.calls} and scoring.judge_tokens={budget.tokens} (0: any). Raise it: "
            f"rlft resume {shlex.quote(budget.scope)} {' '.join(raised)}. Nothing is lost, replies are kept"
        )


def add_tokens(budget: Budget, tokens: int) -> None:
    """Count what a request cost."""
    with _open() as database:
        database.execute("update spent set tokens = tokens + ? where scope = ?", (tokens, budget.scope))


def spent(scope: str) -> tuple[int, int]:
    """(requests, tokens) of a run so far."""
    with _open() as database:
        row = database.execute("select calls, tokens from spent where scope = ?", (scope,)).fetchone()
    return (0, 0) if row is None else (row[0], row[1])


@contextmanager
def _open() -> Iterator[sqlite3.Connection]:
    """The file, locked for the time of a block only, so that nobody waits for anybody's server."""
    path = Path(os.environ.get("RLFT_JUDGE_CACHE") or cache_root() / "judge.sqlite")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=_BUSY_S)) as database, database:
            # Each request makes three commits, which must not wait for the disk while others' replies come in. A killed
            # process loses nothing; where the power fails the file may be damaged, which SQLite says, and it only saves
            # requests.
            database.execute("pragma synchronous = off")
            database.executescript(_TABLES)
            yield database
    except sqlite3.Error as error:
        raise RuntimeError(
            f"{path}, which keeps the replies of judges: {error}. Delete it, or name another file in RLFT_JUDGE_CACHE"
        ) from error
