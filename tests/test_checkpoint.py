"""Snapshots: whole or not at all, verified before they are used, and never at the cost of the one before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from rlft.common.files import write_file, write_folder
from rlft.run import checkpoint
from rlft.run.checkpoint import Snapshot, load_latest, save, verify


def snapshot(step: int) -> Snapshot:
    tensors = {"a/b.weight": torch.full((2, 3), float(step)), "step": torch.tensor(step, dtype=torch.int64)}
    return Snapshot(step=step, tensors=tensors, state={"learner": {"num_updates": step}})


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    odd = {
        "float32": torch.tensor([1e-45, float("inf"), -0.0]),
        "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "empty": torch.zeros(0, 4),
    }
    save(tmp_path, Snapshot(step=3, tensors=odd, state={"learner": {"num_updates": 5}}), keep=1)
    loaded, problems = load_latest(tmp_path)
    assert problems == []
    assert loaded is not None
    assert (loaded.step, loaded.state) == (3, {"learner": {"num_updates": 5}})
    assert loaded.tensors.keys() == odd.keys()
    for name, tensor in odd.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)


def test_nothing_there_is_no_error(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "checkpoints") == (None, [])


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 9, 10, 100):
        save(tmp_path, snapshot(step), keep=2)
    assert steps(tmp_path) == ["step-000010", "step-000100"]
    loaded, _ = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 100


def test_the_manifest_covers_every_file(tmp_path: Path) -> None:
    path = save(tmp_path, snapshot(1), keep=1)
    manifest = json.loads((path / "manifest.json").read_text())
    assert manifest.keys() == {file.name for file in path.iterdir()} - {"manifest.json"}
    assert verify(path) == ""


def flip_last_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def cut_in_half(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", [flip_last_byte, cut_in_half, Path.unlink], ids=["flipped", "truncated", "missing"])
def test_a_damaged_snapshot_is_named_and_the_one_before_is_used(tmp_path: Path, name: str, damage) -> None:
    save(tmp_path, snapshot(1), keep=5)
    save(tmp_path, snapshot(2), keep=5)
    damage(tmp_path / "step-000002" / name)
    loaded, problems = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 1
    assert torch.equal(loaded.tensors["a/b.weight"], torch.ones(2, 3))
    assert len(problems) == 1
    assert "step-000002" in problems[0]
    assert name in problems[0] or "manifest" in problems[0]


def test_when_all_are_damaged_each_is_named(tmp_path: Path) -> None:
    for step in (1, 2):
        cut_in_half(save(tmp_path, snapshot(step), keep=5) / "state.json")
    loaded, problems = load_latest(tmp_path)
    assert loaded is None
    assert [problem.partition(":")[0][-11:] for problem in problems] == ["step-000002", "step-000001"]


def test_a_snapshot_just_written_survives_damaged_later_ones(tmp_path: Path) -> None:
    # A run whose last snapshots are damaged starts over; its first new one must not be the one that is cleared away.
    for step in (8, 10):
        cut_in_half(save(tmp_path, snapshot(step), keep=2) / "tensors.safetensors")
    save(tmp_path, snapshot(2), keep=2)
    loaded, _ = load_latest(tmp_path)
    assert loaded is not None
    assert loaded.step == 2


def test_a_snapshot_can_be_made_again(tmp_path: Path) -> None:
    save(tmp_path, snapshot(1), keep=2)
    again = Snapshot(step=1, tensors={"x": torch.ones(1)}, state={"learner": {"num_updates": 7}})
    save(tmp_path, again, keep=2)
    loaded, problems = load_latest(tmp_path)
    assert loaded is not None
    assert (loaded.state["learner"]["num_updates"], problems) == (7, [])


# Atomicity.


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_folder_that_could_not_be_written_leaves_the_old_one(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "folder"
    write_folder(target, lambda folder: (folder / "a").write_text("old"))

    def fail(folder: Path) -> None:
        (folder / "a").write_text("new")
        raise error

    with pytest.raises(type(error)):
        write_folder(target, fail)
    assert (target / "a").read_text() == "old"
    assert steps(tmp_path) == ["folder"]


def test_a_full_disk_leaves_the_last_snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, snapshot(1), keep=1)

    def full(tensors: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        save(tmp_path, snapshot(2), keep=1)
    loaded, problems = load_latest(tmp_path)
    assert loaded is not None
    assert (loaded.step, problems) == (1, [])
    assert steps(tmp_path) == ["step-000001"]


def test_a_file_that_could_not_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file.json"
    write_file(target, "old")
    written: list[str] = []

    def full(path: Path) -> None:
        written.append(path.read_text())
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rlft.common.files._sync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(target, "new")
    assert written == ["new"]
    assert target.read_text() == "old"
    assert steps(tmp_path) == ["file.json"]


def test_a_write_is_seen_whole_or_not_at_all(tmp_path: Path) -> None:
    target, seen = tmp_path / "folder", []

    def write(folder: Path) -> None:
        (folder / "a").write_text("a")
        seen.append(target.exists())
        (folder / "b").write_text("b")

    write_folder(target, write)
    assert seen == [False]
    assert steps(target) == ["a", "b"]
