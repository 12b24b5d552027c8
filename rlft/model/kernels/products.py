"""Products with a frozen weight by a kernel of our own: in float32, and in bfloat16 where vector units multiply it.

The kernel takes weights in panels (`native/products.h`). In bfloat16 it is, with 64 rows, 1.4 times as fast as oneDNN's
products and twice with 8, where the weight stays in panels (`frozen_linear`). With many rows it is 1.2 times as fast
and laying the weight out takes 3 % of the product, so that is done each time and no second copy is kept. In float32 on
AVX2 it is 1.5 to 2.5 times as fast as torch's with 4 to 64 rows, and 1.05 to 1.2 times with many. A processor that has
a matrix unit is faster with oneDNN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rlft.model.kernels.library import kernel

Operation = Literal["none", "add", "mul", "silu"]
"""What is done with the product: plus or times another operand, or silu of it."""

CODES: dict[Operation, int] = {"none": 0, "add": 1, "mul": 2, "silu": 3}
"""How the kernel calls them."""
_PANEL = {torch.bfloat16: 32, torch.float32: 16}
"""Outputs of a panel."""
_MANY_ROWS = 256
_MOST_BYTES = 1 << 28
"""Of a weight that is copied for the sake of a few products."""


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x W^T + bias for x (R, in), weight (out, in), bias (out,); no gradient flows through the kernel."""
    panels = in_panels(weight, bias) if _is_worth_it(x) else None
    if panels is None:
        return F.linear(x, weight, bias)
    return product(x, panels, len(weight), bias)


def with_weight(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """x W^T for several x (R, in) and one weight (out, in), which is laid out once; no gradient flows through the
    kernel."""
    # With bfloat16 oneDNN's product is as fast.
    is_worth_it = weight.dtype == torch.float32 and weight.nbytes <= _MOST_BYTES
    panels = in_panels(weight) if is_worth_it else None
    if panels is None:
        return lambda x: x @ weight.T
    return lambda x: product(x.contiguous(), panels, len(weight), None)


def times(x: Tensor, weight: Tensor) -> Tensor:
    """x W for x (R, out), weight (out, in); no gradient flows through the kernel."""
    panels = in_panels(weight, is_transposed=True) if _is_worth_it(x) else None
    if panels is None:
        return x @ weight
    return product(x, panels, weight.shape[1], None)


def _is_worth_it(x: Tensor) -> bool:
    return len(x) >= _MANY_ROWS and kernel("linear", x) is not None


def in_panels(weight: Tensor, bias: Tensor | None = None, *, is_transposed: bool = False) -> Tensor | None:
    """Lay a weight (outputs, inputs) out in panels; None where the kernel does not take it.

    Args:
        bias: what is to be added to the product, if anything.
        is_transposed: the weight is (inputs, outputs).

    Returns:
        (panels, inputs, columns), see `native/products.h`.
    """
    inputs, outputs = weight.shape if is_transposed else weight.shape[::-1]
    pack = kernel("panels_of_transposed" if is_transposed else "panels_of", weight)
    if pack is None or inputs * weight.itemsize % 4:
        return None
    if bias is not None and (bias.shape != (outputs,) or kernel("linear", weight, bias) is None):
        return None
    columns = _PANEL[weight.dtype]
    panels = weight.new_empty(-(-outputs // columns), inputs, columns)
    pack(weight.data_ptr(), panels.data_ptr(), inputs, outputs)
    return panels


def product(
    x: Tensor,
    panels: Tensor,
    outputs: int,
    bias: Tensor | None,
    other: Tensor | None = None,
    operation: Operation = "none",
) -> Tensor:
    """Multiply x (R, inputs) with a weight in panels.

    Args:
        other: (R, outputs), which `operation` adds to the product or multiplies it with.

    Returns:
        (R, outputs)

    Raises:
        ValueError: the operands do not fit.
    """
    inputs = panels.shape[1]
    y = x.new_empty(len(x), outputs)
    run = kernel("linear", *((x, y) if other is None else (x, y, other)))
    if run is None or x.shape[1:] != (inputs,) or (other is not None and other.shape != y.shape):
        raise ValueError(
            f"this product takes contiguous {panels.dtype} on the CPU: x (R, {inputs}), other (R, {outputs})"
        )
    pointers = [None if each is None else each.data_ptr() for each in (x, panels, bias, other, y)]
    run(*pointers, len(x), inputs, outputs, CODES[operation])
    return y
