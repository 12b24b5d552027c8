"""The page's tables: evaluations, every reward held out, start and end of training, evaluation sets, shadows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rlft.curves import digest
from rlft.curves.evaluation_sets import HEADINGS, EvaluationSet
from rlft.curves.looks import picked
from rlft.curves.passes import passes
from rlft.curves.shadow import Shadow
from rlft.curves.text import counted, interval_text, number, percent
from rlft.run.records import Evaluation, Interval, word_for

_SHOWN = 8
"""Rows of a table of evaluations; of more, the first three and the last five."""


def table(
    caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], *, numeric: Collection[int] = (), note: str = ""
) -> dict[str, Any]:
    """A table as plain data; `numeric` columns stand at the right."""
    told = {"caption": caption, "head": list(head), "rows": [list(row) for row in rows], "numeric": sorted(numeric)}
    return {**told, "note": note} if note else told


def evaluations(
    evals: Sequence[Evaluation], observed: Collection[str], result: Sequence[Evaluation]
) -> dict[str, Any] | None:
    """Every evaluation on the held-out tasks that decide; the best of several is marked where it is not the result.

    Args:
        evals: all evaluations.
        observed: names of the rewards that are not trained on.
        result: the evaluations up to the policy that is the run's result.
    """
    if not evals:
        return None
    trained = [e for e in result if not e.is_before]
    best = picked(trained)
    mark = ""
    if best is not None and best.evaluation is not trained[-1]:
        mark = f", best of {best.of}: picked (optimism {number(best.optimism)})"
    marked = best.evaluation.name if best is not None and mark else None
    ends = {e.name for e in _ends(evals)}
    shown = [e for e in evals if e.name in ends or e.name == marked]
    rows = [
        [f"{e.label}{mark if e.name == marked else ''}", interval_text(e.accuracy), str(e.accuracy.n),
         _unscored(e, observed), number(e.length), percent(e.truncated)]
        for e in shown
    ]  # fmt: skip
    left_out = len(evals) - len(rows)
    note = f"{left_out} evaluations in between are left out here; the chart has them." if left_out else ""
    head = ("Policy", f"{word_for(evals).capitalize()} [95 %]", "Tasks", "Not scored", "Length", "Cut")
    return table("Evaluations on held-out tasks", head, rows, numeric=range(1, 6), note=note)


def every_reward(evals: Sequence[Evaluation], shadows: Collection[str]) -> dict[str, Any] | None:
    """The mean of each reward and part before training and at its end, then pass@k and pass^k; None where there is
    only the headline."""
    shown = [e for e in evals if e.is_before] + [e for e in evals if not e.is_before][-1:]
    names = dict.fromkeys(name for evaluation in shown for name in evaluation.rewards)
    labels = {name: f"{name}, shadow (not trained on)" if name in shadows else name for name in names}
    rows: list[tuple[str, list[Interval | None]]] = [
        (labels[name], [e.rewards.get(name) for e in shown]) for name in names
    ]
    by_k = [{each.k: each for each in passes(e.by_task, e.same)} for e in shown]
    for k in sorted({k for known in by_k for k in known}):
        rows.append((f"pass@{k}: one of {k} is right", [known[k].any_right if k in known else None for known in by_k]))
        rows.append((f"pass^{k}: all {k} are right", [known[k].all_right if k in known else None for known in by_k]))
    if len(rows) <= 1:
        return None
    lines = [[label, *(interval_text(mean) if mean else "" for mean in means)] for label, means in rows]
    head = ("Mean [95 %]", *(e.label for e in shown))
    return table("Every reward and part on held-out tasks", head, lines, numeric=range(1, len(head)))


def trends(rows: Sequence[Mapping[str, float]], width: int) -> dict[str, Any] | None:
    """The metrics that a reader asks for first, at both ends of training."""
    found = digest.trends(rows)
    if not found:
        return None
    steps = "step" if width == 1 else f"{width} steps"
    lines = [[each.label, each.start, each.end] for each in found]
    return table("Training, start and end", ("", f"First {steps}", f"Last {steps}"), lines, numeric=(1, 2))


def sets(measured: Sequence[EvaluationSet]) -> dict[str, Any] | None:
    """What each evaluation set shows."""
    rows = [row for each in measured for row in each.rows]
    if not rows:
        return None
    kept = [i for i in range(len(HEADINGS)) if any(row[i] not in ("", "0") for row in rows)]
    found = table(
        "Evaluation sets, which do not decide the verdict",
        [HEADINGS[i].capitalize() for i in kept],
        [[row[i] for i in kept] for row in rows],
        numeric=[at for at, i in enumerate(kept) if 1 < i < 5],
    )
    return {**found, "sentences": [each.sentence for each in measured]}


def shadow(each: Shadow) -> dict[str, Any]:
    """What a shadow reward says, with its table."""
    rows = [
        [f"{each.start} and {e.label}, held out", interval_text(moved.trained.interval, "+"),
         interval_text(moved.shadow.interval, "+"), interval_text(moved.gap.interval, "+"), str(moved.gap.interval.n)]
        for e, moved in _ends(each.moved)
    ]  # fmt: skip
    if drift := each.training:
        numbers = [interval_text(part, "+") for part in (drift.trained, drift.shadow, drift.gap)]
        rows.append([f"first and last {counted(drift.steps, 'step')} of training", *numbers, str(drift.gap.n)])
    note = (
        "The trained reward is the weighted sum. Changes are in each reward's own units, with 95 % intervals. The gap "
        "is in standard deviations (SD) of the samples: above 0, the trained reward rose more than the shadow."
    )
    caption = "Change of the trained reward, change of the shadow, and the gap between them"
    head = ("Between", "Trained reward", each.name, "Gap, SDs", "Tasks")
    found: dict[str, Any] = {"name": each.name, "sentence": each.sentence}
    return {**found, "table": table(caption, head, rows, numeric=range(1, 5), note=note)} if rows else found


def _ends(rows: Sequence[Any]) -> list[Any]:
    return list(rows) if len(rows) <= _SHOWN else [*rows[:3], *rows[-5:]]


def _unscored(evaluation: Evaluation, observed: Collection[str]) -> str:
    """How many samples have no value of the metric, and of each observed reward that failed."""
    wanted = {*observed} - {evaluation.metric}
    parts = [f"{name} {n}" for name, n in evaluation.failed_parts.items() if name in wanted]
    return ", ".join([str(evaluation.failed), *parts])
