"""MLflow: a server, or an SQLite file beside the runs (https://mlflow.org/docs/latest/ml/tracking)."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from pathlib import Path

from rlft.run.records import SUMMARY
from rlft.run.trackers.contract import REPORT, TrackedRun
from rlft.run.trackers.samples import COLUMNS, first_and_last

_TAG = "rlft_id"
_CONFIG, _SAMPLES = "config.json", "samples.jsonl"


class MLflow:
    """A run of MLflow, found again by a tag when the run is resumed."""

    def __init__(self, run: TrackedRun) -> None:
        """Connect, and make the experiment where there is none of that name."""
        import os

        from mlflow.tracking import MlflowClient

        runs = run.path.absolute().parent
        address = run.to or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{runs / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=address)
        experiment = self._client.get_experiment_by_name(run.project)
        # Else the files of an SQLite store would go where rlft was started.
        files = (runs / "mlflow-artifacts").as_uri() if address.startswith("sqlite:") else None
        key = experiment.experiment_id if experiment else self._client.create_experiment(run.project, files)
        found = self._client.search_runs([key], f"tags.{_TAG} = '{run.id}'", max_results=1)
        made = found[0] if found else self._client.create_run(key, run_name=run.name, tags={_TAG: run.id})
        self._id = made.info.run_id
        self._client.update_run(self._id, status="RUNNING")
        self._client.log_text(self._id, json.dumps(run.config, indent=1), _CONFIG)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send a step's numbers; characters that MLflow's names cannot have become `_`."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        rows = [Metric(re.sub(r"[^\w\-./ ]", "_", name), value, now, step) for name, value in metrics.items()]
        for first in range(0, len(rows), 1000):  # as many as a request may hold
            self._client.log_batch(self._id, metrics=rows[first : first + 1000])

    def finish(self, run: Path) -> None:
        """Send samples, summary and report as the run's files; without a summary the run counts as failed."""
        if rows := first_and_last(run):
            lines = (json.dumps(dict(zip(COLUMNS, row, strict=True)), ensure_ascii=False) for row in rows)
            self._client.log_text(self._id, "\n".join(lines) + "\n", _SAMPLES)
        for name in (SUMMARY, REPORT):
            if (run / name).is_file():
                self._client.log_artifact(self._id, str(run / name))
        self._client.set_terminated(self._id, "FINISHED" if (run / SUMMARY).is_file() else "FAILED")
