"""The lean forward pass gives what transformers' layers give, and leaves alone what it would get wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlft.model.kernels import frozen_linear, library
from rlft.model.kernels.frozen_linear import FrozenLinear
from rlft.model.kernels.kv_cache import KVCache
from rlft.model.kernels.llama_layers import LlamaLayer, LlamaLayers
from rlft.model.layers.packed_attention import NAME
from rlft.rollout.engines.forward import forward_pass
from rlft.rollout.engines.llama_forward import LlamaForward, llama_forward_of

SMALL = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
}


def random_model(config_class: str, dtype: torch.dtype = torch.float32, **changes: Any) -> PreTrainedModel:
    """With random norms and biases too, which are ones and zeros in a fresh model."""
    config = getattr(transformers, config_class)(**{**SMALL, **changes}, attn_implementation=NAME)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.ndim == 1:
                    parameter.normal_(0.0 if name.endswith("bias") else 1.0, 0.3)
    return model.to(dtype).eval().requires_grad_(False)


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(1, SMALL["vocab_size"], shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("config_class", "changes"),
    [
        ("LlamaConfig", {}),
        ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "head_dim": 16}),
        ("LlamaConfig", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
        ("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10_000.0}}),
        ("LlamaConfig", {"hidden_act": "gelu"}),
        ("MistralConfig", {"sliding_window": 64}),
        ("Qwen2Config", {}),
        ("Qwen3Config", {"head_dim": 16}),
    ],
)
def test_relatives_of_llama_are_taken_over(config_class: str, changes: dict[str, Any]) -> None:
    model = random_model(config_class, **changes)
    lean = llama_forward_of(model)
    assert lean is not None
    ids = tokens(3, 20)
    with torch.inference_mode():
        expected = model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(lean.logits(ids), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("config_class", "changes"),
    [
        ("GraniteConfig", {"residual_multiplier": 0.5}),  # parts like Llama's, other arithmetic
        ("GraniteConfig", {"logits_scaling": 2.0}),
        ("SmolLM3Config", {"no_rope_layers": [1, 0]}),
        ("GlmConfig", {"head_dim": 8}),
        ("Gemma2Config", {"head_dim": 8}),
        ("Gemma3TextConfig", {"head_dim": 8}),
        ("Olmo2Config", {}),
        ("PhiConfig", {}),
        ("Phi3Config", {}),
        ("GPT2Config", {"n_inner": 48}),
    ],
)
def test_what_computes_something_else_is_left_alone(config_class: str, changes: dict[str, Any]) -> None:
    assert llama_forward_of(random_model(config_class, **changes)) is None


def test_compiled_layers_are_transformers() -> None:
    assert isinstance(forward_pass(random_model("LlamaConfig"), compile=False), LlamaForward)
    assert not isinstance(forward_pass(random_model("LlamaConfig"), compile=True), LlamaForward)


@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.float32, 16), (torch.bfloat16, 16), (torch.bfloat16, 32)])
def test_rows_that_come_move_and_grow_get_the_models_logits(dtype: torch.dtype, head_dim: int) -> None:
    """Two prompts of different lengths, rows in any order of prompts, one given away, more tokens than fit at first."""
    model = random_model("Qwen3Config", dtype, head_dim=head_dim)
    lean = llama_forward_of(model)
    assert lean is not None
    new_tokens, lengths, prompt_of_row = 40, [9, 4], [1, 0, 0, 1]
    prompts, drawn = tokens(2, 9), tokens(4, new_tokens, seed=2)
    cache = KVCache(prompts=2, prompt_length=9, rows=4, new_tokens=new_tokens, device=torch.device("cpu"))
    own: list[list[int]] = [[], [], [], []]
    with torch.inference_mode():
        spans = lean.prefill(
            [prompt[:length].tolist() for prompt, length in zip(prompts, lengths, strict=True)], [[], []]
        )
        cache.enter_prompts([0, 1], [[span] for span in spans])
        cache.enter_rows([0, 1, 2, 3], prompt_of_row)
        for step in range(30):
            if step == 5:  # row 1 begins anew behind the other prompt
                prompt_of_row[1], own[1] = 1, []
                cache.enter_rows([1], [1])
            if step == 25:  # the last row takes the place of the first
                cache.move_rows([3], [0])
                prompt_of_row, own = [prompt_of_row[3], *prompt_of_row[1:3]], [own[3], *own[1:3]]
            width = len(own)
            for row in range(width):
                own[row].append(int(drawn[row, step]))
            logits = lean.step(torch.tensor([ids[-1] for ids in own]), cache)
            assert logits.shape == (width, SMALL["vocab_size"])
            for row in range(width):
                prompt = prompts[prompt_of_row[row], : lengths[prompt_of_row[row]]]
                whole = torch.cat([prompt, torch.tensor(own[row])])[None]
                expected = model(input_ids=whole, use_cache=False).logits[0, -1]
                error = (logits[row] - expected).float().norm() / expected.float().norm()
                assert error < (1e-4 if dtype == torch.float32 else 5e-2), (step, row)


WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 32}
"""Sizes that kernels take."""


def test_prompts_of_any_lengths_and_contexts_get_the_models_keys_and_values() -> None:
    model = random_model("LlamaConfig")
    lean = LlamaForward(model)
    first, second = tokens(9, seed=2).tolist(), tokens(4, seed=3).tolist()
    with torch.inference_mode():
        (one,) = lean.prefill([first], [[]])
        (two,) = lean.prefill([second], [[one]])
        befores = [([], []), (first, [one]), ([*first, *second], [one, two])]
        cases = [
            (tokens(length, seed=10 + number).tolist(), *befores[number % 3])
            for number, length in enumerate((5, 8, 3, 1, 17, 8, 7, 0, 2, 9, 12, 16, 6, 1))
        ]
        found = lean.prefill([ids for ids, _, _ in cases], [spans for _, _, spans in cases])
        for (ids, before, _), spans in zip(cases, found, strict=True):
            cache = model(input_ids=torch.tensor([[*before, *ids]]), use_cache=True).past_key_values if ids else None
            for index, span in enumerate(spans):
                assert span.shape[2] == len(ids)
                if cache is not None:
                    expected = torch.stack([cache.layers[index].keys[0], cache.layers[index].values[0]])
                    torch.testing.assert_close(span, expected[:, :, len(before) :], rtol=0, atol=1e-5)


def filled_cache(lean: LlamaForward, rows: int = 5) -> KVCache:
    cache = KVCache(prompts=2, prompt_length=9, rows=rows, new_tokens=40, device=torch.device("cpu"))
    spans = lean.prefill([tokens(2, 9)[0].tolist(), tokens(2, 9)[1, :4].tolist()], [[], []])
    cache.enter_prompts([0, 1], [[span] for span in spans])
    cache.enter_rows(range(rows), [row % 2 for row in range(rows)])
    return cache


def has_products() -> bool:
    return "linear bfloat16" in library.operations()


@pytest.mark.parametrize(
    ("config_class", "changes"),
    [
        ("LlamaConfig", {}),
        ("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 4, "vocab_size": 100}),
        ("Qwen2Config", {"num_attention_heads": 2, "num_key_value_heads": 1}),
        ("Qwen3Config", {}),
    ],
)
@pytest.mark.usefixtures("no_matrix_unit")
def test_a_step_in_shared_buffers_is_the_same_to_the_bit(
    config_class: str, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    lean = llama_forward_of(random_model(config_class, torch.bfloat16, **{**WIDE, **changes}))
    assert lean is not None
    with torch.inference_mode():
        cache, other = filled_cache(lean), filled_cache(lean)
        for width in (5,) * 20 + (3, 3):  # more tokens than there is room for at first; then two rows leave
            token_ids = tokens(width, seed=width)
            with monkeypatch.context() as patch:
                if has_products():  # then no layer is computed by the tensor functions
                    patch.setattr(LlamaLayer, "__call__", None)
                actual = lean.step(token_ids, cache)
            with monkeypatch.context() as patch:
                patch.setattr(LlamaLayers, "_by_kernels", lambda *operands: None)
                expected = lean.step(token_ids, other)
            assert torch.equal(actual, expected)
            # Rows that left keep what they had; what was never written is whatever memory held.
            used = int(cache.age.max())
            for layer, same in zip(cache.layers, other.layers, strict=True):
                assert torch.equal(layer.rows[:, :width, :, :used], same.rows[:, :width, :, :used])


@pytest.mark.usefixtures("no_matrix_unit")
def test_operands_of_a_step_that_do_not_fit_never_reach_a_kernel() -> None:
    lean, others = (
        llama_forward_of(random_model("LlamaConfig", torch.bfloat16, **{**WIDE, **changes}))
        for changes in ({}, {"head_dim": 64, "num_key_value_heads": 4})
    )
    assert lean is not None
    assert others is not None
    layers = lean._loaded
    with torch.inference_mode():
        cache = filled_cache(lean)
        embedded = lean._embedded(tokens(5), cache.begin(5))
        x, cos, signed_sin = embedded
        assert (layers._by_kernels(*embedded, cache) is not None) is has_products()
        strided = torch.empty(5, 2 * x.shape[1], dtype=x.dtype)[:, ::2].copy_(x)
        for wrong in (
            (x[:4], cos, signed_sin),
            (x[:, :32].contiguous(), cos, signed_sin),
            (strided, cos, signed_sin),
            (x.float(), cos.float(), signed_sin.float()),
            (x, cos.float(), signed_sin),
            (x, cos[:1], signed_sin[:1]),
            (x, cos[..., :16].contiguous(), signed_sin[..., :16].contiguous()),
        ):
            assert layers._by_kernels(*wrong, cache) is None
        foreign = filled_cache(others)  # of other heads
        foreign.begin(5)
        assert layers._by_kernels(*embedded, foreign) is None


@pytest.mark.parametrize(
    "changes",
    [{"hidden_act": "gelu"}, {"head_dim": 16}, {"intermediate_size": 95}],
    ids=["gate", "size of heads", "odd width"],
)
@pytest.mark.usefixtures("no_matrix_unit")
def test_layers_that_kernels_do_not_take_are_left_to_the_tensor_functions(changes: dict[str, Any]) -> None:
    lean = LlamaForward(random_model("LlamaConfig", torch.bfloat16, **{**WIDE, **changes}))
    assert lean._loaded._sizes is None
    with torch.inference_mode():
        assert lean.step(tokens(5), filled_cache(lean)).isfinite().all()


@pytest.mark.usefixtures("no_matrix_unit")
def test_norms_change_in_place_and_what_replaces_a_parameter_waits_for_a_reload() -> None:
    model = random_model("LlamaConfig", torch.bfloat16, **WIDE)
    lean = llama_forward_of(model)
    assert lean is not None
    norm = model.get_parameter("model.layers.1.input_layernorm.weight")

    def step() -> Tensor:
        with torch.inference_mode():
            return lean.step(tokens(5), filled_cache(lean))

    before = step()
    norm.mul_(2)
    doubled = step()
    assert not torch.equal(doubled, before)
    norm.data = norm.data / 2
    assert torch.equal(step(), doubled)
    lean.reload()
    assert torch.equal(step(), before)


def test_new_weights_are_used_and_the_models_own_stay() -> None:
    model = random_model("LlamaConfig")
    lean = llama_forward_of(model)
    assert lean is not None
    changed = {name: torch.full_like(model.get_parameter(name), 0.01) for name in NAMES}
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    ids = tokens(1, 5)
    with torch.inference_mode():
        plain = lean.logits(ids)
        lean.load(NAMES, (before | changed).__getitem__)
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
        for name, weight in changed.items():
            model.get_parameter(name).copy_(weight)
        expected = model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(lean.logits(ids), expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(plain, expected, rtol=1e-2)
        for name, weight in before.items():
            model.get_parameter(name).copy_(weight)
        lean.reload()
        torch.testing.assert_close(lean.logits(ids), plain)


NAMES = ["model.layers.0.self_attn.k_proj.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 5, 64, 300])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_fixed_linear_layer_is_a_linear_layer(dtype: torch.dtype, rows: int, has_bias: bool) -> None:
    generator = torch.Generator().manual_seed(rows)
    x, weight, bias, other = (
        torch.randn(shape, generator=generator).to(dtype) for shape in ((rows, 48), (40, 48), (40,), (rows, 40))
    )
    linear = FrozenLinear(weight, bias if has_bias else None)
    expected = F.linear(x, weight, bias if has_bias else None)
    tolerance = {"rtol": 1e-5, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 1e-1}
    kept = other.clone()
    torch.testing.assert_close(linear(x), expected, **tolerance)
    torch.testing.assert_close(linear.plus(x, other), expected + other, **tolerance)
    torch.testing.assert_close(linear.times(x, other), expected * other, **tolerance)
    torch.testing.assert_close(linear.silu(x), F.silu(expected), **tolerance)
    assert torch.equal(other, kept)
    weight.zero_()
    torch.testing.assert_close(linear(x), expected, **tolerance)


def test_wrong_products_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen_linear, "_linear", lambda x, packed, *_: F.linear(x, packed.to_dense()) + 1)
    frozen_linear._packs.cache_clear()
    try:
        assert not frozen_linear._packs(torch.bfloat16)
    finally:
        frozen_linear._packs.cache_clear()
