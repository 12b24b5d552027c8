"""What Gymnasium's text games are about, in words: they return numbers and leave the rules to their documentation.

https://gymnasium.farama.org/environments/toy_text/
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Words:
    """A text description of an environment: its rules, actions and observations."""

    rules: str = ""
    """What it is about."""
    actions: tuple[str, ...] = ()
    """Names of the discrete actions in order; empty for numbers."""
    describe: Callable[[Any, Any], str] | None = None
    """`describe(env, observation)` as text; None writes the numbers."""


def _cell(env: Any, observation: Any) -> str:
    width = env.unwrapped.ncol if hasattr(env.unwrapped, "ncol") else env.unwrapped.shape[1]
    row, column = divmod(int(observation), width)
    return f"You are in row {row}, column {column}."


def _hand(env: Any, observation: Any) -> str:
    total, dealer, ace = observation
    return f"Your cards add up to {total}{' with a usable ace' if ace else ''}. The dealer shows {dealer}."


_STANDS = ("red", "green", "yellow", "blue")


def _taxi(env: Any, observation: Any) -> str:
    row, column, passenger, goal = env.unwrapped.decode(int(observation))
    where = "in the taxi" if passenger == len(_STANDS) else f"at the {_STANDS[passenger]} stand"
    wish = f"The passenger is {where} and wants to go to the {_STANDS[goal]} stand."
    return f"The taxi is in row {row}, column {column}. {wish}"


GAMES: Mapping[str, Words] = {
    "FrozenLake": Words(
        rules="Cross the frozen lake from the start S to the goal G over frozen fields F. A hole H ends the game. Your "
        "place in the picture is in brackets.",
        actions=("left", "down", "right", "up"),
        describe=_cell,
    ),
    "FrozenLake8x8": Words(
        rules="Cross the frozen lake from the start S to the goal G over frozen fields F. A hole H ends the game. Your "
        "place in the picture is in brackets.",
        actions=("left", "down", "right", "up"),
        describe=_cell,
    ),
    "CliffWalking": Words(
        rules="Walk from your place x to the goal T with few moves. The cliff C throws you back to the start.",
        actions=("up", "right", "down", "left"),
        describe=_cell,
    ),
    "Blackjack": Words(
        rules="This is Blackjack. Come closer to 21 than the dealer, and not above it. An ace counts 1 or 11, picture "
        "cards count 10.",
        actions=("stick", "hit"),
        describe=_hand,
    ),
    "Taxi": Words(
        rules="Drive the taxi to the passenger, pick the passenger up, drive to where they want to go, and drop them "
        "off. The stands are red in row 0, column 0, green in row 0, column 4, yellow in row 4, column 0, and blue in "
        "row 4, column 3. A wall | cannot be crossed.",
        actions=("south", "north", "east", "west", "pick up", "drop off"),
        describe=_taxi,
    ),
}
"""By the id without its version."""
