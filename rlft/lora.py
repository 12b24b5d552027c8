"""The LoRA layer's arithmetic in the base's own type, with only its input saved for the backward pass.

peft's layer computes the update in the adapter's float32 and keeps float32 copies of every input and output: on a
bfloat16
base that is slower than the base layer itself and takes several times its memory. Here the float32 weights are the
master
copy, rounded to the base's type for the products, whose sums are float32 inside the GEMM. On a float32 or float64 base
nothing is rounded and the result is peft's.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from peft.tuners.lora.layer import Linear as PeftLinear
from torch import Tensor, nn


def use_lean_lora(model: nn.Module) -> None:
    """Let every plain LoRA layer of a peft model compute this way; others (DoRA, dropout, GPT-2's Conv1D) stay as
    they are."""
    for module in model.modules():
        if isinstance(module, PeftLinear) and type(module.base_layer) is nn.Linear:
            module.forward = MethodType(_forward, module)


def _forward(self: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if self.disable_adapters:
        return self.base_layer(x)
    adapters = self.active_adapters
    name = adapters[0]
    is_plain = len(adapters) == 1 and name in self.lora_A and name not in self.lora_variant and not self.merged
    if not is_plain or not isinstance(self.lora_dropout[name], nn.Identity):
        return type(self).forward(self, x, *args, **kwargs)
    base = self.base_layer
    return _LoraLinear.apply(
        x, base.weight, base.bias, self.lora_A[name].weight, self.lora_B[name].weight, self.scaling[name]
    )


class _LoraLinear(torch.autograd.Function):
    """y = x W^T + bias + s (x A^T) B^T with W and bias frozen."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float
    ) -> Tensor:
        a, b = down.to(x.dtype), up.to(x.dtype)
        flat = x.flatten(0, -2)
        inner = flat @ a.T
        y = torch.addmm(F.linear(flat, weight, bias), inner, b.T, alpha=scale)
        ctx.save_for_backward(x, inner, weight, a, b)
        ctx.scale = scale
        return y.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, Tensor, Tensor, None]:
        x, inner, weight, a, b = ctx.saved_tensors
        grad = grads[0].flatten(0, -2)
        grad_inner = (grad @ b).mul_(ctx.scale)
        grad_down = (grad_inner.T @ x.flatten(0, -2)).to(_master(x))
        grad_up = (grad.T @ inner).to(_master(x)).mul_(ctx.scale)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.addmm(grad @ weight, grad_inner, a).unflatten(0, x.shape[:-1])
        return grad_x, None, None, grad_down, grad_up, None


def _master(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
