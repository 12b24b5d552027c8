"""Detectors that look at the reward, its parts, its shadow and the signal that it gives."""

from __future__ import annotations

import math

import numpy as np

from rlft.curves.alarms.course import MIN_STEPS, Course, jump, noise, onset, shift, smoothed, trend
from rlft.curves.alarms.seen import Found, Seen, around, level_at, scatter
from rlft.curves.text import counted, number, percent

_LAST = 20
"""Steps at the end of a run that are looked at for such without any signal."""
_ALL_ALONG = 250
"""Fewest steps without signal that are more than a slow beginning."""


def part_against_part(seen: Seen) -> Found | str | None:
    """A part that rises while another falls from its best, or stops although it rose before and is not at its top."""
    prefix = "reward/part/"
    names = sorted({name for row in seen.rows for name in row if name.startswith(prefix)})
    parts = [name.removeprefix(prefix) for name in names]
    parts = [n for n in parts if n not in seen.shadows and not seen.missing(prefix + n)]
    if len(parts) < 2:
        return "the run has fewer than two reward parts with enough steps"
    found = [
        each
        for rising in parts
        for other in parts
        if rising != other
        if (each := _against(seen, rising, other, seen.course(prefix + rising), seen.course(prefix + other)))
    ]
    return max(found, key=lambda each: (each.severity == "critical", each.numbers["rose"]), default=None)


def shadow_gap(seen: Seen) -> Found | str | None:
    """A shadow reward that falls from its best while the reward that is trained on rises."""
    if not seen.shadows:
        return "no reward has role: shadow, so there is nothing that is not trained on to compare with"
    found, reasons = [], []
    for name in seen.shadows:
        metric = f"reward/part/{name}"
        if reason := seen.missing(metric, steps=8) or seen.missing("reward/mean"):
            reasons.append(reason)
            continue
        if each := _shadow(name, seen.course(metric), seen.course("reward/mean")):
            found.append(each)
    if found:
        return max(found, key=lambda each: each.numbers["fell"])
    return reasons[0] if reasons else None


def no_signal(seen: Seen) -> Found | str | None:
    """At most 45 % of the groups teach something, 30 points less than in the beginning, and not because they are solved
    now; or at most 30 % for 250 steps from the first on, whatever the cause, while nothing is learnt; or half of the
    last 20 steps had no group that teaches something, as after a collapse within the first steps."""
    if reason := seen.missing("groups/with_signal"):
        return reason
    course = seen.course("groups/with_signal")
    change = shift(course)
    begin, now = change.begin.median, change.now.median
    solved = seen.latest("groups/solved_all")
    fell = change.is_real and now <= 0.45 and now <= begin - 0.3 and not solved >= 0.6 * (1 - now)
    stays = now <= 0.3 and begin <= 0.3 and len(course) >= _ALL_ALONG
    if not fell and not stays and not solved >= 0.5 and (idle := _idle(course)):
        return idle
    first = int(course.steps[0])
    quarter = float(course.steps[len(course) // 4])
    if not fell and (not stays or trend(course).rises(0.01) or seen.learns_since(quarter, 0.01)):
        return None
    causes = f"; solved by all samples: {percent(solved)}" if math.isfinite(solved) else ""
    return Found(
        severity="critical" if now <= 0.1 else "warning",
        onset=onset(course, -1) if fell else first,
        evidence=f"{percent(begin)} of the groups had different rewards in {change.begin}, {percent(now)} in "
        f"{change.now}{causes}",
        numbers={"begin": begin, "now": now},
    )


def _idle(course: Course) -> Found | None:
    """Steps without a group that teaches something, where they are half of the last ones."""
    is_idle = [bool(value == 0) for value in course.values]
    idle = sum(is_idle[-_LAST:])
    if len(is_idle) < _LAST or 2 * idle < _LAST:
        return None
    begin = next(at for at, each in enumerate(is_idle) if each and 2 * sum(is_idle[at:]) >= len(is_idle) - at)
    return Found(
        severity="critical" if 4 * idle >= 3 * _LAST else "warning",
        onset=int(course.steps[begin]),
        evidence=f"in {idle} of the last {_LAST} steps all samples of each task had equal rewards, so that nothing was "
        "learnt, and not because the tasks are solved",
        numbers={"begin": float(not is_idle[0]), "now": 1 - idle / _LAST},
    )


def reward_spike(seen: Seen) -> Found | str | None:
    """Single steps whose reward is eight deviations of the noise, and half of the run's range, away from around it.

    It has to come back: where the reward stays, as at the edge of a collapse, the step is no spike.
    """
    if reason := seen.missing("reward/mean"):
        return reason
    course = seen.course("reward/mean")
    beside = around(course.values, 4)
    away = course.values - beside
    low, high = np.quantile(beside, [0.05, 0.95])
    bound = max(8 * scatter(away), 0.5 * float(high - low), 1e-9)
    spikes = np.flatnonzero(np.abs(away) > bound)
    # At the ends only one side says what is around a step.
    spikes = spikes[(spikes >= 4) & (spikes < len(course) - 2)]
    spikes = np.array([at for at in spikes.tolist() if _is_spike(course.values, away, at, bound)], dtype=np.intp)
    if not len(spikes):
        return None
    worst = int(spikes[np.argmax(np.abs(away[spikes]))])
    return Found(
        severity="warning",
        onset=int(course.steps[spikes[0]]),
        evidence=f"step {int(course.steps[worst])}: reward {number(course.values[worst])}, around it "
        f"{number(beside[worst])} ({abs(away[worst]) / max(scatter(away), 1e-12):.0f} deviations); "
        f"{counted(len(spikes), 'such step')}",
        numbers={"steps": len(spikes), "worst": float(course.values[worst]), "around": float(beside[worst])},
    )


def _is_spike(values: np.ndarray, away: np.ndarray, at: int, bound: float) -> bool:
    """Whether a value is beyond a bound from what is before it and from what is after it, to the same side.

    Args:
        away: distance of every value from what is around it. That of its neighbours counts, too: of a run that does
            not move any more the rest says nothing of the noise before.
    """
    near = np.delete(away[max(0, at - 20) : at + 21], min(at, 20))
    bound = max(bound, 8 * 1.4826 * float(np.median(np.abs(near))))
    sides = [float(values[at] - np.median(side)) for side in (values[at - 4 : at], values[at + 1 : at + 5])]
    return min(sides) > bound or max(sides) < -bound


def reward_collapse(seen: Seen) -> Found | str | None:
    """Half of the gain and 0.4 deviations of single samples lost, beyond the noise."""
    if reason := seen.missing("reward/mean"):
        return reason
    course = seen.course("reward/mean")
    change = shift(course)
    width = min(max(5, len(course) // 10), 30)
    windows = smoothed(course, width)
    best = int(np.argmax(windows.values))
    peak, now = float(windows.values[best]), change.now.median
    spread = seen.course("reward/std").values
    scale = 0.4 * float(np.median(spread)) if len(spread) else 0.0
    drop, gain = peak - now, peak - change.begin.median
    # The best of many windows is above the rest by chance, too: hence the factor.
    if drop < max(0.5 * gain, scale, 8 * change.error, 1e-9):
        return None
    after = course.since(float(windows.steps[best]))
    if len(after) < 5 or not _stays_down(course, peak, drop):
        return None
    at_once = jump(course.since(float(windows.steps[best]) - 2 * width), -1, drop / 2)
    return Found(
        severity="critical",
        onset=onset(after, -1) if at_once is None else at_once,
        evidence=f"reward {number(peak)} around step {int(windows.steps[best])}, {number(now)} in {change.now}; it "
        f"began with {number(change.begin.median)} in {change.begin}",
        numbers={"peak": peak, "now": now, "begin": change.begin.median},
    )


def _stays_down(course: Course, peak: float, drop: float) -> bool:
    """Whether a fall from a peak is large, a fifth of the scale from 0 to 1; or has lasted, and is a tenth of it."""
    is_share = course.values.min() >= 0 and course.values.max() <= 1
    lasting = float(np.median(course.values[-max(30, len(course) // 5) :]))
    return bool((is_share and drop >= 0.2) or (peak - lasting >= 0.5 * drop and not (is_share and drop < 0.1)))


def _against(seen: Seen, rising: str, other: str, up: Course, down: Course) -> Found | None:
    change, fall = shift(up), shift(down)
    width = min(max(5, len(down) // 10), 30)
    windows = smoothed(down, width)
    best = int(np.argmax(windows.values))
    peak, start = float(windows.values[best]), float(windows.steps[best])
    drop = peak - fall.now.median
    rose = trend(up.since(start))
    lost = max(8 * fall.error, 0.25 * max(abs(peak), peak - fall.begin.median))
    if drop > lost and _stays_down(down, peak, drop) and rose.rises(0.01) and rose.change > 4 * change.error:
        began = onset(down.since(start), -1)
        return Found(
            severity="critical",
            onset=began,
            evidence=f"{other} fell from {number(peak)} around step {int(start)} to {number(fall.now.median)} in "
            f"{fall.now}, while {rising} rose to {number(change.now.median)}",
            numbers={"rose": rose.change, "fell": drop},
            part=rising,
        )
    # Short of a fall: it stops where the other takes off.
    if not change.is_real or change.by <= 0:
        return None
    knot = onset(up, 1)
    if len(up.until(knot)) < max(10, len(up) // 8) or len(up.since(knot)) < 10:
        return None
    at = level_at(up, knot)
    gained, earlier = change.now.median - at, at - change.begin.median
    stopped, before = trend(down.since(knot)), trend(down.until(knot))
    is_top = 0.9 <= fall.now.median <= 1 and down.values.min() >= 0 and down.values.max() <= 1
    if gained > 2 * max(earlier, 4 * change.error) and before.rises(0.01) and not is_top:
        pace = before.change / len(down.until(knot)), stopped.change / len(down.since(knot))
        if not stopped.rises() and pace[1] < 0.2 * pace[0]:
            return Found(
                severity="warning",
                onset=knot,
                evidence=f"{rising} rose from {number(at)} at step {knot} to {number(change.now.median)} in "
                f"{change.now}, while {other} stopped rising at {number(fall.now.median)}",
                numbers={"rose": gained, "fell": max(0.0, -stopped.change)},
                part=rising,
            )
    return None


def _shadow(name: str, shadow: Course, reward: Course) -> Found | None:
    width = 3 if len(shadow) < MIN_STEPS else min(max(5, len(shadow) // 10), 30)
    windows = smoothed(shadow, width)
    best = int(np.argmax(windows.values))
    start = float(windows.steps[best])
    after, trained = shadow.since(start), trend(reward.since(start))
    is_sparse = len(shadow) <= len(reward) // 4  # measured now and then, so that the values are independent
    down = trend(after, block=1 if is_sparse else 5)
    drop = float(windows.values[best]) - float(np.median(shadow.values[-width:]))
    if not (down.falls(0.01) and trained.rises(0.01)) or drop < 4 * noise(shadow.values) / math.sqrt(width):
        return None
    now = float(np.median(shadow.values[-width:]))
    return Found(
        severity="critical",
        onset=int(start),
        evidence=f"{name} fell from {number(float(windows.values[best]))} around step {int(start)} to {number(now)}, "
        f"while the reward rose by {number(trained.change)}",
        numbers={"fell": drop, "rose": trained.change},
        part=name,
    )
