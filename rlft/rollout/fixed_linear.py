"""Linear layers whose weight stays the same for many calls, laid out once in the order in which the processor wants it.

A product with few rows costs little more than reading its weight. Plain rows have to be brought into the order of the
processor's matrix unit each time, which takes as long again; here that is done once. What follows the product, a
residual to add or a gate to multiply, is done inside it.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

_ROWS = 64
"""Rows for which the order is chosen; it serves other numbers as well."""


class FixedLinear:
    """x W^T + bias for x (R, in)."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Keep a copy of `weight` (out, in), laid out, and `bias` (out,) itself."""
        self._bias = bias
        self._is_packed = weight.device.type == "cpu" and _packs(weight.dtype)
        self._weight = _pack(weight) if self._is_packed else weight.clone()

    def __call__(self, x: Tensor) -> Tensor:
        """(R, out)"""
        if self._is_packed:
            return _linear(x, self._weight, self._bias)
        return F.linear(x, self._weight, self._bias)

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """The product and `residual` (R, out), added up."""
        if self._is_packed:
            return _linear_and(x, residual, self._weight, self._bias, "add")
        return F.linear(x, self._weight, self._bias).add_(residual)

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """The product times `factor` (R, out), elementwise."""
        if self._is_packed:
            return _linear_and(x, factor, self._weight, self._bias, "mul")
        return F.linear(x, self._weight, self._bias).mul_(factor)


# oneDNN's products as torch.compile calls them, https://github.com/pytorch/pytorch (aten/src/ATen/native/mkldnn).


def _pack(weight: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _ROWS)


def _linear(x: Tensor, packed: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.default(x, packed, bias, "none", [], "")


def _linear_and(x: Tensor, other: Tensor, packed: Tensor, bias: Tensor | None, operation: str) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise.binary(x, other, packed, bias, operation)


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether packed products of this type are there, fast and right on this machine. In float32 they bring nothing."""
    if dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, other = (torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 32), (48, 32), (5, 48)))
    expected = F.linear(x, weight)
    try:
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
            return False
        packed = _pack(weight)
        pairs = (
            (_linear(x, packed, None), expected),
            (_linear_and(x, other, packed, None, "add"), expected + other),
            (_linear_and(x, other, packed, None, "mul"), expected * other),
        )
    except (AttributeError, RuntimeError, TypeError):
        return False  # another version of torch
    return all(torch.allclose(actual, wanted, rtol=2e-2, atol=5e-2) for actual, wanted in pairs)
