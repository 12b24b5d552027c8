"""Held-out completions before and after training, of tasks that changed and of some that did not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rlft.curves import reading
from rlft.curves.samples import COLUMNS, OPTIONAL, TEXT, conversation, sample
from rlft.curves.text import number, shortened
from rlft.run.records import Evaluation

TASKS = 40
"""How many tasks a page in one file shows."""
_KINDS = ("got worse", "got better", "still low", "still high")


def heldout(run: Path, evals: Sequence[Evaluation], limit: int = TASKS) -> dict[str, Any] | None:
    """Tasks of the evaluation that decides, with what was answered before training and at its end.

    Up to `limit` tasks are shown, in turn of each kind (worse, better, the same), those that changed most first. None
    where one of both evaluations or its samples are missing.

    Raises:
        ValueError: a file of samples is damaged.
    """
    before, trained = [e for e in evals if e.is_before], [e for e in evals if not e.is_before]
    if not before or not trained:
        return None
    start, last = before[-1], trained[-1]
    means = [{task: _mean(values) for task, values in each.by_task.items() if values} for each in (start, last)]
    common = [task for task in means[0] if task in means[1]]
    if not common:
        return None
    middle = sum(means[1][task] for task in common) / len(common)
    kinds: dict[str, list[tuple[float, str]]] = {kind: [] for kind in _KINDS}
    for task in common:
        change = means[1][task] - means[0][task]
        high = means[1][task] >= middle
        kind = _KINDS[0] if change < 0 else _KINDS[1] if change > 0 else _KINDS[3] if high else _KINDS[2]
        kinds[kind].append((-abs(change), task))
    chosen = _in_turn([[task for _, task in sorted(each)] for each in kinds.values()], limit)
    kind_of = {task: kind for kind, each in kinds.items() for _, task in each}
    samples = [_samples(run, each, set(chosen)) for each in (start, last)]
    pairs = [
        {
            "task": shortened(task, 300),
            "kind": kind_of[task],
            "before": number(means[0][task]),
            "after": number(means[1][task]),
            "prompt": shortened(samples[1][task]["prompt"] or "", TEXT),
            "messages": conversation(samples[1][task]["messages"]),
            "samples": [sample(side[task]) for side in samples],
        }
        for task in chosen
        if task in samples[0] and task in samples[1]
    ]
    if not pairs:
        return None
    counts = {kind: len(each) for kind, each in kinds.items() if each}
    return {"labels": [start.label, last.label], "total": len(common), "counts": counts, "pairs": pairs}


def _samples(run: Path, evaluation: Evaluation, tasks: set[str]) -> dict[str, Mapping[str, Any]]:
    """The first sample of each task."""
    found: dict[str, Mapping[str, Any]] = {}
    table = reading.read_eval_samples(run, evaluation.name, COLUMNS, optional=OPTIONAL)
    for row in table.to_pylist() if table is not None else ():
        if row["task_id"] in tasks:
            found.setdefault(row["task_id"], row)
    return found


def _in_turn(several: Sequence[Sequence[str]], limit: int) -> list[str]:
    longest = max(map(len, several))
    return [each[at] for at in range(longest) for each in several if at < len(each)][:limit]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
