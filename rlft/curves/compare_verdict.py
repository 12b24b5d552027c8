"""The verdict of a comparison: better, worse, the same, or that it cannot be told, and the sentence that says it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from rlft.curves.comparison import Row
from rlft.curves.differences import Difference, paired
from rlft.curves.scored_run import Group, ScoredRun
from rlft.curves.seeds import GroupDifference, group_difference, least_p, paired_p, seeds_needed
from rlft.curves.text import counted, interval_text, number
from rlft.curves.worst_case import Scores, ends, filled
from rlft.run.records import Interval

Verdict: TypeAlias = Literal["better", "worse", "same", "cant_tell"]


def score(run: Mapping[str, Sequence[float]]) -> float:
    """Mean over tasks of the mean of each task's samples."""
    return _mean([_mean(values) for values in run.values()])


def measured_row(
    label: str,
    before: Sequence[Mapping[str, Sequence[float]]],
    after: Sequence[Mapping[str, Sequence[float]]],
    level: float,
) -> tuple[Difference | GroupDifference, Row]:
    """The change of one quantity, and its row, from values by task of each run of both groups."""
    difference: Difference | GroupDifference
    if len(before) == len(after) == 1:
        difference = paired(before[0], after[0], level)
        p = paired_p(difference)
    else:
        difference = group_difference(before, after, level)
        p = difference.p
    row = Row(
        label=label,
        before=_mean([score(run) for run in before]),
        after=_mean([score(run) for run in after]),
        change=difference.interval,
        p=p,
        conclusive=difference.conclusive,
    )
    return difference, row


def judge(
    row: Row,
    difference: Difference | GroupDifference,
    tasks: Difference,
    before: Group,
    after: Group,
    min_effect: float,
    level: float,
) -> tuple[Verdict, list[str]]:
    """The verdict, and why it cannot be told where it cannot.

    Args:
        row: the headline.
        difference: what it comes from.
        tasks: the change over tasks alone.
        before: the first group, for samples that could not be scored: with them at their worst the verdict has to hold.
        after: the second.
        min_effect: the smallest change of interest.
        level: of the intervals.
    """
    change, (n, m) = row.change, (len(before.runs), len(after.runs))
    reasons = []
    if tasks.why_none:
        reasons.append(tasks.why_none)
    elif not change.bounded:
        reasons.append("there is no interval")
    if reasons:
        return "cant_tell", reasons
    verdict: Verdict = "cant_tell"
    if row.conclusive:
        verdict = "better" if change.mean > 0 else "worse"
    elif change.low > -min_effect and change.high < min_effect:
        verdict = "same"
    if verdict != "cant_tell":
        doubt = _doubt_of_missing(verdict, before, after, min_effect, level)
        return ("cant_tell", [doubt]) if doubt else (verdict, [])
    if change.low <= 0 <= change.high:
        reasons.append(f"the interval of the change includes 0 and {_too_wide(change, min_effect)}")
    if tasks.how_skewed:
        reasons.append(tasks.how_skewed)
    if isinstance(difference, GroupDifference) and least_p(n, m) > 1 - level:
        needed = seeds_needed(level)
        reasons.append(
            f"{n} and {m} seeds can never show p < {1 - level:.2g} (the smallest exact p is {least_p(n, m):.2f}); "
            f"{needed} of each can"
        )
    elif isinstance(difference, GroupDifference) and not reasons:
        reasons.append(f"an exact permutation of the seeds gives p = {difference.seeds.p:.2f}")
    return "cant_tell", reasons


def _too_wide(change: Interval, least: float) -> str:
    """Why an interval around 0 is not `same`, with digits enough to show it."""
    ends = [end for end in (change.low, change.high) if abs(end) >= least]
    digits = next((d for d in range(3, 12) if any(round(abs(end), d) > least for end in ends)), 3)
    low, high = (f"{end:+.{digits}f}" for end in (change.low, change.high))
    return f"reaches beyond \N{PLUS-MINUS SIGN}{least:g}, the smallest change that matters: [{low}, {high}]"


def sentence_of(
    verdict: str,
    reasons: Sequence[str],
    row: Row,
    before: Group,
    after: Group,
    runs: Sequence[ScoredRun],
    min_effect: float,
    tasks: int,
) -> str:
    """The verdict in words, with its numbers."""
    first, last = before.label, after.label
    word = "accuracy" if all(run.word == "accuracy" for run in runs) else "mean"
    n, m = len(before.runs), len(after.runs)
    seeds = f"{n} and {m} seeds, " if n + m > 2 else ""
    told = (
        f"held-out {word} of {row.label} {number(row.before)} -> {number(row.after)}, a change of "
        f"{interval_text(row.change, '+')} over {seeds}{counted(tasks, 'task')}"
    )
    only = "" if n + m > 2 else " One run each: whether other seeds would do the same is not known."
    if verdict in ("better", "worse"):
        small = max(abs(row.change.low), abs(row.change.high)) < min_effect
        but = f", though by less than {min_effect:g}" if small else ""
        return f"{last} is {verdict} than {first}{but}: {told}.{only}"
    if verdict == "same":
        return f"{last} and {first} differ by less than {min_effect:g}: {told}.{only}"
    return f"Cannot tell {last} from {first}: {told}; {'; '.join(reasons)}.{only}"


def _doubt_of_missing(verdict: Verdict, before: Group, after: Group, min_effect: float, level: float) -> str:
    """Why samples without a score leave a verdict open; empty where it holds with each of them at its worst."""
    runs = [*before.runs, *after.runs]
    missing = sum(run.missing for run in runs)
    if not missing:
        return ""
    several, n = [Scores(run.values, run.missing) for run in runs], len(before.runs)
    low, high = ends(several)
    lowest, highest = (
        measured_row("", full[:n], full[n:], level)[1]
        for full in (
            filled(several, [*[first] * n, *[last] * len(after.runs)]) for first, last in ((high, low), (low, high))
        )
    )
    holds = {
        "better": lowest.conclusive and lowest.change.mean > 0,
        "worse": highest.conclusive and highest.change.mean < 0,
        "same": lowest.change.low > -min_effect and highest.change.high < min_effect,
    }[verdict]
    if holds:
        return ""
    worst = highest if verdict == "worse" else lowest
    them = "it at its" if missing == 1 else "all of them at their"
    return (
        f"{counted(missing, 'sample')} could not be scored; with {them} worst "
        f"the change is {interval_text(worst.change, '+')}"
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
