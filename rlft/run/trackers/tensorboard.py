"""TensorBoard's event files, written by torch (https://docs.pytorch.org/docs/stable/tensorboard.html)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlft.run.records import SUMMARY
from rlft.run.trackers.contract import REPORT, TrackedRun
from rlft.run.trackers.samples import COLUMNS, first_and_last


class TensorBoard:
    """Writes event files into `to`/NAME, or into the run directory, where `tensorboard --logdir runs` finds them."""

    def __init__(self, run: TrackedRun) -> None:
        """Nothing is written before the first step."""
        self._folder = Path(run.to) / run.name if run.to else run.folder / "tensorboard"
        self._config = run.config
        self._writer: Any = None
        self._step = 0

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the step's numbers as scalars."""
        if self._writer is None:
            self._open(step)
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()
        self._step = step

    def _open(self, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        # What an earlier file has of this step and later ones is shown no more: a resumed run makes them again.
        self._writer = SummaryWriter(str(self._folder), purge_step=step)
        self._writer.add_text("config", _preformatted(_lines(self._config)), step)

    def finish(self, run: Path) -> None:
        """Write samples and the summary as texts; of the report, which is a page, where it lies."""
        if self._writer is None:
            return
        for number, row in enumerate(first_and_last(run)):
            text = "\n".join(f"{name}: {value}" for name, value in zip(COLUMNS, row, strict=True))
            self._writer.add_text(f"samples/{number:02d}", _preformatted(text), int(row[0]))
        if (run / SUMMARY).is_file():
            self._writer.add_text("summary", _preformatted((run / SUMMARY).read_text(encoding="utf-8")), self._step)
        if (run / REPORT).is_file():
            where = f"{(run / REPORT).absolute()}\nA page of one file: open it in a browser, or rlft view serves it."
            self._writer.add_text("report", _preformatted(where), self._step)
        self._writer.close()


def _preformatted(text: str) -> str:
    """As Markdown that is shown as it is, so that nothing that a model wrote is taken for markup."""
    return "\n".join(f"    {line}" for line in text.splitlines())


def _lines(tree: Mapping[str, Any], prefix: str = "") -> str:
    lines = [
        _lines(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else f"{prefix}{key}: {value}"
        for key, value in tree.items()
    ]
    return "\n".join(lines)
