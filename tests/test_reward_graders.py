"""Graders of OpenAI, from their JSON: each kind against what it must say, and what is refused before a run."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import pytest

from rlft.reward import sandbox
from rlft.reward.probe import made_up, make_task
from rlft.reward.scoring import Scorer
from rlft.reward.systems.openai.formula import Formula
from rlft.reward.systems.openai.text_similarity import METRICS
from rlft.types import Failed, RewardSpec
from tests.fakes_server import reply, serve
from tests.test_reward_systems import score, values

CHECK = {
    "type": "string_check",
    "name": "right",
    "operation": "like",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.solution }}",
}
MODEL = {
    "type": "score_model",
    "name": "good",
    "model": "gpt",
    "range": [0, 10],
    "pass_threshold": 5,
    "sampling_params": {"temperature": 0.5, "top_p": 0.9},
    "input": [
        {"role": "developer", "type": "message", "content": "You grade."},
        {"role": "user", "content": [{"type": "input_text", "text": "{{item.solution}} or {{sample.output_text}}?"}]},
    ],
}


def write(folder: Path, grader: Any) -> str:
    file = folder / "my_grader.json"
    file.write_text(json.dumps(grader), encoding="utf-8")
    return f"openai:{file}"


@pytest.mark.parametrize(
    ("grader", "replies", "expected"),
    [
        (CHECK, ("It is 4.", "no idea"), [1.0, 0.0]),
        ({**CHECK, "operation": "eq"}, ("4", "4 "), [1.0, 0.0]),
        ({**CHECK, "operation": "ne"}, ("4", "4 "), [0.0, 1.0]),
        ({**CHECK, "operation": "ilike", "reference": "YES"}, ("well, yes", "no"), [1.0, 0.0]),
        ({**CHECK, "input": "{{ sample.output_json.answers[1]['value'] }}", "operation": "eq"},
         ('{"answers": [0, {"value": 4}]}', "4"), [1.0, 0.0]),
        ({**CHECK, "input": "{{ sample.output_tools[0].function.arguments }}", "reference": '"x": {{item.level}}'},
         ('<tool_call>{"name": "f", "arguments": {"x": 3}}</tool_call>', "3"), [1.0, 0.0]),
        ({"type": "text_similarity", "name": "near", "evaluation_metric": "fuzzy_match", "reference": "abcd",
          "input": "{{sample.output_text}}", "pass_threshold": 0.5}, ("abxd", ""), [0.75, 0.0]),
        ({"type": "multi", "name": "both", "calculate_output": "0.7 * right + 0.3 * (1 - min(short, 1)) ^ 2",
          "graders": {"right": CHECK, "short": {**CHECK, "operation": "eq"}}}, ("It is 4.", "4"), [1.0, 0.7]),
    ],
)  # fmt: skip
def test_graders_that_ask_nobody(
    tmp_path: Path, grader: dict[str, Any], replies: tuple[str, str], expected: list[float]
) -> None:
    assert values(score(write(tmp_path, grader), replies=replies)) == pytest.approx(expected)


def test_the_names_of_rewards_and_parts(tmp_path: Path) -> None:
    spec = RewardSpec(path=write(tmp_path, CHECK))
    assert spec.label == "my_grader"
    with Scorer([spec], workers=0, deadline_s=5, log_dir=None) as scorer:
        file = tmp_path / "my_grader.json"
        assert scorer.sources == {"my_grader": {file.name: hashlib.sha256(file.read_bytes()).hexdigest()}}
    multi = {"type": "multi", "calculate_output": "right / 2", "graders": {"right": CHECK}}
    assert score(write(tmp_path, multi))[0].parts == {"r": 0.5, "r/right": 1.0}


@pytest.mark.parametrize(
    ("grader", "said"),
    [
        ({"type": "exact"}, "string_check, text_similarity"),
        ({**CHECK, "operation": "neq"}, "got 'neq'"),
        ({"type": "string_check", "operation": "eq", "input": "a"}, "lacks 'reference'"),
        ({**CHECK, "input": "{{ output_text }}"}, "item.NAME or sample.NAME"),
        ({**CHECK, "reference": "{{ item.solutoin }}"}, "Did you mean 'solution'?"),
        ({"type": "text_similarity", "evaluation_metric": "cosine", "input": "a", "reference": "b"}, "embeddings"),
        ({"type": "python", "name": "p", "source": "def grade(sample, item) return 1"}, "line 1"),
        ({"type": "python", "name": "p", "source": "x = 1"}, "defines no grade"),
        (MODEL, "args.base_url"),
        ({"type": "multi", "calculate_output": "rihgt", "graders": {"right": CHECK}}, "Did you mean 'right'?"),
        ({"type": "multi", "calculate_output": "right.real", "graders": {"right": CHECK}}, "it may have numbers"),
    ],
)
def test_a_grader_that_cannot_work_is_refused_before_the_run(tmp_path: Path, grader: Any, said: str) -> None:
    with pytest.raises(ValueError, match="my_grader") as caught:
        score(write(tmp_path, grader))
    assert said in str(caught.value)


@pytest.mark.skipif(bool(sandbox._problem()), reason="there is no sandbox here")
def test_a_python_grader_runs_in_the_sandbox(tmp_path: Path) -> None:
    source = (
        "def grade(sample, item):\n"
        "    import os\n"
        "    assert item['level'] == 3 and 'PATH' not in os.environ\n"
        "    return {'4': 0.5}[sample['output_text']]\n"
    )
    right, wrong = score(write(tmp_path, {"type": "python", "name": "p", "source": source}), replies=("4", "5"))
    assert values([right]) == [0.5]
    assert isinstance(wrong, Failed)
    assert "python grader 'p': KeyError: '5'" in wrong.message


def test_model_graders_ask_the_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openai")
    monkeypatch.setenv("RLFT_JUDGE_CACHE", str(tmp_path / "judge.sqlite"))
    with serve(lambda body, count: reply("Good.\nScore: 7" if count < 1 else "Score: 70")) as server:
        args = {"base_url": server.base_url, "model": "mine", "retries": 0, "attempts": 2}
        good, unread = score(write(tmp_path, MODEL), args)
    assert good.parts == {"r": 7.0, "r/passed": 1.0}
    assert values([unread]) == [None]  # beyond the range: asked again, then abstained
    asked = server.asked[0]
    assert (asked["model"], asked["temperature"], asked["top_p"]) == ("mine", 0.5, 0.9)
    assert asked["messages"][0] == {"role": "system", "content": "You grade."}
    assert asked["messages"][1]["content"].startswith("4 or It is 4.?\n\nEnd with a line `Score: N`")

    # What a grader of several notes has the grader's name.
    multi = {"type": "multi", "calculate_output": "right + near / 10", "graders": {"right": CHECK, "near": MODEL}}
    group = made_up(make_task("?", answer="4", columns={"solution": "4", "level": 3}), [f"4 {n}" for n in range(12)])

    def slowly(body: dict[str, Any], count: int) -> tuple[int, dict[str, Any]]:
        time.sleep(0.2)
        return reply("Score: 7", tokens=5)

    with serve(slowly) as server:
        spec = RewardSpec(path=write(tmp_path, multi), args={"base_url": server.base_url, "deadline_s": 50})
        with Scorer([spec], workers=1, deadline_s=60, log_dir=None) as scorer:
            (scored,) = scorer.score([group])
            assert scorer.stats.logged["my_grader/near/tokens"] == 5
    assert [t.parts["my_grader"] for t in scored.trajectories] == [1.7] * 12
    assert scored.trajectories[0].extras == {"my_grader/near/reply": "Score: 7"}
    assert server.most_at_once > 2  # at the same time, by one process

    label = {"type": "label_model", "model": "m", "labels": ["good", "bad"], "passing_labels": ["good"]}
    label["input"] = [{"role": "user", "content": "{{sample.output_text}}"}]
    with serve(lambda body, count: reply(f"Label: {'good' if count < 1 else 'bad'}")) as server:
        assert values(score(write(tmp_path, label), {"base_url": server.base_url})) == [1.0, 0.0]


@pytest.mark.parametrize(
    ("metric", "text", "reference", "expected"),
    [
        ("fuzzy_match", "kitten", "sitting", 8 / 13),  # "ittn" is common: 2 * 4 / (6 + 7)
        ("fuzzy_match", "", "", 1.0),
        ("rouge_1", "The cat sat", "the cat", 4 / 5),  # 2 of 3 words, 2 of 2
        ("rouge_2", "The cat sat", "the cat", 2 / 3),  # 1 of 2 pairs, 1 of 1
        ("rouge_l", "a b c d", "b d a", 4 / 7),  # "b d": 2 of 4, 2 of 3
        ("gleu", "a b", "a c", 1 / 3),  # of a, b, "a b" one is there
        ("bleu", "the cat is here", "the cat is here", 1.0),
        ("bleu", "x", "the cat", 0.0),
    ],
)
def test_similarity(metric: str, text: str, reference: str, expected: float) -> None:
    assert METRICS[metric](text, reference) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("a + b * 2 ^ 3", 26.0),
        ("-(a - 4) / b", 2 / 3),
        ("max(a, b, 0.5) + floor(1.9) + ceil(0.1) + abs(-1)", 6.0),
        ("exp(0) + sqrt(4) + log(1)", 3.0),
    ],
)
def test_formulas(written: str, expected: float) -> None:
    assert Formula(written, ["a", "b"]).value({"a": 2.0, "b": 3.0}) == pytest.approx(expected)


@pytest.mark.parametrize("written", ["a / (b - 3)", "9 ^ 9 ^ 9 ^ 9", "sqrt(0 - a)", "exp(1000 * a)"])
def test_a_formula_without_a_value_is_an_error(written: str) -> None:
    with pytest.raises(ValueError, match="calculate_output"):
        Formula(written, ["a", "b"]).value({"a": 2.0, "b": 3.0})


@pytest.mark.parametrize("written", ["__import__('os')", "a if b else 1", "'x' * 9", "a < b", "min()", "(" * 3000])
def test_what_is_no_formula_is_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"formula|numbers|no grader"):
        Formula(written, ["a", "b"])
