"""Atomic, hashed snapshots: safetensors and JSON, never pickle.

    checkpoints/step-000010/  tensors.safetensors  state.json  manifest.json

A snapshot is written into a temporary folder, each file synced, the manifest with every file's sha256 last; then the
folder is renamed and its parent synced. A folder whose manifest does not verify does not count.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from rlft.files import sha256


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a checkpoint holds."""

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save(folder: Path, snapshot: Snapshot, *, keep: int) -> Path:
    """Write `snapshot` below `folder` and remove all but the newest `keep`.

    Raises:
        OSError: the disk is full or not writable; earlier snapshots are untouched.
    """
    target = folder / f"step-{snapshot.step:06d}"

    def write(temporary: Path) -> None:
        save_file(dict(snapshot.tensors), temporary / "tensors.safetensors")
        (temporary / "state.json").write_text(json.dumps({"step": snapshot.step, **snapshot.state}, indent=1))
        manifest = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))

    write_folder(target, write)
    # Later ones are of a past that this run has left, after a resume from an earlier snapshot: they go first.
    earlier = sorted(path for path in folder.glob("step-*") if path.name <= target.name)
    for old in {*folder.glob("step-*")} - {*earlier[-keep:]}:
        shutil.rmtree(old)
    return target


def load_latest(folder: Path) -> tuple[Snapshot | None, list[str]]:
    """The newest snapshot that verifies, and what is wrong with newer ones.

    Returns:
        (None, problems) when there is none.
    """
    problems = []
    for path in sorted(folder.glob("step-*"), reverse=True):
        if problem := verify(path):
            problems.append(problem)
            continue
        state = json.loads((path / "state.json").read_text())
        return Snapshot(step=state.pop("step"), tensors=load_file(path / "tensors.safetensors"), state=state), problems
    return None, problems


def verify(path: Path) -> str:
    """Empty when the snapshot is whole, else what is wrong with it."""
    try:
        manifest: dict[str, str] = json.loads((path / "manifest.json").read_text())
    except (OSError, ValueError) as error:
        return f"{path}: no readable manifest ({error})"
    for name, expected in manifest.items():
        file = path / name
        if not file.is_file():
            return f"{path}: {name} is missing"
        if sha256(file) != expected:
            return f"{path}: {name} does not have the sha256 that its manifest names (truncated or changed)"
    return ""


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Make a folder appear whole or not at all: `write` fills a temporary one, which is synced and renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        write(temporary)
        for path in temporary.iterdir():
            path.chmod(0o644)
            _sync(path)
        _sync(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(target.parent)


def write_file(target: Path, data: str | bytes) -> None:
    """Make a file appear whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
        _sync(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
