"""The decoder layer by hand: its functions against autograd on the formulas, models against themselves without it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlft.learner.batch import pack
from rlft.model.base import token_logprobs
from rlft.model.kernels.elementwise import signed_sin_of
from rlft.model.kernels.joint_projection import lay_side_by_side, side_by_side
from rlft.model.layers.decoder_layer import _AttentionInput, _AttentionOutput, _GatedMLP, use_lean_decoders
from rlft.model.layers.lora import use_lean_lora
from rlft.model.layers.slow_paths import slow_paths
from tests.test_batch import RAGGED, made_up_batch, tiny
from tests.test_layers import agree, random

# Functions: float64, one projection with bias and update, one with an update, one with neither


def projection(width: int, out: int, seed: int, *, bias: bool = False, update: bool = True) -> list[Tensor | None]:
    """(weight, bias, down, up) of which the update has gradients."""
    return [
        random(out, width, seed=seed).detach(),
        random(out, seed=seed + 1).detach() if bias else None,
        random(2, width, seed=seed + 2) if update else None,
        random(out, 2, seed=seed + 3) if update else None,
    ]


def project(x: Tensor, parts: list[Tensor | None], scale: float) -> Tensor:
    weight, bias, down, up = parts
    assert weight is not None
    y = nn.functional.linear(x, weight, bias)
    return y if down is None or up is None else y + scale * x @ down.T @ up.T


def norm(x: Tensor, weight: Tensor) -> Tensor:
    return weight * x * (x.square().mean(dim=-1, keepdim=True) + 1e-5).rsqrt()


def trained(*parts: list[Tensor | None]) -> list[Tensor]:
    return [tensor for part in parts for tensor in part if tensor is not None and tensor.requires_grad]


@pytest.mark.parametrize("is_laid", [True, False])
def test_the_attentions_input_is_its_formula(is_laid: bool) -> None:
    x, weight = random(1, 5, 6), random(6, seed=1).detach()
    query = projection(6, 8, 10, bias=True)
    key = projection(6, 4, 20)
    value = projection(6, 4, 30, update=False)
    angle = random(5, 1, 2, seed=2).detach().repeat(1, 1, 2)
    cos, sin = angle.cos(), angle.sin()

    def rotated(tensor: Tensor) -> Tensor:
        first, second = tensor.view(5, -1, 4).chunk(2, dim=-1)
        return tensor.view(5, -1, 4) * cos + torch.cat([-second, first], dim=-1) * sin

    n = norm(x, weight)
    expected = [
        rotated(project(n, query, 0.5)),
        rotated(project(n, key, 2.0)),
        project(n, value, 1.0).view(5, -1, 4),
    ]
    if is_laid:
        lay_side_by_side([query[0], key[0], value[0]])  # type: ignore[list-item]
    updates = [(0.5, 2), (2.0, 2), (1.0, 0)]
    actual = _AttentionInput.apply(x, weight, 1e-5, cos, signed_sin_of(sin), updates, *query, *key, *value)
    agree(actual, torch.cat(expected, dim=1), [x, *trained(query, key)])


@pytest.mark.parametrize("update", [True, False])
def test_the_attentions_output_is_its_formula(update: bool) -> None:
    residual, x, output = random(1, 5, 6), random(1, 5, 4, seed=1), projection(4, 6, 10, bias=True, update=update)
    actual = _AttentionOutput.apply(residual, x, [(0.5, 2 if update else 0)], *output)
    agree(actual, residual + project(x, output, 0.5), [residual, x, *trained(output)])


@pytest.mark.parametrize("bias", [True, False])
def test_the_gated_mlp_is_its_formula(bias: bool) -> None:
    x, weight = random(1, 5, 6), random(6, seed=1).detach()
    gate, up, down = (
        projection(6, 8, 10, bias=bias),
        projection(6, 8, 20, bias=bias, update=False),
        projection(8, 6, 30),
    )
    n = norm(x, weight)
    gated = nn.functional.silu(project(n, gate, 0.5)) * project(n, up, 1.0)
    actual = _GatedMLP.apply(x, weight, 1e-5, [(0.5, 2), (1.0, 0), (2.0, 2)], *gate, *up, *down)
    agree(actual, x + project(gated, down, 2.0), [x, *trained(gate, down)])


def test_an_input_without_gradient_gets_none() -> None:
    x, weight, gate, down = random(1, 5, 6).detach(), random(6).detach(), projection(6, 8, 10), projection(8, 6, 20)
    _GatedMLP.apply(x, weight, 1e-5, [(1.0, 2)] * 3, *gate, *gate, *down).sum().backward()
    assert x.grad is None
    assert all(tensor.grad is not None for tensor in trained(gate, down))


# Models

REPLACED = {"llama": "LlamaConfig", "qwen2": "Qwen2Config", "mistral": "MistralConfig"}
NOT_REPLACED: dict[str, tuple[str, dict[str, Any]]] = {
    "norms of queries and keys": ("Qwen3Config", {"head_dim": 8}),
    "another activation": ("LlamaConfig", {"hidden_act": "gelu"}),
    "another norm and activation": ("GemmaConfig", {"head_dim": 8}),
    "norms after the halves": ("Olmo2Config", {}),
    "one projection for several": ("Phi3Config", {}),
    "scaled residuals": ("GraniteConfig", {"residual_multiplier": 0.5}),
    "pairs rotated side by side": ("CohereConfig", {}),
    "part of a head rotated": ("GlmConfig", {"head_dim": 8}),
    "no gated MLP": ("GPT2Config", {"n_inner": 48}),
}


def layers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


def is_replaced(model: nn.Module) -> list[bool]:
    return ["forward" in layer.__dict__ for layer in layers(model)]


def with_adapter(config_class: str, changes: dict[str, Any], dtype: torch.dtype, **lora: Any) -> Any:
    """The model under an adapter of which both halves are random."""
    base = tiny(config_class, changes, dtype).requires_grad_(False)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(base, LoraConfig(**{"r": 2, "lora_alpha": 3, "target_modules": targets, **lora}))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = torch.randn_like(parameter, dtype=dtype) * 0.3
    return model.eval()


def outcome(model: Any) -> tuple[Tensor, list[Tensor]]:
    """Log-probs of a packed row, and the adapter's gradients of a weighted sum of them."""
    model.zero_grad()
    logprobs, entropy = token_logprobs(model, pack(made_up_batch(RAGGED)), 1.0)
    (logprobs * torch.linspace(-1, 1, len(logprobs)) + entropy).sum().backward()
    return logprobs.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize(
    "lora",
    [{}, {"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["up_proj"]}, {"use_dora": True}],
    ids=["all", "q and v", "up alone", "dora"],
)
@pytest.mark.parametrize("family", REPLACED)
def test_a_model_gives_the_same_log_probs_and_gradients(family: str, lora: dict[str, Any]) -> None:
    model = with_adapter(REPLACED[family], {}, torch.float64, **lora)
    expected, gradients = outcome(model)
    use_lean_lora(model)
    use_lean_decoders(model)
    assert is_replaced(model) == [not lora.get("use_dora")] * 2
    actual, own = outcome(model)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-10)
    assert len(own) == len(gradients) > 0
    for first, second in zip(own, gradients, strict=True):
        assert float(second.abs().max()) > 1e-6
        assert torch.allclose(first, second, rtol=0, atol=1e-10)


def test_a_model_may_change_what_a_projection_gives() -> None:
    model = with_adapter("OlmoConfig", {"clip_qkv": 0.5}, torch.float64)  # cuts queries, keys and values in place
    expected, gradients = outcome(model)
    use_lean_lora(model)
    actual, own = outcome(model)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-10)
    assert all(torch.allclose(first, second, rtol=0, atol=1e-10) for first, second in zip(own, gradients, strict=True))


def test_without_its_adapter_a_model_is_the_base() -> None:
    model = with_adapter("Qwen2Config", {}, torch.float64)
    packed = pack(made_up_batch(RAGGED))
    with torch.no_grad(), model.disable_adapter():
        expected, _ = token_logprobs(model, packed, 1.0)
    use_lean_decoders(model)
    with torch.no_grad():
        under_adapter, _ = token_logprobs(model, packed, 1.0)
        with model.disable_adapter():
            actual, _ = token_logprobs(model, packed, 1.0)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-10)
    assert not torch.allclose(under_adapter, expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("family", NOT_REPLACED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_layers_of_another_formula_stay(family: str, dtype: torch.dtype) -> None:
    config_class, changes = NOT_REPLACED[family]
    model = tiny(config_class, changes, dtype).requires_grad_(False)
    use_lean_decoders(model)
    assert not any(is_replaced(model))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of PEFT, about the experts that there are not
def test_a_rotation_of_a_part_of_each_head_is_left_to_the_layer() -> None:
    # How wide it is only the model's tables tell, and not the layer, which has probed well.
    experts = {"n_routed_experts": 2, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 1}
    dense = {"head_dim": 16, "partial_rotary_factor": 0.5, "first_k_dense_replace": 2, "use_qk_norm": False}
    model = with_adapter("Glm4MoeConfig", {**dense, **experts, "moe_intermediate_size": 16}, torch.float64)
    expected, gradients = outcome(model)
    use_lean_decoders(model)
    assert is_replaced(model) == [True, True]
    actual, own = outcome(model)
    assert torch.allclose(actual, expected, rtol=0, atol=1e-10)
    assert all(torch.allclose(first, second, rtol=0, atol=1e-10) for first, second in zip(own, gradients, strict=True))
    assert [reason for reason in slow_paths(model) if "rotates a part of each head only" in reason]


def test_layers_are_judged_one_by_one() -> None:
    # SmolLM3 leaves out the rotation in every fourth layer.
    model = tiny("SmolLM3Config", {"num_hidden_layers": 4}, torch.float32).requires_grad_(False)
    use_lean_decoders(model)
    assert is_replaced(model) == [True, True, True, False]


def test_layers_that_are_trained_themselves_stay() -> None:
    model = tiny("LlamaConfig", {}, torch.float32).requires_grad_(True)
    use_lean_decoders(model)
    assert not any(is_replaced(model))


def test_weights_of_one_input_lie_side_by_side() -> None:
    model = with_adapter("LlamaConfig", {}, torch.float32)
    names = ["q_proj", "k_proj", "v_proj"]
    before = torch.cat([getattr(layers(model)[0].self_attn, name).base_layer.weight.clone() for name in names])
    use_lean_decoders(model)
    weights = [getattr(layers(model)[0].self_attn, name).base_layer.weight for name in names]
    assert side_by_side(weights).data_ptr() == weights[0].data_ptr()
    assert torch.equal(side_by_side(weights), before)
    # Moved apart, as they are when a model is copied to another device, they are still one matrix.
    weights[1].data = weights[1].data.clone()
    assert side_by_side(weights).data_ptr() != weights[0].data_ptr()
    assert torch.equal(side_by_side(weights), before)
