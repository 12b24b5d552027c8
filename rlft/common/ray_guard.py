"""A process that outlives the driver of a private Ray cluster: it ends what the driver left and removes its folder.

Ray's own processes notice the death of a driver late (its agents up to a minute later), and nobody removes their folder
then. The guard holds the reading end of a pipe whose writing end only the driver has. When that closes, however the
driver ended, it kills every process that carries the cluster's mark and removes the folder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import psutil

from rlft.common.child_process import python_command

MARK = "RLFT_CLUSTER"
"""Environment variable that Ray's processes inherit while the driver starts them: the cluster's folder."""
LIMIT_S = 20.0
"""How long the guard goes on looking for processes that appear while it kills."""
LONGEST = 40
"""Longest path of a cluster's folder: Ray puts the names of sockets behind it, and those end at 107 bytes."""


class Guard:
    """The folder of a private cluster, which nobody else can enter, and the process that removes it."""

    def __init__(self) -> None:
        """Make the folder and start the process.

        Raises:
            RuntimeError: no folder for temporary files has a name short enough for Ray's sockets.
        """
        places = [os.environ.get("XDG_RUNTIME_DIR", ""), tempfile.gettempdir(), "/tmp"]
        usable = [place for place in places if place and len(place) + 14 <= LONGEST and os.access(place, os.W_OK)]
        if not usable:
            raise RuntimeError(
                f"Ray needs a folder of at most {LONGEST - 14} characters for its sockets; set TMPDIR to such a path"
            )
        # Ray opens its own folders to everybody, so they lie in one that only this user can enter.
        self.folder = Path(tempfile.mkdtemp(prefix="rlft-", dir=usable[0]))
        reading, self._writing = os.pipe()
        self._process = subprocess.Popen(
            python_command(main, str(reading), str(self.folder)),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(reading,),
            start_new_session=True,
        )
        os.close(reading)

    def close(self) -> None:
        """End what is left of the cluster and remove its folder; it is gone when this returns."""
        if self._writing is not None:
            os.close(self._writing)
            self._writing = None  # type: ignore[assignment]
            self._process.wait()


def main() -> None:
    """The guard's process: wait for the driver's end, then clean up."""
    reading, folder = int(sys.argv[1]), sys.argv[2]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.read(reading, 1)  # nothing is ever written: it returns when the driver's end is closed
    end(folder)


def end(folder: str) -> None:
    """Kill the processes that carry the mark of this cluster until there are none, and remove its folder."""
    until, quiet = time.monotonic() + LIMIT_S, 0
    while quiet < 2 and time.monotonic() < until:
        marked = [process for process in psutil.process_iter() if _is_marked(process, folder)]
        quiet = 0 if marked else quiet + 1
        for process in marked:
            with suppress(psutil.Error):
                process.kill()
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def _is_marked(process: psutil.Process, folder: str) -> bool:
    try:
        if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
            return False
        if (system := Path("/proc")).is_dir():  # psutil reads nothing under a title written over the first variables
            return f"{MARK}={folder}".encode() in (system / str(process.pid) / "environ").read_bytes().split(b"\0")
        return process.environ().get(MARK) == folder
    except (psutil.Error, OSError):  # gone meanwhile, or another user's
        return False
