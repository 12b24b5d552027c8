"""Measures of heads: against libraries' definitions by hand, and how often their intervals hold the true value."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from rlft.curves.differences import paired
from rlft.train.head import baseline, measure
from rlft.train.head.verdict import difference, verdict

EYE = np.eye(3)


def test_f1_by_hand() -> None:
    targets, decided = EYE[[0, 0, 0, 1, 1, 2]], EYE[[0, 0, 1, 1, 2, 2]]
    # label 0: 2 hits, 1 missed; label 1: 1 hit, 1 missed, 1 wrong; label 2: 1 hit, 1 wrong
    wanted = (2 * 2 / 5 + 2 * 1 / 4 + 2 * 1 / 3) / 3
    found = measure.f1(decided, targets, seed=0)
    assert found.mean == pytest.approx(wanted)
    assert not found.bounded  # two texts for each label
    many = measure.f1(np.tile(decided, (6, 1)), np.tile(targets, (6, 1)), seed=0)
    assert many.mean == pytest.approx(wanted)
    assert many.low < wanted < many.high
    assert measure.f1(decided, targets, seed=0, average="micro").mean == pytest.approx(2 * 4 / (2 * 4 + 4))
    faultless = np.tile(targets, (6, 1))
    assert measure.f1(faultless, faultless, seed=0).low < 0.99  # faultless on 36 texts is no proof


def test_measures_of_numbers() -> None:
    random = np.random.default_rng(0)
    targets = random.normal(size=(200, 1))
    values = targets + random.normal(size=(200, 1))
    found = measure.measure("regression", values, targets, seed=0)
    assert found["squared_error"].mean == pytest.approx(((values - targets) ** 2).mean())
    assert found["r2"].mean == pytest.approx(1 - ((values - targets) ** 2).mean() / targets.var())
    assert found["spearman"].mean == pytest.approx(spearmanr(values[:, 0], targets[:, 0]).statistic)


def test_probabilities_and_decisions() -> None:
    chances = measure.probabilities("classification", np.array([[0.0, np.log(3.0), -1e4]]))
    np.testing.assert_allclose(chances, [[0.25, 0.75, 0.0]], atol=1e-12)
    both = measure.probabilities("multilabel", np.array([[0.0, np.log(3.0), -1e4]]))
    np.testing.assert_allclose(both, [[0.5, 0.75, 0.0]], atol=1e-12)
    assert measure.decisions("multilabel", both).tolist() == [[1, 1, 0]]
    found = measure.measure("classification", np.repeat(chances, 4, 0), EYE[[1, 1, 1, 0]], seed=0)
    assert found["accuracy"].mean == 0.75
    brier = (3 * (0.25**2 + 0.25**2) + 0.75**2 + 0.75**2) / 4
    assert found["brier"].mean == pytest.approx(brier)
    assert found["ece"].mean == pytest.approx(0.0)


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1), (0.1,) * 10])
@pytest.mark.parametrize("right", [0.6, 0.97])
def test_f1_intervals_hold_the_true_value(shares: tuple[float, ...], right: float) -> None:
    random, labels, n = np.random.default_rng(1), len(shares), 120
    confusion = np.full((labels, labels), (1 - right) / (labels - 1))
    np.fill_diagonal(confusion, right)
    joint = np.array(shares)[:, None] * confusion
    hits = np.diag(joint)
    truth = float((2 * hits / (joint.sum(0) + joint.sum(1))).mean())
    held = 0
    for run in range(100):
        cells = random.choice(labels * labels, size=n, p=joint.ravel())
        found = measure.f1(np.eye(labels)[cells % labels], np.eye(labels)[cells // labels], seed=run)
        held += found.low <= truth <= found.high
    assert held >= 88, held  # of 100, where 95 are nominal


@pytest.mark.parametrize("off", [0.0, 0.15])
def test_calibration_intervals_hold_the_true_error(off: float) -> None:
    random, held, told = np.random.default_rng(2), 0, 0
    for run in range(200):
        sure = random.uniform(0.55, 0.95, size=600)
        right = (random.uniform(size=600) < sure - off).astype(float)
        found = measure.calibration_error(sure, right, seed=run)
        held += found.low <= off <= found.high
        told += found.low > 0
    assert held >= 190, held
    assert (told >= 190) if off else (told <= 10), told


def test_a_temperature_mends_logits_that_are_too_sure() -> None:
    random = np.random.default_rng(3)
    logits = random.normal(size=(2000, 3))
    chances = measure.probabilities("classification", logits)
    targets = np.array([EYE[random.choice(3, p=row)] for row in chances])
    assert measure.fit_temperature("classification", 4 * logits, targets) == pytest.approx(4, rel=0.15)
    few = measure.fit_temperature("classification", 4 * logits[:12], targets[:12])
    assert 1 < few < 2.5  # a dozen texts say little
    binary = (random.uniform(size=logits.shape) < measure.probabilities("multilabel", logits)).astype(float)
    assert measure.fit_temperature("multilabel", 4 * logits, binary) == pytest.approx(4, rel=0.15)


def test_a_bag_of_words_learns_words_and_their_order() -> None:
    random = np.random.default_rng(4)
    texts = [" ".join(random.choice(["red", "dog", "sees", "a"], size=6)) for _ in range(300)]
    for task, rule in (("classification", "red"), ("multilabel", "red dog"), ("regression", "dog sees")):
        has = np.array([float(rule in text) for text in texts])
        targets = np.stack([1 - has, has], 1) if task == "classification" else has[:, None]
        outputs, penalty = baseline.bag_of_words(
            task,
            texts[:150],
            targets[:150],
            texts[150:200],
            targets[150:200],
            texts[200:],  # type: ignore[arg-type]
        )
        values = outputs if task == "regression" else measure.probabilities(task, outputs)  # type: ignore[arg-type]
        assert (np.abs(values[:, -1] - has[200:]) < 0.5).mean() > 0.95, task
        assert penalty in baseline.PENALTIES


def test_the_baselines_gradient_is_that_of_its_loss() -> None:
    random = np.random.default_rng(5)
    outputs, weights = random.normal(size=(4, 3)), random.uniform(1, 2, size=(4, 3))
    for task, targets in (
        ("classification", EYE[[0, 1, 2, 0]]),
        ("multilabel", EYE[[0, 1, 2, 0]]),
        ("regression", outputs),
    ):
        loss, slope = baseline._loss(task, outputs + 0.3, targets, weights)  # type: ignore[arg-type]
        step = np.zeros((4, 3))
        step[1, 2] = step[2, 0] = 1e-6
        moved, _ = baseline._loss(task, outputs + 0.3 + step, targets, weights)  # type: ignore[arg-type]
        assert (moved - loss) / 1e-6 == pytest.approx(slope[1, 2] + slope[2, 0], rel=1e-3), task


def test_the_verdict_says_what_the_numbers_say() -> None:
    targets = np.eye(2)[np.arange(400) % 2]
    bad = np.where(np.arange(400)[:, None] % 4 == 0, 1 - targets, targets)  # a quarter wrong
    assert verdict("classification", difference("classification", bad, targets, targets))[0] == "better"
    kind, sentence = verdict("classification", difference("classification", targets, bad, targets))
    assert kind == "worse"
    assert "does NOT beat" in sentence
    assert "lower by 0.25" in sentence
    same = difference("classification", bad, bad, targets)
    assert verdict("classification", same)[0] == "cannot_tell"
    random = np.random.default_rng(6)
    numbers = random.normal(size=(100, 1))
    near, far = numbers + 0.1 * random.normal(size=(100, 1)), numbers + random.normal(size=(100, 1))
    kind, sentence = verdict("regression", difference("regression", far, near, numbers))
    assert kind == "better"
    assert "squared error is lower by" in sentence
    few = paired({"a": [0.0]}, {"a": [1.0]})
    assert verdict("regression", few) == (
        "cannot_tell",
        "Whether the head beats the bag of words cannot be told: one task has no interval.",
    )


def test_correlations_hold_the_true_value() -> None:
    random, held = np.random.default_rng(8), [0, 0]
    for run in range(60):
        x = random.normal(size=(120, 1))
        found = measure.measure("regression", 0.6 * x, 0.6 * x + 0.8 * random.normal(size=(120, 1)), seed=run)
        held[0] += found["r2"].low <= 0.36 <= found["r2"].high
        held[1] += found["spearman"].low <= 6 / np.pi * np.arcsin(0.3) <= found["spearman"].high
    assert min(held) >= 52, held
    assert not measure.measure("regression", x[:99], x[:99], seed=0)["r2"].bounded
