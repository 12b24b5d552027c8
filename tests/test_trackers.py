"""Trackers: what is sent to them, what they may do wrong, and what they are refused for before a run starts."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rlft import config_file
from rlft.config import RunConfig
from rlft.run import resume
from rlft.run.directory import Run
from rlft.run.provenance import changed_numbers, describe
from rlft.run.records import Evaluation, Interval, Provenance
from rlft.run.resume import How
from rlft.run.trackers import mirror
from rlft.run.trackers.contract import REPORT, TrackedRun
from rlft.run.trackers.tensorboard import TensorBoard
from rlft.train.rl import launch
from tests.fakes import read_lines, tiny_config

ORIGIN = Provenance(config={}, sha256={}, started="2026-01-01T00:00:00+00:00")


class Memory:
    """Keeps what it gets; raises at the steps that it is told to."""

    def __init__(self, bad: Mapping[int, BaseException] | None = None) -> None:
        self.runs: list[TrackedRun] = []
        self.sent: list[tuple[int, dict[str, float]]] = []
        self.finished: list[list[str]] = []
        self.bad = bad or {}
        self.tried: list[int] = []

    def make(self, name: str, run: TrackedRun) -> Memory:
        self.runs.append(run)
        return self

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.tried.append(step)
        if step in self.bad:
            raise self.bad[step]
        self.sent.append((step, dict(metrics)))

    def finish(self, run: Path) -> None:
        self.finished.append(sorted(path.name for path in run.iterdir()))


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A tracker in the place of all, as if its package were installed."""
    kept = Memory()
    monkeypatch.setattr(mirror, "make_tracker", kept.make)
    monkeypatch.setattr("rlft.run.trackers.by_name.refuse_missing", lambda trackers: None)
    monkeypatch.setattr("rlft.run.directory.refuse_missing", lambda trackers: None)
    monkeypatch.setattr(resume, "refuse_missing", lambda trackers: None)
    return kept


def config(folder: Path, **changes: Any) -> RunConfig:
    return tiny_config("model", **{"output_dir": str(folder), "trackers": ["wandb"], **changes})


def events(run: Path) -> list[str]:
    return [row["message"] for row in read_lines(run / "events.jsonl") if row["kind"] == "tracker"]


def test_a_run_is_mirrored_and_a_resumed_one_goes_on_in_the_same_place(
    memory: Memory, tmp_path: Path, tiny_model: Path
) -> None:
    settings = config(
        tmp_path, model={"source": str(tiny_model)}, steps=2, checkpoint={"every": 1}, evaluation={"tasks": 2}
    )
    launch.train(settings)
    path = settings.run_dir
    launch.resume(path, How(overrides=("steps=3",)))

    steps = [(step, metrics) for step, metrics in memory.sent if "heldout/share_of_a" not in metrics]
    assert steps == [(row.pop("step"), row) for row in read_lines(path / "metrics.jsonl")]
    measured = [(step, m["heldout/share_of_a"]) for step, m in memory.sent if "heldout/share_of_a" in m]
    base = json.loads((path / "evals" / "base.json").read_text())["accuracy"]["mean"]
    assert measured[0] == (0, base)
    assert [step for step, _ in measured] == [0, 2, 3]
    assert [run.id for run in memory.runs] == [memory.runs[0].id] * 2
    assert memory.runs[0].config["steps"] == 2
    assert all({"report.html", "summary.json", "rollouts"} <= {*names} for names in memory.finished)
    assert len(memory.finished) == 2
    assert events(path) == []


def test_a_tracker_that_begins_later_gets_what_was_before(memory: Memory, tmp_path: Path) -> None:
    with Run.create(config(tmp_path, trackers=[]), provenance=ORIGIN) as run:
        run.log(1, {"reward/mean": 0.25})
        run.write_evaluation(measurement(step=1))
    assert memory.runs == []
    with Run(config(tmp_path)) as run:
        run.log(2, {"reward/mean": 0.5})
    heldout = {"heldout/right": 0.5, "heldout/right/low": 0.25, "heldout/right/high": 0.75}
    assert memory.sent == [(1, {"reward/mean": 0.25}), (1, heldout), (2, {"reward/mean": 0.5})]


def measurement(*, step: int) -> Evaluation:
    return Evaluation(
        name=f"step-{step:06d}",
        step=step,
        adapter_version=step,
        adapter_hash="",
        metric="right",
        accuracy=Interval(0.5, 0.25, 0.75, 4),
        failed=0,
        length=1.0,
        truncated=0.0,
        by_task={},
    )


@pytest.mark.parametrize("error", [OSError("no route\nto host"), SystemExit(3)])
def test_errors_are_told_once_and_the_run_goes_on(memory: Memory, tmp_path: Path, error: BaseException) -> None:
    memory.bad = {2: error, 4: error, 5: error, 6: error}
    with Run.create(config(tmp_path), provenance=ORIGIN) as run:
        for step in range(1, 10):
            run.log(step, {"reward/mean": step / 10})
    assert [row["step"] for row in read_lines(run.path / "metrics.jsonl")] == [*range(1, 10)]
    assert [step for step, _ in memory.sent] == [1, 3]
    assert memory.tried == [1, 2, 3, 4, 5, 6]  # and no more after three errors in a row
    assert memory.finished == []
    told = events(run.path)
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    assert told == [
        f"wandb: step 2 not sent ({reason})",
        f"wandb: step 4 not sent ({reason})",
        f"wandb: step 6 not sent ({reason}); it is tried no more",
    ]


def test_one_that_never_starts_is_made_up_for_by_a_resume(
    memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str, run: TrackedRun) -> Any:
        raise RuntimeError("not logged in")

    monkeypatch.setattr(mirror, "make_tracker", fail)
    with Run.create(config(tmp_path), provenance=ORIGIN) as run:
        for step in range(1, 5):
            run.log(step, {"reward/mean": 0.5})
    assert len(events(run.path)) == 2
    monkeypatch.setattr(mirror, "make_tracker", memory.make)
    with Run(config(tmp_path)) as run:
        run.log(5, {"reward/mean": 0.5})
    assert [step for step, _ in memory.sent] == [1, 2, 3, 4, 5]


def test_a_slow_one_holds_up_no_step(memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go, is_busy = threading.Event(), threading.Event()

    class Slow(Memory):
        def log(self, step: int, metrics: Mapping[str, float]) -> None:
            is_busy.set()
            assert may_go.wait(60)
            super().log(step, metrics)

    slow = Slow()
    monkeypatch.setattr(mirror, "make_tracker", slow.make)
    monkeypatch.setattr(mirror, "WAITING", 3)
    with Run.create(config(tmp_path), provenance=ORIGIN) as run:
        run.log(1, {"reward/mean": 0.5})
        assert is_busy.wait(60)
        for step in range(2, 8):
            run.log(step, {"reward/mean": 0.5})  # returns although step 1 is still being sent
        assert slow.sent == []
        may_go.set()
    assert [step for step, _ in slow.sent] == [1, 2, 3, 4]  # one in hand and three waiting
    assert events(run.path) == ["wandb is slower than the run: 3 steps were not sent"]


def test_one_that_hangs_is_left(memory: Memory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    may_go = threading.Event()
    monkeypatch.setattr(memory, "finish", lambda run: may_go.wait(60))
    monkeypatch.setattr(mirror, "PATIENCE_S", 0.1)
    with Run.create(config(tmp_path), provenance=ORIGIN) as run:
        run.log(1, {"reward/mean": 0.5})
    assert [message.partition(" s ")[2] for message in events(run.path)] == ["after the run; it was left there"]
    may_go.set()


def test_a_missing_package_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"trackers: wandb is not installed: pip install 'rlft\[wandb\]', or leave"):
        Run.create(config(tmp_path / "runs"), provenance=ORIGIN)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("[tensorbord]", "trackers.0: unknown tracker 'tensorbord'; .*Did you mean 'tensorboard'"),
        ("[{name: wandb, projekt: x}]", "trackers.0.projekt: .*Did you mean 'project'"),
        ("[{name: wandb, to: nowhere}]", "wandb goes `online` or `offline`, not to 'nowhere'; .*WANDB_BASE_URL"),
        ("[wandb, {name: wandb, project: x}]", "wandb stands twice"),
    ],
)
def test_wrong_settings_are_refused_with_their_place(tmp_path: Path, written: str, told: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(config_file.dump(config(tmp_path, trackers=["tensorboard"])))
    assert config_file.load(path).trackers[0].name == "tensorboard"  # written out whole, and read back
    with pytest.raises(ValueError, match=told):
        config_file.load(path, [f"trackers={written}"])


def test_they_decide_no_numbers(tmp_path: Path) -> None:
    def origin(*trackers: Any) -> Provenance:
        facts: dict[str, Any] = {"sha256": {}, "tasks": "", "model": "", "kernels": "", "operations": (), "device": ""}
        return describe(config(tmp_path, trackers=trackers), **facts)

    assert changed_numbers(origin("wandb"), origin("mlflow", {"name": "wandb", "project": "x"})) == []


def test_tensorboard_is_told_where_the_report_lies(tmp_path: Path) -> None:
    class Writer:
        """As torch's, which takes a while to import."""

        def __init__(self) -> None:
            self.texts: dict[str, str] = {}

        def add_text(self, tag: str, text: str, step: int) -> None:
            self.texts[tag] = text

        def close(self) -> None: ...

    run = tmp_path / "<b>it</b>\n# [x](javascript:1)"  # a run's name is data, and TensorBoard renders Markdown
    run.mkdir(parents=True)
    facts: Any = {"id": "1", "config": {}, "project": "", "to": ""}
    tracker = TensorBoard(TrackedRun(path=run, name="it", **facts))
    tracker._writer = writer = Writer()
    tracker.finish(run)
    assert writer.texts == {}
    (run / REPORT).write_text("<p>report</p>")
    tracker.finish(run)
    first, second, _ = writer.texts["report"].splitlines()
    assert f"{first[4:]}\n{second[4:]}" == str(run / REPORT)
    assert all(line.startswith("    ") for line in writer.texts["report"].splitlines()), "shown as it is, not as markup"
