"""Atomic, hashed snapshots: safetensors and JSON, never pickle.

    checkpoints/step-000010/  tensors.safetensors  state.json  manifest.json

A snapshot is written into a temporary folder, each file synced, the manifest with every file's sha256 last; then the
folder is renamed and its parent synced. A folder whose manifest does not verify does not count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from rlft.common.files import remove_folder, sha256, write_folder
from rlft.run.records import numbered, step_name


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What a checkpoint holds."""

    step: int
    tensors: Mapping[str, Tensor]
    state: Mapping[str, Any]


def save(folder: Path, snapshot: Snapshot, *, keep: int, every: int = 1) -> Path:
    """Write `snapshot` below `folder` and `prune` the others.

    Raises:
        OSError: the disk is full or not writable; earlier snapshots are untouched.
    """
    target = folder / step_name(snapshot.step)

    def write(temporary: Path) -> None:
        save_file(dict(snapshot.tensors), temporary / "tensors.safetensors")
        (temporary / "state.json").write_text(json.dumps({"step": snapshot.step, **snapshot.state}, indent=1))
        manifest = {path.name: sha256(path) for path in sorted(temporary.iterdir())}
        (temporary / "manifest.json").write_text(json.dumps(manifest, indent=1))

    write_folder(target, write)
    prune(folder, keep=keep, last=snapshot.step, every=every)
    return target


def prune(folder: Path, *, keep: int, last: int, every: int) -> None:
    """Remove all snapshots but the newest `keep` up to step `last`, which is one of them.

    Later ones are of a past that the run has left, after a resume from an earlier snapshot. One off the schedule of
    `every` steps was saved where a run was stopped, and goes once there is a later one.
    """
    kept = [step for step in steps_kept(folder) if step == last or (step < last and step % every == 0)][-keep:]
    for step, path in numbered(folder):
        if step not in kept:
            remove_folder(path)


def steps_kept(folder: Path) -> list[int]:
    """Steps that have a snapshot, ascending; it may be damaged."""
    return [step for step, _ in numbered(folder)]


def load_latest(folder: Path, *, step: int | None = None) -> tuple[Snapshot | None, list[str]]:
    """The newest snapshot that verifies, or only the one of `step`, and what is wrong with newer ones.

    Returns:
        (None, problems) when there is none.
    """
    problems = []
    for _, path in sorted((each for each in numbered(folder) if step in (None, each[0])), reverse=True):
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
