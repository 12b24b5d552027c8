"""Reading the records of a run directory: metrics, events, tasks, evaluations, provenance.

A reader may go on from where it stopped, as a live viewer does. What does not exist yet is empty; a torn last line, as
after a crash, is left out and said.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from rlft.common import json_text
from rlft.common.files import write_file
from rlft.run import damage
from rlft.run.earlier_configs import modernise
from rlft.run.records import (
    EVENTS,
    FORMAT,
    METRICS,
    PROVENANCE,
    TASKS,
    Evaluation,
    Event,
    MetricsLine,
    Provenance,
)
from rlft.run.stored_task import StoredTask

_LOG = logging.getLogger(__name__)

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Lines(Generic[R]):
    """Records read from a log."""

    rows: list[R]
    """In the order in which they were written."""
    end: int
    """Bytes of the file behind them: where a later call goes on."""


def read_metrics(run: Path, notes: list[str] | None = None, *, start: int = 0) -> Lines[MetricsLine]:
    """The lines of metrics.jsonl from byte `start` on, each as it was written.

    A torn last line is left out, and read by a later call once it is whole; that is said in `notes` if given, else
    logged. Raises ValueError with file and line for any other bad line, and a way out, but see `damage.left_out`.
    """
    try:
        return _read(Path(run) / METRICS, MetricsLine.from_dict, notes, start)
    except ValueError as error:
        raise ValueError(
            f"{error}. Restore it from a copy, or continue without that line as a run of its own: rlft resume "
            f"{shlex.quote(str(run))} --fork NAME"
        ) from None


def read_events(run: Path, notes: list[str] | None = None, *, start: int = 0) -> Lines[Event]:
    """The lines of events.jsonl from byte `start` on; torn last line and errors as in `read_metrics`."""
    return _read(Path(run) / EVENTS, Event.from_dict, notes, start)


def read_tasks(run: Path, notes: list[str] | None = None) -> Lines[StoredTask]:
    """The lines of tasks.jsonl; torn last line and errors as in `read_metrics`."""
    return _read(Path(run) / TASKS, StoredTask.from_dict, notes, 0)


def mend_end(log: Path) -> None:
    """Take half a line off a log's end, which is what a killed driver leaves there."""
    if log.exists() and (data := log.read_bytes()) and not data.endswith(b"\n"):
        whole = data.rfind(b"\n") + 1
        try:
            json_text.parse(data[whole:])
        except ValueError:
            write_file(log, data[:whole])
        else:  # only its end is missing: it was written, and what follows must not continue it
            write_file(log, data + b"\n")


def read_evaluation(path: Path) -> Evaluation:
    """One evaluation. Raises ValueError naming the file if it cannot be read or lacks a field."""
    data = _json_object(path)
    try:
        return Evaluation.from_dict(data)
    except KeyError as error:
        raise ValueError(f"{path} has no field {error.args[0]!r}; run the evaluation again") from error
    except ValueError as error:
        raise ValueError(f"{path} is not an evaluation: {error}") from error


def read_provenance(run: Path, notes: list[str] | None = None) -> Provenance:
    """provenance.json; empty if there is none. One of a newer rlft is read as far as it is known, and that is said."""
    data = read_json(Path(run) / PROVENANCE)
    if isinstance(config := data.get("config"), dict):
        modernise(config)
    provenance = Provenance.from_dict(data)
    if isinstance(provenance.format, int) and provenance.format > FORMAT:
        say(
            f"{run} was written by a newer rlft (format {provenance.format}, this one knows {FORMAT}): what it has "
            "besides is passed over",
            notes,
        )
    return provenance


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, `{}` if there is no such file.

    Raises ValueError with the path if it is no object, but see `damage.left_out`.
    """
    try:
        return _json_object(path)
    except ValueError as error:
        damage.refuse(error)
        return {}


def _json_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json_text.parse(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(f"{path} must hold a JSON object, not {type(data).__name__}")
    return data


def _read(path: Path, parse: Callable[[Mapping[str, Any]], R], notes: list[str] | None, start: int) -> Lines[R]:
    rows, end = [], start
    for begin, row, end_of_line in _objects(path, notes, start):
        try:
            rows.append(parse(row))
        except ValueError as error:
            damage.refuse(ValueError(f"{_place(path, begin)}: {error}"))
        end = end_of_line
    return Lines(rows, end)


def _objects(path: Path, notes: list[str] | None, start: int) -> Iterator[tuple[int, dict[str, Any], int]]:
    """(where its line begins, object, where the line ends) of a JSON-lines file; nothing if it does not exist."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        file.seek(start)
        data = file.read()
    end = 0
    while end < len(data):
        begin, end = end, data.find(b"\n", end) + 1 or len(data)
        if not (line := data[begin:end]).strip():
            continue
        try:
            row = json_text.parse(line)
        except ValueError as error:
            where = _place(path, start + begin)
            if not data[end:].strip():
                say(f"{where}: the last line is torn, as after a crash, and was left out", notes)
                return
            damage.refuse(ValueError(f"{where}: not readable as JSON ({error}); the file was edited or damaged"))
            continue
        if isinstance(row, dict):
            yield start + begin, row, start + end
        else:
            where = _place(path, start + begin)
            damage.refuse(ValueError(f"{where}: expected a JSON object, got {type(row).__name__}"))


def _place(path: Path, begin: int) -> str:
    """`file:line` of the line that begins at a byte."""
    with path.open("rb") as file:
        before = file.read(begin).count(b"\n")
    return f"{path}:{before + 1}"


def say(message: str, notes: list[str] | None) -> None:
    """Add a remark about what was read to `notes` if given, else to the log."""
    if notes is None:
        _LOG.warning("%s", message)
    else:
        notes.append(message)
