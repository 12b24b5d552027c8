"""The runs that a server shows, and what is kept of each as long as its directory has not grown."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from rlft.curves import pages, reading
from rlft.curves.page_data import page_data
from rlft.curves.state import read_state
from rlft.curves.verdict import verdict_of
from rlft.curves.view_samples import RunSamples
from rlft.run import damage
from rlft.run.records import CONFIG, EVALS, EVENTS, METRICS, SUMMARY

T = TypeVar("T")


@dataclass(slots=True)
class ServedRun:
    """A run directory; everything that is computed of it is computed again only once it has grown."""

    folder: Path
    _kept: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def size(self) -> tuple[int, ...]:
        """Numbers that change whenever the run grows."""
        files = (METRICS, EVENTS, SUMMARY)
        sizes = [path.stat().st_size if (path := self.folder / name).is_file() else 0 for name in files]
        return (*sizes, len(list((self.folder / EVALS).rglob("*.json"))))

    def data(self) -> bytes:
        """The page's data as gzipped JSON; rollouts are asked for by `samples`. Raises ValueError as `page_data`."""
        return self._once("data", lambda: gzip.compress(pages.as_json(page_data(self.folder, samples=0)), 6, mtime=0))

    def samples(self) -> RunSamples:
        """Its rollouts. Raises ValueError if a file is damaged."""

        def read() -> RunSamples:
            with damage.left_out():  # the page's data says what
                return RunSamples(self.folder)

        return self._once("samples", read)

    def line(self) -> dict[str, Any]:
        """What a list of runs says of it; of a directory that cannot be read, why."""
        return self._once("line", self._line)

    def _line(self) -> dict[str, Any]:
        try:
            config = reading.read_config(self.folder)
            with damage.left_out():  # the verdict says what
                found, state = verdict_of(self.folder), read_state(self.folder)
                rows = reading.read_metrics(self.folder, [])
        except ValueError as error:
            return {"kind": "none", "word": "cannot be read", "sentence": str(error), "state": "", "steps": ""}
        planned = config.get("steps")
        done = int(rows[-1]["step"]) if rows else 0
        steps = f"{done} of {planned}" if planned else str(done)
        told = {"kind": found.kind, "word": found.word, "sentence": found.sentence}
        return {**told, "state": state.sentence, "steps": steps}

    def _once(self, name: str, make: Callable[[], T]) -> T:
        with self._lock:  # two who ask at once get one answer
            size = self.size()
            if name not in self._kept or self._kept[name][0] != size:
                self._kept[name] = (size, make())
            found: T = self._kept[name][1]
            return found


class Runs:
    """The runs below some folders; those that are made while they are served are found, too."""

    def __init__(self, folders: Sequence[Path]) -> None:
        """Take run directories, and folders that hold some.

        Raises:
            ValueError: one of them is no folder.
        """
        for folder in folders:
            if not folder.is_dir():
                raise ValueError(f"{folder} is no folder; give run directories, or a folder that holds some")
        self._folders = folders
        self._known: dict[Path, ServedRun] = {}
        self._lock = threading.Lock()

    def all(self) -> dict[str, ServedRun]:
        """Every run by the name that it has in addresses: its folder's, numbered where two have the same."""
        found: dict[str, ServedRun] = {}
        with self._lock:
            for folder in dict.fromkeys(self._directories()):
                run = self._known.setdefault(folder, ServedRun(folder))
                name, number = folder.name, 1
                while name in found:
                    number += 1
                    name = f"{folder.name}~{number}"
                found[name] = run
        return found

    def _directories(self) -> list[Path]:
        found = []
        for folder in self._folders:
            if (folder / CONFIG).is_file():
                found.append(folder.resolve())
            else:
                inside = sorted(path.parent for path in folder.glob(f"*/{CONFIG}"))
                found += [each.resolve() for each in inside if not each.name.startswith(".")]
        return found
