"""Linear layers whose weight stays the same for many calls, laid out once in the order in which the processor wants it.

A product with few rows costs little more than reading its weight. Plain rows have to be brought into the order of the
processor's matrix unit each time, which takes as long again; here that is done once. What follows the product, a
residual to add, a gate or its activation, is done inside it.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from rlft.common.private_names import private
from rlft.model.kernels import products
from rlft.model.kernels.products import Operation
from rlft.model.kernels.sizes import TOKENS

_ROWS = 64
"""Rows for which oneDNN's order is chosen; it serves other numbers as well."""

_Product = Callable[[Tensor, Tensor | None, Operation], Tensor]
"""From x (R, in) and another operand (R, out) or none: the output, plus the operand or times it, or silu of it."""


class FrozenLinear:
    """A linear layer x W^T + bias whose weight does not change."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Keep a copy of `weight` (out, in), laid out, and `bias` (out,) itself, which may change in place."""
        weight, bias = weight.detach().contiguous(), None if bias is None else bias.detach()
        self._product = _in_panels(weight, bias) or _reordered(weight, bias) or _plain(weight, bias)
        self.shape, self.bias = weight.shape, bias

    @property
    def step(self) -> int:
        """What numbers of rows should be multiples of: 1 for the kernels' products; oneDNN makes one per shape."""
        return TOKENS if self.panels is None else 1

    @property
    def panels(self) -> Tensor | None:
        """The weight as the kernels take it, where they compute the product."""
        return self._product.panels if isinstance(self._product, _InPanels) else None

    def pointers(self) -> tuple[int, int | None]:
        """To `panels` and the bias, for modules of this folder that check the product's operands themselves; they are
        right as long as this layer exists.

        Raises:
            ValueError: the weight is not in panels.
        """
        if self.panels is None:
            raise ValueError("this layer's weight is not in panels")
        return self.panels.data_ptr(), None if self.bias is None else self.bias.data_ptr()

    def __call__(self, x: Tensor) -> Tensor:
        """The layer's output (R, out) for x (R, in)."""
        return self._product(x, None, "none")

    def plus(self, x: Tensor, residual: Tensor) -> Tensor:
        """The layer's output plus `residual` (R, out)."""
        return self._product(x, residual, "add")

    def times(self, x: Tensor, factor: Tensor) -> Tensor:
        """The layer's output times `factor` (R, out), elementwise."""
        return self._product(x, factor, "mul")

    def silu(self, x: Tensor) -> Tensor:
        """silu of the layer's output."""
        return self._product(x, None, "silu")


def _plain(weight: Tensor, bias: Tensor | None) -> _Product:
    kept = weight.clone()

    def product(x: Tensor, other: Tensor | None, operation: Operation) -> Tensor:
        y = F.linear(x, kept, bias)
        if other is None:
            return F.silu(y, inplace=True) if operation == "silu" else y
        return y.add_(other) if operation == "add" else y.mul_(other)

    return product


class _InPanels:
    def __init__(self, panels: Tensor, outputs: int, bias: Tensor | None) -> None:
        self.panels, self._outputs, self._bias = panels, outputs, bias

    def __call__(self, x: Tensor, other: Tensor | None, operation: Operation) -> Tensor:
        return products.product(x, self.panels, self._outputs, self._bias, other, operation)


def _in_panels(weight: Tensor, bias: Tensor | None) -> _InPanels | None:
    panels = products.in_panels(weight, bias)
    return None if panels is None else _InPanels(panels, len(weight), bias)


# oneDNN's products as torch.compile calls them, https://github.com/pytorch/pytorch (aten/src/ATen/native/mkldnn).


def _reordered(weight: Tensor, bias: Tensor | None) -> _Product | None:
    if weight.device.type != "cpu" or not _packs(weight.dtype):
        return None
    packed = _pack(weight)

    def product(x: Tensor, other: Tensor | None, operation: Operation) -> Tensor:
        if other is None:
            return _linear(x, packed, bias, "swish" if operation == "silu" else "none")
        return _linear_and(x, other, packed, bias, operation)

    return product


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = private("torch.ops.mkldnn._reorder_linear_weight")(weight, _ROWS)
    return packed


def _linear(x: Tensor, packed: Tensor, bias: Tensor | None, operation: str = "none") -> Tensor:
    y: Tensor = private("torch.ops.mkldnn._linear_pointwise.default")(x, packed, bias, operation, [], "")
    return y


def _linear_and(x: Tensor, other: Tensor, packed: Tensor, bias: Tensor | None, operation: str) -> Tensor:
    y: Tensor = private("torch.ops.mkldnn._linear_pointwise.binary")(x, other, packed, bias, operation)
    return y


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Whether packed products of this type are there, fast and right on this machine. In float32 they bring nothing."""
    if dtype != torch.bfloat16 or not torch.backends.mkldnn.is_available():
        return False
    generator = torch.Generator().manual_seed(0)
    x, weight, other = (torch.randn(shape, generator=generator).to(dtype) for shape in ((5, 32), (48, 32), (5, 48)))
    expected = F.linear(x, weight)
    try:
        if not private("torch.ops.mkldnn._is_mkldnn_bf16_supported")():
            return False
        packed = _pack(weight)
        pairs = (
            (_linear(x, packed, None), expected),
            (_linear(x, packed, None, "swish"), F.silu(expected)),
            (_linear_and(x, other, packed, None, "add"), expected + other),
            (_linear_and(x, other, packed, None, "mul"), expected * other),
        )
    except RuntimeError:
        return False  # refused on this machine
    return all(torch.allclose(actual, wanted, rtol=2e-2, atol=5e-2) for actual, wanted in pairs)
