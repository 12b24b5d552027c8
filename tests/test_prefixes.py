"""What prompts share, and what an episode's earlier turns leave, is computed once and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlft.model.adapter import bare_base
from rlft.model.kernels.kv_cache import Span
from rlft.rollout.engines import prefixes
from rlft.rollout.engines.contract import Request
from rlft.rollout.engines.prefixes import shared_parts
from rlft.rollout.engines.transformers import TransformersEngine
from rlft.types import Completion, SamplingParams
from tests.test_engine import assert_same, make_engine, save_family

SAMPLED = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=8)
SYSTEM = tuple(range(10, 34))
TOOLS = (*SYSTEM, *range(50, 66))
REQUESTS = [
    Request(prompt_ids=(*TOOLS, 71, 72, 73), seeds=(1, 2)),
    Request(prompt_ids=(*SYSTEM, 80, 81), seeds=(3,)),
    Request(prompt_ids=(*TOOLS, 90), seeds=(4, 5)),
    Request(prompt_ids=TOOLS, seeds=(6,)),  # ends where the others go on
    Request(prompt_ids=(*TOOLS, 90), seeds=(7,)),  # the same as an earlier one
    Request(prompt_ids=(5, 6, 7), seeds=(8,)),  # shares nothing
]


# The tree


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12).map(tuple), min_size=1, max_size=12),
    st.integers(1, 20),
)
def test_parts_are_what_prompts_begin_with_and_are_worth_it(prompts: list[tuple[int, ...]], worth: int) -> None:
    parts, part_of = shared_parts(prompts, worth=worth)
    users = [0] * len(parts)
    for prompt, last in zip(prompts, part_of, strict=True):
        end = len(prompt)
        while last is not None:
            part = parts[last]
            assert part.start + len(part.token_ids) <= end - (end == len(prompt))  # the last token is in none
            assert prompt[part.start : part.start + len(part.token_ids)] == part.token_ids
            users[last] += 1
            assert part.parent is None or part.parent < last
            end, last = part.start, part.parent
        assert end == 0 or part_of[prompts.index(prompt)] is None
    for part, count in zip(parts, users, strict=True):
        assert (count - 1) * len(part.token_ids) >= worth
    if worth == 1:  # then nothing that two prompts have in common is left out
        computed = sum(len(part.token_ids) for part in parts)
        for prompt, last in zip(prompts, part_of, strict=True):
            known = parts[last].start + len(parts[last].token_ids) if last is not None else 0
            computed += len(prompt) - 1 - known
        assert computed == len({prompt[:end] for prompt in prompts for end in range(1, len(prompt))})


# The engine


@pytest.fixture(params=["LlamaConfig", "GPT2Config"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> TransformersEngine:
    """One with a forward pass of its own, and one with transformers' layers."""
    changes = {"n_inner": 48} if request.param == "GPT2Config" else {}
    made = make_engine(save_family(tmp_path / "model", request.param, changes))
    made.load_adapter(bare_base())
    return made


class Counted:
    """How many tokens the engine's prompts were computed from."""

    def __init__(self, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = 0
        prefill = engine._forward.prefill

        def counted(sequences: Sequence[Sequence[int]], contexts: Sequence[Sequence[Span]]) -> list[Span]:
            self.tokens += sum(map(len, sequences))
            return prefill(sequences, contexts)

        monkeypatch.setattr(engine._forward, "prefill", counted)

    def of(self, call: Any) -> tuple[Any, int]:
        self.tokens = 0
        return call(), self.tokens


@pytest.fixture
def counted(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(engine, monkeypatch)


def test_prompts_that_begin_alike_are_computed_once(
    engine: TransformersEngine, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, tokens = counted.of(lambda: [engine.generate([each], SAMPLED, version=-1)[0] for each in REQUESTS])
    assert tokens == sum(len(each.prompt_ids) - 1 for each in REQUESTS)
    monkeypatch.setattr(shared_parts, "__kwdefaults__", {"worth": 16})
    found, tokens = counted.of(lambda: engine.generate(REQUESTS, SAMPLED, version=-1))
    assert_same(found, expected)
    # The system prompt, the tools but for the last token of the prompt that ends there, and what is left of each.
    assert tokens == 24 + 15 + (3 + 1 + 1 + 0 + 1) + 2
    # Rows that come later find what the first ones had computed.
    monkeypatch.setattr(engine, "_max_rows", 2)
    found, again = counted.of(lambda: engine.generate(REQUESTS, SAMPLED, version=-1))
    assert_same(found, expected)
    assert again == tokens + 1  # of a prompt whose samples come at different times the last one is computed twice


def second_turn(first: Sequence[Request], completions: Sequence[Sequence[Completion]]) -> list[Request]:
    """The same samples after an observation."""
    return [
        Request(
            prompt_ids=(*request.prompt_ids, *completion.token_ids, 100, 101, 102),
            seeds=(seed + 100,),
            continues=True,
        )
        for request, samples in zip(first, completions, strict=True)
        for seed, completion in zip(request.seeds, samples, strict=True)
    ]


def test_earlier_turns_are_not_computed_again(
    engine: TransformersEngine, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_end_ids", frozenset(range(0, 260, 3)))  # so that most samples end by themselves
    first = [replace(each, goes_on=True) for each in REQUESTS]
    completions = engine.generate(first, SAMPLED, version=-1)
    ended = [sample.finish_reason == "stop" for samples in completions for sample in samples]
    assert sum(ended) >= 5
    turn = [each for each, has_ended in zip(second_turn(first, completions), ended, strict=True) if has_ended]
    found, tokens = counted.of(lambda: engine.generate(turn, SAMPLED, version=-1))
    # Of each its last sampled token and two of the observation: the third is what sampling begins with.
    assert tokens == 3 * len(turn)
    # Nothing is left of it for a call that continues none of it, nor for another adapter.
    alone = [replace(each, continues=False) for each in turn]
    whole = sum(len(each.prompt_ids) - 1 for each in turn)
    expected, tokens = counted.of(lambda: [engine.generate([each], SAMPLED, version=-1)[0] for each in alone])
    assert tokens == whole
    assert_same(found, expected)
    engine.generate(first, SAMPLED, version=-1)
    engine.load_adapter(bare_base())
    monkeypatch.setattr(prefixes, "WORTH", 10**9)
    again, tokens = counted.of(lambda: [engine.generate([each], SAMPLED, version=-1)[0] for each in turn])
    assert tokens == whole
    assert_same(again, expected)


def test_what_would_take_too_much_memory_is_computed_again(
    engine: TransformersEngine, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_end_ids", frozenset(range(0, 260, 3)))
    many = [Request(prompt_ids=TOOLS, seeds=(seed,)) for seed in range(40)]
    sampled = [samples[0] for samples in engine.generate(many, SAMPLED, version=-1)]
    ended = [n for n, sample in enumerate(sampled) if len(sample.token_ids) == 3 and sample.finish_reason == "stop"]
    first = [replace(many[n], goes_on=True) for n in ended[:2]]
    completions = engine.generate(first, SAMPLED, version=-1)
    turn = second_turn(first, completions)
    span = next(iter(engine._kept.values()))[-1]
    expected, few = counted.of(lambda: engine.generate(turn, SAMPLED, version=-1))
    # Room for this call, and for what one of its two samples leaves.
    monkeypatch.setattr(engine, "_cache_bytes", 2.5 * sum(each.nbytes for each in span))
    monkeypatch.setattr(engine, "_room", lambda requests, params: (2, 2))
    assert engine.generate(first, SAMPLED, version=-1) == completions
    found, more = counted.of(lambda: engine.generate(turn, SAMPLED, version=-1))
    assert_same(found, expected)
    assert few == 2 * 3
    assert more == 3 + len(turn[1].prompt_ids) - 1
