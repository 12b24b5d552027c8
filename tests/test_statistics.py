"""Intervals: by hand, against independent recomputation, and against their promise to hold the truth."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats

from rlft.curves.differences import paired, unpaired
from rlft.curves.looks import ERROR, look_at, picked
from rlft.curves.series import Series, bins
from rlft.curves.statistics import MIN_TASKS, Clusters, mean_interval, reached_bounds, t_interval
from rlft.run.records import Evaluation, Interval
from tests.intervals import KINDS, ever_conclusive, missed_by_bins, moved_middle, simulate


def test_mean_interval_by_hand() -> None:
    # Task means 1, 1/2, 0, and what was not seen, 0 and 1: mean 1/2, squares 1/4 + 0 + 1/4 + 1/4 + 1/4 = 1,
    # error sqrt(1 / 4 / 5) = 0.2236; t(4) = 2.7764: 0.5 -+ 0.6208, clipped to [0, 1].
    assert mean_interval([[1.0], [1, 0, 0, 1], [0.0, 0.0]]) == Interval(0.5, 0.0, 1.0, 3)
    # 16 tasks, one solved: 2 of 18, squares 2 - 4/18 = 1.7778, error sqrt(1.7778 / 17 / 18) = 0.07622, t(17) = 2.1098.
    interval = mean_interval([[float(i == 0)] for i in range(16)])
    assert interval.mean == 1 / 16
    assert (interval.low, interval.high) == (0.0, pytest.approx(0.11111 + 2.1098 * 0.07622, abs=1e-4))


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_known_bounds_count_as_two_tasks_and_a_t_interval_follows(level: float) -> None:
    values = np.random.default_rng(1).uniform(2, 3, size=(23, 4))
    with_bounds = [*values.mean(axis=1), 2.0, 4.0]
    low, high = scipy.stats.t.interval(level, df=24, loc=np.mean(with_bounds), scale=scipy.stats.sem(with_bounds))
    interval = mean_interval(values.tolist(), level, bounds=(2.0, 4.0))
    assert (interval.low, interval.high) == pytest.approx((max(low, 2.0), high), rel=1e-12)
    with pytest.raises(ValueError, match=r"not within the bounds 2\.5 to 4"):
        mean_interval(values.tolist(), level, bounds=(2.5, 4.0))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_intervals_hold_the_truth_as_often_as_they_say(kind: object) -> None:
    # A part of `make intervals`. 4 standard errors of 0.06 in 300 draws: 0.055.
    for tasks, samples in ((4, 1), (8, 4), (16, 1)):
        result = simulate(kind, tasks, samples, draws=300)  # type: ignore[arg-type]
        assert result.false < 0.115, result
        assert max(result.conclusive, result.unpaired) < 0.09, result


@pytest.mark.parametrize("mean", [0.002, 0.01, 0.1, 0.97])
def test_bands_of_binned_steps_hold_the_mean_near_0_and_1(mean: float) -> None:
    # 300 bins; three standard errors of 0.06 in them: 0.04. Student's t over 4 steps alone misses in 10 to 67 %.
    assert missed_by_bins(mean, 4, 1.0, 300) < 0.1


def test_a_bin_is_as_wide_as_its_steps_spread_or_as_their_own_intervals_say() -> None:
    steps = range(1, 241)
    apart = Series(steps=steps, values=[s % 2 for s in steps], bounds=[(s % 2 - 0.1, s % 2 + 0.1) for s in steps])
    alike = Series(steps=steps, values=[0.5] * 240, bounds=[(0.4, 0.6)] * 240)
    spread = t_interval([1, 0, 1, 0])
    assert bins(apart)[0].interval == spread
    first = bins(alike)[0].interval
    assert (first.low, first.high) == pytest.approx((0.45, 0.55))  # 0.1 / sqrt(4) to both sides
    bare = Series(steps=steps, values=[0.5] * 240, bounds=[(math.nan, math.nan)] * 240)
    assert not bins(bare)[0].interval.bounded


def test_the_change_of_the_interquartile_mean_seldom_excludes_0_without_a_change() -> None:
    by_name = {kind.name: kind for kind in KINDS}
    for name in ("normal", "0/1, 0.5, alike"):  # three standard errors of 0.06 in 200 draws: 0.05
        assert moved_middle(by_name[name], 20, 8, 200) < 0.11, name


def test_intervals_are_given_where_they_can_be() -> None:
    by_name = {kind.name: kind for kind in KINDS}
    given = {
        name: simulate(by_name[name], tasks, 4, draws=100).given
        for name, tasks in (("0/1, 0.5, alike", 4), ("normal", 50), ("uniform", 50), ("lognormal", 16))
    }
    assert given == {"0/1, 0.5, alike": 1.0, "normal": 1.0, "uniform": 1.0, "lognormal": 1.0}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.linspace(-1, 2, MIN_TASKS - 1), "too few tasks: 15"),
        ([1.1] * 250, "no spread was seen"),
    ],
)
def test_what_cannot_be_told_has_no_interval_and_a_reason(values: list[float], reason: str) -> None:
    assert not mean_interval([[value] for value in values]).bounded
    before, after = ({f"t{i}": [x * factor] for i, x in enumerate(values)} for factor in (0, 1))
    change = paired(before, after)
    assert not change.conclusive
    assert reason in change.why_none


def test_skewed_values_have_a_wide_interval_and_a_reason() -> None:
    values = [-9.9] + [0.1 + 0.001 * (i % 2) for i in range(249)]
    interval = mean_interval([[value] for value in values])
    assert interval.low < -0.1 < 0.1 < interval.high
    change = paired({f"t{i}": [0.0] for i in range(250)}, {f"t{i}": [x] for i, x in enumerate(values)})
    assert change.how_skewed == "too skewed to tell: a skewness of -15.7 needs 6,176 tasks, and there are 250"
    assert not change.conclusive
    assert not paired({}, {}).how_skewed


def test_absent_samples_and_too_few_tasks() -> None:
    assert repr(mean_interval([[1.0, 0.0], [], [1.0]])) == repr(mean_interval([[1.0, 0.0], [1.0]]))
    assert mean_interval({"a": [1.0, 0.0], "b": [0.0]}) == mean_interval([[1.0, 0.0], [0.0]])
    one = mean_interval([[1.0, 0.0]])
    assert (one.mean, one.n, one.bounded) == (0.5, 1, False)
    none = mean_interval([[], []])
    assert none.n == 0
    assert math.isnan(none.mean)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_failed_sample_is_refused_as_a_number(value: float) -> None:
    for call in (mean_interval, lambda clusters: unpaired(clusters, clusters)):
        with pytest.raises(ValueError, match="leave out samples that failed"):
            call([[1.0], [value]])


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_share(level: float) -> None:
    for call in (lambda: mean_interval([[1.0]], level), lambda: paired({}, {}, level), lambda: t_interval([1], level)):
        with pytest.raises(ValueError, match=r"0\.95"):
            call()


def test_seeds_have_a_plain_t_interval() -> None:
    values = [0.5, 0.6, 0.4]
    low, high = scipy.stats.t.interval(0.95, df=2, loc=0.5, scale=scipy.stats.sem(values))
    interval = t_interval(values)
    assert (interval.low, interval.high, interval.n) == (pytest.approx(low), pytest.approx(high), 3)
    assert not t_interval([0.5]).bounded
    assert not t_interval([0.5, 0.5, 0.5]).bounded


def test_pairing_sees_what_two_separate_intervals_do_not() -> None:
    # 100 tasks, half of them solved; then 8 more: 0.50 and 0.58 overlap widely, yet nothing got worse.
    before = {f"t{i}": [float(i < 50)] for i in range(100)}
    after = {f"t{i}": [float(i < 58)] for i in range(100)}
    assert mean_interval(before).high > mean_interval(after).low
    assert unpaired(before, after).low < 0 < unpaired(before, after).high
    assert paired(before, after).conclusive
    assert paired(after, before).conclusive
    assert not paired(before, before).conclusive


@pytest.mark.parametrize("tasks", [20, 100, 5000])
@pytest.mark.parametrize(("changed", "conclusive"), [(5, False), (6, True)])
def test_few_changed_tasks_prove_nothing(changed: int, conclusive: bool, tasks: int) -> None:
    # Five sign flips of equal size: exact two-sided p = 2 / 2^5 = 0.0625; six: 0.03125.
    before = {f"t{i}": [0.0] for i in range(tasks)}
    after = {f"t{i}": [float(i < changed)] for i in range(tasks)}
    change = paired(before, {**after, "new": [1.0], "lost": []})
    assert (change.changed, change.interval.n, change.conclusive) == (changed, tasks, conclusive)


def test_the_order_of_samples_is_no_change() -> None:
    assert paired({"a": [0.1, 0.2, 0.3], "b": [1.0]}, {"a": [0.3, 0.1, 0.2], "b": [1.0]}).changed == 0


def test_different_tasks_are_compared_as_welch_does() -> None:
    rng = np.random.default_rng(3)
    sides: list[Clusters] = [
        (rng.random((n, 1)) < chance).astype(float).tolist() for n, chance in ((60, 0.3), (90, 0.6))
    ]
    full = [[*(values[0] for values in side), 0.0, 1.0] for side in sides]
    expected = scipy.stats.ttest_ind(full[1], full[0], equal_var=False).confidence_interval(0.95)
    interval = unpaired(*sides)
    assert (interval.low, interval.high, interval.n) == (pytest.approx(expected.low), pytest.approx(expected.high), 60)


def _evaluation(step: int, by_task: dict[str, list[float]]) -> Evaluation:
    return Evaluation(
        name=f"step-{step:06d}",
        step=step,
        adapter_version=step,
        adapter_hash="",
        metric="m",
        accuracy=mean_interval(by_task),
        failed=0,
        length=1.0,
        truncated=0.0,
        by_task=by_task,
    )


def test_looks_share_one_error() -> None:
    evaluations = [_evaluation(step, {"a": [0.0]}) for step in (10, 20, 30)]
    config = {"steps": 30, "evaluation": {"every": 10}}
    looks = [look_at(config, evaluations[: i + 1]) for i in range(3)]
    assert [str(look) for look in looks] == ["look 1 of 3", "look 2 of 3", "look 3 of 3"]
    assert sum(1 - look.level for look in looks) == pytest.approx(ERROR)
    assert looks[2].level == 0.975
    assert look_at({"steps": 30}, evaluations[2:]).level == 0.95
    # A run that ended at its last step spends what was left for the end, though evaluations in between are missing.
    assert str(look_at({"steps": 30, "evaluation": {"every": 3}}, evaluations)) == "look 10 of 10"


def test_thirty_looks_at_nothing_are_rarely_conclusive() -> None:
    by_name = {kind.name: kind for kind in KINDS}
    share, heavy = (by_name[name] for name in ("0/1, 0.5, tasks differ", "Student's t, 3"))
    assert ever_conclusive(share, 120) <= 0.06 + 0.03
    assert ever_conclusive(heavy, 120) <= 0.06 + 0.03
    assert ever_conclusive(share, 60, is_spent=False) > 0.15


def test_the_best_of_several_flatters_itself() -> None:
    rng = np.random.default_rng(6)
    chance = np.full(100, 0.5)
    excess, told = [], []
    for _ in range(40):
        evaluations = [
            _evaluation(step, {f"t{i}": [float(x)] for i, x in enumerate(rng.random(100) < chance)})
            for step in range(8)
        ]
        best = picked(evaluations)
        assert best is not None
        excess.append(best.evaluation.accuracy.mean - 0.5)
        told.append(best.optimism)
    # The largest of 8 normal values lies 1.42 errors of 0.05 above their mean.
    assert np.mean(excess) == pytest.approx(0.071, abs=0.015)
    assert np.mean(told) == pytest.approx(np.mean(excess), abs=0.02)
    assert picked(evaluations[:1]) is None


def test_a_tie_with_the_last_evaluation_is_not_better() -> None:
    thirds = {f"t{i}": [1.0, 0.0, float(i % 2)] for i in range(12)}
    shifted = {f"t{i}": [1.0, 0.0, float((i + 1) % 2)] for i in range(12)}  # as good, of other tasks
    best = picked([_evaluation(step, values) for step, values in enumerate((thirds, shifted, thirds, shifted))])
    assert best is not None
    assert best.evaluation.step == 3
    better = picked([_evaluation(step, values) for step, values in enumerate(({**thirds, "t0": [1.0]}, thirds))])
    assert better is not None
    assert better.evaluation.step == 0


def test_an_interval_survives_json() -> None:
    for interval in (Interval(0.5, 0.4, 0.6, 12), Interval(0.5, math.nan, math.nan, 1)):
        text = json.dumps(interval.as_dict(), allow_nan=False)
        assert repr(Interval.from_dict(json.loads(text))) == repr(interval)  # repr: nan is not equal to itself
    with pytest.raises(ValueError, match="mean, low, high and n"):
        Interval.from_dict({"mean": 1.0})


def test_ends_that_several_tasks_reach_are_bounds() -> None:
    few = [[0.0, 0.1], [0.1], [1.0, 0.1], [1.0]]
    assert reached_bounds(few) is None
    assert reached_bounds(few * 4) == (0.0, 1.0)
    assert reached_bounds([[0.0], [0.1], [0.5]] * 6) == (0.0, 1.0)  # what is within 0 and 1 may reach 1 yet
    assert reached_bounds([[-1.0], [0.1], [1.0]] * 6) == (-1.0, 1.0)
    assert reached_bounds([[float(number)] for number in range(40)]) is None  # nothing says that 39 is the most
    assert reached_bounds([[3.0]] * 40) is None
    means = [[0.06]] * 12 + [[0.1, 0.66]] * 4
    wide, known = mean_interval(means), mean_interval(means, bounds=(0.0, 1.0))
    assert wide.low < 0 < known.low
