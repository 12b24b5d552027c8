"""Countdown: reach a target with given numbers, each used at most once. Many answers are right, so a reward computes.

The game of https://github.com/Jiayi-Pan/TinyZero. Scored by `rewards.countdown:countdown`.
"""

from __future__ import annotations

import random

from rlft.common.rows import refuse_negative
from rlft.environment.contract import Environment
from rlft.types import Message, Task


def load(
    numbers: int = 3,
    high: int = 20,
    tasks: int = 1000,
    heldout: int = 100,
    demonstrations: int = 100,
    seed: int = 0,
) -> Environment:
    """Games of `numbers` numbers from 1 to high whose target can be reached with all of them.

    Args:
        tasks: games in all.
        demonstrations: games with a worked reply for the SFT stage; they are no tasks.

    Raises:
        ValueError: too few games.
    """
    refuse_negative(tasks=tasks, heldout=heldout, demonstrations=demonstrations)
    if numbers < 2 or high < 2:
        raise ValueError("countdown needs at least two numbers, and a high of at least 2")
    if heldout + demonstrations >= tasks:
        raise ValueError(f"of {tasks} games, {heldout} held-out and {demonstrations} shown ones leave none to train on")
    random_ = random.Random(seed)
    games: dict[tuple[tuple[int, ...], int], str] = {}
    for _ in range(100 * tasks):
        if len(games) == tasks:
            break
        drawn = [random_.randint(1, high) for _ in range(numbers)]
        solution, target = _combine(drawn, random_)
        if 1 <= target <= high * high:
            games.setdefault((tuple(drawn), target), solution)
    if len(games) < tasks:
        raise ValueError(f"found only {len(games)} games of {numbers} numbers up to {high}; ask for fewer tasks")
    made = [(_task(drawn, target), solution) for (drawn, target), solution in games.items()]
    shown = made[heldout : heldout + demonstrations]
    return Environment(
        heldout=[task for task, _ in made[:heldout]],
        demonstrations=[
            (*task.messages, Message(role="assistant", content=f"<answer>{solution}</answer>"))
            for task, solution in shown
        ],
        train=[task for task, _ in made[heldout + demonstrations :]],
    )


def _combine(drawn: list[int], random_: random.Random) -> tuple[str, int]:
    """A random expression over all the numbers from left to right, and its value."""
    text, value = str(drawn[0]), drawn[0]
    for number in drawn[1:]:
        symbol = random_.choice("+-*")
        value = {"+": value + number, "-": value - number, "*": value * number}[symbol]
        if symbol == "*" and (" + " in text or " - " in text):
            text = f"({text})"
        text += f" {symbol} {number}"
    return text, value


def _task(drawn: tuple[int, ...], target: int) -> Task:
    listed = ", ".join(map(str, drawn))
    question = (
        f"Use the numbers {listed}, each at most once, with + - * / to make {target}. "
        "Put the expression inside <answer> tags."
    )
    return Task(
        id=f"{'-'.join(map(str, drawn))}={target}",
        messages=({"role": "user", "content": question},),
        columns={"numbers": list(drawn), "target": target},
    )
