"""Served models: the engine that evaluates them, and the judge, against a server on this machine."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rewards.judge import helpfulness
from rlft.config import RolloutConfig
from rlft.model.adapter import BASE_VERSION, bare_base, make_adapter, torch
from rlft.model.chat import load_tokenizer
from rlft.reward import judge_cache
from rlft.reward.judge import Verdict, _is_checked, ask_judge, judge, passed, score
from rlft.reward.judge import _under_way as under_way
from rlft.reward.judge_cache import Budget, BudgetSpentError
from rlft.reward.outcomes import read
from rlft.rollout.engines import by_name
from rlft.rollout.engines.contract import Request
from rlft.rollout.engines.openai import OpenAIEngine
from rlft.train.rl import launch
from rlft.train.rl.measure import measure
from rlft.types import Abstain, SamplingParams
from tests.fakes import read_metrics, tiny_config
from tests.fakes_server import FakeServer, refusal, reply, serve

PARAMS = SamplingParams(temperature=0.7, top_p=1.0, max_new_tokens=9)
QUESTION = ({"role": "user", "content": "why?"},)
REQUESTS = [
    Request(prompt_ids=(1,), seeds=(1, 2**63 + 5), messages=({"role": "user", "content": "one"},)),
    Request(prompt_ids=(2,), seeds=(3,), messages=({"role": "user", "content": "two"},)),
]

StartEngine = Callable[..., OpenAIEngine]


@pytest.fixture
def start(tiny_model: Path) -> StartEngine:
    def make(base_url: str, **arguments: Any) -> OpenAIEngine:
        rollout = RolloutConfig(engine="openai", engine_args={"base_url": base_url, "model": "served", **arguments})
        engine = OpenAIEngine(load_tokenizer(tiny_model), by_name.read_arguments(rollout))
        engine.load_adapter(bare_base())
        return engine

    return make


# The engine.


def test_every_sample_is_asked_for_with_its_messages_and_its_seed(start: StartEngine) -> None:
    with serve(lambda body, number: reply(f"{body['messages'][0]['content']} {body['seed']}")) as server:
        completions = start(server.base_url).generate(REQUESTS, PARAMS, version=BASE_VERSION)
    assert [[c.text for c in samples] for samples in completions] == [["one 1", "one 5"], ["two 3"]]
    for body in server.asked:
        assert body["path"] == "/v1/chat/completions"
        assert (body["model"], body["temperature"], body["max_tokens"]) == ("served", 0.7, 9)
        assert "top_k" not in body
    first = completions[0][0]
    assert len(first.token_ids) == len(b"one 1")  # the byte tokenizer counts them
    assert all(math.isnan(value) for value in first.logprobs)
    assert (first.adapter_version, first.adapter_hash) == (-1, bare_base().hash)


def test_lengths_stop_texts_and_further_fields(start: StartEngine) -> None:
    with serve(lambda body, number: reply("a</end>b<stop>c", finish="length")) as server:
        engine = start(server.base_url, extra_body={"think": False})
        cut = engine.generate(REQUESTS[1:], replace(PARAMS, stop=("<stop>", "</end>"), top_k=5), version=-1)[0][0]
        whole = engine.generate(REQUESTS[1:], replace(PARAMS, stop=("no",)), version=-1)[0][0]
    assert (cut.text, cut.finish_reason) == ("a</end>", "stop")
    assert (whole.text, whole.finish_reason) == ("a</end>b<stop>c", "length")
    assert (server.asked[0]["top_k"], server.asked[0]["think"]) == (5, False)
    assert "top_k" not in server.asked[1]


def reasons(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
    """A model that takes what OpenAI's reasoning models take, and refuses the rest as they do."""
    if "max_tokens" in body:
        return refusal(400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.")
    if body.get("temperature", 1) != 1:
        return refusal(400, "Unsupported value: 'temperature' does not support 0.7. Only the default (1) is supported.")
    return reply("so it is")


def test_fields_that_a_model_refuses_are_replaced_or_left_out(start: StartEngine) -> None:
    def ask(**extra: Any) -> str:
        return start(server.base_url, extra_body=extra).generate(REQUESTS[1:], PARAMS, version=-1)[0][0].text

    with serve(reasons) as server:
        with pytest.raises(RuntimeError, match=r"'max_completion_tokens' instead.*extra_body.*max_tokens: null"):
            ask()
        with pytest.raises(RuntimeError, match=r"'temperature' does not.*extra_body.*temperature: null"):
            ask(max_tokens=None)
        assert ask(max_tokens=None, temperature=None, max_completion_tokens=50, stop=None) == "so it is"
        assert ask(max_tokens=None, temperature=1, seed=8) == "so it is"
        ask(max_tokens=None, temperature=None, top_k=3)
    *_, first, second, third = server.asked
    assert third["top_k"] == 3
    assert first.keys() == {"path", "model", "messages", "top_p", "seed", "max_completion_tokens", "stop"}
    assert (first["max_completion_tokens"], first["stop"]) == (50, None)  # what is not rlft's own goes as it is
    assert (second["temperature"], second["seed"]) == (1, 8)


def test_a_refused_length_is_no_advice_to_leave_it_out(start: StartEngine) -> None:
    said = "'max_tokens' or 'max_completion_tokens' is too large: 16384. This model's maximum context length is 8192"
    with serve(lambda body, number: refusal(400, said)) as server, pytest.raises(RuntimeError, match=said) as caught:
        start(server.base_url).generate(REQUESTS[1:], PARAMS, version=-1)
    assert "null" not in str(caught.value)


def test_half_a_surrogate_pair_in_a_reply_is_spelt_out(start: StartEngine) -> None:
    with serve(lambda body, number: reply("so \ud83d")) as server:
        completion = start(server.base_url).generate(REQUESTS[1:], PARAMS, version=-1)[0][0]
    assert completion.text == "so \\ud83d"


def test_requests_run_together_up_to_the_bound(start: StartEngine) -> None:
    def slow(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        time.sleep(0.05)
        return reply("x")

    requests = [replace(REQUESTS[0], seeds=tuple(range(8)))]
    with serve(slow) as server:
        start(server.base_url, max_concurrency=3).generate(requests, PARAMS, version=-1)
    assert (len(server.asked), server.most_at_once) == (8, 3)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_errors_that_may_pass_are_retried_then_raised(start: StartEngine, status: int) -> None:
    with serve(lambda body, number: reply("x") if number == 2 else refusal(status, "overloaded")) as server:
        assert start(server.base_url, retries=2).generate(REQUESTS[1:], PARAMS, version=-1)[0][0].text == "x"
    assert len(server.asked) == 3
    with (
        serve(lambda body, number: refusal(status, "overloaded")) as server,
        pytest.raises(RuntimeError, match=f"model 'served' at {server.base_url}.*{status}.*overloaded"),
    ):
        start(server.base_url, retries=2).generate(REQUESTS[1:], PARAMS, version=-1)
    assert len(server.asked) == 3


def test_what_the_server_refuses_is_said_in_its_words_and_not_asked_again(start: StartEngine) -> None:
    with (
        serve(lambda body, number: refusal(400, "maximum context length is 7")) as server,
        pytest.raises(RuntimeError, match="maximum context length is 7"),
    ):
        start(server.base_url).generate(REQUESTS[1:], PARAMS, version=-1)
    assert len(server.asked) == 1
    with (
        serve(lambda body, number: (200, {"id": "1", "object": "chat.completion", "choices": []})) as server,
        pytest.raises(RuntimeError, match="answered without a reply"),
    ):
        start(server.base_url).generate(REQUESTS[1:], PARAMS, version=-1)
    with (
        serve(lambda body, number: reply("", finish="content_filter")) as server,
        pytest.raises(RuntimeError, match="'content_filter'"),
    ):
        start(server.base_url).generate(REQUESTS[1:], PARAMS, version=-1)
    with pytest.raises(RuntimeError, match=r"model 'served' at .*Connection error.*refused"):  # nobody listens any more
        start(server.base_url, retries=0).generate(REQUESTS[1:], PARAMS, version=-1)


def test_keys_come_from_the_environment_alone(start: StartEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "of-another-provider")
    monkeypatch.setenv("MY_KEY", "mine")
    with serve(lambda body, number: reply("x")) as server:
        for arguments in ({}, {"api_key_env": "MY_KEY"}):
            start(server.base_url, **arguments).generate(REQUESTS[1:], PARAMS, version=-1)
    assert [headers["authorization"] for headers in server.headers] == ["Bearer none", "Bearer mine"]
    with pytest.raises(ValueError, match="environment variable NO_KEY, which api_key_env names, is not set"):
        start("http://localhost:1/v1", api_key_env="NO_KEY")
    with pytest.raises(ValueError, match="put it into an environment variable"):
        start("http://localhost:1/v1", api_key="secret")


def test_wrong_arguments_and_adapters_are_refused(start: StartEngine, tiny_model: Path) -> None:
    told = r"engine_args\.retires: unknown key\. Did you mean 'retries'\? \(the openai engine has base_url, model, api_"
    with pytest.raises(ValueError, match=told):
        start("http://localhost:1/v1", retires=1)
    with pytest.raises(ValueError, match=r"rollout\.engine_args\.base_url: the openai engine needs this key"):
        by_name.read_arguments(RolloutConfig(engine="openai", engine_args={"model": "m"}))
    engine = start("http://localhost:1/v1")
    with pytest.raises(ValueError, match="cannot load an adapter into"):
        engine.load_adapter(make_adapter(0, {"x": torch.zeros(1)}))
    with pytest.raises(ValueError, match="adapter version 0 while -1 is loaded"):
        engine.generate(REQUESTS, PARAMS, version=0)
    with pytest.raises(ValueError, match="has no messages"):
        engine.generate([Request(prompt_ids=(1,), seeds=(1,))], PARAMS, version=-1)
    with pytest.raises(ValueError, match="tool schemas"):
        engine.generate([replace(REQUESTS[0], tools=({"type": "function"},))], PARAMS, version=-1)


def test_a_served_model_is_evaluated_and_never_trained_on(tiny_model: Path, tmp_path: Path) -> None:
    with serve(lambda body, number: reply("ab" if "heldout1" in body["messages"][0]["content"] else "aa")) as server:
        config = tiny_config(
            tiny_model,
            output_dir=str(tmp_path),
            rollout={"engine": "openai", "engine_args": {"base_url": server.base_url, "model": "served"}},
        )
        result = measure(config, None)
        assert result.accuracy.mean == pytest.approx((7 * 1.0 + 0.5) / 8)
        assert result.extra["served"] == {"model": "served", "base_url": server.base_url}
        asked = len(server.asked)
        with pytest.raises(ValueError, match=r"rollout\.engine: openai cannot train"):
            launch.train(config)
    assert (asked, len(server.asked)) == (8, 8)
    assert not config.run_dir.exists()


# The judge.


@pytest.fixture(autouse=True)
def _no_known_replies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLFT_JUDGE_CACHE", str(tmp_path / "judge.sqlite"))
    monkeypatch.delenv("RLFT_JUDGE_BUDGET", raising=False)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Good.\nScore: 10", 1.0),
        ("**Score:** 1", 0.0),
        ("score = 5.5 of 10", 0.5),
        ("Score: 3, no: Score: 10", 1.0),
        ("Score: 11", None),
        ("Score: -3", None),
        ("I give it a 7", None),
        ("", None),
    ],
)
def test_scores_are_read_or_absent(text: str, value: float | None) -> None:
    assert score(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("Verdict: PASS", True), ("verdict: **fail**", False), ("Verdict: passable", None), ("pass", None)],
)
def test_verdicts_are_read_or_absent(text: str, value: bool | None) -> None:
    assert passed(text) is value


def test_an_unreadable_reply_is_asked_for_again_and_never_a_number() -> None:
    with serve(lambda body, number: reply("well" if number == 0 else "Score: 10")) as server:
        assert judge("?", score, base_url=server.base_url, model="m") == 1.0
    assert [(body["temperature"], body["seed"]) for body in server.asked] == [(0.0, 0), (1.0, 1)]
    with serve(lambda body, number: reply("well")) as server:
        assert judge("another", score, base_url=server.base_url, model="m", attempts=2) is None
    assert len(server.asked) == 2


def test_a_judge_that_is_down_or_slow_is_an_error() -> None:
    with serve(lambda body, number: refusal(500, "out of memory")) as server:
        with pytest.raises(RuntimeError, match="out of memory"):
            judge("?", score, base_url=server.base_url, model="m", retries=1)
        assert len(server.asked) == 2

    def slow(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        time.sleep(1.5)
        return reply("Score: 5")

    with serve(slow) as server:
        started = time.monotonic()
        with pytest.raises(RuntimeError, match=r"gave no verdict within 0\.3 s"):
            judge("?", score, base_url=server.base_url, model="m", deadline_s=0.3, retries=0)
        assert time.monotonic() - started < 1.2
    assert not under_way  # nothing goes on behind its back


def test_a_run_is_scored_by_a_judge(tiny_model: Path, tmp_path: Path) -> None:
    def verdict(body: dict[str, Any], number: int) -> tuple[int, dict[str, Any]]:
        return reply("no idea" if number % 5 == 0 else f"Score: {1 + number % 5}")

    with serve(verdict) as server:
        config = tiny_config(
            tiny_model,
            steps=1,
            output_dir=str(tmp_path),
            rewards=[{"path": "rewards.judge:helpfulness", "args": {"base_url": server.base_url, "deadline_s": 5}}],
        )
        launch.train(config)
    assert 0 < read_metrics(config.run_dir)[0]["reward/mean"] < 0.5
    assert "<question-" in server.asked[0]["messages"][0]["content"]
    with serve(lambda body, number: reply("Score: 10")) as server:
        notes: dict[str, Any] = {}
        value = asyncio.run(helpfulness("{why}", "{x}", notes.__setitem__, notes.__setitem__, base_url=server.base_url))
        assert (value, notes) == (1.0, {"tokens": 0, "known": 0.0, "reply": "Score: 10"})
    assert "{x}" in server.asked[0]["messages"][0]["content"]


def ask_all(server: FakeServer, *questions: str, **options: Any) -> list[Verdict[float]]:
    async def together() -> list[Verdict[float]]:
        asked = (ask_judge(q, score, base_url=server.base_url, model="m", **options) for q in questions)
        return list(await asyncio.gather(*asked))

    return asyncio.run(together())


def test_what_was_asked_is_not_asked_again() -> None:
    with serve(lambda body, number: reply(f"Score: {1 + number}", tokens=10)) as server:
        first = ask_all(server, *["a"] * 4, "b")
        assert len(server.asked) == 2
        assert len({verdict.value for verdict in first[:4]}) == 1
        again = ask_all(server, "b", "a")
        assert [v.value for v in again] == [first[4].value, first[0].value]
        assert [v.is_known for v in again] == [True, True]
        assert len(server.asked) == 2
        # Other ways of reading need no new replies; other requests do.
        assert judge("a", lambda text: text, base_url=server.base_url, model="m") == first[0].reply
        assert len(server.asked) == 2
        ask_all(server, "a", max_tokens=7)
        ask_all(server, "a", label="another model")
        assert len(server.asked) == 4
    assert judge_cache.spent("") == (4, 40)
    Budget(tokens=1).start()
    assert judge_cache.spent("") == (0, 0)


def test_a_judge_that_has_changed_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rlft.reward.judge.CHECKED", 1)  # every known reply
    with serve(lambda body, number: reply("Score: 1" if number == 0 else "Score: 5.5")) as server:
        assert [ask_all(server, question)[0].drift for question in ("a", "b")] == [None, None]
        (verdict,) = ask_all(server, "a")
        assert (verdict.value, verdict.drift) == (0.0, 0.5)  # the reply that is known stays
        assert ask_all(server, "a")[0].drift is None  # asked once
        assert len(server.asked) == 3
    (verdict,) = ask_all(server, "b", deadline_s=20, retries=0)  # the server is gone, and not needed
    assert (verdict.is_known, verdict.drift) == (True, None)


def test_a_judge_that_moved_to_another_address_is_known() -> None:
    with serve(lambda body, number: reply("Score: 10")) as here, serve(lambda body, number: reply("Score: 1")) as there:
        assert ask_all(here, "a")[0].value == 1.0
        (again,) = ask_all(there, "a")
        assert (again.value, again.is_known, len(there.asked)) == (1.0, True, 0)
        (other,) = ask_all(there, "a", label="another model of this name")
        assert (other.value, other.is_known, len(there.asked)) == (0.0, False, 1)


def test_one_of_a_hundred_known_replies_is_checked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def checks(start: str) -> list[tuple[int, str]]:
        """Which uses of ten known replies, in a process that has just begun, ask again."""
        monkeypatch.setattr("rlft.reward.judge._known_used", itertools.count())
        monkeypatch.setenv(*next(iter(Budget(start_id=start).variables.items())))
        return [(turn, key) for turn in range(800) for key in keys if _is_checked(key)]

    keys = [judge_cache.key_of({"model": "m", "messages": [number]}) for number in range(10)]
    first = checks("a")
    assert {key for _, key in first} == set(keys)  # few questions are checked, too, some time
    assert len(first) == len(keys)  # and then no more, so the cost is bounded
    assert checks("a") == []  # another process of the run
    assert checks("b") == first  # the same run again: the same

    monkeypatch.setattr(judge_cache, "is_first_check", lambda start, key: True)
    assert 0.007 < len(checks("c")) / 8000 < 0.013


def test_a_spent_budget_is_no_number(monkeypatch: pytest.MonkeyPatch) -> None:
    for limits, allowed, spent in ({"calls": 2}, 2, "judge_calls"), ({"tokens": 25}, 3, "judge_tokens"):
        budget = Budget(scope=f"runs/{allowed}", **limits)
        monkeypatch.setenv(*next(iter(budget.variables.items())))
        with serve(lambda body, number: reply("Score: 10", tokens=10)) as server:
            for number in range(allowed):
                ask_all(server, f"{spent} {number}")
            with pytest.raises(BudgetSpentError, match=rf"rlft resume runs/{allowed} scoring\.{spent}=N\."):
                ask_all(server, "another")
            with pytest.raises(BudgetSpentError):
                ask_all(server, *map(str, range(10, 20)))  # at the same time
            assert ask_all(server, f"{spent} 0")[0].value == 1.0  # known ones cost nothing
            assert len(server.asked) == allowed


def test_a_reply_without_a_verdict_abstains_with_it() -> None:
    with serve(lambda body, number: reply("I cannot say.")) as server:
        (verdict,) = ask_all(server, "a", attempts=2)
    assert read(verdict.abstention) == Abstain(reason="no verdict in the judge's reply 'I cannot say.'")
