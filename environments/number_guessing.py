"""Guess a number in several turns: the shortest example of an episode. The environment scores by itself."""

from __future__ import annotations

import random
import re

from rlft.common.rows import refuse_negative
from rlft.environment.contract import Environment, Step
from rlft.types import Message, Task


class Guessing:
    """One game. The number comes from the seed, so that a group's samples look for the same one."""

    def __init__(self, cost: float) -> None:
        """Args: cost: what each wrong guess takes from the final reward of 1."""
        self._cost = cost

    def start(self, task: Task, seed: int) -> list[Message]:
        """Think of a number."""
        low, high = task.columns["low"], task.columns["high"]
        self._number = random.Random(seed).randint(low, high)
        return list(task.messages)

    def step(self, message: Message) -> Step:
        """Compare the reply's last number."""
        guesses = re.findall(r"\d+", message["content"])
        if not guesses:
            return _say("Say a number.", -self._cost)
        guess = int(guesses[-1][:9])
        if guess == self._number:
            return Step(reward=1.0, done=True)
        return _say(f"My number is {'higher' if guess < self._number else 'lower'} than {guess}.", -self._cost)


def _say(text: str, reward: float) -> Step:
    return Step(messages=(Message(role="user", content=text),), reward=reward)


def load(high: int = 9, max_turns: int = 4, cost: float = 0.1, heldout: int = 8, seed: int = 0) -> Environment:
    """Games with numbers between bounds of at most `high`; other bounds are held out than trained on.

    Args:
        max_turns: guesses of a game.
        cost: what a wrong guess costs; a right one gives 1.

    Raises:
        ValueError: too few pairs of bounds.
    """
    refuse_negative(heldout=heldout)
    bounds = [(low, top) for low in range(1, high) for top in range(low + 2, high + 1)]
    if heldout >= len(bounds):
        raise ValueError(f"there are {len(bounds)} pairs of bounds up to {high}, too few to hold out {heldout}")
    random.Random(seed).shuffle(bounds)
    tasks = [_task(low, top) for low, top in bounds]
    return Environment(
        train=tasks[heldout:], heldout=tasks[:heldout], episode=lambda: Guessing(cost), max_turns=max_turns
    )


def _task(low: int, high: int) -> Task:
    text = f"Guess my number between {low} and {high}. Answer with a number only."
    return Task(id=f"{low}-{high}", messages=({"role": "user", "content": text},), columns={"low": low, "high": high})
