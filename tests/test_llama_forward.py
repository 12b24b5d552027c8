"""The lean forward pass gives what transformers' layers give, and leaves alone what it would get wrong."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlft.model.kernels import frozen_linear
from rlft.model.kernels.frozen_linear import FrozenLinear
from rlft.model.kernels.kv_cache import KVCache
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
        cache.enter_prompts([0, 1], lengths, lean.prefill(prompts))
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
