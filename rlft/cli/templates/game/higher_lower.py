"""The environment: one of three numbers has to be found in two guesses.

Whoever asks for the middle one first always finds it. A policy that guesses at random and does not listen finds it in
five of nine games, one that draws among what is left in seven of nine.
"""

from __future__ import annotations

import random

from rlft.environment.contract import Environment, Step
from rlft.reward.extract import last_number
from rlft.types import Message, Task

GUESSES = 2
NUMBERS = 3


class Game:
    """One game; every sample of a task gets an object of its own, which sees messages and never tokens."""

    def start(self, task: Task, seed: int) -> list[Message]:
        """The first messages. Chance belongs to `seed`, which a group's samples share; here nothing is left to it."""
        self.number = int(task.answer)
        self.low, self.high = task.columns["low"], task.columns["high"]
        return list(task.messages)

    def step(self, message: Message) -> Step:
        """The answer to a guess; without `reward`, which is left to the config's rewards."""
        guess = last_number(message["content"])
        if guess is None or not guess.isdecimal():
            return say("Write a number.")
        number = int(guess)
        if number == self.number:
            return Step(done=True)
        if number < self.number:
            self.low = max(self.low, number + 1)
        else:
            self.high = min(self.high, number - 1)
        hint = "Higher" if number < self.number else "Lower"
        return say(f"{hint}: it is from {self.low} to {self.high}.")


def say(text: str) -> Step:
    """A message to the policy; the game goes on."""
    return Step(messages=(Message(role="user", content=text),))


def load(high: int = 99, heldout: int = 40, demonstrations: int = 16, seed: int = 0) -> Environment:
    """Games with numbers up to `high`; held-out, shown and training games have different bounds.

    The same arguments have to give the same tasks: every worker and every resumed run calls this again.

    Args:
        heldout: games that are only measured on.
        demonstrations: games that the warm start shows; the others are trained on.
    """
    random_ = random.Random(seed)
    tasks = [task(low, low + NUMBERS - 1, random_) for low in range(10, high - NUMBERS + 2)]
    random_.shuffle(tasks)
    shown = tasks[heldout : heldout + demonstrations]
    return Environment(
        heldout=tasks[:heldout],
        demonstrations=[conversation for each in shown for conversation in demonstrate(each, random_)],
        train=tasks[heldout + demonstrations :],
        episode=Game,
        max_turns=GUESSES,
    )


def task(low: int, high: int, random_: random.Random) -> Task:
    """One game."""
    text = f"I think of a number from {low} to {high}. Guess it. Reply with one number."
    number = str(random_.randint(low, high))
    return Task(
        id=f"{low}-{high}",
        messages=({"role": "user", "content": text},),
        answer=number,
        columns={"low": low, "high": high},
    )


def demonstrate(game: Task, random_: random.Random) -> list[tuple[Message, ...]]:
    """A conversation for each guess of a game, which is learnt: numbers that are still possible, drawn at random.

    They show how a guess is written and that hints count. Which numbers are good ones is left to RL.
    """
    player, conversations = Game(), []
    messages = player.start(game, 0)
    for _ in range(GUESSES):
        guess = random_.randint(player.low, player.high)
        messages = [*messages, Message(role="assistant", content=str(guess))]
        conversations.append(tuple(messages))
        answer = player.step(messages[-1])
        if answer.done:
            break
        messages += answer.messages
    return conversations
