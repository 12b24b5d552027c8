"""The decoder layer of Llama and its relatives with gradients written by hand, for a frozen model with LoRA adapters.

    x + W_o attention(rotate(W_q n), rotate(W_k n), W_v n) with n = norm(x),   then   x + W_d (silu(W_g n) * W_u n)

Each half is one or two functions: what is cheap (norms, silu, the gated product) is computed again in the backward pass
rather than kept, gradients of one input are summed inside the products, and queries are rotated without copies. A layer
is replaced only if the replacement agrees with it on a probe, so that no list of model families has to be kept.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rlft.attention import Layout, packed_attention
from rlft.batch import PackedGroup
from rlft.lean_layers import norm_backward, norm_scale, normed
from rlft.lora import PlainUpdate, lora_backward, lora_forward, projection


def use_lean_decoders(model: nn.Module) -> None:
    """Replace the forward pass of the decoder layers that agree; of packed rows only, others go the original way."""
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer) and (options := _options(module)) is not None:
            module.forward = partial(_forward, module, options)


def _forward(self: Any, options: _Options, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    layout, positions = kwargs.get("packed_layout"), kwargs.get("position_embeddings")
    is_plain = not (args or self.training or torch.is_autocast_enabled(hidden_states.device.type))
    parts = _projections(self) if is_plain else None
    if parts is None or layout is None or positions is None:
        return type(self).forward(self, hidden_states, *args, **kwargs)
    cos, sin = positions
    return _decoder(self, options, parts, hidden_states, cos, sin, layout)


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
    heads = _AttentionInput.apply(
        x, *first, cos[0, :, None], sin[0, :, None], [part.scale for part in parts[:3]], *_tensors(parts[:3])
    )
    query, key, value = (tensor.transpose(0, 1).unsqueeze(0) for tensor in heads)
    output, _ = packed_attention(layer.self_attn, query, key, value, None, layout, *options)
    x = _AttentionOutput.apply(x, output.flatten(2), parts[3].scale, *_tensors(parts[3:4]))
    return _GatedMLP.apply(x, *second, [part.scale for part in parts[4:]], *_tensors(parts[4:]))


def _norms(layer: Any) -> list[tuple[Tensor, float]]:
    norms = (layer.input_layernorm, layer.post_attention_layernorm)
    return [(norm.weight, norm.variance_epsilon) for norm in norms]


def _tensors(parts: list[PlainUpdate]) -> list[Tensor | None]:
    return [tensor for part in parts for tensor in (part.weight, part.bias, part.down, part.up)]


# Functions


class _AttentionInput(torch.autograd.Function):
    """The normed input's queries, keys and values, (T, heads, D) each, the first two rotated to their positions."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        norm_weight: Tensor,
        epsilon: float,
        cos: Tensor,
        sin: Tensor,
        scales: list[float],
        *tensors: Tensor | None,
    ) -> tuple[Tensor, ...]:
        scale = norm_scale(x, epsilon)
        results, saved = _project(normed(x, norm_weight, scale), scales, tensors)
        ctx.save_for_backward(x, norm_weight, scale, cos, sin, *saved)
        ctx.scales = scales
        query, key, value = (result.view(x.shape[-2], -1, cos.shape[-1]) for result in results)
        return _rotate(query, cos, sin), _rotate(key, cos, sin), value

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, scale, cos, sin, *saved = ctx.saved_tensors
        unrotated = (_unrotate(grads[0], cos, sin), _unrotate(grads[1], cos, sin), grads[2])
        gradients = [grad.reshape(*x.shape[:-1], -1) for grad in unrotated]
        needs_x = ctx.needs_input_grad[0]
        grad, updates = _project_backward(gradients, normed(x, norm_weight, scale), ctx.scales, saved, needs_x=needs_x)
        grad_x = None if grad is None else norm_backward(grad, x, norm_weight, scale)
        return grad_x, None, None, None, None, None, *updates


class _AttentionOutput(torch.autograd.Function):
    """residual + the projection of x"""

    @staticmethod
    def forward(ctx: Any, residual: Tensor, x: Tensor, scale: float, *tensors: Tensor | None) -> Tensor:
        [y], saved = _project(x, [scale], tensors)
        ctx.save_for_backward(x, *saved)
        ctx.scale = scale
        return y.add_(residual)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        grad_x, updates = _project_backward([grads[0]], x, [ctx.scale], saved, needs_x=ctx.needs_input_grad[1])
        return grads[0], grad_x, None, *updates


class _GatedMLP(torch.autograd.Function):
    """x + W_d (silu(W_g n) * W_u n) with n = norm(x), https://arxiv.org/abs/2002.05202"""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, norm_weight: Tensor, epsilon: float, scales: list[float], *tensors: Tensor | None
    ) -> Tensor:
        scale = norm_scale(x, epsilon)
        (gate, up), saved = _project(normed(x, norm_weight, scale), scales[:2], tensors[:8])
        [y], saved_down = _project(F.silu(gate).mul_(up), scales[2:], tensors[8:])
        ctx.save_for_backward(x, norm_weight, scale, gate, up, *saved, *saved_down)
        ctx.scales = scales
        return y.add_(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, norm_weight, scale, gate, up, *saved = ctx.saved_tensors
        silu = F.silu(gate)
        grad, down = _project_backward([grads[0]], silu * up, ctx.scales[2:], saved[8:], needs_x=True)
        assert grad is not None
        grad_up = silu.mul_(grad)
        grad_gate = torch.ops.aten.silu_backward(grad.mul_(up), gate)
        needs_x = ctx.needs_input_grad[0]
        grad, updates = _project_backward(
            [grad_gate, grad_up], normed(x, norm_weight, scale), ctx.scales[:2], saved[:8], needs_x=needs_x
        )
        grad_x = None if grad is None else norm_backward(grad, x, norm_weight, scale).add_(grads[0])
        return grad_x, None, None, None, *updates, *down


def _project(
    x: Tensor, scales: list[float], tensors: tuple[Tensor | None, ...]
) -> tuple[list[Tensor], list[Tensor | None]]:
    """(the projections of x, what their backward pass needs), from (weight, bias, down, up) of each."""
    results, saved = [], list[Tensor | None]()
    for index, scale in enumerate(scales):
        weight, bias, down, up = tensors[4 * index : 4 * index + 4]
        assert weight is not None
        a, b = (None if half is None else half.to(x.dtype) for half in (down, up))
        y, inner = lora_forward(x, weight, bias, a, b, scale)
        results.append(y)
        saved += [inner, weight, a, b]
    return results, saved


def _project_backward(
    grads: list[Tensor], x: Tensor, scales: list[float], saved: list[Any], *, needs_x: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """(the gradient of x from all projections, the gradients of their `tensors`)"""
    grad_x, updates = None, list[Tensor | None]()
    for index, (grad, scale) in enumerate(zip(grads, scales, strict=True)):
        inner, weight, a, b = saved[4 * index : 4 * index + 4]
        grad_x, grad_down, grad_up = lora_backward(grad, x, inner, weight, a, b, scale, needs_x=needs_x, add_to=grad_x)
        updates += [None, None, grad_down, grad_up]
    return grad_x, updates


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions, https://arxiv.org/abs/2104.09864: (x1, x2) to (x1 cos - x2 sin, x2 cos + x1 sin)."""
    half = x.shape[-1] // 2
    y = x * cos
    y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
    y[..., half:].addcmul_(x[..., :half], sin[..., half:])
    return y


def _unrotate(grad: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The transpose of `_rotate`."""
    half = grad.shape[-1] // 2
    result = grad * cos
    result[..., :half].addcmul_(grad[..., half:], sin[..., half:])
    result[..., half:].addcmul_(grad[..., :half], sin[..., :half], value=-1)
    return result


# The probe

_Options: TypeAlias = tuple[float, int | None]
"""Scale of the scores and sliding window of a layer."""


@dataclass(slots=True)
class _Recorder(Layout):
    """A layout that notes what attention is given."""

    rotated: list[Tensor] = field(default_factory=list)
    options: list[_Options] = field(default_factory=list)

    def attended(self, query: Tensor, key: Tensor, scale: float, window: int | None) -> None:
        """See `Layout`."""
        self.rotated += [query, key]
        self.options.append((scale, window))


def _options(layer: Any) -> _Options | None:
    """What the layer hands to attention, if the replacement computes what it does on a small packed row, else None.

    Queries and keys are compared themselves, as attention might hardly show a difference between them; and the layer's
    output for small states, beside which its halves count, and for usual ones.
    """
    try:
        parts, norms = _projections(layer), _norms(layer)
        if parts is None or any(weight.requires_grad for weight, _ in norms) or not _is_silu(layer.mlp.act_fn):
            return None
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
                    return None
    except (RuntimeError, AttributeError, TypeError, ValueError):
        return None  # it has other parts or takes other inputs, so it is another kind of layer
    return options


def _is_silu(activation: Any) -> bool:
    x = torch.linspace(-4, 4, 33)
    return torch.allclose(activation(x), F.silu(x), rtol=1e-5, atol=1e-6)


def _is_close(actual: Tensor, expected: Tensor, tolerance: float) -> bool:
    return actual.shape == expected.shape and bool((actual - expected).norm() <= tolerance * expected.norm())
