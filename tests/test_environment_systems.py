"""Environments of other systems whose packages are light: the lookup, reasoning-gym, Gymnasium."""

from __future__ import annotations

import asyncio
import inspect
import json
import random
import re
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from rewards.reasoning_gym_score import reasoning_gym_score
from rlft.common.by_path import import_function
from rlft.config import EnvironmentConfig
from rlft.config_file import load as load_config
from rlft.environment import systems
from rlft.environment.contract import Environment, check
from rlft.environment.loading import identity
from rlft.environment.prompt_lengths import first_messages
from rlft.environment.systems.common import EpisodeRandom, split_rows
from rlft.train.rl import launch
from rlft.types import Failed, Message, Task
from tests.conftest import MakeConfig
from tests.fakes import read_metrics, read_rollouts, save_tiny_model
from tests.rollouts import load_environment, run_tasks, tiny_engine, told

ROOT = Path(__file__).parents[1]


# The lookup


def test_a_missing_package_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "textarena", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"'textarena' is not installed: pip install 'rlft\[textarena\]'"):
        load_environment("textarena:GuessTheNumber-v0")


def test_a_package_that_lacks_another_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "textarena.py").write_text("import chess_of_another_world")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "textarena", raising=False)
    with pytest.raises(ValueError, match="No module named 'chess_of_another_world'"):
        load_environment("textarena:GuessTheNumber-v0")


def test_a_prefix_alone_says_how_to_go_on() -> None:
    with pytest.raises(ValueError, match=r"names no environment; write skyrl_gym:FILE\.py:CLASS"):
        load_environment("skyrl_gym:")


def test_wrong_arguments_are_named() -> None:
    pytest.importorskip("gymnasium")
    with pytest.raises(ValueError, match=r"environment\.args\.optionss: .*Did you mean 'options'"):
        load_environment("gymnasium:FrozenLake-v1", optionss={})


def test_every_system_has_its_module() -> None:
    assert all(callable(systems.loader(system)) for system in systems.SYSTEMS)


def test_the_examples_of_the_docs_name_what_there_is() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "systems.md").read_text(), re.DOTALL)
    named = set()
    for block in blocks:
        tree = YAML(typ="safe").load(block)
        if "environment" not in tree:  # rewards of other systems, see test_reward_systems.py
            continue
        environment = EnvironmentConfig.model_validate(tree["environment"])
        system, _ = systems.split(environment.path)
        named.add(system)
        parameters = inspect.signature(systems.loader(system)).parameters
        assert "config" in parameters or set(environment.args) <= set(parameters)
        for reward in tree["rewards"]:
            function = import_function(reward["path"], shipped="rewards")
            assert set(reward.get("args", {})) <= set(inspect.signature(function).parameters)
    assert named == set(systems.SYSTEMS)


def test_identity_is_a_version_or_the_hash_of_the_file(tmp_path: Path) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    assert identity("gymnasium:FrozenLake-v1") == f"gymnasium {gymnasium.__version__}"
    file = tmp_path / "game.py"
    file.write_text("class Game: ...\n")
    first = identity(f"trl:{file}:Game")
    assert len(first) == 64
    other = tmp_path / "other.py"
    other.write_text("class Game:\n    pass\n")
    assert identity(f"trl:{other}:Game") != first


def test_episodes_are_told_apart_by_their_columns() -> None:
    def task(name: str, **columns: int) -> Task:
        return Task(id=name, messages=({"role": "user", "content": "Play."},), columns=columns)

    def environment(train: Task, heldout: Task, **changes: Any) -> Environment:
        return Environment(train=[train], heldout=[heldout], **changes)

    games = {"episode": lambda: None}
    check(environment(task("a", seed=1), task("b", seed=2), **games))
    with pytest.raises(ValueError, match="asks the same as held-out task 'b'"):
        check(environment(task("a", seed=1), task("b", seed=1), **games))
    with pytest.raises(ValueError, match="asks the same as held-out task 'b'"):
        check(environment(task("a", seed=1), task("b", seed=2)))


@pytest.mark.parametrize("is_async", [False, True])
def test_an_episode_that_only_shows_its_start_is_closed(is_async: bool) -> None:
    closed = []

    class Game:
        def start(self, task: Task, seed: int) -> list[Message]:
            return [{"role": "user", "content": f"Seed {seed}."}]

        def close(self) -> Any:
            closed.append(True)
            return asyncio.sleep(0) if is_async else None

    task = Task(id="a", messages=({"role": "user", "content": "Play."},))
    environment = Environment(train=[task], heldout=[], episode=Game)  # type: ignore[arg-type]
    assert first_messages(environment, task, seed=3)[0]["content"] == "Seed 3."
    assert closed == [True]


# Random numbers


def test_an_episode_draws_its_own_numbers_and_leaves_the_others_alone() -> None:
    def draw() -> tuple[float, float]:
        return random.random(), float(np.random.random())

    alone = EpisodeRandom(3)
    with alone:
        expected = [draw(), draw(), draw()]
    one, other = EpisodeRandom(3), EpisodeRandom(4)
    random.seed(0)
    before = random.getstate()
    drawn = []
    for _ in range(3):
        with one:
            drawn.append(draw())
        with other:
            assert draw() not in expected
    assert drawn == expected
    assert random.getstate() == before


def test_coroutines_that_take_turns_draw_their_own_numbers() -> None:
    async def draw() -> list[float]:
        numbers = []
        for _ in range(3):
            numbers.append(random.random())
            await asyncio.sleep(0)
        return numbers

    async def main() -> list[list[float]]:
        return await asyncio.gather(*(EpisodeRandom(seed).run(draw()) for seed in (1, 2, 1)))

    before = random.getstate()
    first, second, again = asyncio.run(main())
    assert first == again != second
    assert first == [random.Random(1).random(), *first[1:]]
    assert random.getstate() == before


def test_an_error_within_a_coroutine_is_its_own() -> None:
    async def fail() -> None:
        try:
            await asyncio.wait_for(asyncio.Event().wait(), timeout=0.01)
        except TimeoutError:
            raise KeyError("seen") from None

    with pytest.raises(KeyError, match="seen"):
        asyncio.run(EpisodeRandom(0).run(fail()))


def test_a_coroutine_that_nobody_awaits_any_more_is_closed() -> None:
    closed = []

    async def wait() -> None:
        try:
            await asyncio.sleep(9)
        finally:
            closed.append(True)

    async def main() -> None:
        coroutine = EpisodeRandom(0).run(wait())
        coroutine.send(None)
        coroutine.close()

    asyncio.run(main())
    assert closed == [True]


def test_rows_go_where_their_content_sends_them() -> None:
    rows = [{"n": n} for n in range(200)]
    train, heldout = split_rows(rows, heldout=0.25, seed=0)
    assert 30 < len(heldout) < 70
    assert len(train) + len(heldout) == 200
    again, _ = split_rows([*rows[::-1], rows[0]], heldout=0.25, seed=0)
    assert sorted(again) == sorted(train)
    assert split_rows(rows, heldout=0.25, seed=1)[1] != heldout


# reasoning-gym


CHAIN = {"max_terms": 2, "max_digits": 1, "size": 60, "heldout": 30, "demonstrations": 10}


def score(task: Task, completion: str, **args: Any) -> float:
    return reasoning_gym_score(completion, task.answer, **task.columns, **args)


def test_reasoning_gym_problems_are_disjoint_and_follow_the_seed() -> None:
    pytest.importorskip("reasoning_gym")
    environment = load_environment("reasoning_gym:chain_sum", **CHAIN, prompt="Answer briefly. {question}", seed=1)
    assert (len(environment.train), len(environment.heldout), len(environment.demonstrations)) == (60, 30, 10)
    prompts = [t.messages for t in (*environment.train, *environment.heldout)]
    prompts += [messages[:-1] for messages in environment.demonstrations]
    assert len({json.dumps(prompt) for prompt in prompts}) == 100
    task = environment.train[0]
    assert task.messages[0]["content"].startswith("Answer briefly. State the final answer")
    assert task.answer == str(eval(task.columns["metadata"]["expression"]))
    again = load_environment("reasoning_gym:chain_sum", **CHAIN, prompt="Answer briefly. {question}", seed=1)
    assert again.train == environment.train
    other = load_environment("reasoning_gym:chain_sum", **CHAIN, prompt="Answer briefly. {question}", seed=2000)
    assert other.train != environment.train
    assert environment.demonstrations[0][-1]["content"] == str(
        eval(environment.demonstrations[0][0]["content"].rpartition(": ")[2].strip(" ="))
    )


def test_reasoning_gym_leaves_the_global_random_numbers_alone() -> None:
    pytest.importorskip("reasoning_gym")
    before = random.getstate(), np.random.get_state()[1].tolist()
    # Two data sets that draw from the global generators: without the episode's own, they would change from run to run.
    for name in ("list_functions", "pool_matrix"):
        first = load_environment(f"reasoning_gym:{name}", size=5, heldout=2)
        random.random()
        random.setstate(before[0])
        assert load_environment(f"reasoning_gym:{name}", size=5, heldout=2).train == first.train
    assert (random.getstate(), np.random.get_state()[1].tolist()) == before


@pytest.mark.parametrize(
    ("path", "args", "message"),
    [
        ("reasoning_gym:chain_sums", {}, "no data set 'chain_sums'. Did you mean 'chain_sum'"),
        ("reasoning_gym:chain_sum", {"max_term": 3}, "no setting 'max_term'. Did you mean 'max_terms'"),
        ("reasoning_gym:chain_sum", {"min_terms": 0}, "refuses its settings: min_terms must be positive"),
        ("reasoning_gym:chain_sum", {**CHAIN, "size": 500}, "no more than 200 distinct problems"),
        ("reasoning_gym:chain_sum", {"prompt": "Go."}, r"'Go\.' does not contain \{question\}"),
        ("reasoning_gym:propositional_logic", {"size": 2, "demonstrations": 1}, "without a written answer"),
    ],
)
def test_reasoning_gym_refuses(path: str, args: dict[str, Any], message: str) -> None:
    pytest.importorskip("reasoning_gym")
    with pytest.raises(ValueError, match=message):
        load_environment(path, **args)


def test_reasoning_gym_composite_mixes_data_sets() -> None:
    pytest.importorskip("reasoning_gym")
    parts = [{"name": name, "weight": 1, "config": {}} for name in ("chain_sum", "gcd")]
    environment = load_environment("reasoning_gym:composite", datasets=parts, size=20, heldout=5)
    kinds = {task.columns["metadata"]["source_dataset"] for task in environment.train}
    assert kinds == {"chain_sum", "gcd"}
    assert [score(task, task.answer) for task in environment.train] == [1.0] * 20


def test_the_score_depends_on_what_is_taken_from_the_reply() -> None:
    pytest.importorskip("reasoning_gym")
    task = load_environment("reasoning_gym:chain_sum", **CHAIN).train[0]
    wordy, tagged = f"It is 3 and so {task.answer}.", f"Well: <answer> {task.answer} </answer>, not 5"
    assert score(task, task.answer) == 1.0
    assert score(task, wordy) < 0.2  # the scorer wants the bare number
    assert score(task, wordy, extract="last_number") == 1.0
    assert score(task, f"{task.answer} or 77", extract="last_number") < 0.2
    assert score(task, tagged, extract="answer_tag") == 1.0
    assert score(task, f"{tagged} <answer>{int(task.answer) + 1}</answer>", extract="answer_tag") == 0.0
    assert score(task, "no idea", extract="last_number") == 0.0


def test_the_scorer_has_the_settings_of_the_problem() -> None:
    pytest.importorskip("reasoning_gym")
    # This scorer allows an error of one unit in the last decimal place that the settings ask for.
    settings = {"min_num_decimal_places": 1, "max_num_decimal_places": 1, "size": 3, "heldout": 0}
    task = load_environment("reasoning_gym:decimal_arithmetic", **settings).train[0]
    near = str(Decimal(task.answer) + Decimal("0.1"))
    assert score(task, near) == 1.0
    assert reasoning_gym_score(near, task.answer, **{**task.columns, "dataset_config": {}}) == 0.0


def test_the_debug_config_of_reasoning_gym_trains(tmp_path: Path, tiny_model: Path) -> None:
    pytest.importorskip("reasoning_gym")
    overrides = [f"output_dir={tmp_path}", f"model={{source: {tiny_model}, dtype: float32}}", "evaluation.tasks=2"]
    overrides += ["learner.threads=1", "rollout.threads=1", "sft.epochs=0.5"]
    config = load_config(ROOT / "configs" / "debug" / "reasoning_gym.yaml", overrides)
    launch.train(config)
    assert len(read_metrics(config.run_dir)) == 2
    provenance = json.loads((config.run_dir / "provenance.json").read_text())
    assert provenance["sha256"]["reasoning_gym:chain_sum"].startswith("reasoning-gym 0.")


# Gymnasium


def gym(name: str, **args: Any) -> Environment:
    pytest.importorskip("gymnasium")
    return load_environment(f"gymnasium:{name}", **{"size": 6, "heldout": 3, **args})


def test_frozen_lake_is_crossed() -> None:
    environment = gym("FrozenLake-v1", options={"is_slippery": False})
    assert environment.max_turns == 100  # of its specification
    path = iter(["down", "I go DOWN.", "not left but right", "2", "down", "right"] * 4)
    moves = [[next(path) for _ in range(6)] for _ in range(4)]

    def say(prompt: str, index: int) -> str:
        return moves[0][prompt.count("<|assistant|>") - 1]

    for trajectory in run_tasks(environment, say):
        assert trajectory.stop_reason == "done"
        assert [turn.reward for turn in trajectory.turns] == [0, 0, 0, 0, 0, 1]
        assert trajectory.environment_reward == 1.0
        assert trajectory.messages[0]["content"].endswith("[S]FFF\nFHFH\nFFFH\nHFFG\nYou are in row 0, column 0.")
        assert trajectory.turns[3].observation[0]["content"].endswith("You are in row 2, column 2.")


def test_a_slippery_lake_is_the_same_for_a_seed_and_another_for_another() -> None:
    environment = gym("FrozenLake-v1")
    first, second, other, _ = run_tasks(environment, lambda prompt, index: "down")
    assert told(first) == told(second)
    assert told(first) != told(other)
    assert told(run_tasks(environment, lambda prompt, index: "down")[0]) == told(first)


def test_no_action_is_answered_and_bounded() -> None:
    environment = gym("FrozenLake-v1", tries=2, invalid_reward=-0.5, options={"is_slippery": False})
    texts = ["hmm", "right", "7", "1.5"]

    def say(prompt: str, index: int) -> str:
        return texts[prompt.count("<|assistant|>") - 1]

    trajectory = run_tasks(environment, say)[0]
    assert [turn.reward for turn in trajectory.turns] == [-0.5, 0.0, -0.5, -0.5]
    assert trajectory.turns[0].observation[0]["content"] == (
        "That names no action. Answer with one action: left, down, right, up."
    )
    assert trajectory.stop_reason == "done"


def test_blackjack_is_described_and_ends() -> None:
    environment = gym("Blackjack-v1", size=40)
    prompts = {task.messages[0]["content"].rpartition("\n\n")[2] for task in environment.train}
    assert len(prompts) > 10
    assert all(prompt.startswith("Your cards add up to") for prompt in prompts)
    trajectories = run_tasks(environment, lambda prompt, index: "stick", tasks=20, samples=1)
    assert {t.environment_reward for t in trajectories} >= {-1.0, 1.0}


def test_taxi_takes_actions_of_two_words() -> None:
    environment = gym("Taxi-v4")
    reply_ = run_tasks(environment, lambda prompt, index: "I want to pick up.", samples=1)[0]
    assert reply_.turns[0].reward == -10  # nobody stands here
    assert "The passenger is" in reply_.messages[0]["content"]


def test_a_longer_name_wins_over_one_within_it() -> None:
    environment = gym("CartPole-v1", actions=["push", "push hard"])
    trajectory = run_tasks(environment, lambda prompt, index: "push hard", tasks=1, samples=1)[0]
    velocities = [float(turn.observation[0]["content"].split()[1]) for turn in trajectory.turns]
    assert velocities == sorted(velocities)  # pushed to the right every time


def test_numbers_without_words() -> None:
    environment = gym("CartPole-v1", instructions="Balance the pole.", actions=["push left", "push right"])
    trajectory = run_tasks(environment, lambda prompt, index: "push right", tasks=1, samples=1)[0]
    assert trajectory.messages[0]["content"].startswith("Balance the pole.\n\nAnswer with one action: push left, push")
    assert trajectory.environment_reward == len(trajectory.turns) > 5
    assert len(trajectory.turns[0].observation[0]["content"].split()) == 4


def echo_class() -> Any:
    """A text space: rewards the word that it showed."""
    import gymnasium

    class Echo(gymnasium.Env):  # type: ignore[type-arg]
        metadata = {"render_modes": []}  # noqa: RUF012
        observation_space = gymnasium.spaces.Text(20)
        action_space = gymnasium.spaces.Text(8, charset="abcdefghijklmnopqrstuvwxyz")

        def __init__(self, word: str) -> None:
            self.word = word

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[str, dict[str, Any]]:
            super().reset(seed=seed)
            return f"Say {self.word}{'!' * int(self.np_random.integers(3))}", {}

        def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
            if action == "crash":
                raise RuntimeError("the kettle broke")
            return "over", float(action == self.word), True, False, {}

    return Echo


def test_text_spaces_and_errors_of_the_environment() -> None:
    gymnasium = pytest.importorskip("gymnasium")
    gymnasium.register(id="Echo-v0", entry_point=echo_class())
    try:
        environment = gym("Echo-v0", options={"word": "milk"})
        good, bad = run_tasks(environment, lambda prompt, index: ["milk", "MUCH TOO LONG"][index], tasks=1)
        assert good.messages[0]["content"].startswith(
            "Answer with one action: a text of at most 8 characters.\n\nSay milk"
        )
        assert (good.environment_reward, good.stop_reason) == (1.0, "done")
        assert bad.turns[0].observation[0]["content"].startswith("That names no action.")
        failed = run_tasks(environment, lambda prompt, index: "crash", tasks=1, samples=1)[0]
        assert failed.stop_reason == "error"
        assert failed.environment_reward is None
        assert isinstance(failed.outcome, Failed)
        assert "the kettle broke" in failed.outcome.message
    finally:
        del gymnasium.registry["Echo-v0"]


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("FrozenLak-v1", {}, "Did you mean"),
        ("Pendulum-v1", {}, "only discrete actions and text can be written"),
        ("FrozenLake-v1", {"actions": ["a"]}, "but 1 names are given"),
        ("CartPole-v1", {"render": True}, "has no text picture"),
    ],
)
def test_gymnasium_refuses(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        gym(name, **args)


def test_a_real_model_plays(tmp_path: Path) -> None:
    trajectories = run_tasks(
        gym("FrozenLake-v1", max_turns=2), engine=tiny_engine(tmp_path / "model"), max_new_tokens=8, say=lambda *_: ""
    )
    assert {t.environment_reward for t in trajectories} == {0.0}
    assert {t.stop_reason for t in trajectories} <= {"turns", "length"}
    assert all(-9 < logprob < 0 for t in trajectories for turn in t.turns for logprob in turn.completion.logprobs)


def test_a_run_trains_on_episodes(tmp_path: Path, make_config: MakeConfig) -> None:
    pytest.importorskip("gymnasium")
    tiny = save_tiny_model(tmp_path / "roomy", context=1024)
    config = make_config(
        f"model.source={tiny}",
        "steps=2",
        "evaluation.tasks=2",
        "environment={path: gymnasium:CartPole-v1, args: {size: 20, heldout: 4, max_turns: 3}}",
        "rewards=[{path: 'rewards.environment_reward:environment_reward'}]",
        "checkpoint.every=2",
    )
    launch.train(config)
    rows = [row for step in (1, 2) for row in read_rollouts(config.run_dir, step)]
    assert len(rows) == 32
    assert max(row["turns"] for row in rows) > 1
    assert all(row["reward"] == row["environment_reward"] for row in rows)
    for row in rows:
        actions = [token for token, is_action in zip(row["token_ids"], row["action_mask"], strict=True) if is_action]
        assert row["completion_tokens"] == len(actions)
        assert (len(actions) < len(row["token_ids"])) == (row["turns"] > 1)
