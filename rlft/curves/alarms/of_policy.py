"""Detectors that look at the policy and its updates."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from rlft.curves.alarms.course import MIN_STEPS, Course, onset, shift, smoothed, trend
from rlft.curves.alarms.health import Severity
from rlft.curves.alarms.seen import Found, Seen, around, level_at, scatter
from rlft.curves.text import number, percent


def not_finite(seen: Seen) -> Found | str | None:
    """NaN and infinite values, and updates skipped for them."""
    bad = {
        int(row["step"]): sorted(name for name, value in row.items() if not math.isfinite(value)) for row in seen.rows
    }
    bad = {step: names for step, names in bad.items() if names}
    skipped = [int(row["step"]) for row in seen.rows if row.get("policy/skipped", 0) > 0]
    steps = sorted({*bad, *skipped})
    if not steps:
        return None
    what = [f"{bad[steps[0]][0]} not finite" if steps[0] in bad else "an update was skipped"]
    names = sorted({name for each in bad.values() for name in each})
    return Found(
        severity="critical" if len(steps) >= 3 else "warning",
        onset=steps[0],
        evidence=f"step {steps[0]}: {what[0]}; {len(steps)} of {len(seen.rows)} steps in all"
        + (f" ({', '.join(names[:5])})" if len(names) > 1 else ""),
        numbers={"steps": len(steps), "skipped": len(skipped)},
    )


def entropy_collapse(seen: Seen) -> Found | str | None:
    """Entropy below a fifth of the beginning's, while the reward no longer rises and the tasks are not solved."""
    if reason := seen.missing("policy/entropy", "reward/mean"):
        return reason
    course = seen.course("policy/entropy").log(1e-4)
    change = shift(course)
    if not change.is_real or change.by > math.log(0.2) or seen.is_solved:
        return None
    # Entropy that falls while the reward rises is what learning looks like; so the part after half of the fall counts.
    below = course.steps[course.values < change.begin.median + change.by / 2]
    if not _no_gain_since(seen, float(below[0])):
        return None
    begin, now = math.exp(change.begin.median), math.exp(change.now.median)
    return Found(
        severity="critical",
        onset=onset(course, -1),
        evidence=f"entropy {number(begin)} nats per token in {change.begin}, {number(now)} in {change.now} "
        f"({percent(now / begin)}), and the reward has not risen since step {int(below[0])}",
        numbers={"begin": begin, "now": now},
    )


def kl_without_reward(seen: Seen) -> Found | str | None:
    """KL tripled over a stretch without a gain in reward; or five times as steep as before while the reward rises at
    most half as fast."""
    if reason := seen.missing("policy/kl_ref", "reward/mean"):
        return reason
    kl, reward = seen.course("policy/kl_ref"), seen.course("reward/mean")
    change = shift(kl)
    now = change.now.median
    if now < 0.02 or not change.is_real or change.by < 0 or seen.is_solved:
        return None
    knot = onset(kl.log(1e-4), 1)
    slopes, rewards = (
        [trend(part).change / max(len(part), 1) for part in (c.until(knot), c.since(knot))] for c in (kl, reward)
    )
    at = level_at(kl, knot)
    is_long = min(len(kl.until(knot)), len(kl.since(knot))) >= max(MIN_STEPS // 2, len(kl) // 8)
    if is_long and slopes[1] > 5 * max(slopes[0], 1e-9) and now >= 2.5 * at and rewards[1] <= 0.5 * rewards[0]:
        return Found(
            severity="critical",
            onset=knot,
            evidence=f"KL {number(at)} nats per token at step {knot}, {number(now)} in {change.now}: it rises "
            f"{number(slopes[1] / max(slopes[0], 1e-9))} times as fast as before, the reward at most half as fast",
            numbers={"at": at, "now": now},
        )
    if (since := _flat_since(reward)) is not None:
        at = level_at(kl, since)
        # A KL that grows by the same each step has doubled since half of the run; that alone is no sign.
        if now >= 3 * max(at, 0.005) and trend(kl.since(since)).rises(0.01):
            return Found(
                severity="critical" if now >= 5 * at else "warning",
                onset=since,
                evidence=f"KL {number(at)} nats per token at step {since}, {number(now)} in {change.now}, and the "
                f"reward has not risen since ({number(level_at(reward, since))}, then "
                f"{number(shift(reward).now.median)})",
                numbers={"at": at, "now": now},
            )
    return None


def gradient_spikes(seen: Seen) -> Found | str | None:
    """Three steps or more whose gradient is eight times what is around them."""
    if reason := seen.missing("policy/grad_norm"):
        return reason
    course = seen.course("policy/grad_norm").log(1e-12)
    away = course.values - around(course.values, 7)
    spikes = np.flatnonzero(away > max(math.log(8), 5 * scatter(away)))
    if len(spikes) < 3:
        return None
    worst = int(spikes[np.argmax(away[spikes])])
    return Found(
        severity="warning",
        onset=int(course.steps[spikes[0]]),
        evidence=f"{len(spikes)} steps, the largest at step {int(course.steps[worst])}: norm "
        f"{number(math.exp(course.values[worst]))}, around it {number(math.exp(course.values[worst] - away[worst]))}",
        numbers={"steps": len(spikes), "largest": math.exp(course.values[worst])},
    )


def clip_saturation(seen: Seen) -> Found | str | None:
    """A quarter of the tokens clipped, twice the beginning's share."""
    return _grown(seen, "policy/clip_fraction", least=0.25, factor=2, what="of the tokens clipped", show=percent)


def mismatch(seen: Seen) -> Found | str | None:
    """Three times the beginning's difference of log-probs, and more than bfloat16 rounds."""
    what = "nats per token between engine and learner"
    return _grown(seen, "policy/mismatch", least=0.05, factor=3, what=what, show=number, severity="critical")


def critic_diverges(seen: Seen) -> Found | str | None:
    """Explained variance below 0 and 0.3 below its best."""
    if reason := seen.missing("critic/explained_variance"):
        return "the algorithm has no critic" if not len(seen.course("critic/explained_variance")) else reason
    course = seen.course("critic/explained_variance")
    change = shift(course)
    windows = smoothed(course, min(max(5, len(course) // 10), 30))
    best = int(np.argmax(windows.values))
    peak, now = float(windows.values[best]), change.now.median
    if now >= 0 or peak - now < max(0.3, 8 * change.error):
        return None
    return Found(
        severity="warning",
        onset=onset(course, -1),
        evidence=f"explained variance {peak:.2f} around step {int(windows.steps[best])}, {now:.2f} in {change.now}",
        numbers={"peak": peak, "now": now},
    )


def _grown(
    seen: Seen,
    metric: str,
    *,
    least: float,
    factor: float,
    what: str,
    show: Callable[[float], str],
    severity: Severity = "warning",
) -> Found | str | None:
    if reason := seen.missing(metric):
        return reason
    course = seen.course(metric)
    change = shift(course)
    begin, now = change.begin.median, change.now.median
    if not change.is_real or now < least or now < factor * begin:
        return None
    return Found(
        severity=severity,
        onset=onset(course, 1),
        evidence=f"{show(begin)} {what} in {change.begin}, {show(now)} in {change.now}",
        numbers={"begin": begin, "now": now},
    )


def _no_gain_since(seen: Seen, step: float) -> bool:
    """Whether it is sure, from the noise, that the reward has hardly risen since a step.

    Hardly is a third of what it had risen before, or 0.15 deviations of single samples.
    """
    reward = seen.course("reward/mean")
    gain, at = shift(reward), level_at(reward, step)
    spread = seen.course("reward/std").values
    most = max(0.35 * (at - gain.begin.median), 0.15 * float(np.median(spread)) if len(spread) else 0.0)
    return gain.now.median - at + 2 * gain.error < most


def _flat_since(reward: Course) -> int | None:
    """The step at which nine tenths of the gain in reward were made, if that is a quarter of the run ago; else None.

    It has to be sure, from the noise, that little came after it. A run that has gained nothing yet is not called flat:
    KL begins at 0 and rises first.
    """
    gain = shift(reward)
    if not gain.is_real or gain.by < 0:
        return None
    n = len(reward)
    begin, end = gain.begin.median, float(np.median(reward.values[-max(5, n // 4) :]))
    windows = smoothed(reward, max(5, n // 10))
    reached = int(np.flatnonzero(windows.values >= begin + 0.9 * (end - begin))[0])
    step = float(windows.steps[reached])
    later = gain.now.median - float(windows.values[reached])
    is_sure = later + 2 * gain.error < 0.35 * (float(windows.values[reached]) - begin)
    return int(step) if is_sure and len(reward.since(step)) >= max(15, n // 4) else None
