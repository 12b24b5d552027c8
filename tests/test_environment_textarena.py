"""TextArena's games, alone and against an opponent; with the package only."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest

from rlft.environment.contract import Environment
from rlft.types import Failed
from tests.rollouts import load_environment, run_tasks, told

pytest.importorskip("textarena")
from rlft.environment.systems.textarena import random_move


def game(name: str, **args: Any) -> Environment:
    return load_environment(f"textarena:{name}", **{"size": 6, "heldout": 3, **args})


def bisect(prompt: str, index: int) -> str:
    """Find the number between 1 and 20 by halves."""
    low, high = 1, 20
    for guess, hint in re.findall(r"\[(\d+)\]<\|end\|><\|user\|>The target number is (\w+)", prompt):
        low, high = (low, int(guess) - 1) if hint == "lower" else (int(guess) + 1, high)
    return f"I guess [{(low + high) // 2}]"


def test_a_number_is_guessed() -> None:
    environment = game("GuessTheNumber-v0")
    assert environment.max_turns == 20  # ten guesses, each of which may be repeated once
    trajectories = run_tasks(environment, bisect, tasks=6)
    assert {t.environment_reward for t in trajectories} == {1.0}
    assert {t.stop_reason for t in trajectories} == {"done"}
    assert [turn.reward for turn in trajectories[0].turns[:-1]] == [None] * (len(trajectories[0].turns) - 1)
    lengths = [len(t.turns) for t in trajectories]
    assert lengths[::2] == lengths[1::2]  # the samples of a task look for the same number
    assert len(set(lengths)) > 1  # and those of other tasks for others
    assert [told(t) for t in run_tasks(environment, bisect, tasks=6)] == [told(t) for t in trajectories]
    # The policy reads what is new, not the game so far again.
    assert {len(turn.observation[0]["content"].split("\n")) for t in trajectories for turn in t.turns[:-1]} == {1}


def test_tasks_show_what_their_episodes_start_with() -> None:
    environment = game("Mastermind-v0", instructions="Be clever.")
    task = environment.train[0]
    assert tuple(environment.episode().start(task, seed=99)) == task.messages  # type: ignore[misc]
    assert [m["role"] for m in task.messages] == ["system", "user"]
    assert {t.columns["seed"] for t in environment.train}.isdisjoint(t.columns["seed"] for t in environment.heldout)


def test_invalid_moves_end_a_game_and_options_reach_it() -> None:
    environment = game("GuessTheNumber-v0", options={"max_number": 5, "max_turns": 3})
    assert environment.max_turns == 6
    assert "between 1 and 5 within 3 turns" in environment.train[0].messages[0]["content"]
    trajectory = run_tasks(environment, lambda prompt, index: "[99]", samples=1)[0]
    assert "You attempted an invalid move" in trajectory.turns[0].observation[0]["content"]
    assert (trajectory.environment_reward, len(trajectory.turns)) == (0.0, 2)


def test_a_game_that_is_not_over_gets_its_own_reward() -> None:
    environment = game("GuessTheNumber-v0", max_turns=1, unfinished_reward=-0.25, options={"max_number": 1000})
    trajectory = run_tasks(environment, lambda prompt, index: "[500]", samples=1)[0]
    assert (trajectory.environment_reward, trajectory.stop_reason) == (-0.25, "done")


def first_free(prompt: str, index: int) -> str:
    return "My move: " + re.findall(r"'(\[\d\])'", prompt.rpartition("Available Moves:")[2])[0]


def test_tic_tac_toe_against_random_moves() -> None:
    environment = game("TicTacToe-v0", size=40)
    trajectories = run_tasks(environment, first_free, tasks=40, samples=1, max_new_tokens=32)
    rewards = [t.environment_reward for t in trajectories]
    assert set(rewards) == {1.0, -1.0, 0.0} or set(rewards) == {1.0, -1.0}
    assert rewards.count(1.0) > 15
    for trajectory in trajectories:
        seat = trajectory.task.columns["seat"]
        opening = trajectory.messages[0]["content"]
        assert f"You are Player {seat} in Tic Tac Toe." in opening
        assert (f"[Player {1 - seat}]" in opening) == (seat == 1)  # the other one has moved first
        assert f"[Player {seat}]" not in str(trajectory.messages)  # its own moves are not told to it again
    assert {t.task.columns["seat"] for t in trajectories} == {0, 1}
    assert [told(t) for t in run_tasks(environment, first_free, tasks=40, samples=1, max_new_tokens=32)] == [
        told(t) for t in trajectories
    ]


OPPONENT = """
import random

def column(observation: str, random_: random.Random) -> str:
    if "[col 5]" in observation:
        raise RuntimeError("the opponent resigns")
    return "[col 6]"
"""


def test_an_opponent_of_ones_own(tmp_path: Path) -> None:
    file = tmp_path / "opponent.py"
    file.write_text(OPPONENT)
    environment = game("ConnectFour-v0", opponent=f"{file}:column", seat=0)
    won, failed = run_tasks(environment, lambda p, i: "[col 5]" if i or "[col 5]" in p else "[col 2]", tasks=1)
    assert (won.environment_reward, len(won.turns)) == (1.0, 4)  # four in column 2, before four in column 6
    assert failed.environment_reward is None
    assert isinstance(failed.outcome, Failed)
    assert "the opponent resigns" in failed.outcome.message


def test_random_moves_are_those_that_the_game_lists_last() -> None:
    listed = "Valid moves are: '[1]', '[2]'\nboard\nAvailable Moves: '[3]', '[4]'"
    assert {random_move(listed, random.Random(seed)) for seed in range(20)} == {"[3]", "[4]"}
    with pytest.raises(ValueError, match="write an opponent"):
        random_move("Your turn. [5]", random.Random(0))


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("GuesTheNumber-v0", {}, "no game 'GuesTheNumber-v0'. Did you mean 'GuessTheNumber-v0'"),
        ("SecretMafia-v0", {}, "neither alone nor by two"),
        ("TicTacToe-v0", {"seat": 2}, "seat can be 0 or 1"),
        ("ConnectFour-v0", {}, "does not list its moves"),
    ],
)
def test_textarena_refuses(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        game(name, **args)
