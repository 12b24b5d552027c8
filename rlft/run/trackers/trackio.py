"""Trackio: a local dashboard, or one in a Hugging Face Space (https://huggingface.co/docs/trackio)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlft.run.records import SUMMARY
from rlft.run.trackers.contract import REPORT, TrackedRun
from rlft.run.trackers.samples import COLUMNS, first_and_last


class Trackio:
    """A run of trackio. Its name ends with the run's id, since trackio tells the runs of a project by name."""

    def __init__(self, run: TrackedRun) -> None:
        """Make or find the run; numbers of the machine are not sent."""
        import trackio

        self._trackio = trackio
        self._step = 0
        self._run = trackio.init(
            project=run.project,
            name=f"{run.name}-{run.id}",
            space_id=run.to or None,
            config=dict(run.config),
            resume="allow",
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send a step's numbers."""
        self._run.log(dict(metrics), step=step)
        self._step = step

    def finish(self, run: Path) -> None:
        """Send samples as a table, summary and report as texts."""
        made: dict[str, object] = {}
        if rows := first_and_last(run):
            made["samples"] = self._trackio.Table(columns=list(COLUMNS), data=rows)
        if (run / SUMMARY).is_file():
            summary = (run / SUMMARY).read_text(encoding="utf-8")
            made["summary"] = self._trackio.Markdown("\n".join(f"    {line}" for line in summary.splitlines()))
        if (run / REPORT).is_file():
            made["report"] = self._trackio.Html((run / REPORT).read_text(encoding="utf-8"))
        if made:
            self._run.log(made, step=self._step)
        self._run.finish()
