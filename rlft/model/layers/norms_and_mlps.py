"""Layers of a frozen model with gradients written by hand: fewer passes over memory, less kept for the backward pass.

A module is replaced only when the replacement gives its results on a probe, so that no list of model families has to be
kept: what a family computes otherwise stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlft.model.kernels.elementwise import rms_norm, rms_norm_and_scale, rms_norm_backward
from rlft.model.kernels.joint_projection import project, project_backward
from rlft.model.layers.lora import plain_update
from rlft.model.layers.slow_paths import is_on_cpu, note_all, slow_paths


def use_lean_layers(model: nn.Module) -> None:
    """Replace the forward pass of RMS norms and gated MLPs whose own weights are frozen."""
    _replace(model, _replacement)


def _replace(model: nn.Module, replacement: Callable[[Any], Callable[..., Tensor] | None]) -> None:
    if not is_on_cpu(model):
        return
    verdicts: dict[tuple[type, str], str] = {}
    found: list[tuple[Any, str]] = []
    for module in model.modules():
        if not (_is_rms_norm(module) or _is_gated_mlp(module)):
            continue
        forward = replacement(module)
        if forward is None:
            found.append((module, "its own weights are trained"))
            continue
        key = (type(module), str(getattr(module, "act_fn", "")))
        if key not in verdicts:
            verdicts[key] = _disagreement(module, forward)
        found.append((module, verdicts[key]))
        if not verdicts[key]:
            module.forward = partial(_forward, module, forward)
    note_all(slow_paths(model), "norms and MLPs", found)


def _forward(self: Any, forward: Callable[..., Tensor], x: Tensor) -> Tensor:
    """The replacement on a CPU; the model may have been moved since."""
    return forward(self, x) if x.is_cpu else type(self).forward(self, x)


def _replacement(module: Any) -> Callable[..., Tensor] | None:
    if _is_rms_norm(module):
        return None if module.weight.requires_grad else _norm_forward
    return _mlp_forward


def _is_rms_norm(module: Any) -> bool:
    is_named = type(module).__name__.endswith("RMSNorm") and isinstance(getattr(module, "weight", None), nn.Parameter)
    return is_named and hasattr(module, "variance_epsilon")


def _is_gated_mlp(module: Any) -> bool:
    return all(hasattr(module, name) for name in ("gate_proj", "up_proj", "down_proj", "act_fn"))


def _disagreement(module: Any, forward: Callable[..., Tensor]) -> str:
    """How the forward passes differ on random input; empty where they give the same."""
    weight = next(module.parameters())
    width = module.gate_proj.in_features if hasattr(module, "gate_proj") else weight.shape[-1]
    x = torch.randn(4, width, generator=torch.Generator().manual_seed(0)).to(weight.device, weight.dtype)
    tolerance = 1e-5 if weight.dtype == torch.float32 else 2e-2
    with torch.no_grad():
        try:
            expected, actual = module(x), forward(module, x)
        except (RuntimeError, AttributeError, TypeError) as error:
            return f"it is another kind of module ({error})"
    if expected.shape == actual.shape and torch.allclose(actual, expected, rtol=tolerance, atol=tolerance):
        return ""
    return "it computes something else"


def _norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    return _RMSNorm.apply(hidden_states, self.weight, self.variance_epsilon)


def _mlp_forward(self: Any, x: Tensor) -> Tensor:
    gate, up = self.gate_proj(x), self.up_proj(x)
    update = plain_update(self.down_proj)
    if update is None:
        return self.down_proj(_GatedSiLU.apply(gate, up))
    y = _GatedLoraLinear.apply(gate, up, update.weight, update.bias, update.down, update.up, update.scale)
    return y.unflatten(0, gate.shape[:-1])  # not in the function: nobody may change a view that it returns in place


class _RMSNorm(torch.autograd.Function):
    """w x / rms(x), the mean of squares in float32; keeps x and 1 / rms(x)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        y, scale = rms_norm_and_scale(x, weight, epsilon)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return rms_norm_backward(grads[0], *ctx.saved_tensors), None, None


class _GatedSiLU(torch.autograd.Function):
    """silu(gate) * up (https://arxiv.org/abs/2002.05202), which keeps nothing but its two inputs."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grads[0] * up, gate), F.silu(gate).mul_(grads[0])


class _GatedLoraLinear(torch.autograd.Function):
    """The projection down with its LoRA update of silu(gate) * up, which is computed again rather than kept."""

    @staticmethod
    def forward(
        ctx: Any,
        gate: Tensor,
        up: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_down: Tensor,
        lora_up: Tensor,
        scale: float,
    ) -> Tensor:
        ctx.updates = [(scale, len(lora_down))]
        y, saved = project(F.silu(gate).mul_(up), ctx.updates, [weight, bias, lora_down, lora_up])
        ctx.save_for_backward(gate, up, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, up, *saved = ctx.saved_tensors
        silu = F.silu(gate)
        grad, of_tensors = project_backward(grads[0], silu * up, ctx.updates, saved, needs_x=True)
        assert grad is not None
        grad = grad.view(gate.shape)
        grad_gate = torch.ops.aten.silu_backward(grad * up, gate)
        return grad_gate, silu.mul_(grad), *of_tensors, None


def use_inference_layers(model: nn.Module) -> None:
    """Replace norms and gated MLPs of a model that is only run forwards, where the replacements agree on a probe."""
    _replace(model, _inference_replacement)


def compile_inference_layers(model: nn.Module) -> None:
    """Put norms and gated MLPs through torch.compile: what surrounds them, caches and attention, is not worth it."""
    for module in model.modules():
        if _is_rms_norm(module) or _is_gated_mlp(module):
            module.compile(dynamic=True)


def _inference_replacement(module: Any) -> Callable[..., Tensor]:
    return _fused_norm_forward if _is_rms_norm(module) else _fused_mlp_forward


def _fused_norm_forward(self: Any, hidden_states: Tensor) -> Tensor:
    return rms_norm(hidden_states, self.weight, self.variance_epsilon)


def _fused_mlp_forward(self: Any, x: Tensor) -> Tensor:
    return self.down_proj(F.silu(self.gate_proj(x), inplace=True).mul_(self.up_proj(x)))
