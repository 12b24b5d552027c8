"""The trackers with their real packages, writing on this machine; skipped where one is missing (`make test-extras`)."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from rlft.run.directory import Run
from rlft.run.records import Provenance
from rlft.run.trackers.contract import REPORT
from tests.fakes import made_up_group, read_lines, tiny_config

ORIGIN = Provenance(config={}, sha256={}, started="2026-01-01T00:00:00+00:00")


def tracked(folder: Path, tracker: Any) -> Path:
    """A run of three steps that was resumed after the second one, sent to a tracker; returns its directory."""
    config = tiny_config("model", output_dir=str(folder / "runs"), trackers=[tracker])
    with Run.create(config, provenance=ORIGIN) as run:
        run.write_rollouts(1, [made_up_group([1.0, 0.0])])
        run.log(1, {"reward/mean": 0.25, "reward/part:a": 1.0})
        run.log(2, {"reward/mean": 0.5})
    with Run(config) as run:
        run.log(2, {"reward/mean": 0.5})  # made again, as after a crash
        run.log(3, {"reward/mean": 0.75})
        run.write_summary({"steps": 3, "name": "tiny"})
        (run.path / REPORT).write_text("<p>report</p>")
    events = read_lines(run.path / "events.jsonl") if (run.path / "events.jsonl").exists() else []
    told = [row["message"] for row in events if row["kind"] != "ended" and "the run waited" not in row["message"]]
    assert told == []
    return run.path


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="needs the extra tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tracked(tmp_path, "tensorboard")
    read = EventAccumulator(str(run / "trackers" / "tensorboard"))
    read.Reload()
    scalars = [(event.step, event.value) for event in read.Scalars("reward/mean")]
    assert scalars == [(1, 0.25), (2, 0.5), (3, 0.75)]  # step 2 once: what was before the resume is purged
    texts = [tag for tag in read.Tags()["tensors"] if tag.startswith(("samples", "summary", "config"))]
    assert len(texts) == 4  # two samples
    (report,) = read.Tensors("report/text_summary")
    assert report.tensor_proto.string_val[0].decode().startswith(f"    {run / REPORT}\n")
    elsewhere = tracked(tmp_path / "b", {"name": "tensorboard", "to": str(tmp_path / "boards")})
    assert list((tmp_path / "boards" / "tiny").glob("events.*"))
    assert not list((elsewhere / "trackers").glob("tensorboard/*"))


def test_wandb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    run = tracked(tmp_path, {"name": "wandb", "to": "offline", "project": "team/words"})
    key = (run / "trackers" / "wandb.id").read_text().strip()
    files = sorted((run / "trackers" / "wandb").glob(f"offline-run-*-{key}/run-{key}.wandb"))
    assert len(files) == 2  # one for each start, of the same run
    assert b"reward/mean" in files[0].read_bytes()
    tables = list((run / "trackers" / "wandb").glob("*/files/media/table/samples*.json"))
    assert [json.loads(path.read_text())["columns"] for path in tables] == [
        ["step", "prompt", "completion", "reward"]
    ] * len(tables)
    assert tables
    assert list((run / "trackers" / "wandb").glob("*/files/media/html/report*.html"))


def test_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow", reason="needs the extra mlflow")
    pytest.importorskip("sqlalchemy", reason="needs the extra mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow.tracking import MlflowClient

    run = tracked(tmp_path, {"name": "mlflow", "project": "words"})
    client = MlflowClient(tracking_uri=f"sqlite:///{run.parent / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("words")
    found = client.search_runs([experiment.experiment_id])
    assert [(each.info.run_name, each.info.status) for each in found] == [("tiny", "FINISHED")]
    history = client.get_metric_history(found[0].info.run_id, "reward/mean")
    assert sorted({(metric.step, metric.value) for metric in history}) == [(1, 0.25), (2, 0.5), (3, 0.75)]
    assert client.get_metric_history(found[0].info.run_id, "reward/part_a")
    files = {file.path for file in client.list_artifacts(found[0].info.run_id)}
    assert files == {"config.json", "samples.jsonl", "summary.json", "report.html"}


def test_trackio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # it is read when the package is imported
    pytest.importorskip("trackio", reason="needs the extra trackio")
    run = tracked(tmp_path, {"name": "trackio", "project": "words"})
    key = (run / "trackers" / "trackio.id").read_text().strip()
    with closing(sqlite3.connect(tmp_path / "trackio" / "words.db")) as database:
        found = database.execute("select run_name, step, metrics from metrics order by id").fetchall()
    rows = [(name, step, json.loads(metrics)) for name, step, metrics in found]
    assert {name for name, _, _ in rows} == {f"tiny-{key}"}
    steps = {(step, metrics["reward/mean"]) for _, step, metrics in rows if "reward/mean" in metrics}
    assert steps == {(1, 0.25), (2, 0.5), (3, 0.75)}
    assert any("samples" in metrics for _, _, metrics in rows)
