"""manifest.json: the hashes of a run's records, so that whoever signs one file has signed the whole run.

    {"format": 1, "step": 30,
     "files": {"rollouts/step-000001.parquet": "sha256", ...},
     "logs": {"metrics.jsonl": {"bytes": 51234, "sha256": "of that many bytes", "lines": ["8 digits", ...]}, ...}}

A run writes it with each checkpoint and at its end. Its own sha256 is the run's root hash: `sha256sum
runs/NAME/manifest.json`. Logs grow, so of them a prefix is hashed; of the metrics also each prefix that ends with a
line, with its first digits, which tells the line that was changed. Checkpoints hash their own files, so of them only
their manifests stand here. What no number comes from (`logs/`, `aside/`, `report.html`, pictures) does not.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlft.common.files import sha256, write_file
from rlft.run.logs import read_json
from rlft.run.records import (
    ADAPTERS,
    CHECKPOINTS,
    CONFIG,
    EVALS,
    EVENTS,
    HEAD,
    METRICS,
    PROVENANCE,
    REFERENCE,
    REWARD_MODEL,
    ROLLOUTS,
    SKIPPED,
    SUMMARY,
    TASKS,
    step_of,
)

MANIFEST = "manifest.json"
FORMAT = 1
LOGS = (METRICS, EVENTS, TASKS)
"""Files that grow."""
_SINGLE = (CONFIG, PROVENANCE, SUMMARY)
_FOLDERS = (ROLLOUTS, EVALS, ADAPTERS, SKIPPED, REFERENCE, REWARD_MODEL, HEAD)
_DIGITS = 8
"""Of the hash of each prefix of the metrics."""


class RecordHashes:
    """The hashes of a run that is going on; what has not changed since the last manifest is not read again."""

    def __init__(self, run: Path) -> None:
        """Begin with nothing known; `run` is the run's directory."""
        self._run = run
        self._files: dict[str, tuple[tuple[int, int], str]] = {}
        self._logs: dict[str, _Growing] = {}

    def write(self, step: int) -> str:
        """Write manifest.json as of now; the root hash.

        Args:
            step: steps that the run has behind it.
        """
        files = {name: self._sha256(name) for name in record_files(self._run)}
        logs = {name: self._log(name) for name in LOGS if (self._run / name).is_file()}
        text = json.dumps({"format": FORMAT, "step": step, "files": files, "logs": logs}, indent=1) + "\n"
        write_file(self._run / MANIFEST, text)
        return hashlib.sha256(text.encode()).hexdigest()

    def _sha256(self, name: str) -> str:
        status = (self._run / name).stat()
        facts = (status.st_size, status.st_mtime_ns)
        if self._files.get(name, (None,))[0] != facts:
            self._files[name] = (facts, sha256(self._run / name))
        return self._files[name][1]

    def _log(self, name: str) -> dict[str, Any]:
        known = self._logs.setdefault(name, _Growing(marks_lines=name == METRICS))
        if (self._run / name).stat().st_size < known.size:  # it was cut back
            known = self._logs[name] = _Growing(marks_lines=name == METRICS)
        known.read(self._run / name)
        return known.entry()


@dataclass(slots=True)
class _Growing:
    """The hash of a log up to the end of its last whole line."""

    marks_lines: bool
    size: int = 0
    digest: Any = field(default_factory=hashlib.sha256)
    lines: list[str] = field(default_factory=list)

    def read(self, path: Path) -> None:
        """Take in what the file has gained."""
        with path.open("rb") as file:
            file.seek(self.size)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self.digest.update(line)
                self.size += len(line)
                if self.marks_lines:
                    self.lines.append(self.digest.hexdigest()[:_DIGITS])

    def entry(self) -> dict[str, Any]:
        """What the manifest has of it."""
        marks = {"lines": list(self.lines)} if self.marks_lines else {}
        return {"bytes": self.size, "sha256": self.digest.hexdigest(), **marks}


def record_files(run: Path) -> list[str]:
    """Paths below the run's directory, with `/`, of the records that do not grow, sorted."""
    found = [path for name in _SINGLE if (path := run / name).is_file()]
    found += [path for folder in _FOLDERS for path in (run / folder).rglob("*") if path.is_file()]
    found += (run / CHECKPOINTS).glob(f"*/{MANIFEST}")
    names = (path.relative_to(run).as_posix() for path in found)
    return sorted(name for name in names if not any(part.startswith(".") for part in name.split("/")))


def root_hash(run: Path) -> str:
    """sha256 of a run's manifest, which stands for all of its records; empty where there is no manifest."""
    return sha256(run / MANIFEST) if (run / MANIFEST).is_file() else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A run's records beside its manifest."""

    step: int
    """Steps that the run had behind it when the manifest was written."""
    checked: int
    """Files and logs that the manifest names."""
    problems: Sequence[str]
    """What differs, each with the file, and of the metrics the line."""
    gone: Sequence[str]
    """Files that are not there any more, as runs remove them themselves: checkpoints, and adapters where told so."""
    newer: Sequence[str]
    """Files of later steps, and logs that have grown since: the manifest says nothing of those."""


def compare(run: Path, *, keeps_adapters: bool = True) -> Compared | None:
    """Compare the records with what the manifest says of them; None where the run has no manifest.

    Args:
        keeps_adapters: whether the run removes no adapters (`checkpoint.adapters: all`), so that none may be missing.

    Raises:
        ValueError: the manifest cannot be read.
    """
    if not (run / MANIFEST).is_file():
        return None
    manifest = read_json(run / MANIFEST)
    try:
        format_, step, files, logs = (manifest[key] for key in ("format", "step", "files", "logs"))
        if format_ != FORMAT:
            raise ValueError(f"it has format {format_}, and this rlft knows {FORMAT}; check it with the rlft that did")
        problems, gone, newer = list[str](), list[str](), list[str]()
        for name, digest in files.items():
            if not _is_below(name):
                raise ValueError(f"it names {name!r}, which is no file below the run's directory")
            if not (run / name).is_file():
                is_removed = name.startswith(f"{CHECKPOINTS}/") or (
                    name.startswith(f"{ADAPTERS}/v") and not keeps_adapters
                )
                (gone if is_removed else problems).append(name if is_removed else f"{name} is missing")
            elif sha256(run / name) != digest:
                problems.append(f"{name} has another sha256")
        for name, entry in logs.items():
            if name not in LOGS:
                raise ValueError(f"it names {name!r}, which is no log of a run")
            problems += _log_problems(run / name, entry)
            if (run / name).is_file() and (run / name).stat().st_size > entry["bytes"]:
                newer.append(name)
        for name in record_files(run):
            if name not in files:
                (newer if _is_later(name, step) else problems).append(
                    name if _is_later(name, step) else f"{name} is not in the manifest"
                )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{run / MANIFEST} is no manifest of a run: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise ValueError(f"{run / MANIFEST}: {error}") from error
    return Compared(step=step, checked=len(files) + len(logs), problems=problems, gone=gone, newer=newer)


def _log_problems(path: Path, entry: dict[str, Any]) -> Iterator[str]:
    if not path.is_file():
        yield f"{path.name} is missing"
        return
    with path.open("rb") as file:
        data = file.read(entry["bytes"])
    if hashlib.sha256(data).hexdigest() == entry["sha256"]:
        return
    digest, lines = hashlib.sha256(), list(io.BytesIO(data))
    for number, mark in enumerate(entry.get("lines", ()), start=1):
        if number > len(lines):
            yield f"{path.name} ends after line {len(lines)} of {len(entry['lines'])}"
            return
        digest.update(lines[number - 1])
        if digest.hexdigest()[:_DIGITS] != mark:
            yield f"{path.name}:{number} is another line"
            return
    yield f"{path.name} has another sha256 over its first {entry['bytes']} bytes"


def _is_below(name: object) -> bool:
    parts = name.split("/") if isinstance(name, str) else [".."]
    return not any(part in ("", ".", "..") or "\\" in part for part in parts)


def _is_later(name: str, step: int) -> bool:
    """Whether a record belongs to a step after `step`, or to a run's end, which the manifest may not have seen."""
    folder, _, rest = name.partition("/")
    made_at = step_of(Path(rest.partition("/")[0]).stem) if rest else None
    return name == SUMMARY or folder == CHECKPOINTS or (made_at is not None and made_at > step)
