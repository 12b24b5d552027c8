"""Sums, differences and products, answered with a number: a small model half knows them, RL makes it sure.

Score it leniently with `rewards.last_number:last_number`; `environments.sums` wants the answer in tags and needs SFT.
"""

from __future__ import annotations

import random

from rlft.common.arithmetic import evaluate
from rlft.common.rows import refuse_negative
from rlft.environment.contract import Environment
from rlft.types import Task


def load(
    operators: str = "+-*",
    terms: int = 2,
    low: int = 1,
    high: int = 9,
    tasks: int = 400,
    heldout: int = 60,
    seed: int = 0,
) -> Environment:
    """Expressions of `terms` numbers from low to high; held-out and training problems are disjoint.

    Args:
        operators: which of + - * stand between the numbers.
        tasks: problems in all at the most; fewer where there are not as many.

    Raises:
        ValueError: no such operator, or too few problems.
    """
    refuse_negative(heldout=heldout)
    if not operators or set(operators) - set("+-*") or terms < 2 or high < low:
        raise ValueError("operators are some of + - *, terms are 2 or more, and low is not above high")
    random_ = random.Random(seed)
    number = high - low + 1
    possible = len(set(operators)) ** (terms - 1) * number**terms
    expressions: dict[str, None] = {}  # a set that keeps its order
    while len(expressions) < min(tasks, possible):
        written = str(random_.randint(low, high))
        for _ in range(terms - 1):
            written += f" {random_.choice(operators)} {random_.randint(low, high)}"
        expressions[written] = None
    if heldout >= len(expressions):
        raise ValueError(f"there are {len(expressions)} problems, too few to hold out {heldout}")
    problems = [_task(expression) for expression in expressions]
    return Environment(train=problems[heldout:], heldout=problems[:heldout])


def _task(expression: str) -> Task:
    question = f"What is {expression}? Answer with the number."
    value, _ = evaluate(expression)
    return Task(id=expression, messages=({"role": "user", "content": question},), answer=str(value))
