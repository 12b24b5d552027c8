"""Batches: what goes in, how they are cut, and that a packed row is exactly its sequences one by one."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlft.learner.batch import collate, minibatches, mismatched, num_tokens, pack, select, shared_prefix, unscored
from rlft.learner.microbatches import default_tokens, default_tokens_of, even_microbatches, microbatches, packed_length
from rlft.model.base import recompute_layers, sequence_scores, token_logprobs, token_values
from rlft.model.kernels import library, tree_attention
from rlft.model.layers.packed import PackedGroup
from rlft.model.layers.packed_attention import NAME as PACKED_ATTENTION
from rlft.objectives.advantages import best_and_worst, token_advantages
from rlft.objectives.algorithm import Algorithm, PreferenceObjective
from rlft.objectives.policy import aggregation_weights, policy_loss
from rlft.objectives.preference import preference_loss
from rlft.objectives.presets import PRESETS
from rlft.types import Abstain, Batch, Failed, Group
from tests.fakes import made_up_group
from tests.test_kernels import called

VOCAB = 64
GRPO = PRESETS["grpo"]


def made_up_batch(sizes: list[tuple[int, list[int]]], common: int = 0) -> Batch:
    """A batch of groups, given as (prompt length, completion lengths), whose prompts have `common` tokens before."""
    batch = collate(
        [
            made_up_group(
                [float(index) for index, _ in enumerate(lengths)],
                task_id=f"task-{number}",
                prompt_length=prompt_length,
                lengths=lengths,
                vocab=VOCAB,
            )
            for number, (prompt_length, lengths) in enumerate(sizes)
        ]
    )
    return replace(batch, prompt_ids=tuple((*range(5, 5 + common), *prompt) for prompt in batch.prompt_ids))


RAGGED = [(4, [3, 1, 5]), (1, [2]), (2, [4, 4]), (6, [1, 1, 1, 2])]


# collate, select, minibatches


def test_collate_leaves_out_what_has_no_score() -> None:
    failed, abstained = Failed(kind="crash", message="", reproduce=""), Abstain(reason="")
    first = made_up_group([1.0, failed, 0.5], task_id="a", lengths=[2, 9, 1])
    second = made_up_group([failed, abstained], task_id="b")
    third = made_up_group([abstained, 0.25], task_id="c", lengths=[9, 3])
    batch = collate([first, second, third])
    kept = [first.trajectories[0], first.trajectories[2], third.trajectories[1]]
    assert batch.token_ids == tuple(t.token_ids for t in kept)
    assert batch.prompt_ids == tuple(t.prompt_ids for t in kept)
    assert batch.rewards.tolist() == [1.0, 0.5, 0.25]
    assert batch.group_index.tolist() == [0, 0, 1]  # the group without a score leaves no gap
    assert batch.sequence_index.tolist() == [0, 0, 1, 2, 2, 2]
    expected = torch.tensor([logprob for t in kept for logprob in t.logprobs])
    assert torch.equal(batch.rollout_logprobs, expected)


def test_collate_keeps_which_answers_were_cut_and_what_the_greedy_one_got() -> None:
    failed = Failed(kind="crash", message="", reproduce="")
    whole = made_up_group([1.0, failed], task_id="a", baseline_score=0.75)
    cut = made_up_group([failed, 0.0, 0.5], task_id="b", finish_reason="length", baseline_score=-1.0)
    batch = collate([whole, cut])
    assert batch.is_truncated.tolist() == [False, True, True]
    assert batch.baseline_rewards is not None
    assert batch.baseline_rewards.tolist() == [0.75, -1, -1]
    # A group without any score is not in the batch, nor is what its greedy answer got.
    assert collate([made_up_group([failed], baseline_score=None), whole]).baseline_rewards is not None
    assert collate([whole, replace(cut, baseline_score=None)]).baseline_rewards is None


def test_collate_refuses_a_step_without_scores() -> None:
    with pytest.raises(ValueError, match="no trajectory of this step has a score"):
        collate([made_up_group([Abstain(reason="")])])


@pytest.mark.parametrize("number", [float("nan"), float("-inf")])
def test_collate_refuses_what_a_broken_engine_sampled(number: float) -> None:
    group = made_up_group([1.0, 0.0], lengths=[2, 2])
    turn = group.trajectories[1].turns[0]
    broken = replace(turn, completion=replace(turn.completion, logprobs=(-1.0, number)))
    trajectories = (group.trajectories[0], replace(group.trajectories[1], turns=(broken,)))
    with pytest.raises(ValueError, match=r"log-probs of sampled tokens are not all finite.*model\.dtype=float32"):
        collate([replace(group, trajectories=trajectories)])


def numbered(batch: Batch) -> Batch:
    """The batch with every field of tokens or sequences filled with numbers of its own."""
    count = batch.sequence_index.numel()
    names = ("old_logprobs", "ref_logprobs", "values", "advantages", "returns", "weights")
    return replace(
        batch,
        is_truncated=torch.arange(batch.num_sequences) % 2 == 1,
        baseline_rewards=torch.arange(batch.num_sequences) + 0.5,
        **{name: torch.arange(count) + 1000.0 * i for i, name in enumerate(names, start=1)},
    )


@pytest.mark.parametrize("sequences", [[0], [1, 2, 5], [3, 4], list(range(10))])
def test_select_keeps_every_field_with_its_token(sequences: list[int]) -> None:
    batch = numbered(made_up_batch(RAGGED))
    part = select(batch, sequences)
    assert part.token_ids == tuple(batch.token_ids[s] for s in sequences)
    assert part.prompt_ids == tuple(batch.prompt_ids[s] for s in sequences)
    assert part.action_mask == tuple(batch.action_mask[s] for s in sequences)
    assert part.rewards.tolist() == [batch.rewards[s].item() for s in sequences]
    assert part.is_truncated.tolist() == [s % 2 == 1 for s in sequences]
    assert part.baseline_rewards is not None
    assert part.baseline_rewards.tolist() == [s + 0.5 for s in sequences]
    assert part.sequence_index.tolist() == [n for n, s in enumerate(sequences) for _ in batch.token_ids[s]]
    groups = [int(batch.group_index[s]) for s in sequences]
    assert part.group_index.tolist() == [sorted(set(groups)).index(group) for group in groups]
    for field in fields(Batch):
        whole = getattr(batch, field.name)
        if isinstance(whole, Tensor) and whole.shape == batch.sequence_index.shape and field.name != "sequence_index":
            expected = torch.cat([whole[batch.sequence_index == s] for s in sequences])
            assert torch.equal(getattr(part, field.name), expected), field.name


def test_select_leaves_absent_fields_absent() -> None:
    part = select(replace(made_up_batch(RAGGED), baseline_rewards=None), [0, 1])
    assert part.old_logprobs is part.values is part.advantages is part.baseline_rewards is None


@pytest.mark.parametrize("updates", [1, 2, 3, 4])
def test_minibatches_are_whole_groups_in_order(updates: int) -> None:
    batch = numbered(made_up_batch(RAGGED))
    parts = minibatches(batch, updates)
    assert len(parts) == updates
    assert tuple(itertools.chain(*(part.token_ids for part in parts))) == batch.token_ids
    assert torch.equal(torch.cat([part.advantages for part in parts]), batch.advantages)
    # No prompt, hence no group, stands in two of them.
    prompts = [set(part.prompt_ids) for part in parts]
    assert sum(map(len, prompts)) == len(set().union(*prompts)) == 4
    assert max(map(len, prompts)) - min(map(len, prompts)) <= 1


def test_fewer_groups_than_updates_give_fewer_minibatches() -> None:
    parts = minibatches(made_up_batch(RAGGED[:2]), 4)
    assert [part.num_sequences for part in parts] == [3, 1]


# microbatches

SIZES = st.lists(
    st.tuples(st.integers(1, 8), st.lists(st.integers(1, 9), min_size=1, max_size=5)), min_size=1, max_size=5
)


SHORT_PREFIXES = mock.patch("rlft.learner.batch.MIN_PREFIX", 3)
"""Three tokens are shared already."""


@SHORT_PREFIXES
@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, tokens=st.integers(1, 60), common=st.integers(0, 6))
def test_microbatches_cover_everything_once_within_the_budget(
    sizes: list[tuple[int, list[int]]], tokens: int, common: int
) -> None:
    batch = made_up_batch(sizes, common)
    parts = microbatches(batch, tokens)
    assert list(itertools.chain(*parts)) == list(range(batch.num_sequences))
    packed_tokens = [pack(select(batch, part)).token_ids.shape[1] for part in parts]
    for part, count in zip(parts, packed_tokens, strict=True):
        assert count <= tokens or len(part) == 1
    # None is cut short: the next sequence would not have fitted.
    for part, following in itertools.pairwise(parts):
        assert pack(select(batch, [*part, following[0]])).token_ids.shape[1] > tokens


@SHORT_PREFIXES
@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, tokens=st.integers(1, 60), common=st.integers(0, 6))
def test_microbatches_of_whole_groups_never_split_one(
    sizes: list[tuple[int, list[int]]], tokens: int, common: int
) -> None:
    batch = made_up_batch(sizes, common)
    parts = microbatches(batch, tokens, whole_groups=True)
    assert list(itertools.chain(*parts)) == list(range(batch.num_sequences))
    groups = [sorted({int(batch.group_index[s]) for s in part}) for part in parts]
    assert list(itertools.chain(*groups)) == list(range(len(sizes)))  # none stands in two parts

    def cost(chosen: list[int]) -> int:
        sequences = [s for s, group in enumerate(batch.group_index.tolist()) if group in chosen]
        return pack(select(batch, sequences)).token_ids.shape[1]

    assert all(cost(chosen) <= tokens or len(chosen) == 1 for chosen in groups)
    # None is cut short: the next group would not have fitted.
    assert all(cost([*chosen, following[0]]) > tokens for chosen, following in itertools.pairwise(groups))


@SHORT_PREFIXES
@settings(deadline=None, max_examples=60)
@given(
    sizes=SIZES,
    tokens=st.integers(1, 60),
    shares=st.integers(1, 4),
    whole_groups=st.booleans(),
    common=st.integers(0, 6),
)
def test_even_microbatches_have_the_smallest_budget_that_gives_no_more_than_a_multiple(
    sizes: list[tuple[int, list[int]]], tokens: int, shares: int, whole_groups: bool, common: int
) -> None:
    batch = made_up_batch(sizes, common)
    parts = even_microbatches(batch, tokens, shares, whole_groups=whole_groups)

    def cuts(whole: bool) -> list[list[list[int]]]:
        return [microbatches(batch, budget, whole_groups=whole) for budget in range(1, tokens + 1)]

    # What fits the budget, rounded up to a multiple of the shares: try every budget, whole groups first where they fit.
    fitting = len(microbatches(batch, tokens, whole_groups=whole_groups))
    limit = next(number for number in itertools.count(shares, shares) if number >= fitting)
    expected = [cut for cut in cuts(True) if len(cut) <= limit]
    longest = max(packed_length(select(batch, group)) for group in microbatches(batch, 1, whole_groups=True))
    if not whole_groups and (not expected or longest > tokens):
        expected = [cut for cut in cuts(False) if len(cut) <= limit]
    assert parts == expected[0]


@pytest.mark.parametrize(
    ("device", "prefix", "tokens"),
    [
        *(("cpu", 0, 1280), ("cpu", 213, 1280), ("cpu", 400, 2400), ("cpu", 1000, 2560), ("cpu", 3000, 4280)),
        *(("cuda", 4000, 8192), ("cuda", 8000, 10048), ("cuda", 9000, 11048)),
    ],
)
def test_rows_are_longer_where_all_repeat_much(device: str, prefix: int, tokens: int) -> None:
    assert default_tokens(device, prefix) == tokens
    repeated = [(prefix, 99_999), (40, 99_999)]
    assert default_tokens(device, 20, repeated) == tokens  # by groups that are too long for a row
    assert default_tokens(device, 20, [(1000, 1280)]) == default_tokens(device, 20)  # one that is not repeats nothing


def test_a_group_behind_a_long_prompt_is_few_rows() -> None:
    batch = made_up_batch([(3000, [201] * 8), (40, [31] * 8)])
    tokens = default_tokens_of(batch, "cpu")
    assert tokens == 3000 + 1280
    assert even_microbatches(batch, tokens, 1) == [[0, 1, 2, 3, 4], [5, 6, 7, *range(8, 16)]]
    # Whole groups are not split, so that nothing is repeated.
    assert default_tokens_of(batch, "cpu", whole_groups=True) == 1280
    alone = made_up_batch([(3000, [201]), (3000, [201])])
    assert default_tokens_of(alone, "cpu") == 1280


def test_even_microbatches_by_hand() -> None:
    # Two groups of a prompt of 4 and completions of which 3 and 2 tokens are read: 9 tokens each.
    batch = made_up_batch([(4, [4, 3]), (4, [4, 3])])
    assert even_microbatches(batch, 17, 1) == [[0, 1], [2, 3]]  # not 16 and 6 tokens
    assert even_microbatches(batch, 18, 1) == [[0, 1, 2, 3]]
    assert even_microbatches(batch, 8, 1) == [[0], [1], [2], [3]]  # no group fits whole


@SHORT_PREFIXES
@settings(deadline=None, max_examples=60)
@given(sizes=SIZES, common=st.integers(0, 6))
def test_packed_length_is_that_of_the_packed_row(sizes: list[tuple[int, list[int]]], common: int) -> None:
    batch = made_up_batch(sizes, common)
    for with_ends in (False, True):
        assert packed_length(batch, with_ends=with_ends) == pack(batch, with_ends=with_ends).token_ids.shape[1]
    assert num_tokens(batch) == sum(common + prompt + sum(lengths) - len(lengths) for prompt, lengths in sizes)


def test_what_is_read_to_its_end_counts_to_its_end() -> None:
    # As conversations that a reward model scores: nothing in them is an action.
    batch = made_up_batch([(4, [30, 30]), (4, [30, 30])], 20)
    batch = replace(batch, action_mask=tuple((False,) * len(mask) for mask in batch.action_mask))
    for parts in (microbatches(batch, 100, with_ends=True), even_microbatches(batch, 100, 1, with_ends=True)):
        assert [pack(select(batch, part), with_ends=True).token_ids.shape[1] for part in parts] == [84, 84]
    assert len(microbatches(batch, 100)) == 1


def test_an_empty_prompt_is_counted_until_it_is_refused() -> None:
    batch = replace(hand_batch(), prompt_ids=((10,), (10,), ()))
    assert packed_length(batch) == 1 + 1 + 2 + 2
    assert microbatches(batch, 100) == even_microbatches(batch, 100, 1) == [[0, 1, 2]]


@pytest.mark.parametrize(("common", "shared"), [(15, 0), (16, 16)])
def test_few_tokens_are_not_worth_a_block_of_attention(common: int, shared: int) -> None:
    batch = made_up_batch(RAGGED, common)
    prompts = list(dict.fromkeys(batch.prompt_ids))
    assert shared_prefix(prompts) == shared
    assert shared_prefix(prompts[:1]) == shared_prefix([]) == 0
    assert packed_length(batch) == pack(batch).token_ids.shape[1] == num_tokens(batch) - 3 * shared


def test_microbatches_by_hand() -> None:
    # Group 0: prompt 4, completions of which 2, 0, 4 tokens are read; group 1: prompt 1, completion 1. Budget 9:
    #   4 + 2 = 6, + 0 = 6, + 4 = 10 > 9; so a new row: 4 + 4 = 8, + 1 + 1 = 10 > 9; 1 + 1 = 2.
    batch = made_up_batch(RAGGED[:2])
    assert microbatches(batch, 9) == [[0, 1], [2], [3]]
    assert microbatches(batch, 10) == [[0, 1, 2], [3]]
    assert microbatches(batch, 1) == [[0], [1], [2], [3]]
    assert microbatches(batch, 12) == [[0, 1, 2, 3]]  # 4 + 6 + 1 + 1
    # Whole groups have 4 + 6 = 10 and 1 + 1 = 2 tokens.
    assert packed_length(batch) == 12
    assert microbatches(batch, 12, whole_groups=True) == [[0, 1, 2, 3]]
    assert microbatches(batch, 11, whole_groups=True) == microbatches(batch, 1, whole_groups=True) == [[0, 1, 2], [3]]


# pack


def hand_batch() -> Batch:
    """Prompt 10 11 12 with answers 20 21 and 30 31 32; prompt 40 41 with answer 50, whose row is cut by a mask."""
    return Batch(
        prompt_ids=((10, 11, 12), (10, 11, 12), (40, 41)),
        token_ids=((20, 21), (30, 31, 32), (50, 51, 52)),
        action_mask=((True, True), (True, False, True), (False, True, True)),
        group_index=torch.tensor([0, 0, 1]),
        rewards=torch.zeros(3),
        sequence_index=torch.tensor([0, 0, 1, 1, 2, 2]),
        rollout_logprobs=torch.zeros(6),
        is_truncated=torch.zeros(3, dtype=torch.bool),
    )


def test_pack_by_hand() -> None:
    packed = pack(hand_batch())
    #                   row  0   1   2   3   4   5   6   7   8   9
    assert packed.token_ids.tolist() == [[10, 11, 12, 20, 30, 31, 40, 41, 50, 51]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 3, 4, 0, 1, 2, 3]]
    # Actions 20, 21 | 30, 32 | 51, 52: 20 and 30 are predicted at the prompt's last token.
    assert packed.target_ids.tolist() == [20, 21, 30, 32, 51, 52]
    assert packed.predictor_index.tolist() == [2, 3, 2, 5, 8, 9]
    assert packed.groups == (
        PackedGroup(start=0, prompt_length=3, lengths=(1, 2)),
        PackedGroup(start=6, prompt_length=2, lengths=(2,)),
    )


@SHORT_PREFIXES
def test_what_all_prompts_begin_with_stands_once_by_hand() -> None:
    batch = hand_batch()
    packed = pack(replace(batch, prompt_ids=tuple((7, 8, 9, *prompt) for prompt in batch.prompt_ids)))
    #                   row  0  1  2   3   4   5   6   7   8   9  10  11  12
    assert packed.token_ids.tolist() == [[7, 8, 9, 10, 11, 12, 20, 30, 31, 40, 41, 50, 51]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 5, 6, 6, 7, 3, 4, 5, 6]]
    assert packed.predictor_index.tolist() == [5, 6, 5, 8, 11, 12]
    assert packed.groups == (
        PackedGroup(start=0, prompt_length=3, lengths=()),
        PackedGroup(start=3, prompt_length=3, lengths=(1, 2), prefix_length=3),
        PackedGroup(start=9, prompt_length=2, lengths=(2,), prefix_length=3),
    )
    # A prompt that is the beginning of another keeps its last token; two tokens alike are too few; one prompt has none.
    same = replace(batch, prompt_ids=((7, 8, 9, 10), (7, 8, 9, 10), (7, 8, 9, 10, 11)))
    assert [group.prefix_length for group in pack(same).groups] == [0, 3, 3]
    assert [group.prompt_length for group in pack(same).groups] == [3, 1, 2]
    few = replace(batch, prompt_ids=((7, 8, 10), (7, 8, 10), (7, 8, 11)))
    assert [group.prefix_length for group in pack(few).groups] == [0, 0]
    assert [group.prefix_length for group in pack(select(same, [0, 1])).groups] == [0]


def test_pack_with_ends_by_hand() -> None:
    packed = pack(hand_batch(), with_ends=True)
    #                   row  0   1   2   3   4   5   6   7   8   9  10  11  12
    assert packed.token_ids.tolist() == [[10, 11, 12, 20, 21, 30, 31, 32, 40, 41, 50, 51, 52]]
    assert packed.position_ids.tolist() == [[0, 1, 2, 3, 4, 3, 4, 5, 0, 1, 2, 3, 4]]
    assert packed.predictor_index.tolist() == [2, 3, 2, 6, 10, 11]
    assert [group.lengths for group in packed.groups] == [(2, 3), (3,)]


def test_what_follows_the_last_action_is_not_read() -> None:
    batch = replace(
        hand_batch(),
        action_mask=((True, True), (True, False, False), (False, False, False)),
        sequence_index=torch.tensor([0, 0, 1]),
        rollout_logprobs=torch.zeros(3),
    )
    packed = pack(batch)
    assert packed.token_ids.tolist() == [[10, 11, 12, 20, 40, 41]]
    assert packed.predictor_index.tolist() == [2, 3, 2]
    assert [group.lengths for group in packed.groups] == [(1, 0), (0,)]


def test_pack_refuses_an_empty_prompt() -> None:
    with pytest.raises(ValueError, match="empty prompt"):
        pack(replace(hand_batch(), prompt_ids=((10,), (10,), ())))


# A packed row and its sequences one by one

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "eos_token_id": 0,
    "bos_token_id": None,
}
EXACT: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {}),
    "qwen2": ("Qwen2Config", {}),
    "qwen3": ("Qwen3Config", {"head_dim": 8}),
    "mistral": ("MistralConfig", {"sliding_window": 32}),
    "gemma": ("GemmaConfig", {"head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", {"head_dim": 8, "sliding_window": 32}),
    "smollm3": ("SmolLM3Config", {}),
    "phi3": ("Phi3Config", {}),
    "olmo2": ("Olmo2Config", {}),
    "gpt2": ("GPT2Config", {"n_inner": 48}),
    "gpt_neox": ("GPTNeoXConfig", {}),
    "opt": ("OPTConfig", {"ffn_dim": 48, "word_embed_proj_dim": 32}),
}


def tiny(config_class: str, changes: dict[str, Any], dtype: torch.dtype = torch.float64) -> PreTrainedModel:
    """A random model of this family with packed attention; biases and norms are random, too.

    transformers' RMSNorm computes in float32 whatever it is given, which would hide all below 1e-7; torch's stands in
    for it.
    """
    config = getattr(transformers, config_class)(**{**SMALL, **changes})
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=PACKED_ATTENTION)
        for name, module in list(model.named_modules()):
            if type(module).__name__.endswith("RMSNorm"):
                stand_in = nn.RMSNorm(module.weight.shape, eps=1e-6)
                stand_in.variance_epsilon = 1e-6  # type: ignore[assignment]
                model.set_submodule(name, stand_in)
        model.to(dtype).eval()
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def one_by_one(model: PreTrainedModel, batch: Batch, temperature: float) -> Tensor:
    """Log-prob of every action from a plain forward pass per sequence with transformers' own attention."""
    result = []
    for prompt, tokens, mask in zip(batch.prompt_ids, batch.token_ids, batch.action_mask, strict=True):
        logits = model(input_ids=torch.tensor([prompt + tokens]), use_cache=False).logits[0] / temperature
        log_p = logits.log_softmax(dim=-1)
        result += [log_p[len(prompt) + t - 1, tokens[t]] for t, is_action in enumerate(mask) if is_action]
    return torch.stack(result)


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    assert one.keys() == other.keys()
    assert max(float(tensor.abs().max()) for tensor in other.values()) > 1e-3
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("common", [0, 17])
@pytest.mark.parametrize("family", EXACT)
def test_a_packed_row_equals_its_sequences_one_by_one(
    monkeypatch: pytest.MonkeyPatch, family: str, common: int
) -> None:
    model = tiny(*EXACT[family])
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    batch = made_up_batch(RAGGED, common)
    assert pack(batch).groups[-1].prefix_length == common
    logprobs, _ = token_logprobs(model, pack(batch), 1.0)
    expected = one_by_one(plain, batch, 1.0)
    assert float(expected.detach().std()) > 0.01
    assert torch.allclose(logprobs, expected, rtol=0, atol=1e-10)
    weights = torch.linspace(-1, 1, len(logprobs), dtype=torch.float64)
    own, other = gradients(model, (weights * logprobs).sum()), gradients(plain, (weights * expected).sum())
    assert largest_difference(own, other) < 1e-10
    monkeypatch.setattr(tree_attention, "LARGEST_SCORES", 0)  # as on a GPU: torch's own attention, group by group
    logprobs, _ = token_logprobs(model, pack(batch), 1.0)
    assert torch.allclose(logprobs, expected, rtol=0, atol=1e-10)
    assert largest_difference(gradients(model, (weights * logprobs).sum()), other) < 1e-10


@pytest.mark.parametrize("recomputed", [False, True])
def test_a_packed_row_through_the_kernel_of_attention(recomputed: bool) -> None:
    model = tiny("LlamaConfig", {"head_dim": 32}, torch.float32)
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("sdpa")
    if recomputed:
        recompute_layers(model)
    batch = made_up_batch(RAGGED, 17)
    with called() as kernels:
        logprobs, _ = token_logprobs(model, pack(batch), 1.0)
        weights = torch.linspace(-1, 1, len(logprobs))
        own = gradients(model, (weights * logprobs).sum())
    names = {"tree_attention", "tree_attention_backward"}
    assert kernels >= {name for name in names if f"{name} float32" in library.operations()}
    expected = one_by_one(plain, batch, 1.0)
    assert torch.allclose(logprobs, expected, rtol=0, atol=1e-5)
    other = gradients(plain, (weights * expected).sum())
    assert largest_difference(own, other) < 1e-5 * max(float(gradient.abs().max()) for gradient in other.values())


def test_a_cap_on_logits_that_are_small_is_not_missed() -> None:
    changes = {"head_dim": 8, "attn_logit_softcapping": None, "sliding_window": 32, "final_logit_softcapping": 30.0}
    model = tiny("Gemma2Config", changes, torch.float32)
    with torch.no_grad():
        for token in (0, 1):  # which a probe may look at
            model.get_input_embeddings().weight[token] *= 1e-3
    plain = copy.deepcopy(model)
    plain.set_attn_implementation("eager")
    batch = made_up_batch(RAGGED)
    logprobs, _ = token_logprobs(model.requires_grad_(False), pack(batch), 1.0)
    assert torch.allclose(logprobs, one_by_one(plain, batch, 1.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_a_packed_row_at_a_temperature(temperature: float) -> None:
    model = tiny("LlamaConfig", {})
    batch = made_up_batch(RAGGED)
    expected = one_by_one(model, batch, temperature)
    other = gradients(model, expected.sum())
    logprobs, _ = token_logprobs(model, pack(batch), temperature)
    assert torch.allclose(logprobs, expected, rtol=0, atol=1e-10)
    assert largest_difference(gradients(model, logprobs.sum()), other) < 1e-10


def test_tokens_that_are_no_actions_are_read_but_not_trained() -> None:
    # As in a conversation of several turns, where the environment's words stand between the model's.
    model, batch = tiny("LlamaConfig", {}), hand_batch()
    expected = one_by_one(model, batch, 1.0)
    assert expected.shape == (6,)
    assert torch.allclose(token_logprobs(model, pack(batch), 1.0)[0], expected, rtol=0, atol=1e-10)


def test_a_completion_does_not_see_its_neighbours() -> None:
    # Other tokens in one completion change its own log-probs and not one bit of the others'.
    model, batch = tiny("LlamaConfig", {}), hand_batch()
    changed = replace(batch, token_ids=(batch.token_ids[0], (33, 34, 35), batch.token_ids[2]))
    before, after = (token_logprobs(model, pack(b), 1.0)[0] for b in (batch, changed))
    assert (before != after).tolist() == [False, False, True, True, False, False]


def test_a_sequence_longer_than_the_sliding_window_is_refused() -> None:
    # Of the longest sequence 4 + 4 = 8 tokens are read, however long the row is.
    batch = made_up_batch(RAGGED)
    token_logprobs(tiny("MistralConfig", {"sliding_window": 8}), pack(batch), 1.0)
    with pytest.raises(ValueError, match="8 tokens exceeds the model's sliding window of 7"):
        token_logprobs(tiny("MistralConfig", {"sliding_window": 7}), pack(batch), 1.0)
    batch = made_up_batch(RAGGED, 17)
    token_logprobs(tiny("MistralConfig", {"sliding_window": 25}), pack(batch), 1.0)
    with pytest.raises(ValueError, match="25 tokens exceeds the model's sliding window of 24"):
        token_logprobs(tiny("MistralConfig", {"sliding_window": 24}), pack(batch), 1.0)


def test_scores_and_values_of_a_row_with_a_prefix_are_those_of_its_sequences() -> None:
    model, batch = tiny("LlamaConfig", {}), made_up_batch(RAGGED, 17)
    head = nn.Linear(32, 1).double()
    for read in (
        lambda part: sequence_scores(model, head.float(), pack(part, with_ends=True)),
        lambda part: token_values(model, head.double(), pack(part)),
    ):
        alone = torch.cat([read(select(batch, [sequence])) for sequence in range(batch.num_sequences)])
        assert float(alone.detach().std()) > 0.01
        assert torch.allclose(read(batch), alone, rtol=0, atol=1e-6)


def test_soft_capped_scores_are_refused() -> None:
    model = tiny("Gemma2Config", {"head_dim": 8, "query_pre_attn_scalar": 8})
    with pytest.raises(ValueError, match="soft-caps"):
        token_logprobs(model, pack(made_up_batch(RAGGED)), 1.0)


@pytest.mark.parametrize(
    ("config_class", "changes"),
    [
        # Its own attention code, which never hears of the layout: completions see each other, 0.2 nats off.
        ("BloomConfig", {}),
        # The layout gets lost on the way to its attention, 0.6 nats off.
        ("StableLmConfig", {}),
        # A convolution along the row runs over the borders of the sequences, 0.2 nats off.
        ("Lfm2Config", {"full_attn_idxs": [1]}),
        # A state-space model has no attention at all, 1 nat off.
        ("MambaConfig", {"state_size": 4}),
        # Attention sinks (`s_aux`), which scaled dot-product attention leaves out, 0.3 nats off.
        ("GptOssConfig", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}),
    ],
)
def test_models_whose_layers_do_not_heed_the_layout_are_refused(config_class: str, changes: dict[str, Any]) -> None:
    model = tiny(config_class, changes, torch.float32)
    with pytest.raises(ValueError, match="packed"):
        token_logprobs(model, pack(made_up_batch(RAGGED)), 1.0)


def test_attention_sinks_are_refused_in_a_plain_pass_too() -> None:
    # As an engine or an evaluation makes it: torch's SDPA leaves the sinks out and says nothing, 0.8 nats off.
    model = tiny("GptOssConfig", {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2}, torch.float32)
    with pytest.raises(ValueError, match="sinks"):
        model(input_ids=torch.tensor([[3, 4, 5]]))


# The loss does not depend on how a batch is cut and ordered


def annotated(algorithm: Algorithm, groups: list[Group]) -> Batch:
    """What the learner trains on, in float64; old and reference log-probs follow from the tokens."""
    batch = collate(groups)
    rollout = batch.rollout_logprobs.double()
    ids = torch.tensor([token for row in batch.token_ids for token in row], dtype=torch.float64)
    old, ref = rollout + 0.4 * torch.cos(ids), rollout + 0.3 * torch.sin(ids)
    # Every third sequence or so was cut, told by its first token.
    batch = replace(
        batch,
        rollout_logprobs=rollout,
        is_truncated=torch.tensor([row[0] % 3 == 0 for row in batch.token_ids]),
        old_logprobs=old,
        ref_logprobs=ref,
    )
    if isinstance(algorithm, PreferenceObjective):
        signs = torch.zeros(batch.num_sequences, dtype=torch.float64)
        for best, worst in best_and_worst(batch.rewards, batch.group_index):
            signs[best], signs[worst] = 1, -1
        batch = replace(batch, advantages=signs[batch.sequence_index])
        return select(batch, signs.nonzero().squeeze(1).tolist())
    assert batch.baseline_rewards is not None
    advantages, _ = token_advantages(
        algorithm,
        kl_coef=algorithm.kl_coef,
        rewards=batch.rewards.double(),
        group_index=batch.group_index,
        sequence_index=batch.sequence_index,
        policy_logprobs=old,
        ref_logprobs=ref,
        values=0.1 * torch.sin(2 * ids) if algorithm.needs_critic else None,
        baseline_rewards=batch.baseline_rewards.double(),
    )
    included = ~batch.is_truncated[batch.sequence_index] if algorithm.overlong == "mask" else None
    weights = aggregation_weights(algorithm.aggregate, batch.sequence_index, max_new_tokens=6, included=included)
    return replace(batch, advantages=advantages, weights=weights)


def loss_and_gradients(
    model: PreTrainedModel, algorithm: Algorithm, groups: list[Group], tokens: int
) -> tuple[float, dict[str, Tensor]]:
    """The loss of an update that is cut into microbatches of this many tokens."""
    batch = annotated(algorithm, groups)
    model.zero_grad()
    total = 0.0
    for sequences in microbatches(batch, tokens, whole_groups=isinstance(algorithm, PreferenceObjective)):
        part = select(batch, sequences)
        logprobs, entropy = token_logprobs(model, pack(part), 1.0)
        if isinstance(algorithm, PreferenceObjective):
            loss, _ = preference_loss(
                algorithm.preference,
                logprobs=logprobs,
                ref_logprobs=part.ref_logprobs,
                sequence_index=part.sequence_index,
                labels=torch.stack([part.advantages[part.sequence_index == s][0] for s in range(part.num_sequences)]),
                num_examples=batch.num_sequences // 2,
            )
        else:
            loss, _ = policy_loss(
                algorithm,
                kl_coef=algorithm.kl_coef,
                logprobs=logprobs,
                entropy=entropy,
                old_logprobs=part.old_logprobs,
                rollout_logprobs=part.rollout_logprobs,
                ref_logprobs=part.ref_logprobs,
                advantages=part.advantages,
                weights=part.weights,
                sequence_index=part.sequence_index,
            )
        loss.backward()
        total += loss.item()
    return total, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


LOSSES = {
    **PRESETS,
    "entropy": replace(GRPO, entropy_coef=0.01),
    "dual clip": replace(GRPO, surrogate="dual_clipped", aggregate="constant_length"),
    "whitened leave-one-out": replace(GRPO, baseline="leave_one_out", scale="batch_std", aggregate="sequence_sum"),
    "masked": replace(GRPO, overlong="mask"),
    "masked token mean": replace(GRPO, overlong="mask", aggregate="token_mean"),
    **{
        name: replace(GRPO, correction=name, correction_range=(0.7, 1.3))
        for name in ("token_truncate", "token_mask", "sequence_truncate", "sequence_mask")
    },
    "sequence ratio and correction": replace(GRPO, ratio="sequence", correction="sequence_truncate"),
    "ipo": replace(PRESETS["online_dpo"], loss="ipo"),
    "hinge": replace(PRESETS["online_dpo"], loss="hinge"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_do_not_depend_on_cut_and_order(name: str) -> None:
    model = tiny("LlamaConfig", {})
    # Scores of a group are all different, so that the best and the worst do not depend on which of two comes first.
    groups = [
        made_up_group([1.0, 0.0, 0.25], task_id="a", prompt_length=4, lengths=[3, 1, 5], vocab=VOCAB),
        made_up_group([0.5, 0.75], task_id="b", prompt_length=1, lengths=[2, 6], vocab=VOCAB),
        made_up_group([0.0, 1.0, 0.125, 0.875], task_id="c", prompt_length=5, lengths=[1, 2, 4, 4], vocab=VOCAB),
    ]
    turned = [replace(group, trajectories=group.trajectories[::-1]) for group in groups]
    loss, expected = loss_and_gradients(model, LOSSES[name], groups, 10_000)
    for changed, tokens in [
        (groups, 1),
        (groups, 9),
        (groups, 17),
        (turned, 10_000),
        (groups[::-1], 10_000),
        (turned[1:] + turned[:1], 12),
    ]:
        other_loss, other = loss_and_gradients(model, LOSSES[name], changed, tokens)
        assert other_loss == pytest.approx(loss, abs=1e-9)
        assert largest_difference(other, expected) < 1e-9


# Mismatched


def test_a_mismatched_completion_is_cut_to_what_fits() -> None:
    made = mismatched(completions([(3, 2), (1, 6), (2, 3)]), max_length=7)
    assert made is not None
    lengths = zip(map(len, made.prompt_ids), map(len, made.token_ids), strict=True)
    assert list(lengths) == [(3, 3), (1, 2), (2, 5)]
    assert made.sequence_index.tolist() == [0] * 3 + [1] * 2 + [2] * 5
    assert len(made.rollout_logprobs) == 10


def completions(lengths: Sequence[tuple[int, int]]) -> Batch:
    """Sequences with prompts and completions of these lengths, each of a prompt of its own."""
    return unscored(
        tuple((1,) * prompt for prompt, _ in lengths),
        tuple((2,) * completion for _, completion in lengths),
        tuple((True,) * completion for _, completion in lengths),
        torch.arange(len(lengths)),
    )


def test_a_mismatched_episode_brings_its_observations() -> None:
    masks = ((True, False, False, True), (True, True))
    batch = unscored(((1,), (2,)), ((5, 6, 7, 8), (3, 4)), masks, torch.arange(2))
    made = mismatched(batch, max_length=4)
    assert made is not None
    assert made.token_ids == ((3, 4), (5, 6, 7))
    assert made.action_mask == ((True, True), (True, False, False))
    assert made.sequence_index.tolist() == [0, 0, 1]


@pytest.mark.parametrize(
    "prompts",
    ["ab", "aabb", "abab", "aabbccdd", "aabc", "abbbcd", "aaab", "baaaa", "cabaaa", "abcdefg", "aabbccaa"],
)
def test_a_mismatched_completion_is_one_of_another_prompt(prompts: str) -> None:
    batch = unscored(
        tuple((ord(name),) for name in prompts),
        tuple((ord(name), index) for index, name in enumerate(prompts)),
        ((True, True),) * len(prompts),
        torch.arange(len(prompts)),
    )
    made = mismatched(batch, max_length=9)
    assert made is not None
    assert made.prompt_ids == batch.prompt_ids
    assert all(ids[0] != prompt[0] for ids, prompt in zip(made.token_ids, made.prompt_ids, strict=True))
    if 2 * max(map(prompts.count, prompts)) <= len(prompts):
        assert len(set(made.token_ids)) == len(prompts)
    backwards = list(reversed(range(len(prompts))))
    again = mismatched(
        unscored(
            tuple(batch.prompt_ids[s] for s in backwards),
            tuple(batch.token_ids[s] for s in backwards),
            batch.action_mask,
            batch.group_index,
        ),
        max_length=9,
    )
    assert again is not None
    assert again.token_ids == tuple(made.token_ids[s] for s in backwards)
