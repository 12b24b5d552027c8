"""Environments of verifiers, the classic ones and tasksets; with the package only."""

from __future__ import annotations

import json
import random
import signal
import threading
from pathlib import Path
from typing import Any

import pytest

from rlft.environment.contract import Environment
from rlft.environment.loading import identity
from rlft.types import Failed
from tests.rollouts import load_environment, run_tasks, tiny_engine, told

verifiers = pytest.importorskip("verifiers")
classic = pytest.mark.skipif(not hasattr(verifiers, "load_environment"), reason="this verifiers has only tasksets")
pytestmark = pytest.mark.filterwarnings("ignore")  # verifiers and its many packages warn at their import

CLASSIC = '''
import random
import verifiers as vf
from datasets import Dataset

def rows(n=20):
    return Dataset.from_list([{"question": f"{i}+{i}?", "answer": str(2 * i), "info": {"k": i}} for i in range(n)])

def held_out():
    return Dataset.from_list([{"question": "90+9?", "answer": "99", "info": {"k": 0}}])

def exact(completion, answer, info):
    if completion[-1].content == "boom":
        raise RuntimeError("the reward broke")
    return float(completion[-1].content.strip() == answer and 2 * info["k"] == int(answer))

async def short(completion):
    return float(len(completion[-1].content) < 4)

def sums(n=20, with_eval=False):
    return vf.SingleTurnEnv(
        dataset=rows(n),
        eval_dataset=held_out() if with_eval else None,
        system_prompt="Be brief.",
        rubric=vf.RubricGroup(rubrics=[vf.Rubric(funcs=[exact]), vf.Rubric(funcs=[short], weights=[0.5])]),
    )

class Guess(vf.MultiTurnEnv):
    async def setup_state(self, state):
        state["number"] = random.randint(1, 9)
        return state

    @vf.stop
    async def right(self, state):
        return state.get("won", False)

    @vf.cleanup
    async def clean(self, state):
        CLEANED.append(state["number"])

    async def env_response(self, messages, state, **kwargs):
        text = messages[-1].content.strip()
        if text == "crash":
            raise ZeroDivisionError("the environment broke")
        state["won"] = text == str(state["number"])
        return [vf.UserMessage(content="Right." if state["won"] else f"No ({random.random():.3f}).")]

class Rewriter(Guess):
    async def get_prompt_messages(self, state):
        return (await super().get_prompt_messages(state))[-1:] if state["trajectory"] else state["prompt"]

CLEANED = []

def won(state):
    return float(state.get("won", False))

def guess(max_turns=5):
    return Guess(dataset=rows(), rubric=vf.Rubric(funcs=[won]), max_turns=max_turns)

def rewriter():
    return Rewriter(dataset=rows(), rubric=vf.Rubric(funcs=[won]), max_turns=5)

def double(x: int) -> int:
    """Doubles a number.

    Args:
        x: the number.
    """
    return 2 * x

def tools():
    return vf.ToolEnv(dataset=rows(), tools=[double], rubric=vf.Rubric(funcs=[exact]), max_turns=3)

def best(completions) -> list[float]:
    return [0.0] * len(completions)

def grouped():
    return vf.SingleTurnEnv(dataset=rows(), rubric=vf.Rubric(funcs=[best]))

load_environment = sums
'''

TASKSET = """
from collections.abc import Iterable
import verifiers.v1 as vf

class Data(vf.TaskData):
    answer: str
    level: int

class Sum(vf.Task[Data, vf.State, vf.TaskConfig]):
    @vf.reward(weight=2.0)
    async def right(self, trace: vf.Trace) -> float:
        if trace.last_reply == "boom":
            raise RuntimeError("the reward broke")
        return float(trace.last_reply == self.data.answer)

    @vf.reward
    async def polite(self, task, trace: vf.Trace) -> float:
        return float("please" in trace.last_reply)

class Config(vf.TasksetConfig):
    count: int = 5

class Sums(vf.Taskset[Sum, Config]):
    def load(self) -> Iterable[Sum]:
        for i in range(self.config.count):
            data = Data(prompt=f"{i}+{i}?", system_prompt="Be brief.", answer=str(2 * i), level=i)
            yield Sum(data, self.config.task)

class Contained(Sum):
    NEEDS_CONTAINER = True

class Endless(vf.Taskset[Sum, Config]):
    INFINITE = True
    def load(self) -> Iterable[Sum]:
        i = 0
        while True:
            i += 1
            yield Sum(Data(prompt=f"{i}?", answer="1", level=i), self.config.task)

class Boxes(vf.Taskset[Contained, Config]):
    def load(self) -> Iterable[Contained]:
        yield Contained(Data(prompt="?", answer="1", level=0), self.config.task)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("environments")
    (folder / "rlft_test_sums.py").write_text(CLASSIC)
    (folder / "tasks.py").write_text(TASKSET)
    return folder


def load(folder: Path, name: str, **args: Any) -> Environment:
    return load_environment(f"verifiers:{folder}/{name}", **args)


def turn_of(prompt: str) -> int:
    return prompt.count("<|assistant|>") - 1


# Classic environments


@classic
def test_a_single_turn_environment_is_scored_by_its_rubric(folder: Path) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    environment = load(folder, "rlft_test_sums.py:sums", heldout=0.3, env_args={"n": 30})
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert len(environment.train) + len(environment.heldout) == 30
    assert environment.max_turns == 1
    task = environment.train[0]
    assert [m["content"] for m in task.messages] == ["Be brief.", task.columns["question"]]
    assert 2 * task.columns["info"]["k"] == int(task.answer)
    replies = [task.answer, "no idea", "1"]
    right, wrong, short = run_tasks(environment, lambda prompt, index: replies[index], tasks=1, samples=3)
    assert [t.environment_reward for t in (right, wrong, short)] == [1.5, 0.0, 0.5]
    assert {t.stop_reason for t in (right, wrong, short)} == {"done"}


@classic
def test_an_error_of_a_reward_function_is_no_zero(folder: Path) -> None:
    environment = load(folder, "rlft_test_sums.py:sums")
    failed, scored = run_tasks(environment, lambda prompt, index: ["boom", "x"][index], tasks=1)
    assert isinstance(failed.outcome, Failed)
    assert "the reward broke" in failed.outcome.message
    assert failed.environment_reward is None
    assert (scored.outcome, scored.environment_reward) == (None, 0.5)


@classic
def test_evaluation_data_of_its_own_is_held_out(folder: Path) -> None:
    environment = load(folder, "rlft_test_sums.py:sums", env_args={"with_eval": True}, size=7)
    assert (len(environment.train), [t.answer for t in environment.heldout]) == (7, ["99"])


@classic
def test_an_installed_environment_is_named_by_its_id(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(folder)
    environment = load_environment("verifiers:rlft-test-sums", env_args={"n": 12})
    assert len(environment.train) + len(environment.heldout) == 12
    assert identity("verifiers:rlft-test-sums") == f"verifiers {verifiers.__version__}"
    assert len(identity(f"verifiers:{folder}/rlft_test_sums.py:sums")) == 64


def one_to_nine(prompt: str, index: int) -> str:
    return str(turn_of(prompt) + 1)


@classic
def test_a_multi_turn_environment_answers_and_ends_by_its_own_rules(folder: Path) -> None:
    environment = load(folder, "rlft_test_sums.py:guess", max_turns=6)
    assert environment.max_turns == 6
    trajectories = run_tasks(environment, one_to_nine, tasks=8)
    won = [t for t in trajectories if t.environment_reward == 1.0]
    lost = [t for t in trajectories if t.environment_reward == 0.0]
    assert len(won) + len(lost) == 16
    assert won
    assert lost
    assert {len(t.turns) for t in lost} == {6}
    assert len({len(t.turns) for t in won}) > 1
    assert {t.stop_reason for t in trajectories} == {"done"}
    for first, second in zip(trajectories[::2], trajectories[1::2], strict=True):
        assert told(first) == told(second)  # the numbers drawn in it are those of the task's seed
    assert [told(t) for t in run_tasks(environment, one_to_nine, tasks=8)] == [told(t) for t in trajectories]


@classic
def test_errors_of_the_environment_fail_the_trajectory(folder: Path) -> None:
    (failed,) = run_tasks(load(folder, "rlft_test_sums.py:guess"), lambda prompt, index: "crash", tasks=1, samples=1)
    assert isinstance(failed.outcome, Failed)
    assert "the environment broke" in failed.outcome.message


@classic
def test_a_conversation_that_is_written_anew_is_refused(folder: Path) -> None:
    (failed,) = run_tasks(load(folder, "rlft_test_sums.py:rewriter"), lambda p, i: "0", tasks=1, samples=1)
    assert isinstance(failed.outcome, Failed)
    assert "an episode can only go on" in failed.outcome.message


@classic
def test_episodes_that_are_cut_are_cleaned_up(folder: Path) -> None:
    environment = load(folder, "rlft_test_sums.py:guess")
    from rlft.common.by_path import import_object

    cleaned: Any = import_object(f"{folder}/rlft_test_sums.py:CLEANED", shipped="environments")
    cleaned.clear()
    trajectories = run_tasks(environment, lambda prompt, index: "0" * 99, tasks=2, max_new_tokens=8)
    assert {t.stop_reason for t in trajectories} == {"length"}
    assert len(cleaned) == 4
    assert len([t for t in threading.enumerate() if t.name == "rlft-conversations"]) == 1


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


@classic
def test_tools_are_called_by_the_environment(folder: Path) -> None:
    environment = load(folder, "rlft_test_sums.py:tools")
    assert environment.tools[0]["function"]["name"] == "double"
    task = environment.train[0]
    texts = [call("double", x=task.columns["info"]["k"]), "<tool_call>{</tool_call>", task.answer]
    (trajectory,) = run_tasks(environment, lambda p, i: texts[turn_of(p)], tasks=1, samples=1, max_new_tokens=96)
    assert trajectory.turns[0].observation == ({"role": "tool", "name": "double", "content": task.answer},)
    assert trajectory.turns[1].observation[0]["role"] == "tool"
    assert trajectory.environment_reward == 1.0


@classic
def test_rewards_over_a_group_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="write those as a reward with the parameter `group`"):
        load(folder, "rlft_test_sums.py:grouped")


@classic
def test_a_real_model_converses(folder: Path, tmp_path: Path) -> None:
    trajectories = run_tasks(
        load(folder, "rlft_test_sums.py:guess"),
        lambda *_: "",
        engine=tiny_engine(tmp_path / "model"),
        max_new_tokens=8,
    )
    assert {t.environment_reward for t in trajectories} <= {None, 0.0, 1.0}
    assert {t.stop_reason for t in trajectories} <= {"done", "length"}


# Tasksets


def test_tasks_of_a_taskset_are_asked_once_and_scored(folder: Path) -> None:
    environment = load(folder, "tasks.py:Sums", env_args={"count": 12}, heldout=0.3)
    assert len(environment.train) + len(environment.heldout) == 12
    task = environment.train[0]
    assert [m["role"] for m in task.messages] == ["system", "user"]
    assert task.columns == {"level": int(task.answer) // 2}
    replies = [task.answer, "please", "boom"]
    right, polite, failed = run_tasks(environment, lambda prompt, index: replies[index], tasks=1, samples=3)
    assert [t.environment_reward for t in (right, polite, failed)] == [2.0, 1.0, None]
    assert isinstance(failed.outcome, Failed)
    assert "the reward broke" in failed.outcome.message


def test_a_taskset_may_be_endless_but_not_need_a_harness(folder: Path) -> None:
    assert len(load(folder, "tasks.py:Endless", size=9, heldout=0.0).train) == 9
    with pytest.raises(ValueError, match="give the argument `size`"):
        load(folder, "tasks.py:Endless")
    with pytest.raises(ValueError, match="tasks of Contained need a container"):
        load(folder, "tasks.py:Boxes")


def test_the_global_random_numbers_are_left_alone(folder: Path) -> None:
    before = random.getstate()
    load(folder, "tasks.py:Sums")
    assert random.getstate() == before
