"""The LoRA layer's arithmetic in the base's own type, with only its input saved for the backward pass.

peft's layer computes the update in the adapter's float32 and keeps float32 copies of every input and output: on a
bfloat16 base that is slower than the base layer itself and takes several times its memory. Here the float32 weights are
the master copy, rounded to the base's type for the products, whose sums are float32 inside the GEMM. On a float32 or
float64 base nothing is rounded and the result is peft's.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from rlft.model.kernels.joint_projection import project, project_backward
from rlft.model.layers.slow_paths import is_on_cpu, note_all, slow_paths


def use_lean_lora(model: nn.Module) -> None:
    """Let every plain LoRA layer of a peft model compute this way on a CPU; others (DoRA, dropout, GPT-2's Conv1D) stay
    as they are."""
    if not is_on_cpu(model):
        return
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    for layer in layers:
        if _is_linear(layer):
            layer.forward = partial(_forward, layer)
    note_all(slow_paths(model), "LoRA layers", ((layer, _why_not_plain(layer)) for layer in layers))


def _is_linear(layer: nn.Module) -> bool:
    return isinstance(layer, PeftLinear) and type(layer.base_layer) is nn.Linear


def _why_not_plain(layer: Any) -> str:
    """Why a layer's update is PEFT's to compute; empty where it is plain."""
    if isinstance(layer.get_base_layer(), nn.Embedding):
        return "it updates an embedding"
    if not _is_linear(layer):
        return f"its base layer is {type(layer.get_base_layer()).__name__}"
    return "" if plain_update(layer) else "its active adapter is more than B A x (DoRA, dropout, several at once)"


@dataclass(frozen=True, slots=True)
class PlainUpdate:
    """y = x W^T + bias + scale (x down^T) up^T with W and bias frozen."""

    weight: Tensor
    """(out, in)"""
    bias: Tensor | None
    down: Tensor | None
    """(rank, in), master copy; None where there is no update"""
    up: Tensor | None
    """(out, rank), master copy"""
    scale: float


def plain_update(layer: nn.Module) -> PlainUpdate | None:
    """What a layer computes under its active adapter, where it is a plain LoRA update of a linear layer."""
    if not isinstance(layer, PeftLinear) or type(layer.base_layer) is not nn.Linear or layer.disable_adapters:
        return None
    adapters = layer.active_adapters
    name = adapters[0]
    is_plain = len(adapters) == 1 and name in layer.lora_A and name not in layer.lora_variant and not layer.merged
    if not is_plain or not isinstance(layer.lora_dropout[name], nn.Identity):
        return None
    base = layer.base_layer
    return PlainUpdate(
        base.weight, base.bias, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    )


def projection(layer: nn.Module) -> PlainUpdate | None:
    """What a frozen linear layer computes as it is switched now, with a plain LoRA update or without any."""
    if isinstance(layer, PeftLinear) and layer.disable_adapters and not layer.merged:
        layer = layer.base_layer
    update = PlainUpdate(layer.weight, layer.bias, None, None, 1.0) if type(layer) is nn.Linear else plain_update(layer)
    if update is None or update.weight.requires_grad or (update.bias is not None and update.bias.requires_grad):
        return None
    return update


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if self.disable_adapters:
        return self.base_layer(x)
    update = plain_update(self) if x.is_cpu else None
    if update is None:
        return type(self).forward(self, x, *args, **kwargs)
    y = _LoraLinear.apply(x, update.weight, update.bias, update.down, update.up, update.scale)
    return y.unflatten(0, x.shape[:-1])  # not in the function: nobody may change a view that it returns in place


class _LoraLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        ctx.updates = [(scale, len(down))]
        y, saved = project(x, ctx.updates, [weight, bias, down, up])
        ctx.save_for_backward(x, *saved)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, *saved = ctx.saved_tensors
        needs_x = ctx.needs_input_grad[0]
        grad_x, of_tensors = project_backward(grads[0], x, ctx.updates, saved, needs_x=needs_x)
        return None if grad_x is None else grad_x.view(x.shape), *of_tensors, None
