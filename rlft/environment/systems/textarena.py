"""Games of TextArena (https://github.com/LeonGuertler/TextArena): alone, or against an opponent that is code.

A task is a seed. The policy reads what its player sees, only what is new each turn, and answers with a move, usually in
square brackets; its reward is the player's reward at the end of the game.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from typing import Any

from rlft.common.by_path import did_you_mean, import_function
from rlft.environment.contract import Environment, Step
from rlft.environment.systems.common import EpisodeRandom, require, task_seeds
from rlft.types import Message, Task

EXTRA = "textarena"
_TURNS = 32
"""Turns of a game that sets no limit."""
_LIST = re.compile(r"(?:available|valid|legal|possible) (?:moves|actions)[^:\n]*:", re.IGNORECASE)
_MOVE = re.compile(r"\[[^\[\]\n]+\]")

Opponent = Callable[[str, random.Random], str]
"""`opponent(observation, random) -> action`: the observation is all that its player has seen."""


def load(
    name: str,
    size: int = 200,
    heldout: int = 50,
    seed: int = 0,
    max_turns: int | None = None,
    unfinished_reward: float = 0.0,
    players: int | None = None,
    opponent: str = "random",
    seat: int | None = None,
    instructions: str = "",
    options: Mapping[str, Any] | None = None,
) -> Environment:
    """Games of the registered environment `name`, one task for each seed.

    Args:
        size: training tasks.
        heldout: held-out tasks; their seeds are others.
        seed: decides the tasks' seeds.
        max_turns: actions of an episode; None takes the game's own limit.
        unfinished_reward: for a game that is not over by then.
        players: 1 or 2; None takes 1 where the game can be played alone.
        opponent: of a game for two: `random` plays one of the moves that the game lists, `file.py:function` is called
            with what its player has seen and a `random.Random`, and returns its action.
        seat: player that the policy is, 0 (moves first) or 1; None changes from task to task.
        instructions: system message; "" leaves it out.
        options: of `textarena.make`, such as `max_number`.

    Raises:
        ValueError: no such game, or one for more players.
    """
    textarena = require("textarena", EXTRA)
    registry = require("textarena.envs.registration", EXTRA).ENV_REGISTRY
    if name not in registry:
        raise ValueError(f"textarena has no game {name!r}.{did_you_mean(name, registry)}")
    if seat not in (None, 0, 1) or players not in (None, 1, 2):
        raise ValueError("seat can be 0 or 1, players 1 or 2; games for more are not played here")
    play = random_move if opponent == "random" else import_function(opponent, shipped="environments")

    def make() -> Any:
        return textarena.make(name, **dict(options or {}))

    seeds = task_seeds(seed, heldout + size)
    players = players or _players(make, name, seeds[0])
    with EpisodeRandom(seed):
        limit = max_turns or _limit(make())

    def episode() -> _Game:
        return _Game(make, players, play, instructions, limit, unfinished_reward)

    tasks = []
    for index, number in enumerate(seeds):
        own = index % players if seat is None else min(seat, players - 1)
        messages = tuple(episode().open(number, own))
        tasks.append(Task(id=f"{name}-{number}", messages=messages, columns={"seed": number, "seat": own}))
    return Environment(train=tasks[heldout:], heldout=tasks[:heldout], episode=episode, max_turns=limit)


def random_move(observation: str, random_: random.Random) -> str:
    """A random one of the moves that the game listed last.

    Raises:
        ValueError: it lists none.
    """
    *_, listed = ["", *_LIST.split(observation)[1:]]
    moves = _MOVE.findall(listed)
    if not moves:
        raise ValueError(
            "the game does not list its moves, so none can be picked at random; write an opponent, "
            "`opponent: file.py:function`"
        )
    return random_.choice(moves)


class _Game:
    """A game of TextArena as one player sees it; an `Episode`."""

    def __init__(
        self,
        make: Callable[[], Any],
        players: int,
        opponent: Opponent,
        instructions: str,
        limit: int,
        unfinished_reward: float,
    ) -> None:
        self._make, self._players, self._opponent, self._instructions = make, players, opponent, instructions
        self._left, self._unfinished_reward = limit, unfinished_reward

    def start(self, task: Task, seed: int) -> list[Message]:
        """Begin with the rules and the game's state.

        They follow from the task's own seed, not from the sample's, so that they are what the task's prompt says.
        """
        return self.open(task.columns["seed"], task.columns["seat"])

    def open(self, seed: int, seat: int) -> list[Message]:
        self._seat, self._random, self._opponent_random = seat, EpisodeRandom(seed), random.Random(seed)
        self._seen_by_opponent = ""
        with self._random:
            self._env = self._make()
            self._env.reset(num_players=self._players, seed=seed)
            if self._let_opponent_move():
                raise ValueError(f"seed {seed}: the game is over before the policy's first move")
            text = self._observation()
        system = [Message(role="system", content=self._instructions)] if self._instructions else []
        return [*system, Message(role="user", content=text)]

    def step(self, message: Message) -> Step:
        """Make the move, and the opponent's moves up to the policy's next one."""
        self._left -= 1
        with self._random:
            done, _ = self._env.step(action=message["content"])
            done = done or self._let_opponent_move()
            if done:
                rewards, _ = self._env.close()
                return Step(reward=float(rewards[self._seat]), done=True)
            if not self._left:
                return Step(reward=self._unfinished_reward, done=True)
            return Step(messages=(Message(role="user", content=self._observation()),))

    def _let_opponent_move(self) -> bool:
        """Let the opponent move until it is the policy's turn; returns whether the game is over."""
        done = False
        while not done and self._state.current_player_id != self._seat:
            self._seen_by_opponent += f"\n{self._observation()}"
            done, _ = self._env.step(action=self._opponent(self._seen_by_opponent, self._opponent_random))
        return done

    def _observation(self) -> str:
        """What the player to move has not seen yet, without its own moves, which it knows."""
        player = self._state.current_player_id
        told = []
        for sender, text, kind in self._state.get_current_player_observation():
            if sender == player and kind.name == "PLAYER_ACTION":
                continue
            told.append(text if sender < 0 else f"[Player {sender}] {text}")
        return "\n".join(told).strip() or "Your move."

    @property
    def _state(self) -> Any:
        return self._env.state  # wrappers pass it on; their observations repeat the whole game every turn


def _players(make: Callable[[], Any], name: str, seed: int) -> int:
    refusals = []
    for players in (1, 2):
        try:
            with EpisodeRandom(seed):
                make().reset(num_players=players, seed=seed)
            return players
        except (AssertionError, ValueError) as error:  # how games refuse a number of players
            refusals.append(f"{players}: {error}")
    raise ValueError(f"textarena:{name} can be played neither alone nor by two ({'; '.join(refusals)})")


def _limit(env: Any) -> int:
    """Actions of one player: the game counts those of both, and lets an invalid move be repeated once."""
    turns = getattr(env, "max_turns", None)
    return 2 * turns if isinstance(turns, int) and turns > 0 else _TURNS
