"""How good predictions are: accuracy, F1, calibration, errors of numbers; each with a 95 % interval.

Means over texts (accuracy, Brier score, errors) have the interval of `curves.statistics`. Of F1, R² and Spearman's
correlation, which are no means, it is a Bayesian bootstrap over texts (https://doi.org/10.1214/aos/1176345338). How
often the intervals hold the true value is simulated in tests/test_head_measure.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import rankdata

from rlft.curves.statistics import mean_interval
from rlft.run.records import Interval
from rlft.train.head.config import Task

Measured: TypeAlias = dict[str, Interval]
"""Intervals by the name of the measure."""
DRAWS = 1000
"""Bootstrap draws."""
PER_LABEL, PER_CORRELATION = 10, 100
"""Fewest texts from which F1 has an interval, for each label, and R² and Spearman's correlation."""
BINS, _BIN = 10, 30
"""Most bins of the reliability diagram, of equally many decisions, and the fewest decisions that a bin should have."""
HEADLINE = {"classification": "accuracy", "multilabel": "label_accuracy", "regression": "squared_error"}
"""The measure of each task that decides, as a mean over texts."""
_LEVEL = 0.95
_TEMPERATURE_SPREAD = 0.4
"""Standard deviation of the logarithm of temperatures, before any text was seen."""


def probabilities(task: Task, outputs: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Probability of each label, (n, labels), from logits."""
    scaled = outputs / temperature
    if task == "multilabel":
        return 0.5 * (1 + np.tanh(scaled / 2))
    powers = np.exp(scaled - scaled.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def decisions(task: Task, chances: np.ndarray) -> np.ndarray:
    """One-hot or many-hot decisions, (n, labels): the likeliest label; of multilabel those of at least one half."""
    if task == "multilabel":
        return (chances >= 0.5).astype(float)
    return np.eye(chances.shape[1])[chances.argmax(1)]


def by_text(task: Task, values: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """The headline of every text, (n,): 1 or 0, share of labels that are right, or the squared error.

    Args:
        values: probabilities, or numbers of a regression.
        targets: one-hot, many-hot, or numbers, (n, outputs).
    """
    if task == "regression":
        return ((values - targets) ** 2)[:, 0]
    right = decisions(task, values) == targets
    return right.all(1).astype(float) if task == "classification" else right.mean(1)


def measure(task: Task, values: np.ndarray, targets: np.ndarray, *, seed: int) -> Measured:
    """All measures of predictions; arguments as of `by_text`, and the seed of the bootstrap."""
    rows = by_text(task, values, targets)
    if task == "regression":
        return {
            "squared_error": _mean(rows),
            "absolute_error": _mean(np.abs(values - targets)[:, 0]),
            "r2": _bootstrap(seed, len(rows), lambda w: _r2(values[:, 0], targets[:, 0], w)),
            "spearman": _bootstrap(seed, len(rows), lambda w: _spearman(values[:, 0], targets[:, 0], w)),
        }
    found = {HEADLINE[task]: _mean(rows, (0.0, 1.0))}
    decided = decisions(task, values)
    if task == "multilabel":
        found["all_labels_right"] = _mean((decided == targets).all(1).astype(float), (0.0, 1.0))
        found["f1_micro"] = f1(decided, targets, seed=seed, average="micro")
    found["f1_macro"] = f1(decided, targets, seed=seed)
    top = 2.0 if task == "classification" else 1.0
    brier = ((values - targets) ** 2).sum(1) if task == "classification" else ((values - targets) ** 2).mean(1)
    found["brier"] = _mean(brier, (0.0, top))
    found["ece"] = calibration_error(*confidences(task, values, targets), seed=seed)
    return found


def confidences(task: Task, chances: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(how sure a prediction is, whether it is right) for each text; of multilabel for each text and label."""
    decided = decisions(task, chances)
    if task == "multilabel":
        return np.maximum(chances, 1 - chances).ravel(), (decided == targets).ravel().astype(float)
    return chances.max(1), (decided == targets).all(1).astype(float)


def per_label(decided: np.ndarray, targets: np.ndarray, labels: Sequence[str], *, seed: int) -> list[dict[str, Any]]:
    """Precision, recall, F1 with its interval, and the number of texts of each label."""
    found = []
    for column, label in enumerate(labels):
        said, true = decided[:, column], targets[:, column]
        hits = float((said * true).sum())
        found.append(
            {
                "label": label,
                "texts": int(true.sum()),
                "precision": hits / said.sum() if said.sum() else None,
                "recall": hits / true.sum() if true.sum() else None,
                "f1": f1(decided[:, [column]], targets[:, [column]], seed=seed).as_dict(),
            }
        )
    return found


def f1(decided: np.ndarray, targets: np.ndarray, *, seed: int, average: str = "macro") -> Interval:
    """F1, the harmonic mean of precision and recall, averaged over labels or over all decisions (`micro`).

    The bootstrap has up to two texts more than were seen, half found and half missed, shared by the labels, without
    which the interval of few texts would be too narrow, and that of faultless decisions a point. There is none below
    `PER_LABEL` texts for each label, as it would hold the true value too rarely.

    Args:
        decided: 0 or 1, (n, labels).
        targets: the same.
    """
    parts = np.stack([decided * targets, decided * (1 - targets) + (1 - decided) * targets], axis=1)  # hits, misses

    def score(sums: np.ndarray) -> np.ndarray:
        if average == "micro":
            sums = sums.sum(-1, keepdims=True)
        hits, misses = sums[..., 0, :], sums[..., 1, :]
        return (2 * hits / np.maximum(2 * hits + misses, 1e-12)).mean(-1)

    n, _, labels = parts.shape
    random = np.random.default_rng([seed, 1])
    sums = np.concatenate([_weights(random, size, n) @ parts.reshape(n, -1) for size in _chunks(n)])
    drawn = sums.reshape(DRAWS, 2, labels) * n + random.gamma(min(0.5, 1 / labels), size=(DRAWS, 2, labels))
    needed = PER_LABEL * labels if average == "macro" else PER_LABEL
    return _interval(float(score(parts.sum(0))), score(drawn), n, needed)


def calibration_error(sure: np.ndarray, right: np.ndarray, *, seed: int) -> Interval:
    """Expected calibration error: how far the share of right answers is from what was predicted, over bins.

    The estimate is never 0, however well calibrated the predictions are, as every bin has noise. By the triangle
    inequality it is off by no more than the noise of all bins; the interval is the estimate plus and minus what that
    noise stays below in 95 % of simulated data. A lower bound of 0 means: no miscalibration can be told.

    Args:
        sure: predicted probability of each decision.
        right: 1 where it was right, else 0.
    """
    random = np.random.default_rng([seed, 2])
    error, noise = 0.0, np.zeros(DRAWS)
    for rows in _bins(sure):
        n, share = len(rows), len(rows) / len(sure)
        error += share * abs(right[rows].mean() - sure[rows].mean())
        smoothed = (right[rows].sum() + 1) / (n + 2)
        noise += share * np.abs(random.binomial(n, smoothed, size=DRAWS) / n - smoothed)
    half = float(np.quantile(noise, _LEVEL))
    return Interval(error, max(0.0, error - half), min(1.0, error + half), len(sure))


def reliability(sure: np.ndarray, right: np.ndarray) -> list[dict[str, Any]]:
    """The reliability diagram: of each bin the mean prediction, the share that was right, and its interval."""
    return [{"predicted": float(sure[rows].mean()), **_mean(right[rows], (0.0, 1.0)).as_dict()} for rows in _bins(sure)]


def fit_temperature(task: Task, outputs: np.ndarray, targets: np.ndarray) -> float:
    """What logits are to be divided by so that the validation loss is lowest (https://arxiv.org/abs/1706.04599).

    A normal prior on its logarithm keeps it near 1 where few texts say otherwise.
    """

    def loss(log: float) -> float:
        chances = np.clip(probabilities(task, outputs, float(np.exp(log))), 1e-12, 1 - 1e-12)
        wrong = (1 - targets) * np.log(1 - chances) if task == "multilabel" else 0.0
        return log**2 / (2 * _TEMPERATURE_SPREAD**2) - float((targets * np.log(chances) + wrong).sum())

    return float(np.exp(minimize_scalar(loss, bounds=(-3.0, 3.0), method="bounded").x))


def _bins(sure: np.ndarray) -> list[np.ndarray]:
    """Numbers of the texts of each bin, by how sure the predictions are; equal ones share a bin."""
    count = max(1, min(BINS, len(sure) // _BIN))
    edges = np.unique(np.quantile(sure, np.linspace(0, 1, count + 1)[1:-1]))
    number = np.searchsorted(edges, sure, side="left")
    return [rows for each in range(len(edges) + 1) if len(rows := np.flatnonzero(number == each))]


def _mean(values: np.ndarray, bounds: tuple[float, float] | None = None) -> Interval:
    return mean_interval([[float(value)] for value in values], _LEVEL, bounds=bounds)


def _weights(random: np.random.Generator, draws: int, n: int) -> np.ndarray:
    weights = random.exponential(size=(draws, n))
    return weights / weights.sum(1, keepdims=True)


def _chunks(n: int) -> list[int]:
    """Sizes of parts of the draws whose weights fit into some megabytes."""
    size = max(1, min(DRAWS, 2_000_000 // n))
    return [size] * (DRAWS // size) + ([DRAWS % size] if DRAWS % size else [])


def _bootstrap(seed: int, n: int, statistic: Any) -> Interval:
    """Args: `statistic` takes weights (draws, n) whose rows sum to 1 and gives (draws,)."""
    random = np.random.default_rng([seed, 3])
    drawn = np.concatenate([statistic(_weights(random, size, n)) for size in _chunks(n)])
    return _interval(float(statistic(np.full((1, n), 1 / n))[0]), drawn, n, PER_CORRELATION)


def _interval(estimate: float, drawn: np.ndarray, n: int, needed: int) -> Interval:
    if n < needed:
        return Interval(estimate, float("nan"), float("nan"), n)
    low, high = np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(estimate, min(float(low), estimate), max(float(high), estimate), n)


def _r2(values: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    center = weights @ targets
    spread = weights @ targets**2 - center**2
    return 1 - (weights @ (targets - values) ** 2) / np.maximum(spread, 1e-300)


def _spearman(values: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted correlation of ranks; the ranks themselves are those of all texts."""
    x, y = rankdata(values), rankdata(targets)
    mx, my = weights @ x, weights @ y
    cov = weights @ (x * y) - mx * my
    spread = (weights @ x**2 - mx**2) * (weights @ y**2 - my**2)
    return cov / np.sqrt(np.maximum(spread, 1e-300))
