"""What prompts share, and what an episode's earlier turns leave, is computed once and changes nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlft.model.adapter import bare_base
from rlft.model.kernels.kv_cache import Span
from rlft.rollout.engines import forward as engine_forward
from rlft.rollout.engines import llama_forward, prefixes
from rlft.rollout.engines.contract import Request
from rlft.rollout.engines.prefixes import KeptTurns, shared_parts
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


@settings(deadline=None)
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
    """How many tokens the engine's prompts were computed from, and in how many passes."""

    def __init__(self, engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tokens = self.passes = 0
        for layer in engine._model.modules():
            if type(layer).__name__ in ("GPT2Model",):
                layer.register_forward_pre_hook(self.passed)
        prefill = engine._forward.prefill

        def counted(sequences: Sequence[Sequence[int]], contexts: Sequence[prefixes.Context]) -> list[Span]:
            self.tokens += sum(map(len, sequences))
            return prefill(sequences, contexts)

        monkeypatch.setattr(engine._forward, "prefill", counted)

    def passed(self, *arguments: Any) -> None:
        self.passes += 1

    def of(self, call: Any) -> tuple[Any, int]:
        self.tokens = self.passes = 0
        return call(), self.tokens


@pytest.fixture
def counted(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(engine, monkeypatch)


def test_prompts_that_begin_alike_are_computed_once(
    engine: TransformersEngine, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, tokens = counted.of(lambda: [engine.generate([each], SAMPLED, version=-1)[0] for each in REQUESTS])
    assert tokens == sum(len(each.prompt_ids) - 1 for each in REQUESTS)
    monkeypatch.setattr(prefixes, "WORTH_A_PASS", prefixes.WORTH)
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


def test_a_shared_beginning_costs_one_pass_more(
    engine: TransformersEngine, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    if engine._forward.packs_contexts:
        pytest.skip("has no layers to count passes by")
    many = [Request(prompt_ids=(*SYSTEM, 80 + n, 5), seeds=(n,)) for n in range(16)]
    once = replace(SAMPLED, max_new_tokens=1)
    counted.of(lambda: engine.generate(many, once, version=-1))
    assert counted.passes == 2 + 1  # the beginning, the rest of all, and the step that samples
    monkeypatch.setattr(prefixes, "WORTH_A_PASS", 10**9)
    counted.of(lambda: engine.generate(many, once, version=-1))
    assert counted.passes == 1 + 1


def test_long_prompts_do_not_make_short_ones_wait(
    engine: TransformersEngine, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_forward, "TOKENS_PER_PASS", 80)
    monkeypatch.setattr(llama_forward, "TOKENS_PER_PASS", 80)
    lengths = [6] * 7 + [50] + [6] * 7
    mixed = [Request(prompt_ids=(60 + n, *range(4, 4 + length)), seeds=(n,)) for n, length in enumerate(lengths)]
    once = replace(SAMPLED, max_new_tokens=2)
    found, tokens = counted.of(lambda: engine.generate(mixed, once, version=-1))
    assert tokens == sum(lengths)
    if not engine._forward.packs_contexts:
        assert counted.passes == 3 + 2  # 10 of 8 tokens, padding included, the 4 others, the long one; then two steps
    assert_same(found, [engine.generate([each], once, version=-1)[0] for each in mixed])


def test_many_turns_take_no_longer_each(engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every turn adds two segments to an episode's tree."""
    monkeypatch.setattr(engine, "_end_ids", frozenset(range(260)))
    ids, turns = SYSTEM[:4], 16
    for turn in range(turns):
        request = Request(prompt_ids=ids, seeds=(turn,), goes_on=True, continues=True)
        ((completion,),) = engine.generate([request], replace(SAMPLED, max_new_tokens=1), version=-1)
        ids = (*ids, *completion.token_ids, 100)
        assert len(engine._kept) == engine._forward.packs_contexts
    assert len(ids) == 4 + 2 * turns


def test_earlier_turns_are_not_computed_again(
    engine: TransformersEngine, counted: Counted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "_end_ids", frozenset(range(0, 260, 3)))  # so that most samples end by themselves
    first = [replace(each, goes_on=True) for each in REQUESTS]
    completions = engine.generate(first, SAMPLED, version=-1)
    ended = [sample.finish_reason == "stop" for samples in completions for sample in samples]
    assert sum(ended) >= 5
    turn = [each for each, has_ended in zip(second_turn(first, completions), ended, strict=True) if has_ended]
    whole = sum(len(each.prompt_ids) - 1 for each in turn)
    found, tokens = counted.of(lambda: engine.generate(turn, SAMPLED, version=-1))
    # Of each its last sampled token and two of the observation: the third is what sampling begins with. Where every
    # context would need a pass of its own nothing is kept.
    assert tokens == 3 * len(turn) if engine._forward.packs_contexts else tokens > 3 * len(turn)
    assert len(engine._kept) == 0
    # Nothing is left for a call that continues none of it, nor for another adapter, nor once it is let go of.
    alone = [replace(each, continues=False) for each in turn]
    expected, tokens = counted.of(lambda: [engine.generate([each], SAMPLED, version=-1)[0] for each in alone])
    assert tokens == whole
    assert_same(found, expected)
    for let_go in (lambda: engine.load_adapter(bare_base()), engine.forget):
        engine.generate(first, SAMPLED, version=-1)
        let_go()
        again, tokens = counted.of(lambda: [engine.generate([each], SAMPLED, version=-1)[0] for each in turn])
        assert tokens == whole
        assert_same(again, expected)


def held_bytes(kept: KeptTurns) -> int:
    """Of all storages that are kept, each once: a view holds the whole of what it is a view of."""
    storages = {
        each.untyped_storage().data_ptr(): each.untyped_storage().nbytes()
        for spans in kept._spans.values()
        for span in spans
        for each in span
    }
    return sum(storages.values())


@pytest.mark.parametrize("share", [0.3, 0.6, 10.0])
def test_what_is_kept_over_several_turns_stays_within_its_bound(
    engine: TransformersEngine, monkeypatch: pytest.MonkeyPatch, share: float
) -> None:
    monkeypatch.setattr(engine, "_end_ids", frozenset(range(0, 260, 2)))
    monkeypatch.setattr(engine, "_room", lambda requests, params: (9, 8))
    # What is a prompt's own, behind what all begin with, has no token or one; and one prompt is a single token.
    prompts = [(*SYSTEM[:8], 60 + n, *[5] * (n % 2)) for n in range(7)] + [(90,)]
    requests = [Request(prompt_ids=ids, seeds=(n, n + 50), goes_on=True) for n, ids in enumerate(prompts)]
    tokens = sum(len(each.prompt_ids) + 2 * 3 for each in requests)
    bound = share * tokens * engine._per_token()
    monkeypatch.setattr(engine, "_cache_bytes", 2 * bound)
    kept = []
    for _ in range(3):
        completions = engine.generate(requests, replace(SAMPLED, max_new_tokens=4), version=-1)
        assert held_bytes(engine._kept) <= bound
        kept.append(len(engine._kept))
        alone = (
            [
                engine.generate([replace(each, continues=False)], replace(SAMPLED, max_new_tokens=4), version=-1)[0]
                for each in requests
            ]
            if share == 0.6
            else None
        )
        if alone is not None:  # that call lets go of what was kept, so that the next turn is computed whole
            assert_same(completions, alone)
        turn = second_turn(requests, completions)
        ended = [sample.finish_reason == "stop" for samples in completions for sample in samples]
        requests = [replace(each, goes_on=True) for each, over in zip(turn, ended, strict=True) if over]
        requests = [each for each in requests if len(each.prompt_ids) < 50]
    assert (max(kept) > 0) == engine._forward.packs_contexts
    engine.forget()
    assert held_bytes(engine._kept) == 0
