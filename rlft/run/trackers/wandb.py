"""Weights & Biases, online or into the run directory (https://docs.wandb.ai)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from rlft.run.records import SUMMARY
from rlft.run.trackers.contract import REPORT, TrackedRun
from rlft.run.trackers.samples import COLUMNS, first_and_last


class Wandb:
    """A run of wandb, with `step` as its horizontal axis so that a step may come again after a resume."""

    def __init__(self, run: TrackedRun) -> None:
        """Connect, or begin an offline run in the run directory."""
        import wandb

        team, _, project = run.project.rpartition("/")
        run.folder.mkdir(exist_ok=True)
        self._wandb = wandb
        self._run = wandb.init(
            entity=team or None,
            project=project,
            name=run.name,
            id=run.id,
            resume="allow",
            mode=run.to or None,
            dir=run.folder,
            config=dict(run.config),
            settings=wandb.Settings(console="off", silent=True),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send a step's numbers."""
        self._run.log({"step": step, **metrics})

    def finish(self, run: Path) -> None:
        """Send samples as a table, the report as a page, the result as the run's summary."""
        if rows := first_and_last(run):
            self._run.log({"samples": self._wandb.Table(columns=list(COLUMNS), data=rows)})
        if (run / REPORT).is_file():
            self._run.log({"report": self._wandb.Html(str(run / REPORT), inject=False)})
        if (run / SUMMARY).is_file():
            self._run.summary.update({"result": json.loads((run / SUMMARY).read_text(encoding="utf-8"))})
        self._run.finish()
