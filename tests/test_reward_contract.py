"""How a reward's signature decides its call, and what its results mean."""

from __future__ import annotations

import functools
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch

from rlft.reward.contract import call_arguments, check_columns, plan_call
from rlft.reward.outcomes import LARGEST, MESSAGE_LIMIT, combine, failed_rewards, read, read_many
from rlft.reward.worker import run
from rlft.types import Abstain, Completion, Failed, Group, Outcome, RewardSpec, Score, Task, Trajectory, Turn

SPEC = RewardSpec(path="mine.py:reward", weight=1.0)


def make_group(texts: list[str]) -> Group:
    task = Task(
        id="sum-1",
        messages=({"role": "system", "content": "Be brief."}, {"role": "user", "content": "17+25?"}),
        answer="42",
        columns={"difficulty": 3},
    )
    completion = Completion(
        token_ids=(5, 6), logprobs=(-0.5, -0.25), finish_reason="stop", adapter_version=0, adapter_hash="h"
    )
    turn = Turn(prompt_ids=(1,), completion=completion)
    return Group(
        task=task,
        trajectories=tuple(
            Trajectory(task=task, sample_index=i, seed=i, turns=(turn,), text=text) for i, text in enumerate(texts)
        ),
    )


def call(function: Callable[..., Any], texts: list[str], **args: Any) -> list[Outcome]:
    """What a reward gives for a group, called as the scorer calls it."""
    spec, group = RewardSpec(path="mine.py:reward", weight=1.0, args=args), make_group(texts)
    plan = plan_call(function, spec)
    if plan.kind == "sample":
        each = (call_arguments(plan, spec, group, member) for member in range(len(texts)))
        return [outcome for arguments in each for outcome in run(plan, function, arguments, 1).outcomes]
    return run(plan, function, call_arguments(plan, spec, group, None), len(texts)).outcomes


def values(outcomes: list[Outcome]) -> list[float]:
    assert all(isinstance(outcome, Score) for outcome in outcomes), outcomes
    return [outcome.value for outcome in outcomes if isinstance(outcome, Score)]


def refusal(function: Callable[..., Any], **args: Any) -> str:
    with pytest.raises(ValueError) as caught:
        plan_call(function, RewardSpec(path="mine.py:reward", weight=1.0, args=args))
    return str(caught.value)


def test_singular_names_are_called_per_trajectory() -> None:
    seen: dict[str, Any] = {}

    def reward(prompt, completion, messages, answer, task_id, trajectory, difficulty, bonus, absent="default"):  # type: ignore[no-untyped-def]
        seen.update(locals())
        return len(completion) + bonus

    assert values(call(reward, ["a", "bcd"], bonus=10)) == [11.0, 13.0]
    assert seen["prompt"] == "17+25?"
    assert seen["completion"] == "bcd"
    assert seen["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "17+25?"},
        {"role": "assistant", "content": "bcd"},
    ]
    assert (seen["answer"], seen["task_id"], seen["difficulty"]) == ("42", "sum-1", 3)
    assert seen["trajectory"].sample_index == 1
    assert seen["absent"] == "default"


def test_open_keywords_receive_everything_but_the_trajectory() -> None:
    seen: dict[str, Any] = {}

    def reward(completion: str, **kwargs: Any) -> float:
        seen.update(kwargs)
        return 1.0

    call(reward, ["a"], extra=1)
    assert set(seen) == {"prompt", "messages", "answer", "task_id", "difficulty", "extra"}


def test_plural_names_follow_trl() -> None:
    seen: dict[str, Any] = {}

    def reward(prompts, completions, completion_ids, answer, log_extra, log_metric, trainer_state, **kwargs):  # type: ignore[no-untyped-def]
        seen.update(locals())
        log_extra("column", [1, 2])
        log_metric("name", 1.0)
        assert trainer_state.global_step == 0
        with pytest.raises(AttributeError, match="trainer_state has no max_steps, only global_step"):
            _ = trainer_state.max_steps
        return [len(completion[0]["content"]) for completion in completions]

    assert values(call(reward, ["a", "bcd"])) == [1.0, 3.0]
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "17+25?"}]
    assert seen["prompts"] == [prompt, prompt]
    assert seen["completions"] == [
        [{"role": "assistant", "content": "a"}],
        [{"role": "assistant", "content": "bcd"}],
    ]
    assert seen["completion_ids"] == [[5, 6], [5, 6]]
    assert seen["answer"] == ["42", "42"]
    assert seen["kwargs"] == {"task_id": ["sum-1", "sum-1"], "difficulty": [3, 3]}


def test_notes_only_when_asked_for_by_name() -> None:
    def reward(completions, **kwargs):  # type: ignore[no-untyped-def]
        return [float("log_extra" in kwargs or "log_metric" in kwargs or "trainer_state" in kwargs)]

    assert values(call(reward, ["a"])) == [0.0]


def test_group_is_compared() -> None:
    def longest(group: Group, difficulty: int) -> list[float]:
        best = max(len(t.text) for t in group.trajectories)
        return [float(len(t.text) == best) * difficulty for t in group.trajectories]

    assert values(call(longest, ["a", "bcd", "ef"])) == [0.0, 3.0, 0.0]


def test_async_rewards_are_awaited_on_one_loop() -> None:
    import asyncio

    loops = []

    async def sample(completion: str) -> float:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())
        return 2.0

    async def batch(completions: list[Any]) -> list[float]:
        loops.append(asyncio.get_running_loop())
        return [3.0] * len(completions)

    class Caller:
        async def __call__(self, completion: str) -> float:
            return 4.0

    assert values(call(sample, ["a", "b"])) == [2.0, 2.0]
    assert values(call(batch, ["a", "b"])) == [3.0, 3.0]
    assert values(call(Caller(), ["a"])) == [4.0]
    assert len(set(loops)) == 1
    assert plan_call(sample, SPEC).is_async
    assert plan_call(Caller(), SPEC).is_async


def test_partials_and_callables_are_functions() -> None:
    def reward(completion: str, scale: float) -> float:
        return scale

    assert values(call(functools.partial(reward, scale=5.0), ["a"])) == [5.0]


def test_a_reward_cannot_change_the_task() -> None:
    def reward(messages: list[dict[str, str]]) -> float:
        messages[0]["content"] = "changed"
        messages.clear()
        return 1.0

    group = make_group(["a"])
    plan = plan_call(reward, SPEC)
    run(plan, reward, call_arguments(plan, SPEC, group, 0), 1)
    assert group.task.messages[0]["content"] == "Be brief."


def test_signatures_that_cannot_be_called_are_refused() -> None:
    def mixed(completion, prompts): ...  # type: ignore[no-untyped-def]
    def mixed_prompt(prompt, completions): ...  # type: ignore[no-untyped-def]
    def mixed_group(group, completions): ...  # type: ignore[no-untyped-def]
    def positional(completion, /): ...  # type: ignore[no-untyped-def]
    def fine(completion, max_words=3): ...  # type: ignore[no-untyped-def]

    assert "mix completion with prompts" in refusal(mixed)
    assert "mix prompt with completions" in refusal(mixed_prompt)
    assert "mix completions with group" in refusal(mixed_group)

    def texts(completions: list[str]): ...  # type: ignore[no-untyped-def]
    def messages(completions: list[list[Any]]): ...  # type: ignore[no-untyped-def]

    assert f"Name it trl:{SPEC.path}, which hands over texts" in refusal(texts)
    assert plan_call(messages, RewardSpec(path="x:y")).kind == "batch"
    assert "'completion' is positional-only" in refusal(positional)
    assert "Did you mean 'max_words'?" in refusal(fine, max_word=3)
    assert "args.completion comes from the sample" in refusal(fine, completion="x")


def test_a_parameter_that_nothing_supplies_is_named() -> None:
    def reward(completion, dificulty): ...  # type: ignore[no-untyped-def]

    plan = plan_call(reward, SPEC)
    with pytest.raises(ValueError, match="nothing supplies its parameter 'dificulty'") as caught:
        check_columns(plan, SPEC, {"difficulty"})
    assert "mine.py:reward" in str(caught.value)
    assert "Did you mean 'difficulty'?" in str(caught.value)
    assert "Available: answer, completion, difficulty, messages, prompt, task_id, trajectory" in str(caught.value)
    check_columns(plan, SPEC, {"dificulty"})
    check_columns(plan, RewardSpec(path=SPEC.path, weight=1.0, args={"dificulty": 1}), ())


def test_arguments_have_one_order_in_every_process() -> None:
    def reward(trajectory: Any, messages: Any, completion: str, prompt: str, task_id: str, answer: str) -> int:
        return 0

    arguments = call_arguments(plan_call(reward, SPEC), SPEC, make_group(["a"]), 0)
    assert list(arguments) == ["answer", "task_id", "prompt", "completion", "messages", "trajectory"]


def test_fixed_arguments_win_over_columns() -> None:
    def reward(completion: str, difficulty: int) -> int:
        return difficulty

    assert values(call(reward, ["a"])) == [3.0]
    assert values(call(reward, ["a"], difficulty=9)) == [9.0]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, 1.0),
        (True, 1.0),
        (-0.5, -0.5),
        (np.float32(0.5), 0.5),
        (np.int64(3), 3.0),
        (np.bool_(True), 1.0),
        (np.array(2.0), 2.0),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor(4), 4.0),
        (LARGEST, LARGEST),
        (-LARGEST, -LARGEST),
    ],
)
def test_numbers_are_values(value: Any, expected: float) -> None:
    outcome = read(value)
    assert outcome == Score(value=expected)
    assert isinstance(outcome, Score)
    assert type(outcome.value) is float  # plain data, which JSON carries


@pytest.mark.parametrize(
    ("value", "kind", "said"),
    [
        (float("nan"), "not_finite", "returned nan"),
        (float("-inf"), "not_finite", "returned -inf"),
        (np.float32("nan"), "not_finite", "returned nan"),
        (10**400, "too_large", "too large"),
        (1e308, "too_large", "returned 1e+308, beyond what a reward may be (-1e+09 to 1e+09)"),
        (-1.001e9, "too_large", "returned -1.001e+09"),
        ("0.5", "type", "got str '0.5'"),
        ([0.5], "type", "got list [0.5]"),
        (np.array([0.5]), "type", "got ndarray"),
        (torch.tensor([0.5]), "type", "got Tensor"),
        (np.str_("0.5"), "type", "got str '0.5'"),
        (1j, "type", "got complex 1j"),
        (Fraction(1, 2), "type", "got Fraction"),
        (float, "type", "got type"),
        ({}, "type", "empty dict"),
        ({1: 0.5}, "type", "names of parts"),
        ({"a": 0.5, "b": "x"}, "type", "part 'b'"),
        ({"a": 0.5, "b": float("nan")}, "not_finite", "part 'b'"),
        ({"a": 1e308, "b": 1e308}, "too_large", "part 'a': returned 1e+308"),
        ({"a": 6e8, "b": 6e8}, "too_large", "its parts add up to 1.2e+09"),
        ({"score": 1.0, "b": 1e10}, "too_large", "part 'b'"),
        ({"score": "high"}, "type", "part 'score'"),
        ({"score": 1.0, "b": float("inf")}, "not_finite", "part 'b'"),
        (KeyError("answer"), "error", "KeyError: 'answer'"),
    ],
)
def test_what_is_no_number_is_a_failure(value: Any, kind: str, said: str) -> None:
    outcome = read(value)
    assert isinstance(outcome, Failed)
    assert outcome.kind == kind
    assert said in outcome.message


def test_named_parts() -> None:
    assert read({"correct": 1, "format": 0.25}) == Score(value=1.25, parts={"correct": 1.0, "format": 0.25})
    assert read({"score": 0.5, "accuracy": True, "pred": "42"}) == Score(value=0.5, parts={"accuracy": 1.0})
    assert read({"correct": 1.0, "style": None}) == Score(value=1.0, parts={"correct": 1.0})


def test_a_number_of_turns_beside_a_score_is_a_part() -> None:
    assert read({"score": 1.0, "turns": 3}) == Score(value=1.0, parts={"turns": 3.0})
    assert read({"score": 1.0, "turns": np.int64(3)}) == Score(value=1.0, parts={"turns": 3.0})
    assert read({"turns": [1.0, 2.0], "style": 5}) == Score(value=3.0, parts={"style": 5.0}, turns=(1.0, 2.0))
    for refused in ({"score": 3.0, "turns": [1.0, 2.0]}, {"score": 3.0, "turns": np.ones(2)}, {"turns": 3}):
        outcome = read(refused)
        assert isinstance(outcome, Failed)
        assert "turns" in outcome.message


def test_none_abstains() -> None:
    assert read(None) == Abstain(reason="returned None")
    assert isinstance(read({"score": None, "a": 1.0}), Abstain)
    assert isinstance(read({"a": None}), Abstain)


def test_batched_results() -> None:
    scores = [Score(value=1.0), Score(value=0.0)]
    for result in ([1.0, 0.0], (1, 0), np.array([1.0, 0.0]), torch.tensor([1.0, 0.0])):
        assert read_many(result, 2) == scores
    mixed = read_many([1.0, None, "x", {"a": 2.0}], 4)
    assert [type(outcome) for outcome in mixed] == [Score, Abstain, Failed, Score]


@pytest.mark.parametrize(
    ("result", "kind", "said"),
    [
        ([1.0], "length", "expected 8 values, got 1"),
        ([1.0] * 9, "length", "expected 8 values, got 9"),
        ([], "length", "expected 8 values, got 0"),
        (np.ones(1), "length", "expected 8 values, got 1"),
        (1.0, "type", "expected a list of 8 values, got float 1.0"),
        (None, "type", "got NoneType None"),
        ("12345678", "type", "got str"),
        ({"a": 1.0}, "type", "got dict"),
        (np.ones((8, 1)), "type", "got ndarray"),
    ],
)
def test_a_wrong_number_of_values_fails_all_members(result: Any, kind: str, said: str) -> None:
    outcomes = read_many(result, 8)
    assert len(outcomes) == 8
    for outcome in outcomes:
        assert isinstance(outcome, Failed)
        assert outcome.kind == kind
        assert said in outcome.message


def test_an_exception_is_a_failure_with_its_traceback() -> None:
    def reward(completion: str) -> float:
        raise KeyError(f"no such thing: {completion}")

    (outcome,) = call(reward, ["abc"])
    assert isinstance(outcome, Failed)
    assert outcome.kind == "error"
    assert outcome.message.endswith("KeyError: 'no such thing: abc'")
    assert "in reward" in outcome.message
    assert "worker.py" not in outcome.message


@pytest.mark.parametrize("error", [SystemExit(0), GeneratorExit(), RecursionError(), AssertionError()])
def test_no_exception_escapes_or_becomes_a_number(error: BaseException) -> None:
    def reward(completion: str) -> float:
        raise error

    (outcome,) = call(reward, ["a"])
    assert isinstance(outcome, Failed)
    assert outcome.kind == "error"
    assert type(error).__name__ in outcome.message


def test_the_users_interrupt_is_not_a_result() -> None:
    def reward(completion: str) -> float:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        call(reward, ["a"])


def test_hostile_exceptions_and_long_messages() -> None:
    class MuteError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    def mute(completion: str) -> float:
        raise MuteError

    def long(completion: str) -> float:
        raise ValueError("x" * 1_000_000 + "end")

    def unprintable(completion: str) -> Any:
        class Odd:
            def __repr__(self) -> str:
                raise RuntimeError("no words")

        return Odd()

    for function, kind, said in (
        (mute, "error", "MuteError"),
        (long, "error", "end"),
        (unprintable, "type", "Odd"),
    ):
        (outcome,) = call(function, ["a"])
        assert isinstance(outcome, Failed)
        assert outcome.kind == kind
        assert said in outcome.message
        assert len(outcome.message) < MESSAGE_LIMIT + 50


def specs(*weights: float) -> list[RewardSpec]:
    return [RewardSpec(path=f"m:r{index}", weight=weight) for index, weight in enumerate(weights)]


FAILED = Failed(kind="error", message="boom", reproduce="print()")
ABSTAIN = Abstain(reason="returned None")


def test_combine_is_a_weighted_sum_with_unweighted_parts() -> None:
    outcomes = [Score(value=1.0, parts={"a": 0.75, "b": 0.25}), Score(value=2.0)]
    # 0.5 * 1 + -1 * 2 = -1.5
    assert combine(specs(0.5, -1.0), outcomes) == Score(
        value=-1.5, parts={"r0": 1.0, "r0/a": 0.75, "r0/b": 0.25, "r1": 2.0}
    )


def test_combine_failures() -> None:
    failed = combine(specs(1.0, 0.5), [Score(value=1.0), FAILED])
    assert failed == Failed(kind="error", message="r1: boom", reproduce="print()", parts={"r0": 1.0})
    assert combine(specs(1.0, 0.0), [Score(value=1.0), FAILED]) == Score(value=1.0, parts={"r0": 1.0})
    assert failed_rewards(specs(1.0, 0.0, 0.0), [Score(value=1.0), FAILED, ABSTAIN]) == {"r1": FAILED}
    assert failed_rewards(specs(1.0, 0.5), [FAILED, FAILED]) == {"r0": FAILED, "r1": FAILED}
    overflow = combine(specs(1e308, 1e308), [Score(value=1.0), Score(value=1.0)])
    assert isinstance(overflow, Failed)
    assert (overflow.kind, overflow.message) == ("not_finite", "weighted sum 1e+308 * 1.0 + 1e+308 * 1.0 is inf")
    large = combine(specs(2.0, 1.0), [Score(value=LARGEST), Score(value=1.0)])
    assert isinstance(large, Failed)
    assert (large.kind, large.reproduce) == ("too_large", "print(2.0 * 1000000000.0 + 1.0 * 1.0)")
    assert large.message.startswith("weighted sum 2.0 * 1000000000.0 + 1.0 * 1.0 is 2e+09, beyond")


def test_combine_bounds_what_each_action_adds() -> None:
    cancels = Score(value=0.0, turns=(LARGEST, -LARGEST))
    assert combine(specs(1.0, 1.0), [cancels, Score(value=2.0)]).turns == (LARGEST, 2.0 - LARGEST)
    failed = combine(specs(2.0, 1.0), [cancels, Score(value=2.0)])
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.reproduce) == ("too_large", "print(2.0 * 1000000000.0 + 1.0 * 0.0)")
    assert failed.message.startswith("turns[0] of the weighted sum is 2e+09, beyond")


def test_combine_abstentions() -> None:
    assert combine(specs(1.0, 2.0), [ABSTAIN, Score(value=3.0)]) == Score(value=6.0, parts={"r1": 3.0})
    assert combine(specs(1.0, 2.0), [ABSTAIN, ABSTAIN]) == Abstain(reason="r0: returned None; r1: returned None")
    # An observing reward has no say: without a weight there is nothing to train on.
    observed = combine(specs(1.0, 0.0), [ABSTAIN, Score(value=3.0, parts={"p": 2.0})])
    assert observed == Abstain(reason="r0: returned None", parts={"r1": 3.0, "r1/p": 2.0})
    assert combine(specs(1.0, 0.0), [Score(value=0.0), ABSTAIN]) == Score(value=0.0, parts={"r0": 0.0})


def test_spec_defaults_and_refusals() -> None:
    assert RewardSpec(path="rewards.exact_answer:exact_answer").label == "exact_answer"
    assert RewardSpec(path="a/b.py:c", name="d").label == "d"
    assert RewardSpec(path="adapter:a/b").label == "b"
    with pytest.raises(ValueError, match="finite"):
        RewardSpec(path="m:r", weight=float("nan"))
    with pytest.raises(ValueError, match="contains '/'"):
        RewardSpec(path="m:r", name="a/b")
    with pytest.raises(ValueError, match="can only be `normalize`, got x"):
        RewardSpec(path="adapter:a/b", args={"x": 1})
