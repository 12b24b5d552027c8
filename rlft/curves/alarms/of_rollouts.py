"""Detectors that look at completions and at the speed at which they are made."""

from __future__ import annotations

import math

import numpy as np

from rlft.curves.alarms.course import Course, onset, shift, trend
from rlft.curves.alarms.seen import Found, Seen
from rlft.curves.text import number, percent


def length_with_reward(seen: Seen) -> Found | str | None:
    """Completions at least 1.6 times as long as in the beginning, with a reward that rises as they grow."""
    if reason := seen.missing("rollout/length", "reward/mean"):
        return reason
    length, reward = seen.course("rollout/length"), seen.course("reward/mean")
    change, gain = shift(length.log(1e-4)), shift(reward)
    if not change.is_real or change.by < math.log(1.6) or not gain.is_real or gain.by <= 0:
        return None
    start = onset(length.log(1e-4), 1)
    together = _rank_correlation(length.since(start), reward.since(start))
    if not trend(length.since(start)).rises(0.01) or together < 0.5:
        return None
    begin, now = math.exp(change.begin.median), math.exp(change.now.median)
    return Found(
        severity="warning",
        onset=start,
        evidence=f"{number(begin)} tokens in {change.begin}, {number(now)} in {change.now}; the reward rose from "
        f"{number(gain.begin.median)} to {number(gain.now.median)}, rank correlation since the onset {together:.2f}",
        numbers={"begin": begin, "now": now, "correlation": together},
    )


def repetition(seen: Seen) -> Found | str | None:
    """Repeated text: twice the beginning's share and a tenth more; or duplicates that no gain in reward explains."""
    if reason := seen.missing("rollout/repetition", "rollout/duplicates"):
        both = [seen.missing(metric) for metric in ("rollout/repetition", "rollout/duplicates")]
        if all(both):
            return reason
    for metric, least in (("rollout/repetition", 0.1), ("rollout/duplicates", 0.3)):
        if seen.missing(metric):
            continue
        course = seen.course(metric)
        change = shift(course)
        begin, now = change.begin.median, change.now.median
        if not change.is_real or change.by < least or (metric == "rollout/repetition" and now < 2 * begin):
            continue
        start = onset(course, 1)
        if metric == "rollout/duplicates" and (seen.is_solved or seen.learns_since(start)):
            continue
        what = {
            "rollout/repetition": "share of tokens in phrases that their completion has already",
            "rollout/duplicates": "share of samples that another sample of the task equals",
        }[metric]
        return Found(
            severity="critical" if metric == "rollout/repetition" and now >= 0.4 else "warning",
            onset=start,
            evidence=f"{what}: {percent(begin)} in {change.begin}, {percent(now)} in {change.now}",
            numbers={"begin": begin, "now": now},
            part=metric.removeprefix("rollout/"),
        )
    return None


def truncation(seen: Seen) -> Found | str | None:
    """A quarter cut at the length limit, 15 points more than in the beginning; or half all along without learning."""
    if reason := seen.missing("rollout/truncated"):
        return reason
    course = seen.course("rollout/truncated")
    change = shift(course)
    begin, now = change.begin.median, change.now.median
    grew = change.is_real and change.by >= 0.15 and now >= 0.25
    first = int(course.steps[0])
    stays = now >= 0.5 and begin >= 0.5 and not change.by < -0.05 and not seen.learns_since(first)
    if not grew and not stays:
        return None
    return Found(
        severity="critical" if now >= 0.5 and grew else "warning",
        onset=onset(course, 1) if grew else first,
        evidence=f"{percent(begin)} of the completions cut in {change.begin}, {percent(now)} in {change.now}",
        numbers={"begin": begin, "now": now},
    )


def throughput(seen: Seen) -> Found | str | None:
    """Steps that take 1.3 times as long as in the beginning, at four fifths of its tokens in a second."""
    if reason := seen.missing("time/step", "time/tokens_per_s"):
        return reason
    speed = seen.course("time/tokens_per_s").log(1e-9)
    slower, longer = shift(speed), shift(seen.course("time/step").log(1e-9))
    if not (slower.is_real and longer.is_real and slower.by < math.log(0.8) and longer.by > math.log(1.3)):
        return None
    return Found(
        severity="warning",
        onset=onset(speed, -1),
        evidence=f"{number(math.exp(slower.begin.median))} tokens/s in {slower.begin}, "
        f"{number(math.exp(slower.now.median))} in {slower.now}; a step takes "
        f"{number(math.exp(longer.by))} times as long",
        numbers={"begin": math.exp(slower.begin.median), "now": math.exp(slower.now.median)},
    )


def _rank_correlation(one: Course, other: Course) -> float:
    """Spearman's correlation over the steps that both have, of medians over neighbouring steps."""
    from scipy.stats import spearmanr

    common = np.intersect1d(one.steps, other.steps)
    if len(common) < 8:
        return 0.0
    pieces = max(5, min(20, len(common) // 4))
    sides = [
        [float(np.median(piece)) for piece in np.array_split(c.values[np.isin(c.steps, common)], pieces)]
        for c in (one, other)
    ]
    found = float(spearmanr(*sides).statistic)
    return found if math.isfinite(found) else 0.0
