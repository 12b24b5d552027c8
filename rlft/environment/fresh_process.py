"""What another process gets when it loads an environment, as rollout workers and resumed runs do.

The other process is a fresh interpreter in which sets of strings have another order. It tells hashes, not tasks: there
may be many.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from rlft.common.child_process import end_with_parent
from rlft.config import EnvironmentConfig
from rlft.environment import loading
from rlft.environment.contract import Environment

LIMIT_S = 600.0
"""Time that the other process may take."""

# The import path is passed as arguments: in PYTHONPATH it would leak into what an environment starts.
_BOOT = "import sys; sys.path[:] = sys.argv[3:]; from rlft.environment.fresh_process import main; main()"


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


def _hash(value: object) -> str:
    plain = json.loads(json.dumps(value))  # keys that are numbers become text, which can be sorted
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:16]


def load_elsewhere(config: EnvironmentConfig) -> dict[str, list[str]]:
    """`fingerprints` of the environment in a process with another PYTHONHASHSEED.

    Raises:
        ValueError: it cannot be loaded there, or not in time.
    """
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    lifeline, keep = os.pipe()
    with tempfile.TemporaryDirectory(prefix="rlft-") as folder, tempfile.TemporaryFile() as log:
        answer = Path(folder) / "answer.json"
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, str(answer), str(lifeline), *map(os.path.abspath, sys.path)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(lifeline,),
                start_new_session=True,
                env={**os.environ, "PYTHONHASHSEED": seed},
            )
            try:
                process.communicate(pickle.dumps(config), timeout=LIMIT_S)
            except BaseException as error:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                if isinstance(error, subprocess.TimeoutExpired):
                    raise ValueError(f"loading it in a fresh process took longer than {LIMIT_S:g} s") from None
                raise
        finally:
            os.close(lifeline)
            os.close(keep)
        if not answer.is_file():
            log.seek(0)
            printed = log.read().decode(errors="replace").strip()[-2000:]
            raise ValueError(f"it cannot be loaded in a fresh process, which ended with:\n{printed or 'nothing'}")
        found: dict[str, list[str]] = json.loads(answer.read_text())
    return found


def main() -> None:
    """Load the environment whose config is on the standard input, and write its fingerprints to a file."""
    answer, lifeline = sys.argv[1], int(sys.argv[2])
    sys.argv = ["rlft-environment"]  # an environment that reads its arguments must not find ours
    os.set_inheritable(lifeline, False)
    end_with_parent(lifeline)
    found = fingerprints(loading.load(pickle.load(sys.stdin.buffer)))
    Path(answer).write_text(json.dumps(found))
