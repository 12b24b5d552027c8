"""Environment classes of TRL and SkyRL-gym, which need no package, and of OpenEnv, which does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rewards.environment_reward import environment_reward
from rlft.environment.contract import Environment
from rlft.types import Failed, Trajectory
from tests.rollouts import load_environment, run_tasks, told

FILE = Path(__file__).parent / "environment_classes.py"


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


def turn_of(prompt: str) -> int:
    """Number of the action that this prompt asks for, from 0."""
    return prompt.count("<|assistant|>") - 1


# TRL


def safe(**args: Any) -> Environment:
    return load_environment(f"trl:{FILE}:Safe", **{"prompt": "Open the safe.", "size": 40, **args})


def open_it(prompt: str, index: int) -> str:
    """Try 1, 2, 3 and so on until it is open, then stop; the second sample gives up at once."""
    if index == 1:
        return "I give up."
    return "Done." if "<tool_response>\nopen" in prompt else call("turn", code=turn_of(prompt) + 1)


def test_trl_tools_are_the_public_methods() -> None:
    names = [tool["function"]["name"] for tool in safe().tools]
    assert names == ["listen", "turn"]
    assert safe().tools[1]["function"]["parameters"]["required"] == ["code"]


def test_trl_episodes_end_with_the_reward_of_the_class() -> None:
    trajectories = run_tasks(safe(), open_it, tasks=6, max_new_tokens=96)
    found, gave_up = trajectories[::2], [t for t in trajectories[1::2] if t.stop_reason == "done"]
    assert {t.environment_reward for t in found} == {1.0}
    assert {t.environment_reward for t in gave_up} == {0.0}
    assert len({len(t.turns) for t in found}) > 1  # the codes differ
    assert found[0].messages[0]["content"] == "Open the safe. The code has 1 digits."
    assert found[0].turns[-2].observation == ({"role": "tool", "name": "turn", "content": "open"},)
    again = run_tasks(safe(), open_it, tasks=6, max_new_tokens=96)
    assert [told(t) for t in again] == [told(t) for t in trajectories]


def test_trl_random_numbers_of_tools_follow_the_seed() -> None:
    def say(prompt: str, index: int) -> str:
        return call("listen") if turn_of(prompt) < 2 else "Enough."

    first, second, other, _ = run_tasks(safe(), say)
    assert told(first)[:2] == told(second)[:2] != told(other)[:2]
    assert first.turns[0].observation[0]["content"].startswith("click ")


def test_trl_mistakes_in_calls_are_told_and_the_last_turn_is_scored() -> None:
    texts = [call("turn", code="five"), call("open"), "<tool_call>{</tool_call>", call("turn", code=10)]
    environment = safe(max_turns=4, data=[{"digits": 2, "answer": n} for n in range(30)])
    trajectory = run_tasks(
        environment, lambda prompt, index: texts[turn_of(prompt)], tasks=1, samples=1, max_new_tokens=96
    )[0]
    answers = [turn.observation[0]["content"] for turn in trajectory.turns]
    assert "'five' is not of type 'integer'" in answers[0]
    assert "no tool 'open'" in answers[1]
    assert "not JSON" in answers[2]
    assert len(trajectory.turns) == 4
    assert trajectory.stop_reason == "done"
    assert trajectory.environment_reward in (0.0, 1.0)


def test_trl_an_error_in_the_reward_fails_the_trajectory() -> None:
    trajectories = run_tasks(safe(), lambda prompt, index: "No.", tasks=20, samples=1)
    stuck = [t for t in trajectories if isinstance(t.outcome, Failed)]
    assert 0 < len(stuck) < 20
    assert {t.stop_reason for t in stuck} == {"error"}
    assert all(t.environment_reward is None and "the safe is stuck" in t.outcome.message for t in stuck)  # type: ignore[union-attr]


def test_trl_rows_are_columns_and_prompts(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    rows = [{"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": f"p{n}"}]} for n in range(20)]
    file.write_text("\n".join(json.dumps({**row, "digits": 3, "answer": n}) for n, row in enumerate(rows)))
    environment = safe(data=str(file))
    task = environment.train[0]
    assert task.columns["digits"] == 3
    assert isinstance(task.answer, int)
    trajectory = run_tasks(environment, lambda prompt, index: "No.", tasks=1, samples=1)[0]
    assert [m["role"] for m in trajectory.messages] == ["system", "user", "assistant"]
    assert trajectory.messages[1]["content"] == f"p{task.answer} The code has 3 digits."


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Sfae", "Did you mean 'Safe'"),
        ("Countdown", r"has no method reset\(\*\*row\)"),
        ("Untyped", "push cannot be a tool"),
    ],
)
def test_trl_refuses(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_environment(f"trl:{FILE}:{name}", size=4)


# SkyRL-gym


ROWS = [
    {"prompt": [{"role": "user", "content": f"Count down from {n}."}], "reward_spec": {"ground_truth": str(n)}}
    for n in range(2, 30)
]


def countdown(**args: Any) -> Environment:
    return load_environment(f"skyrl_gym:{FILE}:Countdown", **{"data": ROWS, **args})


def count(prompt: str, index: int) -> str:
    start = int(prompt.partition("from ")[2].partition(".")[0])
    return "explode" if index == 2 else str(start - turn_of(prompt) - 5 * (index == 1))


def test_skyrl_gym_rewards_every_turn() -> None:
    counted, wrong, failed = run_tasks(countdown(env_config={"step_reward": 0.25}), count, tasks=1, samples=3)
    n = int(counted.task.answer)
    assert [turn.reward for turn in counted.turns] == [0.25] * n
    assert counted.environment_reward == pytest.approx(0.25 * n)
    assert counted.messages[-2 if n > 1 else 0]["content"] == "And?"
    assert (wrong.environment_reward, wrong.stop_reason) == (0.0, "done")
    assert isinstance(failed.outcome, Failed)
    assert "bang" in failed.outcome.message


@pytest.mark.parametrize(("of_the_row", "turns"), [({}, 4), ({"max_turns": 2}, 2)])
def test_skyrl_gym_classes_are_told_how_many_turns_there_are(of_the_row: dict[str, int], turns: int) -> None:
    row = {"prompt": "Count down from 9.", "reward_spec": {"ground_truth": "9"}, **of_the_row}
    counted, *_ = run_tasks(countdown(data=[row], heldout=0.0, max_turns=4), count, tasks=1, samples=1)
    assert (len(counted.turns), counted.stop_reason) == (turns, "done")


def test_skyrl_gym_init_may_draw_numbers() -> None:
    first, second, other, _ = run_tasks(countdown(), count)
    assert first.messages[0] == second.messages[0]
    assert first.messages[0]["content"].partition("Luck")[2] != other.messages[0]["content"].partition("Luck")[2]
    assert run_tasks(countdown(), count)[0].messages == first.messages


def test_skyrl_gym_rows_need_a_prompt() -> None:
    with pytest.raises(ValueError, match="needs the column 'prompt', it has question"):
        countdown(data=[{"question": "?"}])


def test_the_real_skyrl_gym_class() -> None:
    pytest.importorskip("skyrl_gym")
    row = {"prompt": "What is 2 + 3?", "reward_spec": {"ground_truth": "5"}, "max_turns": 3}
    environment = load_environment(
        "skyrl_gym:skyrl_gym.envs.gsm8k.multi_turn_env:GSM8kMultiTurnEnv", data=[row], heldout=0.0
    )
    right, wrong = run_tasks(environment, lambda p, i: ["It is 5. #### 5", "hm"][i] if turn_of(p) == 0 else "#### 5")
    assert right.environment_reward is not None
    assert right.environment_reward >= 1.0
    assert len(wrong.turns) == 2 or wrong.environment_reward != right.environment_reward


# What a budget cut


def test_an_unfinished_episode_abstains_or_gets_what_the_config_says() -> None:
    def cut(trajectory: Trajectory) -> tuple[Any, Any]:
        return environment_reward(trajectory), environment_reward(trajectory, unfinished=-1.0)

    talker, opener = run_tasks(
        safe(), lambda p, i: call("listen") * 3 if i == 0 else "No.", tasks=1, samples=2, max_new_tokens=60
    )
    assert talker.stop_reason == "length"
    assert cut(talker) == (None, -1.0)
    if opener.stop_reason == "done":
        assert cut(opener) == ({"turns": [0.0]}, {"turns": [0.0]})


# OpenEnv


OPENENV = """
import random
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State

class Word(Action):
    word: str

class Told(Observation):
    text: str = ""

class Echo(Environment[Word, Told, State]):
    def __init__(self, bonus: float = 0.0):
        super().__init__()
        self.bonus, self._state = bonus, State()
    def reset(self, seed=None, episode_id=None, **kwargs) -> Told:
        self._state = State(step_count=0)
        self.secret = random.choice(["tea", "milk", "salt"])
        return Told(text=f"Say {self.secret}.")
    def step(self, action: Word, timeout_s=None, **kwargs) -> Told:
        if action.word == "crash":
            raise RuntimeError("the kettle broke")
        self._state.step_count += 1
        right = action.word == self.secret
        over = right or self._state.step_count == 3
        return Told(text="right" if right else "again", reward=right + self.bonus, done=over)
    @property
    def state(self) -> State:
        return self._state

class Move(Action):
    row: int
    column: int

class Board(Observation):
    cells: list[int] = []

class Grid(Environment[Move, Board, State]):
    def reset(self, seed=None, episode_id=None, **kwargs) -> Board:
        return Board(cells=[0, 0])
    def step(self, action: Move, timeout_s=None, **kwargs) -> Board:
        return Board(cells=[action.row, action.column], reward=1, done=True)
    @property
    def state(self) -> State:
        return State()
"""


@pytest.fixture
def openenv_file(tmp_path: Path) -> Path:
    pytest.importorskip("openenv")
    file = tmp_path / "kettle.py"
    file.write_text(OPENENV)
    return file


def test_openenv_takes_the_message_for_an_action_of_one_field(openenv_file: Path) -> None:
    environment = load_environment(f"openenv:{openenv_file}:Echo", options={"bonus": 0.5}, instructions="Listen.")

    def say(prompt: str, index: int) -> str:
        word = prompt.partition("Say ")[2].partition(".")[0]
        return "water" if "water" in prompt else [word, "water", "crash"][index]

    trajectories = run_tasks(environment, say, tasks=4, samples=3)
    for right, wrong, failed in zip(*[iter(trajectories)] * 3, strict=True):
        assert right.messages[0]["content"].startswith("Listen.\n\nSay ")
        assert [turn.reward for turn in right.turns] == [1.5]
        assert [turn.reward for turn in wrong.turns] == [0.5, 0.5, 0.5]
        assert wrong.turns[0].observation[0]["content"] == "again"
        assert isinstance(failed.outcome, Failed)
    assert len({t.messages[0]["content"] for t in trajectories}) > 1
    assert [told(t) for t in run_tasks(environment, say, tasks=4, samples=3)] == [told(t) for t in trajectories]


def test_openenv_reads_other_actions_from_json(openenv_file: Path) -> None:
    environment = load_environment(f"openenv:{openenv_file}:Grid", tries=2)
    texts = ["no", 'I take {"row": 1, "column": 2}.']
    played, lost = run_tasks(
        environment, lambda p, i: texts[turn_of(p)] if i == 0 and "x" not in p else '{"row": "x"}', tasks=1
    )
    assert (
        played.messages[0]["content"] == 'Answer with a JSON object: {"row": int, "column": int}.\n\n{"cells": [0, 0]}'
    )
    assert played.turns[0].observation[0]["content"].startswith("That is no action: it holds no JSON object")
    assert played.turns[1].observation[0]["content"] == '{"cells": [1, 2]}'
    assert played.environment_reward == 1.0
    assert [turn.reward for turn in lost.turns] == [0.0, 0.0]
    assert "row: Input should be a valid integer" in lost.turns[0].observation[0]["content"]
