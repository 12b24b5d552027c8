"""The bag of words that a head has to beat: a linear model of which words and pairs of words a text has.

Multinomial or binary logistic regression, or ridge regression, on whether each word and bigram stands in the text;
trained on the same texts as the head, its L2 penalty chosen on the same validation texts. The problem is convex, so
there is nothing random in it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from rlft.train.head.config import Task

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
"""L2 penalties that are tried, in units of one text's loss."""
_MOST_TERMS = 50_000
_WORD = re.compile(r"\w+|[^\w\s]")


def terms(text: str) -> list[str]:
    """Words, marks and their bigrams, in lower case."""
    words = _WORD.findall(text.lower())
    return [*words, *(f"{one} {other}" for one, other in pairwise(words))]


def bag_of_words(
    task: Task,
    train: Sequence[str],
    targets: np.ndarray,
    validation: Sequence[str],
    validation_targets: np.ndarray,
    heldout: Sequence[str],
    weights: np.ndarray | None = None,
) -> tuple[np.ndarray, float]:
    """Raw outputs of the best linear model of words on held-out texts.

    Args:
        targets: one-hot labels (n, labels), many-hot ones of multilabel, or numbers (n, 1).
        weights: of each output's terms in the loss, (n, outputs); None is 1.

    Returns:
        (outputs on the held-out texts, the penalty that was chosen): logits, or numbers of a regression.
    """
    counts = Counter(term for text in train for term in set(terms(text)))
    known = sorted(counts, key=lambda term: (-counts[term], term))[:_MOST_TERMS]
    vocabulary = {term: column for column, term in enumerate(term for term in known if counts[term] > 1)}
    seen, unseen, measured = (_matrix(texts, vocabulary) for texts in (train, validation, heldout))
    weights = np.ones_like(targets) if weights is None else weights
    best: tuple[float, np.ndarray, float] | None = None
    start = np.zeros((len(vocabulary) + 1) * targets.shape[1])
    for penalty in reversed(PENALTIES):  # from the strongest on, each starts where the last one ended
        start = _fit(task, seen, targets, weights, penalty, start)
        loss = float(_loss(task, _outputs(unseen, start), validation_targets, np.ones_like(validation_targets))[0])
        if best is None or loss < best[0]:
            best = (loss, _outputs(measured, start), penalty)
    assert best is not None
    return best[1], best[2]


def _matrix(texts: Sequence[str], vocabulary: dict[str, int]) -> Any:
    columns = [sorted({vocabulary[term] for term in terms(text) if term in vocabulary}) for text in texts]
    ends = np.cumsum([0, *map(len, columns)])
    flat = np.array([column for row in columns for column in row], dtype=np.int64)
    return csr_matrix((np.ones(len(flat)), flat, ends), shape=(len(texts), len(vocabulary)))


def _outputs(matrix: Any, parameters: np.ndarray) -> np.ndarray:
    shaped = parameters.reshape(matrix.shape[1] + 1, -1)
    return matrix @ shaped[:-1] + shaped[-1]


def _fit(
    task: Task, matrix: Any, targets: np.ndarray, weights: np.ndarray, penalty: float, start: np.ndarray
) -> np.ndarray:
    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        loss, slope = _loss(task, _outputs(matrix, parameters), targets, weights)
        shaped = parameters.reshape(matrix.shape[1] + 1, -1)
        gradient = np.vstack([matrix.T @ slope + penalty * shaped[:-1], slope.sum(0)])  # no penalty on the bias
        return loss + penalty / 2 * float((shaped[:-1] ** 2).sum()), gradient.ravel()

    return minimize(objective, start, jac=True, method="L-BFGS-B", options={"maxiter": 200}).x


def _loss(task: Task, outputs: np.ndarray, targets: np.ndarray, weights: np.ndarray) -> tuple[float, np.ndarray]:
    """(sum of the loss, its gradient by the outputs)."""
    if task == "regression":
        return float((weights * (outputs - targets) ** 2).sum() / 2), weights * (outputs - targets)
    if task == "multilabel":
        loss = np.logaddexp(0, outputs) - targets * outputs
        return float((weights * loss).sum()), weights * (_sigmoid(outputs) - targets)
    shifted = outputs - outputs.max(1, keepdims=True)
    logs = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
    each = (weights * targets).sum(1, keepdims=True)  # the weight of the row's own label
    return float(-(weights * targets * logs).sum()), each * (np.exp(logs) - targets)


def _sigmoid(values: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(values / 2))
