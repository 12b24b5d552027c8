"""Intervals: against independent recomputation, and against their promise to cover 95 times in 100."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import scipy.stats

from rlft.curves.statistics import accuracy_interval, mean_interval, paired_difference, proportion_interval
from rlft.run.records import Interval


def test_mean_interval_by_hand() -> None:
    # Task means 1, 2, 6: mean 3, variance ((-2)^2 + (-1)^2 + 3^2) / 2 = 7, error sqrt(7 / 3) = 1.527525.
    # The t quantile of 2 degrees of freedom: 4.302653: half width 6.572411. The plain mean of the six values
    # would be (0 + 2 + 2 + 6 + 6 + 6) / 6 = 3.67: the task with most samples does not count more.
    interval = mean_interval([[0.0, 2.0], [2.0], [6.0, 6.0, 6.0]])
    assert interval.n == 3
    assert interval.mean == pytest.approx(3.0)
    assert interval.high - interval.mean == pytest.approx(6.572411, abs=1e-6)
    assert interval.mean - interval.low == pytest.approx(6.572411, abs=1e-6)


@pytest.mark.parametrize("level", [0.8, 0.95, 0.99])
def test_equal_sizes_give_the_cluster_robust_interval(level: float) -> None:
    values = np.random.default_rng(1).normal(size=(23, 4)) + np.arange(23)[:, None] * 0.1
    n, total = 23, 23 * 4
    # The sandwich estimator of a mean, with its n / (n - 1): sum over clusters of (sum of residuals)^2.
    residuals = values - values.mean()
    error = math.sqrt(n / (n - 1) * sum(row.sum() ** 2 for row in residuals) / total**2)
    low, high = scipy.stats.t.interval(level, df=n - 1, loc=values.mean(), scale=error)
    interval = mean_interval([list(row) for row in values], level)
    assert (interval.mean, interval.low, interval.high) == pytest.approx((values.mean(), low, high), rel=1e-12)


def test_many_tasks_agree_with_a_bootstrap_over_tasks() -> None:
    rng = np.random.default_rng(2)
    clusters = [rng.gamma(2.0, size=rng.integers(1, 6)) * rng.uniform(0.5, 2.0) for _ in range(300)]
    means = np.array([cluster.mean() for cluster in clusters])
    resampled = means[rng.integers(0, 300, size=(4000, 300))].mean(axis=1)
    interval = mean_interval(clusters)
    width = interval.high - interval.low
    assert np.quantile(resampled, [0.025, 0.975]) == pytest.approx([interval.low, interval.high], abs=0.05 * width)


@pytest.mark.parametrize("tasks", [3, 5, 8])
def test_the_t_interval_keeps_its_level_where_a_percentile_bootstrap_does_not(tasks: int) -> None:
    rng = np.random.default_rng(3)
    runs = 4000  # standard error of a coverage of 0.95: 0.0034
    data = rng.normal(size=(runs, tasks))
    covers = [interval.low <= 0 <= interval.high for interval in (mean_interval(row[:, None]) for row in data)]
    assert np.mean(covers) == pytest.approx(0.95, abs=0.011)
    picks = rng.integers(0, tasks, size=(500, tasks))
    low, high = np.quantile(data[:1000, picks].mean(axis=2), [0.025, 0.975], axis=1)
    known = {3: 0.755, 5: 0.838, 8: 0.885}[tasks]
    assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(known, abs=0.05)


def test_clustering_covers_unequal_sizes_and_ignoring_the_tasks_does_not() -> None:
    rng = np.random.default_rng(4)
    clustered, naive = [], []
    for _ in range(1500):
        difficulty = rng.normal(size=12)
        clusters = [d + rng.normal(size=size) for d, size in zip(difficulty, rng.integers(1, 9, 12), strict=True)]
        interval = mean_interval(clusters)
        clustered.append(interval.low <= 0 <= interval.high)
        flat = np.concatenate(clusters)
        naive.append(abs(flat.mean()) <= 1.96 * flat.std(ddof=1) / math.sqrt(len(flat)))
    assert np.mean(clustered) == pytest.approx(0.95, abs=0.018)
    assert np.mean(naive) < 0.85


def test_absent_samples_and_too_few_tasks() -> None:
    assert mean_interval([[1.0, 3.0], [], [4.0]]) == mean_interval([[1.0, 3.0], [4.0]])
    assert mean_interval({"a": [1.0, 3.0], "b": [4.0]}) == mean_interval([[1.0, 3.0], [4.0]])
    one = mean_interval([[1.0, 2.0]])
    assert (one.mean, one.n) == (1.5, 1)
    assert math.isnan(one.low)
    assert math.isnan(one.high)
    assert not one.bounded
    none = mean_interval([[], []])
    assert none.n == 0
    assert math.isnan(none.mean)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_failed_sample_is_refused_as_a_number(value: float) -> None:
    with pytest.raises(ValueError, match="leave out samples that failed"):
        mean_interval([[1.0], [value]])
    with pytest.raises(ValueError, match="leave out samples that failed"):
        accuracy_interval([[1.0], [value]])


@pytest.mark.parametrize("level", [0, 1, 95])
def test_a_level_is_a_share(level: float) -> None:
    for call in (lambda: mean_interval([[1.0]], level), lambda: proportion_interval(1, 2, level)):
        with pytest.raises(ValueError, match=r"0\.95"):
            call()


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 20), (20, 20), (3, 17), (117, 250)])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_proportion_interval_is_wilsons(successes: int, trials: int, level: float) -> None:
    expected = scipy.stats.binomtest(successes, trials).proportion_ci(level, method="wilson")
    interval = proportion_interval(successes, trials, level)
    assert (interval.low, interval.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert interval.mean == successes / trials
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1


def test_proportion_interval_by_hand() -> None:
    # z^2 = 3.841459; 0 of 10: the upper bound is z^2 / (n + z^2) = 3.841459 / 13.841459 = 0.277533.
    interval = proportion_interval(0, 10)
    assert (interval.low, interval.high) == (0.0, pytest.approx(0.277533, abs=1e-6))
    assert proportion_interval(0, 0).n == 0
    with pytest.raises(ValueError, match="11 successes in 10 trials"):
        proportion_interval(11, 10)


def test_accuracy_of_one_sample_per_task_is_wilsons() -> None:
    by_task = {f"t{i}": [float(i < 3)] for i in range(17)}
    assert accuracy_interval(by_task) == proportion_interval(3, 17)
    assert accuracy_interval({**by_task, "failed": []}) == proportion_interval(3, 17)


def test_accuracy_of_several_samples_per_task_uses_the_effective_sample_size() -> None:
    # Means 1, 1/2, 1/2, 0: mean 1/2, variance 1/6, se^2 = 1/24, effective size (1/4) / (1/24) = 6 of 8.
    interval = accuracy_interval([[1, 1], [1, 0], [0, 1], [0, 0]])
    t = scipy.stats.t.ppf(0.975, 3)
    center = (0.5 + t * t / 12) / (1 + t * t / 6)
    half = t / (1 + t * t / 6) * math.sqrt(0.25 / 6 + t * t / (4 * 36))
    assert (interval.low, interval.high) == pytest.approx((center - half, center + half))
    assert interval.n == 4


def test_accuracy_stays_honest_at_the_ends() -> None:
    wrong, right = ([[value] * 4 for _ in range(50)] for value in (0, 1))
    assert accuracy_interval(wrong).low == 0
    # No spread: only tasks count. t(49)^2 = 4.0383; 4.0383 / (50 + 4.0383) = 0.07473.
    assert accuracy_interval(wrong).high == pytest.approx(0.07473, abs=1e-5)
    assert accuracy_interval(right).low == pytest.approx(1 - 0.07473, abs=1e-5)
    assert not accuracy_interval([[0, 0, 1]]).bounded


def test_accuracy_near_zero_is_covered_better_than_by_t() -> None:
    rng = np.random.default_rng(5)
    chances = rng.beta(0.015, 0.485, size=(600, 50))  # mean 0.03: a few tasks are easy, most are hopeless
    covered = {accuracy_interval: 0, mean_interval: 0}
    for row in chances:
        clusters = (rng.random((50, 4)) < row[:, None]).astype(float).tolist()
        for method in covered:
            interval = method(clusters)
            covered[method] += interval.low <= 0.03 <= interval.high
    assert covered[accuracy_interval] / 600 > 0.87
    assert covered[mean_interval] / 600 < 0.85


def test_other_values_are_clipped_only_to_a_range_that_they_keep() -> None:
    inside = accuracy_interval([[0.9, 1.0], [0.5, 1.0], [1.0, 1.0]])
    unclipped = mean_interval([[0.9, 1.0], [0.5, 1.0], [1.0, 1.0]])
    assert unclipped.high > 1
    assert (inside.low, inside.high) == (unclipped.low, 1.0)
    outside = [[-1.0, 1.0], [0.5, 1.0], [1.0, 1.0]]
    assert accuracy_interval(outside) == mean_interval(outside)


def test_paired_difference_is_the_paired_t_interval() -> None:
    rng = np.random.default_rng(6)
    before = {f"t{i}": [rng.normal()] for i in range(40)}
    after = {task: [values[0] + 0.3 + rng.normal() * 0.5] for task, values in before.items()}
    expected = scipy.stats.ttest_rel(
        [values[0] for values in after.values()], [values[0] for values in before.values()]
    )
    low, high = expected.confidence_interval(0.95)
    paired = paired_difference(before, {**after, "new": [9.0]})
    assert (paired.interval.low, paired.interval.high) == pytest.approx((low, high))
    assert (paired.interval.n, paired.changed) == (40, 40)


def test_pairing_sees_what_two_separate_intervals_do_not() -> None:
    # 100 tasks, half of them solved; then 8 more: 0.50 and 0.58 overlap widely, yet nothing got worse.
    before = {f"t{i}": [float(i < 50)] for i in range(100)}
    after = {f"t{i}": [float(i < 58)] for i in range(100)}
    assert accuracy_interval(before).high > accuracy_interval(after).low
    assert paired_difference(before, after).conclusive
    assert paired_difference(after, before).conclusive
    assert not paired_difference(before, before).conclusive


@pytest.mark.parametrize(("changed", "conclusive"), [(5, False), (6, True)])
def test_few_changed_tasks_prove_nothing(changed: int, conclusive: bool) -> None:
    # Five sign flips of equal size: exact two-sided p = 2 / 2^5 = 0.0625; six: 0.03125.
    before = {f"t{i}": [0.0] for i in range(changed)}
    after = {f"t{i}": [1.0] for i in range(changed)}
    paired = paired_difference(before, after)
    assert (paired.interval.low, paired.conclusive) == (1.0, conclusive)


def test_the_order_of_samples_is_no_change() -> None:
    paired = paired_difference({"a": [0.1, 0.2, 0.3], "b": [1.0]}, {"a": [0.3, 0.1, 0.2], "b": [1.0]})
    assert paired.changed == 0


def test_an_interval_survives_json() -> None:
    for interval in (Interval(0.5, 0.4, 0.6, 12), Interval(0.5, math.nan, math.nan, 1)):
        text = json.dumps(interval.as_dict(), allow_nan=False)
        assert repr(Interval.from_dict(json.loads(text))) == repr(interval)  # repr: nan is not equal to itself
    with pytest.raises(ValueError, match="mean, low, high and n"):
        Interval.from_dict({"mean": 1.0})
