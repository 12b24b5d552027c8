"""The environment: a number between two bounds has to be found in three guesses.

Seven numbers are in question, so that halving what is left (the middle one, then the middle of the rest) always finds
it in three. A policy that guesses at random finds it in three of seven games.
"""

from __future__ import annotations

import random

from rlft.environment.contract import Environment, Step
from rlft.reward.extract import last_number
from rlft.types import Message, Task

GUESSES = 3
NUMBERS = 7


class Game:
    """One game; every sample of a task gets an object of its own, which sees messages and never tokens."""

    def start(self, task: Task, seed: int) -> list[Message]:
        """The first messages. Chance belongs to `seed`, which a group's samples share; here nothing is left to it."""
        self.number = int(task.answer)
        return list(task.messages)

    def step(self, message: Message) -> Step:
        """The answer to a guess; without `reward`, which is left to the config's rewards."""
        guess = last_number(message["content"])
        if guess is None or not guess.isdecimal():
            return say("Write a number.")
        if int(guess) == self.number:
            return Step(done=True)
        return say("Higher." if int(guess) < self.number else "Lower.")


def say(text: str) -> Step:
    """A message to the policy; the game goes on."""
    return Step(messages=(Message(role="user", content=text),))


def load(high: int = 99, heldout: int = 40, seed: int = 0) -> Environment:
    """Games with numbers up to `high`; other bounds are held out than trained on.

    The same arguments have to give the same tasks: every worker and every resumed run calls this again.
    """
    random_ = random.Random(seed)
    tasks = [task(low, low + NUMBERS - 1, random_) for low in range(10, high - NUMBERS + 2)]
    random_.shuffle(tasks)
    return Environment(train=tasks[heldout:], heldout=tasks[:heldout], episode=Game, max_turns=GUESSES)


def task(low: int, high: int, random_: random.Random) -> Task:
    """One game."""
    text = f"I think of a number from {low} to {high}. Guess it. Reply with one number."
    number = str(random_.randint(low, high))
    return Task(id=f"{low}-{high}", messages=({"role": "user", "content": text},), answer=number)
