"""Whether a process is at work on a run directory: asked without writing anything there."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from rlft.run.records import LOCK

PATIENCE_S = 0.5
"""How long a driver waits for the lock: longer than anybody takes to ask for it, see `is_held`."""


def is_held(run: Path) -> bool | None:
    """Whether a driver holds the run's lock; None where that cannot be known, as without a lock file.

    The lock is taken for an instant, shared with others who ask; a driver that comes just then waits for it
    (`PATIENCE_S`). It ends with its process, however that ended.
    """
    try:
        file = os.open(run / LOCK, os.O_RDONLY)
    except OSError:  # none, or not to be read
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in (errno.EWOULDBLOCK, errno.EACCES) else None
    finally:
        os.close(file)  # gives it back
    return False
