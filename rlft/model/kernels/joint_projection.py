"""Several linear layers of one input, with their LoRA updates, as one product and its gradient.

    y = x [W_1; W_2; ...]^T + [z_1 s_1 B_1^T, z_2 s_2 B_2^T, ...] with [z_1, z_2, ...] = x [A_1; A_2; ...]^T

One large product runs at a higher rate than several small ones, and reads the input once. The weights are frozen and
lie one behind the other in memory, so that they are one matrix without a copy. What the B of a projection takes and
gives are columns of the joint matrices: one product with all of them would mostly multiply zeros.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, TypeAlias

import torch
from torch import Tensor

from rlft.model.kernels import products

Update: TypeAlias = tuple[float, int]
"""Scale and rank of a projection's update; rank 0 where there is none."""


def project(
    x: Tensor, updates: Sequence[Update], tensors: Sequence[Tensor | None]
) -> tuple[Tensor, list[Tensor | None]]:
    """Several projections of x with their LoRA updates, as one product: rlft's arithmetic of LoRA.

    Args:
        x: (..., in), T tokens.
        updates: one for each projection.
        tensors: weight (out, in), bias (out,), down (rank, in) and up (out, rank) of each projection, one after the
            other; the last two in the type of their master copies, None where there is no update.

    Returns:
        (the projections side by side, (T, sum of outputs); what `project_backward` needs)
    """
    flat, weights = x.flatten(0, -2), [weight for weight in tensors[::4] if weight is not None]
    y = products.linear(flat, side_by_side(weights), joint_bias(weights, tensors[1::4]))
    ups = [
        None if up is None else (up * scale).to(x.dtype) for up, (scale, _) in zip(tensors[3::4], updates, strict=True)
    ]
    if not any(rank for _, rank in updates):
        return y, [None, None, *ups, *weights]
    a = torch.cat([down for down in tensors[2::4] if down is not None]).to(x.dtype)
    inner = flat @ a.T
    for (outputs, ranks), up in zip(_places(weights, updates), ups, strict=True):
        if up is not None:
            y[:, outputs].addmm_(inner[:, ranks], up.T)
    return y, [inner, a, *ups, *weights]


def project_backward(
    grad: Tensor, x: Tensor, updates: Sequence[Update], saved: Sequence[Any], *, needs_x: bool
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Gradients of x and of the updates in `project`.

    Args:
        grad: (T, sum of outputs), of the projections.
        saved: what `project` returned.

    Returns:
        (gradient of x (T, in), None where it is not needed; gradients of `tensors`, None for weights and biases)
    """
    inner, a, *rest = saved
    ups, weights = rest[: len(updates)], rest[len(updates) :]
    grad_x = products.times(grad, side_by_side(weights)) if needs_x else None
    grads: list[Tensor | None] = [None] * (4 * len(weights))
    if inner is None:
        return grad_x, grads
    master = torch.promote_types(x.dtype, torch.float32)
    grad_inner, places = torch.empty_like(inner), _places(weights, updates)
    for index, ((outputs, ranks), up) in enumerate(zip(places, ups, strict=True)):
        if up is not None:
            torch.mm(grad[:, outputs], up, out=grad_inner[:, ranks])
            grad_up = grad[:, outputs].T @ inner[:, ranks]
            grads[4 * index + 3] = grad_up.to(master).mul_(updates[index][0])
    grad_down = (grad_inner.T @ x.flatten(0, -2)).to(master)
    for index, (_, ranks) in enumerate(places):
        if ups[index] is not None:
            grads[4 * index + 2] = grad_down[ranks]
    if grad_x is not None:
        grad_x.addmm_(grad_inner, a)
    return grad_x, grads


def _places(weights: Sequence[Tensor], updates: Sequence[Update]) -> list[tuple[slice, slice]]:
    """The slice of all outputs and the slice of all ranks that each projection has."""
    ends = zip(accumulate(map(len, weights)), accumulate(rank for _, rank in updates), strict=True)
    sizes = zip(weights, updates, strict=True)
    return [
        (slice(end - len(w), end), slice(last - rank, last))
        for (end, last), (w, (_, rank)) in zip(ends, sizes, strict=True)
    ]


def joint_bias(weights: Sequence[Tensor], biases: Sequence[Tensor | None]) -> Tensor | None:
    """The biases as one (sum of outputs,), zeros where a layer has none; None where none has."""
    if all(bias is None for bias in biases):
        return None
    pairs = zip(weights, biases, strict=True)
    return torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in pairs])


def lay_side_by_side(weights: Sequence[Tensor]) -> None:
    """Move weights (out, in) of one input into one block of memory, so that their products are one."""
    block = torch.cat(list(weights))
    for weight, part in zip(weights, block.split([len(weight) for weight in weights]), strict=True):
        weight.data = part


def side_by_side(weights: Sequence[Tensor]) -> Tensor:
    """The weights as one matrix (sum of outputs, in): a view where they are adjacent in memory, else a copy."""
    first, address = weights[0], weights[0].data_ptr()
    for weight in weights:
        is_next = weight.data_ptr() == address and weight.is_contiguous() and weight.dtype == first.dtype
        if not is_next or weight.untyped_storage().data_ptr() != first.untyped_storage().data_ptr():
            return torch.cat(list(weights))
        address += weight.nbytes
    return first.as_strided((sum(map(len, weights)), first.shape[1]), (first.shape[1], 1))
