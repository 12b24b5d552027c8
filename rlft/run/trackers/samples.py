"""A few samples of a run as a small table, for trackers."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from rlft.run.records import ROLLOUTS

COLUMNS = ("step", "prompt", "completion", "reward")
PER_STEP = 8
"""Samples of the first and of the last step."""


def first_and_last(run: Path) -> list[list[str]]:
    """Rows of `COLUMNS`, as texts: the first samples of the first and of the last step; empty where none are stored.

    A sample without a score has an empty reward.
    """
    files = sorted((run / ROLLOUTS).glob("step-*.parquet"))
    rows = []
    for path in dict.fromkeys([*files[:1], *files[-1:]]):
        for row in pq.read_table(path, columns=list(COLUMNS)).slice(0, PER_STEP).to_pylist():
            rows.append(["" if row[name] is None else str(row[name]) for name in COLUMNS])
    return rows
