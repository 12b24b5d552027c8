"""All shipped rewards on their cases, and what a case cannot say."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from rlft.common.by_path import available
from rlft.reward.cases import SUFFIX, broken_cases, read_cases
from rlft.reward.contract import call_arguments, plan_call, read
from rlft.reward.loading import load
from rlft.reward.probe import made_up
from rlft.types import Message, Outcome, RewardSpec

ROOT = Path(__file__).parents[1]
FUNCTIONS = {path.partition(":")[0].rpartition(".")[2]: path for path in available("rewards")}
CASES = sorted((ROOT / "rewards").glob(f"*{SUFFIX}"))
WITHOUT_CASES = {"judge", "rubric", "ranking", "pairwise"} | {
    "reasoning_gym_score",
    "reward_model",
    "classifier",
    "embedding_similarity",
}
"""They need a server or a model, and have tests of their own."""


@functools.cache
def planned(path: str) -> tuple[Any, RewardSpec, Any]:
    function, spec = load(path), RewardSpec(path=path)
    return function, spec, plan_call(function, spec)


def test_every_reward_has_cases_and_a_line_in_the_table() -> None:
    assert {file.name.removesuffix(SUFFIX) for file in CASES} == set(FUNCTIONS) - WITHOUT_CASES
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    assert [path for path in FUNCTIONS.values() if f"`{path}`" not in page] == []


def test_a_reward_is_short_enough_to_be_read_and_copied() -> None:
    lines = {file.name: len(file.read_text().splitlines()) for file in (ROOT / "rewards").glob("*.py")}
    assert {file.stem for file in (ROOT / "rewards").glob("*.py")} >= set(FUNCTIONS)
    assert [name for name, count in lines.items() if count >= 80 and name.removesuffix(".py") in FUNCTIONS] == []


@pytest.mark.parametrize("file", CASES, ids=lambda file: file.name.removesuffix(SUFFIX))
def test_a_reward_says_what_its_cases_expect(file: Path) -> None:
    function, spec, plan = planned(FUNCTIONS[file.name.removesuffix(SUFFIX)])
    cases = read_cases(file)
    outcomes: list[Outcome] = []
    for case in cases:
        group = made_up(case.task, [case.reply])
        outcomes.append(read(function(**call_arguments(plan, spec, group, 0))))
    assert broken_cases(cases, outcomes) == {}


def call(name: str, **arguments: Any) -> Message:
    made = {"type": "function", "function": {"name": name, "arguments": arguments}}
    return Message(role="assistant", content="", tool_calls=[made])


def says(role: str, content: str) -> Message:
    return Message(role=role, content=content)


@pytest.mark.parametrize(
    ("made", "wanted", "score", "names"),
    [
        ([("add", {"a": 1, "b": 2})], [("add", {"b": 2, "a": 1})], 1.0, 1.0),
        ([("add", {"a": 1})], [("add", {"a": 2})], 0.0, 1.0),
        ([("add", {"a": 1}), ("sub", {})], [("add", {"a": 1})], 0.25, 0.5),  # one too many
        ([("add", {"a": 1})] * 2, [("add", {"a": 1})], 0.25, 0.5),
        ([("add", {"a": 1})], [], 0.0, 0.0),
        ([("b", {}), ("a", {})], [("a", {}), ("b", {})], 1.0, 1.0),
    ],
)
def test_tool_calls(made: Sequence[Any], wanted: Sequence[Any], score: float, names: float) -> None:
    from rewards.tool_calls import tool_calls

    earlier = [says("user", "Before."), call("add", a=1), says("user", "Now.")]
    messages = [*earlier, *(call(name, **arguments) for name, arguments in made), says("assistant", "Done.")]
    calls = [{"name": name, "arguments": json.dumps(arguments)} for name, arguments in wanted]
    found = tool_calls(messages, calls, partial=0.5)
    assert (found["score"], found["names"]) == (score, names)


def test_tool_calls_in_order() -> None:
    from rewards.tool_calls import tool_calls

    made = [says("user", "Go."), call("b"), call("a")]
    assert tool_calls(made, [{"name": "b"}, {"name": "a"}], ordered=True)["score"] == 1
    assert tool_calls(made, [{"name": "a"}, {"name": "b"}], ordered=True)["score"] == 0


def test_grounded_wants_the_answer_in_what_was_retrieved() -> None:
    from rewards.grounded import grounded

    question, found = says("user", "Where was Ada born?"), says("tool", "Ada was born in Kelham.")
    right, wrong = says("assistant", "Kelham."), says("assistant", "Norbury.")
    assert grounded([question, call("search", query="Ada"), found, right], "Kelham") == {
        "score": 1.0,
        "right": 1.0,
        "supported": 1.0,
    }
    assert grounded([question, call("search", query="Ada"), found, wrong], "Kelham")["score"] == 0  # type: ignore[index]
    guess = [question, call("search", query="born in Kelham"), says("tool", "Nothing about Kelham."), right]
    assert grounded(guess, "Kelham") == {"score": 0.0, "right": 1.0, "supported": 0.0}


def test_embedding_similarity_with_a_model_from_a_folder(tiny_model: Path) -> None:
    from rewards.embedding_similarity import embedding_similarity

    def score(reply: str, answer: Any, least: float = 0.0) -> float | None:
        return embedding_similarity([[says("assistant", reply)]], [answer], str(tiny_model), least=least)[0]

    same = score("the sea is deep", "the sea is deep")
    assert same == pytest.approx(1.0)
    other = score("12 x 7!", "the sea is deep")
    assert other is not None
    assert other < 0.999
    assert score("12 x 7!", "the sea is deep", least=0.999) == 0
    assert score("the sea is deep " * 20, "the sea is deep") == score("", "deep") == 0
    assert score("x", None) is None
    with pytest.raises(ValueError, match="no model in"):
        embedding_similarity([[says("assistant", "x")]], ["y"], "nowhere")


def test_a_length_penalty_without_a_buffer_is_refused() -> None:
    from rewards.soft_overlong import soft_overlong

    trajectory = made_up(read_cases(ROOT / "rewards" / f"soft_overlong{SUFFIX}")[0].task, ["x"]).trajectories[0]
    with pytest.raises(ValueError, match="buffer is 0, but must be between 1 and max_tokens, 10"):
        soft_overlong(trajectory, max_tokens=10, buffer=0)
