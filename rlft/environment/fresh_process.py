"""Loading an environment once more in a fresh process, to see whether it gives the same tasks there.

Rollout workers and resumed runs load it in processes of their own. Sets of strings have another order in this one. It
returns hashes, not tasks, since there may be many.
"""

from __future__ import annotations

import datetime
import decimal
import hashlib
import json
import os
from multiprocessing.connection import Connection

from rlft.common.child_process import ChildProcess
from rlft.config import EnvironmentConfig
from rlft.environment import loading
from rlft.environment.contract import Environment

_CELLS = (datetime.date, datetime.time, datetime.timedelta, decimal.Decimal, bytes)
LIMIT_S = 600.0
"""Time that the other process may take."""


def fingerprints(environment: Environment) -> dict[str, list[str]]:
    """A hash of every task and every demonstration, by `train`, `heldout` and `demonstrations`.

    Raises:
        TypeError, ValueError: an answer or a column is no plain data.
    """
    tasks = {
        split: [[task.id, list(task.messages), task.answer, dict(task.columns)] for task in getattr(environment, split)]
        for split in ("train", "heldout")
    }
    return {
        **{split: list(map(_hash, listed)) for split, listed in tasks.items()},
        "demonstrations": [_hash(list(shown)) for shown in environment.demonstrations],
    }


def as_json(value: object) -> str:
    """Plain data as JSON, with the dates, decimals and bytes that tables hold as text.

    Raises:
        TypeError, ValueError: it is no plain data: what another process gets may differ, as the order of a set does.
    """
    return json.dumps(value, default=_of_a_table)


def _of_a_table(value: object) -> str:
    if isinstance(value, _CELLS):
        return str(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _hash(value: object) -> str:
    plain = json.loads(as_json(value))  # keys that are numbers become text, which can be sorted
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def load_elsewhere(config: EnvironmentConfig) -> dict[str, list[str]]:
    """Fingerprints of the environment as a process with another PYTHONHASHSEED loads it.

    Raises:
        ValueError: it cannot be loaded there, or not in time.
    """
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    child = ChildProcess(main, environment={"PYTHONHASHSEED": seed})
    try:
        child.send(config)
        found: dict[str, list[str]] = child.receive(LIMIT_S)
    except TimeoutError:
        raise ValueError(f"loading it in a fresh process took longer than {LIMIT_S:g} s") from None
    except EOFError:
        child.kill()
        printed = child.printed() or "nothing"
        raise ValueError(f"it cannot be loaded in a fresh process, which ended with:\n{printed}") from None
    finally:
        child.kill()
    return found


def main(connection: Connection) -> None:
    """Run in the fresh process: load the environment of the config that is sent and answer with its fingerprints."""
    connection.send(fingerprints(loading.load(connection.recv())))
