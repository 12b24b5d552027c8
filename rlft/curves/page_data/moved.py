"""What moved the reward between windows of steps, and between two evaluations, as `rlft why` says it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from rlft.curves import reading
from rlft.curves.contributions import Change, Window, explain, read_window
from rlft.curves.failing import failing
from rlft.curves.marks import short
from rlft.curves.page_data.tables import table
from rlft.curves.sample_kinds import Example
from rlft.curves.text import number, percent
from rlft.run.records import Evaluation

_WINDOWS = 4
"""Windows of steps, evenly over the run, each of which is compared with each later one."""
_EXAMPLES = 4
"""Samples that are shown of what appeared, of what disappeared and of what fails."""


def moved(run: Path, config: Mapping[str, Any], evals: Sequence[Evaluation]) -> dict[str, Any] | None:
    """`changes` between windows, the first of them from the first to the last steps, and what `fails` at the end.

    None where no two windows have scored samples.
    """
    windows = _training(run)
    pairs = [(windows[0], windows[-1])] if len(windows) > 1 else []
    pairs += [pair for pair in combinations(windows, 2) if pair not in pairs]
    before, trained = [e for e in evals if e.is_before], [e for e in evals if not e.is_before]
    measured = [_read(run, e.name) for e in (*before[-1:], *trained[-1:])]
    known = [window for window in measured if window is not None]
    if len(measured) == len(known) == 2:
        pairs.append((known[0], known[1]))
    if not pairs:
        return None
    changes = [change(explain(config, *pair, count=_EXAMPLES)) for pair in pairs]
    fails = failing(config, windows[-1], count=_EXAMPLES) if windows else None
    told = None
    if fails is not None and fails.kinds:
        rows = [[name, str(count), percent(count / fails.total)] for name, count in fails.kinds]
        told = {
            "sentence": fails.sentence,
            "table": table("Kinds of samples that fail", ("Kind of sample", "Count", "Share"), rows, numeric=(1, 2)),
            "typical": [_example(each) for each in fails.typical],
            "extremes": [_example(each) for each in fails.extremes],
        }
    return {"changes": changes, "fails": told}


def change(found: Change) -> dict[str, Any]:
    """A change between two windows as plain data."""
    tasks = [
        [c.name, *map(percent, c.share), *map(number, c.mean), f"{c.within:+.3f}", f"{c.mix:+.3f}"]
        for c in found.clusters
    ]
    kinds = [[k.name, *map(str, k.count), *map(percent, k.share)] for k in found.kinds]
    head = ("Tasks", "Share", "Then", "Mean", "Then", "Answers add", "Mix adds")
    before, after = found.before.label, found.after.label
    return {
        "from": before,
        "to": after,
        "total": short(found.total),
        "sentences": found.sentences,
        "parts": [
            {"name": part.name, "added": short(part.added), "text": f"{part.added:+.3f}"} for part in found.parts
        ],
        "tasks": table("Kinds of tasks, and what each adds", head, tasks, numeric=range(1, 7))
        if len(tasks) > 1
        else None,
        "kinds": table("Kinds of samples", ("Kind", before, after, "Share", "Then"), kinds, numeric=range(1, 5)),
        "appeared": [_example(each) for each in found.appeared],
        "disappeared": [_example(each) for each in found.disappeared],
    }


def _training(run: Path) -> list[Window]:
    """Windows of as many steps as `rlft why` takes, the first and the last ones and evenly between."""
    stored = reading.readable_steps(run)
    width = max(1, min(20, len(stored) // 10))
    count = min(_WINDOWS, len(stored) // width)
    starts = [round(i * (len(stored) - width) / max(1, count - 1)) for i in range(count)]
    found = [_read(run, f"{stored[start]}-{stored[start + width - 1]}") for start in starts]
    return [window for window in found if window is not None]


def _read(run: Path, name: str) -> Window | None:
    """A window in which something is scored; None where there is none, as where its files are left out as damaged."""
    try:
        window = read_window(run, name)
    except ValueError:
        return None  # its samples are not stored; what is damaged is in the notes
    return window if window.scored else None


def _example(each: Example) -> dict[str, Any]:
    reward = None if each.reward is None else number(each.reward)
    where = {"step": each.step, "task": each.task_id[:300], "index": each.sample_index, "kind": each.kind}
    return {**where, "reward": reward, "prompt": each.prompt, "text": each.completion, "answer": each.answer}
