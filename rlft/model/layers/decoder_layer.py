"""The decoder layer of Llama and its relatives with gradients written by hand, for a frozen model with LoRA adapters.

    x + W_o attention(rotate(W_q n), rotate(W_k n), W_v n) with n = norm(x),   then   x + W_d (silu(W_g n) * W_u n)

Each half is one or two functions: what is cheap (norms, silu, the gated product) is computed again in the backward pass
rather than kept, projections of one input are one product, with their updates side by side too, and queries are rotated
without copies. A layer is replaced only if the replacement agrees with it on a probe, so that no list of model families
has to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GradientCheckpointingLayer

from rlft.model.kernels.elementwise import (
    gated_silu,
    gated_silu_backward,
    normed,
    rms_norm_and_scale,
    rms_norm_backward,
    rotate,
    rotate_backward,
    signed_sin_of,
)
from rlft.model.kernels.joint_projection import Update, lay_side_by_side, project, project_backward
from rlft.model.layers.lora import PlainUpdate, projection
from rlft.model.layers.packed import PackedGroup
from rlft.model.layers.packed_attention import Layout, packed_heads_attention
from rlft.model.layers.slow_paths import ON_GPU, is_on_cpu, note, note_all, slow_paths


def use_lean_decoders(model: nn.Module) -> None:
    """Replace the forward pass of the decoder layers that agree; of packed rows only, others go the original way."""
    if not is_on_cpu(model):
        return
    noted, found = slow_paths(model), []
    for layer in model.modules():
        if not isinstance(layer, GradientCheckpointingLayer):
            continue
        options = _options(layer)
        found.append((layer, options if isinstance(options, str) else ""))
        if not isinstance(options, str):
            layer.forward = partial(_forward, layer, options, noted)
            _lay_out_weights(layer)
    note_all(noted, "decoder layers", found)


def _lay_out_weights(layer: Any) -> None:
    """Move the weights of a layer to where products of one input are one."""
    parts = _projections(layer)
    assert parts is not None
    for together in (parts[:3], parts[4:6]):
        lay_side_by_side([part.weight for part in together])


def _forward(
    self: Any, options: _Options, noted: dict[str, None], hidden_states: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    layout = kwargs.get("packed_layout")
    parts = _projections(self)
    if why := _obstacle(self, parts, hidden_states, args, kwargs):
        if layout is not None:  # other passes, which are single ones, are not meant to be fast
            note(noted, f"decoder layers ({type(self).__name__}) were computed by transformers: {why}")
        return type(self).forward(self, hidden_states, *args, **kwargs)
    assert parts is not None
    assert layout is not None
    cos, sin = kwargs["position_embeddings"]
    return _decoder(self, options, parts, hidden_states, cos, sin, layout)


def _obstacle(layer: Any, parts: Sequence[PlainUpdate] | None, x: Tensor, args: Sequence[Any], kwargs: Any) -> str:
    """Why a pass through a replaced layer goes the original way; empty where it does not."""
    if not x.is_cpu:
        return ON_GPU
    if layer.training or torch.is_autocast_enabled("cpu"):
        return "it is in training mode or under autocast"
    if parts is None:
        return "a projection is trained itself, or its active adapter is more than B A x"
    if args or kwargs.get("position_embeddings") is None:
        return "it is called with other arguments than rotary positions by name"
    if kwargs["position_embeddings"][0].shape[-1] != layer.self_attn.head_dim:
        return "it rotates a part of each head only"
    return "the pass is no packed row" if kwargs.get("packed_layout") is None else ""


def _projections(layer: Any) -> list[PlainUpdate] | None:
    """q, k, v, o, gate, up and down of a layer, where each is a frozen linear layer with at most a plain update."""
    attention, mlp = layer.self_attn, layer.mlp
    modules = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    parts = [projection(module) for module in (*modules, mlp.gate_proj, mlp.up_proj, mlp.down_proj)]
    plain = [part for part in parts if part is not None]
    return plain if len(plain) == len(parts) else None


def _decoder(
    layer: Any, options: _Options, parts: list[PlainUpdate], x: Tensor, cos: Tensor, sin: Tensor, layout: Layout
) -> Tensor:
    """The layer's output for a packed row x (1, T, width), with cos and sin (1, T, D)."""
    first, second = _norms(layer)
    signed_sin = signed_sin_of(sin[0, :, None])
    heads = _AttentionInput.apply(x, *first, cos[0, :, None], signed_sin, _updates(parts[:3]), *_tensors(parts[:3]))
    num_heads = len(parts[0].weight) // heads.shape[-1]
    output = packed_heads_attention(heads, num_heads, layout, *options)
    x = _AttentionOutput.apply(x, output.flatten(1).unsqueeze(0), _updates(parts[3:4]), *_tensors(parts[3:4]))
    return _GatedMLP.apply(x, *second, _updates(parts[4:]), *_tensors(parts[4:]))


def _norms(layer: Any) -> list[tuple[Tensor, float]]:
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    return [(norm.weight, norm.variance_epsilon) for norm in norms]


def _updates(parts: list[PlainUpdate]) -> list[Update]:
    return [(part.scale, 0 if part.down is None else len(part.down)) for part in parts]


def _tensors(parts: list[PlainUpdate]) -> list[Tensor | None]:
    return [tensor for part in parts for tensor in (part.weight, part.bias, part.down, part.up)]


# Functions


class _AttentionInput(torch.autograd.Function):
    """The normed input's queries, keys and values, (T, H + 2 H_kv, D), the first two rotated to their positions."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        epsilon: float,
        cos: Tensor,
        signed_sin: Tensor,
        updates: Sequence[Update],
        *tensors: Tensor | None,
    ) -> Tensor:
        n, scale = rms_norm_and_scale(x, norm_weight, epsilon)
        y, saved = project(n, updates, tensors)
        heads = y.view(len(y), -1, cos.shape[-1])
        num_rotated = sum(len(_present(weight)) for weight in tensors[:8:4]) // cos.shape[-1]
        rotate(heads, num_rotated, cos, signed_sin)
        ctx.save_for_backward(x, norm_weight, scale, cos, signed_sin, *saved)
        ctx.updates, ctx.num_rotated = updates, num_rotated
        return heads

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, scale, cos, signed_sin, *saved = ctx.saved_tensors
        grad_heads = rotate_backward(grads[0], ctx.num_rotated, cos, signed_sin)
        needs_x = ctx.needs_input_grad[0]
        n = normed(x, norm_weight, scale)
        grad, grads_of_updates = project_backward(grad_heads.flatten(1), n, ctx.updates, saved, needs_x=needs_x)
        grad_x = None if grad is None else rms_norm_backward(grad.view(x.shape), x, norm_weight, scale)
        return grad_x, None, None, None, None, None, *grads_of_updates


class _AttentionOutput(torch.autograd.Function):
    """residual + the projection of x"""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, updates: Sequence[Update], *tensors: Tensor | None) -> Tensor:
        y, saved = project(x, updates, tensors)
        ctx.save_for_backward(x, *saved)
        ctx.updates = updates
        return y.view(residual.shape).add_(residual)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        needs_x = ctx.needs_input_grad[1]
        grad, grads_of_updates = project_backward(grads[0].flatten(0, -2), x, ctx.updates, saved, needs_x=needs_x)
        return grads[0], None if grad is None else grad.view(x.shape), None, *grads_of_updates


class _GatedMLP(torch.autograd.Function):
    """x + W_d (silu(W_g n) * W_u n) with n = norm(x), https://arxiv.org/abs/2002.05202"""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm_weight: Tensor, epsilon: float, updates: Sequence[Update], *tensors: Tensor | None
    ) -> Tensor:
        n, scale = rms_norm_and_scale(x, norm_weight, epsilon)
        inner, saved = project(n, updates[:2], tensors[:8])
        y, saved_down = project(gated_silu(inner), updates[2:], tensors[8:])
        ctx.save_for_backward(x, norm_weight, scale, inner, *saved, *saved_down)
        ctx.updates, ctx.num_saved = updates, len(saved)
        return y.view(x.shape).add_(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, scale, inner, *saved = ctx.saved_tensors
        saved, saved_down = saved[: ctx.num_saved], saved[ctx.num_saved :]
        grad_y, gated = grads[0].flatten(0, -2), gated_silu(inner)
        grad, down = project_backward(grad_y, gated, ctx.updates[2:], saved_down, needs_x=True)
        assert grad is not None
        grad_inner = gated_silu_backward(grad, inner)
        needs_x, n = ctx.needs_input_grad[0], normed(x, norm_weight, scale)
        grad, grads_of_updates = project_backward(grad_inner, n, ctx.updates[:2], saved, needs_x=needs_x)
        grad_x = None
        if grad is not None:
            grad_x = rms_norm_backward(grad.view(x.shape), x, norm_weight, scale, residual=grads[0])
        return grad_x, None, None, None, *grads_of_updates, *down


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


# The probe

_Options: TypeAlias = tuple[float, int | None]
"""Scale of the scores and sliding window of a layer."""


@dataclass(slots=True)
class _Recorder(Layout):
    """A layout that records the operands of attention."""

    rotated: list[Tensor] = field(default_factory=list)
    options: list[_Options] = field(default_factory=list)

    def count_layer(self, query: Tensor, key: Tensor, scale: float, window: int | None) -> None:
        """Record the rotated queries and keys of a layer, and its options."""
        self.rotated += [query, key]
        self.options.append((scale, window))


def _options(layer: Any) -> _Options | str:
    """What the layer hands to attention, if the replacement computes what it does on a small packed row, else why not.

    Queries and keys are compared themselves, as attention might hardly show a difference between them; and the layer's
    output for small states, beside which its halves count, and for usual ones.
    """
    try:
        parts, norms = _projections(layer), _norms(layer)
        if parts is None:
            return "a projection is no frozen linear layer with at most one plain LoRA update"
        if any(weight.requires_grad for weight, _ in norms):
            return "its norms are trained"
        if not _is_silu(layer.mlp.act_fn):
            return "its activation is not silu"
        weight, head_dim = parts[0].weight, layer.self_attn.head_dim
        generator = torch.Generator().manual_seed(0)
        states = torch.randn(1, 9, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
        angle = torch.randn(1, 9, head_dim // 2, generator=generator).repeat(1, 1, 2).to(weight.device)
        cos, sin = angle.cos().to(weight.dtype), angle.sin().to(weight.dtype)
        tolerance = 1e-4 if weight.dtype.itemsize >= 4 else 2e-2
        groups = (PackedGroup(start=0, prompt_length=3, lengths=(4, 2)),)
        with torch.no_grad():
            for x in (states * 1e-3, states):
                own, plain = _Recorder(groups), _Recorder(groups)
                expected = layer(
                    x, attention_mask=None, position_embeddings=(cos, sin), packed_layout=plain, use_cache=False
                )
                [options] = plain.options
                actual = _decoder(layer, options, parts, x, cos, sin, own)
                results = zip((*own.rotated, actual), (*plain.rotated, expected), strict=True)
                if not all(_is_close(first, second, tolerance) for first, second in results):
                    return "it computes something else"
    except (RuntimeError, AttributeError, TypeError, ValueError) as error:
        return f"it is another kind of layer ({error})"  # with other parts, or that takes other inputs
    return options


def _is_silu(activation: Any) -> bool:
    x = torch.linspace(-4, 4, 33)
    return torch.allclose(activation(x), F.silu(x), rtol=1e-5, atol=1e-6)


def _is_close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    return actual.shape == expected.shape and bool((actual - expected).norm() <= tolerance * expected.norm())
