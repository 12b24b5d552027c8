"""All layers of a decode step in one call of a compiled kernel.

A layer's operations, called one by one, cost 0.2 ms of Python, which is as much as they take where rows are few. The
kernel does the same operations in the same order, so the results are the same to the bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from rlft.model.kernels.frozen_linear import FrozenLinear
from rlft.model.kernels.kv_cache import KVCache
from rlft.model.kernels.library import VECTOR, kernel


@dataclass(frozen=True, slots=True)
class LayerOperands:
    """Weights of a layer, see `llama_forward`."""

    input_norm: Tensor
    input: FrozenLinear
    """To queries, keys and values."""
    query_norm: Tensor | None
    key_norm: Tensor | None
    output: FrozenLinear
    inner_norm: Tensor
    gate: FrozenLinear
    up: FrozenLinear
    down: FrozenLinear
    epsilon: float
    """Of all norms."""
    scale: float
    """Of attention."""

    def linears(self) -> tuple[FrozenLinear, ...]:
        return (self.input, self.output, self.gate, self.up, self.down)

    def tensors(self) -> list[Tensor | None]:
        """In the order of `Layer` in `kernels.cpp`."""
        of_input, of_output, of_gate, of_up, of_down = ((each.panels, each.bias) for each in self.linears())
        head_norms = (self.query_norm, self.key_norm)
        return [self.input_norm, *of_input, *head_norms, *of_output, self.inner_norm, *of_gate, *of_up, *of_down]

    def kind(self) -> tuple[object, ...]:
        """What layers that go through the kernel together have in common."""
        shapes = [None if tensor is None else tensor.shape for tensor in self.tensors()]
        return (*shapes, *(each.shape for each in self.linears()), self.epsilon, self.scale)

    def fits(self) -> bool:
        """Whether the products and norms are those of one residual stream, and the kernel takes their weights."""
        (inner, width), attended = self.up.shape, self.output.shape[1]
        shapes = [(self.input.shape[0], width), (width, attended), (inner, width), (inner, width), (width, inner)]
        is_one = [tuple(each.shape) for each in self.linears()] == shapes
        are_norms = self.input_norm.shape == self.inner_norm.shape == (width,)
        has_both = (self.query_norm is None) == (self.key_norm is None)
        return is_one and are_norms and has_both and all(each.panels is not None for each in self.linears())


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "width", "inner")),
        *((name, ctypes.c_float) for name in ("epsilon", "scale")),
    )


class LlamaDecode:
    """The layers of a model, whose weights stay as long as this is used."""

    def __init__(self, layers: Sequence[LayerOperands | None]) -> None:
        """None is a layer that the kernel does not compute."""
        self._weights: ctypes.Array[ctypes.c_void_p] | None = None
        known = [layer for layer in layers if layer is not None]
        if len(known) < len(layers) or len({layer.kind() for layer in known}) > 1:
            return
        tensors = [tensor for layer in known for tensor in layer.tensors()]
        if not known[0].fits() or kernel("decode", *(tensor for tensor in tensors if tensor is not None)) is None:
            return
        self._weights = _pointers(tensors)
        self._kept_alive, self._first = tensors, known[0]
        (self._inner, self._width), self._attended = known[0].up.shape, known[0].output.shape[1]
        self._step = _Step(len(known), self._width, self._inner, known[0].epsilon, known[0].scale)

    def __call__(self, x: Tensor, cos: Tensor, signed_sin: Tensor, cache: KVCache) -> bool:
        """Bring a step's tokens x (R, width) through all layers, in place; cos and signed_sin are (R, 1, D).

        Returns:
            False where the kernel does not take them, and nothing was done.
        """
        if self._weights is None:
            return False
        size, stride = cos.shape[-1], self._first.input.shape[0]
        num_heads, num_key_heads = self._attended // size, (stride - self._attended) // (2 * size)
        run = kernel("decode", x, cos, signed_sin, cache.layers[0].prompts, cache.layers[0].rows)
        are_turned = cos.shape == signed_sin.shape == (len(x), 1, size) and num_heads * size == self._attended
        are_normed = all(
            norm is None or norm.shape == (size,) for norm in (self._first.query_norm, self._first.key_norm)
        )
        if run is None or not (are_turned and are_normed) or size % VECTOR or num_heads % num_key_heads:
            return False
        for layer in cache.layers:
            layer.is_by_kernel = True
        kept = _pointers([tensor for layer in cache.layers for tensor in (layer.prompts, layer.rows)])
        room = x.new_empty(len(x) * (self._width + stride + self._attended + self._inner))
        shape = cache.kernel_shape((stride, num_heads, num_key_heads, size))
        operands = (cos, signed_sin, cache.prompt_of_row, cache.prompt_length, cache.age, room)
        run(x.data_ptr(), self._weights, kept, *(o.data_ptr() for o in operands), shape, ctypes.byref(self._step))
        return True


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))
