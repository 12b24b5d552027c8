"""The report of a run that was stopped before its end."""

from __future__ import annotations

import logging
from pathlib import Path

from rlft.curves.live_panel import View
from rlft.curves.reading import rollout_steps
from rlft.run.records import EVALS, METRICS

_LOG = logging.getLogger(__name__)


def report_stop(view: View, run: Path) -> None:
    """Write the report and the picture of a run that was stopped, if there is anything to show.

    What stopped it is what has to be told, so an error here is only noted.
    """
    from rlft.curves.report import write_report, write_reward_png

    if not ((run / METRICS).is_file() or rollout_steps(run) or any((run / EVALS).glob("*.json"))):
        return
    try:
        view.note(f"report of the run so far: {write_report(run)}")
        write_reward_png(run)
    except Exception as error:
        _LOG.warning("no report of the stopped run could be written: %s", error)
