"""All shipped rewards on their cases, and what a case cannot say."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlft.cli import reward_check
from rlft.cli.reward_check import spread
from rlft.common.by_path import available
from rlft.common.chat_server import Reply, ServerError
from rlft.model.base import seeded
from rlft.reward.attack import Attacked, attack
from rlft.reward.cases import SUFFIX, broken_cases, case_outcomes, cases_file, read_cases
from rlft.reward.check import Checked, check_rewards
from rlft.reward.contract import call_arguments, plan_call
from rlft.reward.loading import load
from rlft.reward.outcomes import read, read_many
from rlft.reward.probe import Probe, made_up, make_task
from rlft.train.head import launch as launch_head
from rlft.train.reward_model import launch as launch_reward
from rlft.types import Message, Outcome, RewardSpec, Score
from tests.fakes_head import head_config
from tests.fakes_judge import ask_directly, serve_judge
from tests.fakes_reward import reward_model_config
from tests.sweeps import swept

ROOT = Path(__file__).parents[1]
FUNCTIONS = {path.partition(":")[0].rpartition(".")[2]: path for path in available("rewards")}
CASES = sorted((ROOT / "rewards").glob(f"*{SUFFIX}"))
OBSERVED = ROOT / "environments" / "observed"
JUDGES = ("judge", "rubric", "ranking", "pairwise")
MODELS = ("classifier", "embedding_similarity", "reward_model")
"""Rewards that ask a model in a folder; their cases hold for any good one."""


def stem(file: Path) -> str:
    return file.name.removesuffix(SUFFIX)


@functools.cache
def planned(path: str) -> tuple[Any, RewardSpec, Any]:
    function, spec = load(path), RewardSpec(path=path)
    return function, spec, plan_call(function, spec)


def test_every_reward_has_cases_and_a_line_in_the_table() -> None:
    assert {stem(file) for file in CASES} == set(FUNCTIONS)
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    assert [path for path in FUNCTIONS.values() if f"`{path}`" not in page] == []


def test_a_reward_is_short_enough_to_be_read_and_copied() -> None:
    lines = {file.name: len(file.read_text().splitlines()) for file in (ROOT / "rewards").glob("*.py")}
    assert {file.stem for file in (ROOT / "rewards").glob("*.py")} >= set(FUNCTIONS)
    assert [name for name, count in lines.items() if count >= 80 and name.removesuffix(".py") in FUNCTIONS] == []


@pytest.mark.parametrize(
    "file",
    [file for file in (*CASES, *sorted(OBSERVED.glob(f"*{SUFFIX}"))) if stem(file) not in (*JUDGES, *MODELS)],
    ids=stem,
)
def test_a_reward_says_what_its_cases_expect(file: Path) -> None:
    name = stem(file)
    if name == "reasoning_gym_score":
        pytest.importorskip("reasoning_gym")
    function, spec, plan = planned(FUNCTIONS.get(name, f"environments.observed.{name}:{name}"))
    cases = read_cases(file)
    outcomes: list[Outcome] = []
    for case in cases:
        group = made_up(case.task, [case.reply])
        result = function(**call_arguments(plan, spec, group, 0))
        outcomes.append(read(result) if plan.kind == "sample" else read_many(result, 1)[0])
    assert broken_cases(cases, outcomes) == {}


@pytest.mark.parametrize(
    "name",
    swept(
        [name for name in FUNCTIONS if name not in (*JUDGES, *MODELS, "reasoning_gym_score")],
        always=lambda name: name != "code_tests",  # each reply is a program that runs
    ),
)
def test_a_check_has_nothing_to_say_of_a_reward(name: str) -> None:
    path = FUNCTIONS[name]
    asked = reward_check.asked(path, args=(), data="", cases=None, deadline_s=None, within_s=60.0)
    report = check_rewards(replace(asked, workers=0))
    assert report.replies > 20
    found = {(finding.severity, finding.check) for finding in report.findings if finding.severity != "info"}
    assert found == set(), report.findings


def test_what_pays_for_nothing_is_no_penalty_where_it_takes_an_answer_or_pays_at_all() -> None:
    expected = {"never_paid": "info", "wants_answer": "warning", "pays_the_brief": "warning"}
    for name, severity in expected.items():
        report = check_rewards(Checked(specs=[RewardSpec(path=f"tests.test_shipped_rewards:{name}")], workers=0))
        assert [f.severity for f in report.findings if f.check == "nothing"] == [severity], name


def never_paid(completion: str) -> float:
    return -min(1.0, len(completion) / 100)


def wants_answer(completion: str, answer: str) -> float:
    return -min(1.0, len(completion) / 100) + 0 * len(answer)


def pays_the_brief(completion: str) -> float:
    return 1 - min(1.0, len(completion) / 100)


@pytest.fixture
def models(tiny_model: Path, tmp_path: Path) -> dict[str, dict[str, str]]:
    """Arguments of the rewards that ask a model: tiny ones that were trained in seconds."""
    head = head_config(tmp_path, tiny_model, count=80, epochs=5)
    launch_head.train(head)
    cases = {case.name: case for case in read_cases(ROOT / "rewards" / f"reward_model{SUFFIX}")}
    pairs = [
        {"prompt": f"{n}. {case.prompt}", "chosen": case.completion, "rejected": cases[case.expect.above].completion}
        for n in range(20)
        for case in cases.values()
        if case.expect.above
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    config = reward_model_config(tmp_path, tiny_model)
    launch_reward.train(config)
    return {
        "classifier": {"folder": str(head.run_dir / "head"), "label": "liked"},
        "embedding_similarity": {"folder": str(tiny_model)},
        "reward_model": {"folder": str(config.run_dir / "reward-model")},
    }


def test_a_model_says_what_its_cases_expect(models: dict[str, dict[str, str]]) -> None:
    for name in MODELS:
        spec = RewardSpec(path=FUNCTIONS[name], args=models[name])
        file = cases_file([spec])
        assert file is not None
        assert stem(file) == name
        cases = read_cases(file)
        with Probe([spec], deadline_s=60.0, workers=0) as probe:
            assert broken_cases(cases, case_outcomes(probe, cases)) == {}, name


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_says_what_its_cases_expect(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLFT_JUDGE_CACHE", str(tmp_path / "judge.sqlite"))
    cases = read_cases(ROOT / "rewards" / f"{name}{SUFFIX}")
    with serve_judge() as server:
        spec = RewardSpec(path=FUNCTIONS[name], args={"base_url": server.base_url})
        with Probe([spec], deadline_s=60.0, workers=0) as probe:
            assert broken_cases(cases, case_outcomes(probe, cases)) == {}
        assert server.asked


def judged(path: str, name: str, server: str = "near") -> tuple[RewardSpec, dict[str, Any]]:
    """A reward that asks a judge, and what it is checked and attacked on: the cases of a shipped one."""
    cases = read_cases(ROOT / "rewards" / f"{name}{SUFFIX}")
    return RewardSpec(path=path, args={"base_url": f"http://{server}/v1"}), {
        "cases": cases,
        "tasks": spread([case.task for case in cases])[:2],
        "workers": 0,
    }


@pytest.fixture
def judge_is_near(monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge of `serve_judge` without its server, which a thousand questions would wait for."""
    monkeypatch.setattr("rlft.reward.judge.ask_async", ask_directly)
    monkeypatch.setenv("RLFT_JUDGE_CACHE", ":memory:")


@pytest.mark.usefixtures("judge_is_near")
@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_passes_check_and_survives_an_attack(name: str) -> None:
    spec, given = judged(FUNCTIONS[name], name)
    findings = check_rewards(Checked(specs=[spec], **given)).findings
    assert [finding for finding in findings if finding.severity != "info"] == []
    report = attack(Attacked(specs=[spec], generations=0, seconds=60.0, **given))
    assert (list(report.exploits), list(report.notes)) == ([], [])
    assert report.replies > 100


@pytest.mark.usefixtures("judge_is_near")
def test_a_judge_whose_tags_a_reply_can_close_is_cheated() -> None:
    spec, given = judged("tests.fakes_judge:gullible", "judge")
    report = attack(Attacked(specs=[spec], generations=0, seconds=60.0, **given))
    assert "injection" in {exploit.family for exploit in report.exploits}


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


def test_a_model_as_reward_says_the_same_alone_and_beside_others(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with seeded(0):
        AutoModelForSequenceClassification.from_pretrained(tiny_model, num_labels=1).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    texts = ["42", "It is 42.", "", " \n", "asdf", "\U0001f4a9 \u202e\u05d0", "a" * 100]
    task = make_task("What is 17 + 25?", answer="42")
    for name, folder in (("reward_model", tmp_path), ("embedding_similarity", tiny_model)):
        spec = RewardSpec(path=FUNCTIONS[name], args={"folder": str(folder)})
        with Probe([spec], deadline_s=60.0, workers=0) as probe:
            alone, backwards = probe.score(task, texts), probe.score(task, texts[::-1])[::-1]
            (together,) = probe.score_groups([(task, texts)])
        values = [outcome.value for outcome in alone if isinstance(outcome, Score)]
        assert len(values) == len(texts)
        assert len(set(values)) > 2
        for others in (backwards, together):
            assert [outcome.value for outcome in others if isinstance(outcome, Score)] == pytest.approx(
                values, abs=1e-5
            )
    assert check_rewards(Checked(specs=[spec], workers=0)).errors == []  # the sentences' model reads any length


def test_a_length_penalty_without_a_buffer_is_refused() -> None:
    from rewards.soft_overlong import soft_overlong

    trajectory = made_up(read_cases(ROOT / "rewards" / f"soft_overlong{SUFFIX}")[0].task, ["x"]).trajectories[0]
    with pytest.raises(ValueError, match="buffer is 0, but must be between 1 and max_tokens, 10"):
        soft_overlong(trajectory, max_tokens=10, buffer=0)


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("[[[2], 4]]", r"a list of cases .*got '\[\[\[2\], 4\]\]'\. The column holds JSON as text: read it with json"),
        ({"in": [2]}, r"`answer` has to be a list of cases \[\[arguments, expected\], \.\.\.\]"),
        ([[[2], 4], [3, 9]], r"`answer\[1\]` is none of cases .*: '\[3, 9\]'"),
        ([[[2], 4, 5]], r"`answer\[0\]` is none of cases"),
    ],
)
def test_code_tests_says_what_its_cases_have_to_be(answer: Any, said: str) -> None:
    from rewards.code_tests import code_tests

    with pytest.raises(ValueError, match=said):
        code_tests("def f(n):\n    return n * n", answer, "f")


def test_a_judge_without_its_server_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    async def gone(client: object, model: str, *given: object, **sampling: object) -> None:
        raise ServerError(f"model {model!r} at http://gone/v1/: Connection error.")

    monkeypatch.setattr("rlft.reward.judge.ask_async", gone)
    monkeypatch.setenv("RLFT_JUDGE_CACHE", ":memory:")
    for name, cases in (("judge", "6 of 6"), ("pairwise", "5 of 6")):  # its last case is alone and asks nobody
        spec, given = judged(FUNCTIONS[name], name, "gone")
        errors = check_rewards(Checked(specs=[spec], within_s=600.0, **given)).errors  # asking again takes its time
        assert [finding.check for finding in errors] == ["cases", "contract"]
        told = f"{cases} cases could not be scored (server): model 'judge' at http://gone/v1/: Connection error."
        assert errors[0].detail == told
        assert all("start the server" in finding.advice for finding in errors)
        assert all("--args base_url=URL" in finding.advice for finding in errors)
        for cases_given in (given["cases"], ()):
            with pytest.raises(ValueError, match=r"nothing could be attacked.*Connection error\.; start the server"):
                attack(Attacked(specs=[spec], **{**given, "cases": cases_given}))


def test_an_attack_says_how_many_replies_could_not_be_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    async def breaks(client: object, model: str, messages: list[Message], **sampling: object) -> Reply:
        if "SYSTEM" in messages[0]["content"]:
            raise ServerError("it is too busy")
        return await ask_directly(client, model, messages)

    monkeypatch.setattr("rlft.reward.judge.ask_async", breaks)
    monkeypatch.setenv("RLFT_JUDGE_CACHE", ":memory:")
    spec, given = judged("rewards.judge:helpfulness", "judge", "busy")
    given["cases"] = given["cases"][:3]
    report = attack(Attacked(specs=[spec], generations=0, seconds=60.0, **given))
    (note,) = report.notes
    count, _, of = note.partition(" of ")
    assert 0 < int(count) < report.replies == int(of.split()[0])
    assert note.endswith("so nothing is known of them (server): it is too busy")


def test_the_cases_of_a_judge_are_found_whatever_server_it_asks() -> None:
    def found(**args: Any) -> str:
        file = cases_file([RewardSpec(path=FUNCTIONS["rubric"], args=args)])
        return file.name if file else ""

    assert found(base_url="http://judge/v1", model="m", api_key_env="KEY", deadline_s=3.0) == f"rubric{SUFFIX}"
    assert (
        found(base_url="http://judge/v1", criteria={"polite": "it is polite"}) == ""
    )  # others hold for other criteria


def test_white_space_counts_as_length() -> None:
    from rewards.graded_answer import graded_answer

    for padding in (" " * 100_000, "\n" * 100_000):
        for reply in (f"<answer>42{padding}</answer>", f"{padding}<answer>42</answer>"):
            graded = graded_answer(reply, "42")
            assert graded is not None
            assert graded["length"] == -0.1
