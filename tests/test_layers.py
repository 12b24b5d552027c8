"""Hand-written gradients: each function against autograd on the formula, each replacement against its module."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import GemmaConfig, GemmaForCausalLM, LlamaConfig, LlamaForCausalLM

from rlft.model.kernels import block_attention, segments
from rlft.model.kernels.block_attention import block_attention as attend
from rlft.model.kernels.block_attention import with_heads
from rlft.model.kernels.segments import Segment, as_blocks
from rlft.model.kernels.tree_attention import Tree, attention_behind, tree_attention
from rlft.model.layers.logprobs import selected_logprobs
from rlft.model.layers.norms_and_mlps import _GatedLoraLinear, _GatedSiLU, _RMSNorm, use_lean_layers
from rlft.model.layers.packed import PackedGroup
from rlft.model.layers.packed_attention import segments_of
from rlft.model.layers.projected_logprobs import projected_logprobs

GROUPS = (
    PackedGroup(start=0, prompt_length=3, lengths=(2, 4)),
    PackedGroup(start=9, prompt_length=5, lengths=(1, 3, 2)),
    PackedGroup(start=20, prompt_length=1, lengths=(6,)),
)
TREE = (
    PackedGroup(start=0, prompt_length=7, lengths=()),
    PackedGroup(start=7, prompt_length=3, lengths=(2, 4), prefix_length=7),
    PackedGroup(start=16, prompt_length=1, lengths=(1, 0, 5), prefix_length=7),
    PackedGroup(start=23, prompt_length=4, lengths=()),  # what fills a row up
)
NUM_TOKENS = 27


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()


def agree(actual: Tensor, expected: Tensor, inputs: list[Tensor], tolerance: float = 1e-10) -> None:
    """Both results and their gradients for a random upstream gradient are the same."""
    torch.testing.assert_close(actual, expected, rtol=0, atol=tolerance)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    gradients = [
        torch.autograd.grad((result * upstream).sum(), inputs, retain_graph=True) for result in (actual, expected)
    ]
    for own, plain in zip(*gradients, strict=True):
        assert float(plain.abs().max()) > 1e-6
        torch.testing.assert_close(own, plain, rtol=0, atol=tolerance)


# Attention


def visible(groups: tuple[PackedGroup, ...]) -> Tensor:
    """(T, T) which token sees which, from the meaning of the layout: what stands before the sequence, and its own."""
    mask = torch.zeros(NUM_TOKENS, NUM_TOKENS, dtype=torch.bool)
    for group in groups:
        prompt = range(group.start, group.start + group.prompt_length)
        start = prompt.stop
        for first, length in [(group.start, group.prompt_length), *_spans(start, group.lengths)]:
            for t in range(first, first + length):
                mask[t, first : t + 1] = True
                mask[t, : group.prefix_length] = True
                if first >= prompt.stop:
                    mask[t, prompt.start : prompt.stop] = True
    return mask


def _spans(start: int, lengths: tuple[int, ...]) -> list[tuple[int, int]]:
    return [(start + sum(lengths[:i]), length) for i, length in enumerate(lengths)]


@pytest.mark.parametrize("step", [1, 2])
@pytest.mark.parametrize("cost", [0, 4096], ids=["a block for each length", "few blocks"])
@pytest.mark.parametrize("kept", [0, 1 << 20], ids=["computed again", "kept"])
@pytest.mark.parametrize("num_key_heads", [1, 2, 4])
@pytest.mark.parametrize("groups", [GROUPS, TREE], ids=["prompts", "a prefix of all prompts"])
def test_block_attention_is_attention_under_the_mask(
    monkeypatch: pytest.MonkeyPatch,
    groups: tuple[PackedGroup, ...],
    num_key_heads: int,
    kept: int,
    cost: int,
    step: int,
) -> None:
    monkeypatch.setattr(segments, "BLOCK_COST", cost)
    monkeypatch.setattr(block_attention, "KEPT_SCORES", kept)
    monkeypatch.setattr(segments, "SEQUENCES", step)
    query, key, value = (random(NUM_TOKENS, h, 6, seed=s) for s, h in enumerate((4, num_key_heads, num_key_heads)))
    scores = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(4 // num_key_heads, dim=1)) * 0.3
    softmax = scores.masked_fill(~visible(groups), -math.inf).softmax(dim=-1)
    expected = torch.einsum("hqk,khd->qhd", softmax, value.repeat_interleave(4 // num_key_heads, dim=1))
    blocks = as_blocks(segments_of(groups))
    depths = 2 if groups is GROUPS else 3
    assert len(blocks) == (depths if cost else 8 if step == 1 else 6)
    assert all(len(block.queries) % step == 0 or len(block.queries) == 1 for block in blocks)
    heads = torch.cat([query, key, value], dim=1)
    actual = attend(heads, with_heads(blocks, 4, num_key_heads, torch.float64), 0.3)
    agree(actual, expected, [query, key, value])


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([Segment(start=1, length=2)], "segment 0 .* but token 0 comes next"),
        ([Segment(start=0, length=2), Segment(start=3, length=1)], "segment 1 .* but token 2 comes next"),
        ([Segment(start=0, length=0)], "segment 0 .* but token 0 comes next"),
        ([Segment(start=0, length=2, before=(Segment(start=2, length=1),))], "continues .* no segment before it"),
        (
            [
                Segment(start=0, length=2),
                Segment(start=2, length=1, before=(Segment(start=0, length=2),)),
                Segment(start=3, length=1, before=(Segment(start=2, length=1),)),
            ],
            "continues .* no segment before it",
        ),
    ],
)
def test_segments_that_are_no_tree_are_refused(parts: list[Segment], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Tree(parts)


def test_a_deep_tree_takes_no_longer_than_its_segments() -> None:
    segments: list[Segment] = []
    for number in range(60):  # each continues the last one: 2^60 steps if each were looked at with all before it
        segments.append(Segment(start=number - 30, length=1, before=tuple(segments)))
    tree = Tree(segments)
    assert tree.num_tokens == tree.num_earlier == 30
    heads = torch.randn(30, 8, 32, generator=torch.Generator().manual_seed(0))
    earlier = list(torch.randn(2, 2, 30, 32, generator=torch.Generator().manual_seed(1)).split(1, dim=2))
    found = attention_behind(heads, 4, tree, earlier, 0.2)
    one = Segment(start=-30, length=30)
    two = Tree([one, Segment(start=0, length=30, before=(one,))])
    torch.testing.assert_close(found, attention_behind(heads, 4, two, [torch.cat(earlier, dim=2)], 0.2))


@pytest.mark.parametrize("groups", [GROUPS, TREE], ids=["prompts", "a prefix of all prompts"])
def test_scores_are_counted_as_blocks_write_them(groups: tuple[PackedGroup, ...]) -> None:
    parts = segments_of(groups)
    assert segments.num_scores(parts) == sum(block.is_visible.numel() for block in as_blocks(parts))


@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_scores_that_are_turned_round_are_refused(scale: float) -> None:
    with pytest.raises(ValueError, match="positive scales only"):
        tree_attention(torch.zeros(2, 8, 32), 4, Tree([Segment(start=0, length=2)]), scale)


def test_what_comes_before_a_row_has_no_gradient_and_has_to_fit() -> None:
    known = Segment(start=-3, length=3)
    tree = Tree([known, Segment(start=0, length=2, before=(known,))])
    heads = torch.zeros(2, 8, 32)
    with pytest.raises(ValueError, match="3 tokens come before the row: only `attention_behind` takes such a tree"):
        tree_attention(heads, 4, tree, 1.0)
    for earlier in ([], [torch.zeros(2, 2, 4, 32)], [torch.zeros(2, 2, 3, 32)] * 2, [torch.zeros(2, 1, 3, 32)]):
        with pytest.raises(ValueError, match=r"keys and values before the row are .*, not \[\(2, 2, 3, 32\)\]"):
            attention_behind(heads, 4, tree, earlier, 1.0)
    with pytest.raises(ValueError, match=r"segment 0 .* but token -2 comes next"):
        Tree([Segment(start=-3, length=2), Segment(start=0, length=2)])


@pytest.mark.parametrize("shape", [(3, 8, 32), (2, 7, 32), (2, 4, 32), (2, 9, 32)])
def test_heads_that_do_not_fit_a_tree_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="no 4 queries, keys and values of each of 2 tokens"):
        tree_attention(torch.zeros(shape), 4, Tree([Segment(start=0, length=2)]), 1.0)


# Log-probs of a projection


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_projected_log_probs_are_those_of_the_logits(monkeypatch: pytest.MonkeyPatch, temperature: float) -> None:
    monkeypatch.setattr("rlft.model.layers.projected_logprobs.PROJECTED_ROWS", 5)  # blocks of 5 rows in chunks of 2
    monkeypatch.setattr("rlft.model.kernels.token_logprobs.CHUNK_ELEMENTS", 26)
    hidden, weight = random(11, 4), random(13, 4, seed=1).detach()
    targets = torch.arange(11) % 13
    log_p = (hidden @ weight.T / temperature).log_softmax(dim=-1)
    expected = log_p[torch.arange(11), targets], -(log_p.exp() * log_p).sum(dim=-1)
    actual = projected_logprobs(hidden, weight, targets, temperature, entropy_gradient=True)
    whole = selected_logprobs(hidden @ weight.T, targets, temperature)
    for own, other, plain in zip(actual, whole, expected, strict=True):
        agree(own, plain, [hidden])
        agree(other, plain, [hidden])


def test_an_entropy_without_gradient_says_so() -> None:
    hidden, weight = random(3, 4), random(5, 4, seed=1).detach()
    _, entropy = projected_logprobs(hidden, weight, torch.tensor([0, 1, 2]), 1.0, entropy_gradient=False)
    assert not entropy.requires_grad


def test_log_probs_of_far_apart_logits_are_finite() -> None:
    hidden = torch.tensor([[400.0, -400.0]], requires_grad=True)
    logprobs, entropy = projected_logprobs(hidden, torch.eye(2), torch.tensor([1]), 1.0, entropy_gradient=True)
    assert float(logprobs.detach()) == -800
    assert float(entropy.detach()) == 0
    (logprobs + entropy).sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


# Layers


def test_the_norm_is_its_formula() -> None:
    x, weight = random(2, 3, 8), random(8, seed=1).detach()
    expected = weight * x * (x.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt()
    agree(_RMSNorm.apply(x, weight, 1e-5), expected, [x])


def test_the_gated_product_is_its_formula() -> None:
    gate, up = random(3, 8), random(3, 8, seed=1)
    agree(_GatedSiLU.apply(gate, up), torch.nn.functional.silu(gate) * up, [gate, up])


def test_the_gated_projection_is_its_formula() -> None:
    gate, up = random(2, 3, 8), random(2, 3, 8, seed=1)
    weight, bias = random(5, 8, seed=2).detach(), random(5, seed=3).detach()
    a, b = random(2, 8, seed=4), random(5, 2, seed=5)
    x = torch.nn.functional.silu(gate) * up
    expected = (x @ weight.T + bias + 0.5 * x @ a.T @ b.T).flatten(0, 1)
    agree(_GatedLoraLinear.apply(gate, up, weight, bias, a, b, 0.5), expected, [gate, up, a, b])


SMALL: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}


def replaced(model: nn.Module) -> set[str]:
    return {type(module).__name__ for module in model.modules() if "forward" in module.__dict__}


def test_layers_that_agree_are_replaced_and_the_model_gives_the_same() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SMALL)).requires_grad_(False)
    ids = torch.arange(10)[None]
    embeddings = model.get_input_embeddings()(ids).requires_grad_()
    results = []
    for _ in range(2):
        logits = model(inputs_embeds=embeddings).logits
        results.append((logits, torch.autograd.grad(logits.square().sum(), embeddings)[0]))
        use_lean_layers(model)
    assert replaced(model) == {"LlamaRMSNorm", "LlamaMLP"}
    for own, plain in zip(results[1], results[0], strict=True):
        torch.testing.assert_close(own, plain, rtol=1e-4, atol=1e-5)


def test_layers_of_another_formula_stay() -> None:
    # Gemma's norm scales by 1 + w and its MLP has another activation.
    model = GemmaForCausalLM(GemmaConfig(**SMALL)).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(0.3)
    use_lean_layers(model)
    assert replaced(model) == set()


def test_norms_that_are_trained_stay() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SMALL))
    use_lean_layers(model)
    assert replaced(model) == {"LlamaMLP"}  # it has no weights of its own
