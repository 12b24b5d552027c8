"""Norms, rotary positions and gated products of a Llama-like layer, with their gradients.

Each is one pass over memory where a compiled kernel computes it, and a few of torch's operations elsewhere.
Weights are frozen: they get no gradient.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rlft.model.kernels.library import VECTOR, kernel
from rlft.model.kernels.sizes import slices

_CACHED = 1 << 18
"""Elements of an activation that go through several operations together."""

# RMS norms, https://arxiv.org/abs/1910.07467


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """RMS norm w x / rms(x) over the last dimension."""
    if weight.shape != x.shape[-1:] or (run := kernel("rms_norm", x, weight)) is None:
        return F.rms_norm(x, weight.shape, weight, epsilon)
    y = torch.empty_like(x)
    run(x.data_ptr(), weight.data_ptr(), y.data_ptr(), None, *_rows(x), float(epsilon))
    return y


def rms_norm_and_scale(x: Tensor, weight: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """RMS norm and the factor of each row: (w x / rms(x), 1 / rms(x)), the latter (..., 1) and float32 at least."""
    if weight.shape != x.shape[-1:] or (run := kernel("rms_norm", x, weight)) is None:
        scale = _norm_scale(x, epsilon)
        return normed(x, weight, scale), scale
    y, scale = torch.empty_like(x), x.new_empty((*x.shape[:-1], 1), dtype=torch.float32)
    run(x.data_ptr(), weight.data_ptr(), y.data_ptr(), scale.data_ptr(), *_rows(x), float(epsilon))
    return y, scale


def normed(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """RMS norm w x / rms(x), given the factor `scale` = 1 / rms(x) of each row, (..., 1)."""
    if not _scales_rows(scale, x, weight) or (run := kernel("normed", x, weight)) is None:
        return _scaled_rows(x, scale).mul_(weight)
    y = torch.empty_like(x)
    run(x.data_ptr(), weight.data_ptr(), scale.data_ptr(), y.data_ptr(), *_rows(x))
    return y


def rms_norm_backward(
    grad_y: Tensor, x: Tensor, weight: Tensor, scale: Tensor, residual: Tensor | None = None
) -> Tensor:
    """Gradient of an RMS norm's input x, plus `residual` where given.

    With h = w g and r = 1 / rms(x):  dx = r (h - x r^2 mean(h x))
    """
    alike = (grad_y,) if residual is None else (grad_y, residual)
    fits = _scales_rows(scale, x, weight) and all(other.shape == x.shape for other in alike)
    if not fits or (run := kernel("rms_norm_backward", x, weight, *alike)) is None:
        grad = grad_y * weight
        mean = torch.linalg.vecdot(grad, x).unsqueeze(-1).to(scale.dtype).mul_(scale.square()).div_(x.shape[-1])
        grad_x = _scaled_rows(grad.addcmul_(x, mean.to(x.dtype), value=-1), scale)
        return grad_x if residual is None else grad_x.add_(residual)
    grad_x = torch.empty_like(x)
    added = None if residual is None else residual.data_ptr()
    pointers = (grad_y.data_ptr(), x.data_ptr(), weight.data_ptr(), scale.data_ptr(), added, grad_x.data_ptr())
    run(*pointers, *_rows(x))
    return grad_x


def _scales_rows(scale: Tensor, x: Tensor, weight: Tensor) -> bool:
    """Whether a kernel can scale the rows of x so."""
    is_scale = scale.dtype == torch.float32 and scale.is_contiguous() and scale.shape == (*x.shape[:-1], 1)
    return is_scale and weight.shape == x.shape[-1:]


def _norm_scale(x: Tensor, epsilon: float) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
    return (norm.square_().div_(x.shape[-1]) + epsilon).rsqrt_()


def _scaled_rows(x: Tensor, scale: Tensor) -> Tensor:
    """x (..., T, W) times scale (..., T, 1), which may be wider; the product is rounded once to the type of x."""
    if x.dtype == scale.dtype or x.device.type != "cpu":
        return torch.mul(x, scale, out=torch.empty_like(x))
    # Torch converts mixed operands in passes of their own; the normalization of channels has a kernel for them.
    rows = scale.flatten()
    zeros, ones = torch.zeros_like(rows), torch.ones_like(rows)
    return torch.batch_norm(x.reshape(1, -1, x.shape[-1]), rows, None, zeros, ones, False, 0.0, 0.0, False).view(
        x.shape
    )


# Rotary positions, https://arxiv.org/abs/2104.09864: (x1, x2) to (x1 cos - x2 sin, x2 cos + x1 sin)


def signed_sin_of(sin: Tensor) -> Tensor:
    """The sine with its first half negated: `rotate` multiplies the swapped halves of a head with it."""
    half = sin.shape[-1] // 2
    return torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)


def rotate(heads: Tensor, num_rotated: int, cos: Tensor, signed_sin: Tensor) -> None:
    """Apply rotary positions to the first heads of (T, H, D) in place; cos and signed_sin are (T, 1, D)."""
    if not _fits_all(cos, signed_sin, heads) or (run := kernel("rotate", heads, cos, signed_sin)) is None:
        x = heads[:, :num_rotated]
        torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), signed_sin, out=x)
        return
    tokens, num_heads, size = heads.shape
    pointers = (heads.data_ptr(), heads.data_ptr(), cos.data_ptr(), signed_sin.data_ptr())
    run(*pointers, tokens, num_heads, num_rotated, size, False)


def rotate_backward(grad: Tensor, num_rotated: int, cos: Tensor, signed_sin: Tensor) -> Tensor:
    """Gradient of the heads before `rotate`, contiguous."""
    result = torch.empty_like(grad, memory_format=torch.contiguous_format)
    if not _fits_all(cos, signed_sin, grad) or (run := kernel("rotate", grad, cos, signed_sin)) is None:
        rotated = grad[:, :num_rotated]
        moved = (rotated * signed_sin).roll(grad.shape[-1] // 2, -1)
        torch.add(rotated * cos, moved, out=result[:, :num_rotated])
        result[:, num_rotated:] = grad[:, num_rotated:]
        return result
    tokens, num_heads, size = grad.shape
    pointers = (grad.data_ptr(), result.data_ptr(), cos.data_ptr(), signed_sin.data_ptr())
    run(*pointers, tokens, num_heads, num_rotated, size, True)
    return result


def _fits_all(cos: Tensor, signed_sin: Tensor, heads: Tensor) -> bool:
    """Whether a kernel can rotate the heads so: each token has an angle of its own for the whole head."""
    return cos.shape == signed_sin.shape == (len(heads), 1, heads.shape[2])


# Gated products, https://arxiv.org/abs/2002.05202


def gated_silu(inner: Tensor) -> Tensor:
    """Gated product silu(g) u of inner = (g, u), (T, 2 I); returns (T, I)."""
    width = inner.shape[1] // 2
    y = inner.new_empty(len(inner), width)
    is_whole = inner.shape[1] == 2 * width and width % VECTOR == 0
    if is_whole and (run := kernel("gated_silu", inner)) is not None:
        run(inner.data_ptr(), y.data_ptr(), len(inner), width)
        return y
    for rows in _rows_in_cache(inner):
        torch.ops.aten.silu.out(inner[rows, :width], out=y[rows])
        y[rows].mul_(inner[rows, width:])
    return y


def gated_silu_backward(grad: Tensor, inner: Tensor) -> Tensor:
    """Gradient of `inner` in `gated_silu` from that of its result, (T, I)."""
    width = grad.shape[1]
    result = torch.empty_like(inner)
    is_whole = inner.shape == (len(grad), 2 * width) and width % VECTOR == 0
    if is_whole and (run := kernel("gated_silu_backward", grad, inner)) is not None:
        run(grad.data_ptr(), inner.data_ptr(), result.data_ptr(), len(inner), width)
        return result
    for rows in _rows_in_cache(inner):
        gate, up = inner[rows].split(width, dim=1)
        torch.ops.aten.silu_backward.grad_input(grad[rows] * up, gate, grad_input=result[rows, :width])
        torch.mul(F.silu(gate), grad[rows], out=result[rows, width:])
    return result


def _rows_in_cache(x: Tensor) -> list[slice]:
    """Rows that go through several operations together: on a CPU so many as its caches hold, else all."""
    size = max(1, _CACHED // x.shape[1]) if x.device.type == "cpu" else len(x)
    return slices(len(x), size)


def _rows(x: Tensor) -> tuple[int, int]:
    return x.numel() // x.shape[-1], x.shape[-1]
