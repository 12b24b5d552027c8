"""The decoder layers of Llama and its relatives, forwards, with weights that stay for many calls.

    x + W_o attention(rotate(W_q n), rotate(W_k n), W_v n) with n = norm(x),   then   x + W_d (silu(W_g n) * W_u n)

Tokens are rows (N, width) of any sequences; the caller's attention knows which token belongs to which. A decode step,
one token per row over a `KVCache`, is one call of a compiled kernel where that takes the layers: operations that are
called one by one cost 0.2 ms of Python per layer, as much as they take where rows are few. The kernel does the same
operations in the same order, so the results are the same to the bit.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from rlft.model.kernels.elementwise import rms_norm, rotate
from rlft.model.kernels.frozen_linear import FrozenLinear
from rlft.model.kernels.kv_cache import KVCache
from rlft.model.kernels.library import VECTOR, kernel

Norm: TypeAlias = tuple[Tensor, float]
"""Weight and epsilon of an RMS norm."""


class Attention(Protocol):
    """Attention among the tokens of a pass."""

    def __call__(self, layer_index: int, query: Tensor, keys_values: Tensor, scale: float) -> Tensor:
        """Attention of queries (N, H, D) over keys and values (N, 2, H_kv, D) and over earlier ones that it keeps;
        returns (N, H, D)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaLayer:
    """Weights of a decoder layer."""

    input_norm: Norm
    input: FrozenLinear
    """To queries, keys and values side by side."""
    query_norm: Norm | None
    key_norm: Norm | None
    output: FrozenLinear
    inner_norm: Norm
    gate: FrozenLinear
    up: FrozenLinear
    down: FrozenLinear
    activation: Callable[[Tensor], Tensor] | None
    """Of the gate; None is silu, which is part of the gate's product."""
    num_heads: int
    num_key_heads: int
    scale: float
    """Of attention's scores."""

    def __call__(self, index: int, x: Tensor, cos: Tensor, signed_sin: Tensor, attention: Attention) -> Tensor:
        """The layer's output for x (N, width), with cos and signed_sin (N, 1, D)."""
        num_heads, num_rotated = self.num_heads, self.num_heads + self.num_key_heads
        heads = self.input(rms_norm(x, *self.input_norm)).view(len(x), num_rotated + self.num_key_heads, -1)
        parts = (heads[:, :num_heads], heads[:, num_heads:num_rotated])
        for part, norm in zip(parts, (self.query_norm, self.key_norm), strict=True):
            if norm is not None:
                part.copy_(rms_norm(part.contiguous(), *norm))
        rotate(heads, num_rotated, cos, signed_sin)
        output = attention(index, parts[0], heads[:, num_heads:].unflatten(1, (2, -1)), self.scale)
        x = self.output.plus(output.reshape(len(x), -1), x)
        n = rms_norm(x, *self.inner_norm)
        gate = self.gate.silu(n) if self.activation is None else self.activation(self.gate(n))
        return self.down.plus(self.up.times(n, gate), x)


class LlamaLayers:
    """All layers of a model."""

    def __init__(self, layers: Sequence[LlamaLayer]) -> None:
        """Take the layers, whose weights do not change as long as this is used."""
        self._layers = layers
        self._step: _OneCall | None = None
        self.slow_path = ""
        """Why a decode step is not one call although this machine has the kernel for it; empty where it is."""
        if kernel("decode", layers[0].input_norm[0]) is not None:
            self.slow_path = _why_not_one_call(layers)
            self._step = None if self.slow_path else _OneCall(layers)

    def __call__(self, x: Tensor, cos: Tensor, signed_sin: Tensor, attention: Attention) -> Tensor:
        """Bring tokens x (N, width) through all layers; cos and signed_sin are (N, 1, D)."""
        for index, layer in enumerate(self._layers):
            x = layer(index, x, cos, signed_sin, attention)
        return x

    def step(self, x: Tensor, cos: Tensor, signed_sin: Tensor, cache: KVCache) -> Tensor:
        """Bring the tokens of a decode step through all layers; x (R, width) may be overwritten."""
        if self._step is not None:
            if self._step(x, cos, signed_sin, cache):
                return x
            self.slow_path = "the operands of a step are not laid out as the kernel takes them"
        return self(x, cos, signed_sin, cache.attention)


class _Sizes(ctypes.Structure):
    """`Step` in `native/decode.h`."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("layers", "width", "inner")),
        *((name, ctypes.c_float) for name in ("epsilon", "scale")),
    )


class _OneCall:
    """A decode step through all layers by one kernel."""

    def __init__(self, layers: Sequence[LlamaLayer]) -> None:
        first = layers[0]
        tensors = [tensor for layer in layers for tensor in _tensors(layer)]
        self._weights, self._kept_alive, self._first = _pointers(tensors), tensors, first
        (self._inner, self._width), self._attention_width = first.up.shape, first.output.shape[1]
        self._sizes = _Sizes(len(layers), self._width, self._inner, first.input_norm[1], first.scale)

    def __call__(self, x: Tensor, cos: Tensor, signed_sin: Tensor, cache: KVCache) -> bool:
        """Overwrite x (R, width); False where the kernel does not take these operands, and nothing was done."""
        first, size, stride = self._first, cos.shape[-1], self._first.input.shape[0]
        run = kernel("decode", x, cos, signed_sin, cache.layers[0].prompts, cache.layers[0].rows)
        are_angles = cos.shape == signed_sin.shape == (len(x), 1, size)
        if run is None or not are_angles or first.num_heads * size != self._attention_width:
            return False
        for layer in cache.layers:
            layer.is_by_kernel = True
        caches = _pointers([tensor for layer in cache.layers for tensor in (layer.prompts, layer.rows)])
        scratch = x.new_empty(len(x) * (self._width + stride + self._attention_width + self._inner))
        shape = cache.kernel_shape((stride, first.num_heads, first.num_key_heads, size))
        operands = (cos, signed_sin, cache.prompt_of_row, cache.prompt_length, cache.age, scratch)
        run(x.data_ptr(), self._weights, caches, *(o.data_ptr() for o in operands), shape, ctypes.byref(self._sizes))
        return True


def _linears(layer: LlamaLayer) -> tuple[FrozenLinear, ...]:
    return (layer.input, layer.output, layer.gate, layer.up, layer.down)


def _tensors(layer: LlamaLayer) -> list[Tensor | None]:
    """The weights in the order of `Layer` in `native/decode.h`."""
    of_input, of_output, of_gate, of_up, of_down = ((each.panels, each.bias) for each in _linears(layer))
    head_norms = (None if norm is None else norm[0] for norm in (layer.query_norm, layer.key_norm))
    input_norm, inner_norm = layer.input_norm[0], layer.inner_norm[0]
    return [input_norm, *of_input, *head_norms, *of_output, inner_norm, *of_gate, *of_up, *of_down]


def _kind(layer: LlamaLayer) -> tuple[object, ...]:
    """What layers that go through the kernel together have in common."""
    shapes = [None if tensor is None else tensor.shape for tensor in _tensors(layer)]
    heads = (layer.num_heads, layer.num_key_heads, layer.scale, layer.input_norm[1])
    return (*shapes, *(each.shape for each in _linears(layer)), *heads)


def _why_not_one_call(layers: Sequence[LlamaLayer]) -> str:
    """Why the kernel does not take these layers; empty where it does."""
    if len({_kind(layer) for layer in layers}) > 1:
        return "the layers differ in shapes, epsilon or scale"
    layer = layers[0]
    (inner, width), attention_width = layer.up.shape, layer.output.shape[1]
    size = attention_width // layer.num_heads
    joint = (layer.num_heads + 2 * layer.num_key_heads) * size
    shapes = [(joint, width), (width, attention_width), (inner, width), (inner, width), (width, inner)]
    norms = [
        norm for norm in (layer.input_norm, layer.inner_norm, layer.query_norm, layer.key_norm) if norm is not None
    ]
    head_norms = {None if norm is None else norm[0].shape for norm in (layer.query_norm, layer.key_norm)}
    tensors = [tensor for layer in layers for tensor in _tensors(layer) if tensor is not None]
    obstacles = {
        "the activation is not silu": layer.activation is not None,
        "a weight has no panels (an odd number of inputs)": any(each.panels is None for each in _linears(layer)),
        "the projections do not fit together": [tuple(each.shape) for each in _linears(layer)] != shapes,
        "query heads are no multiple of key heads": layer.num_heads % layer.num_key_heads != 0,
        f"heads of {size} are no multiple of {VECTOR}": size % VECTOR != 0,
        "the norms are of other sizes": layer.input_norm[0].shape != (width,) or layer.inner_norm[0].shape != (width,),
        "the norms of queries and keys are of other sizes": head_norms not in ({None}, {(size,)}),
        "the norms have several epsilons": len({epsilon for _, epsilon in norms}) > 1,
        "the weights are not contiguous or not of one type": kernel("decode", *tensors) is None,
    }
    return next((why for why, is_true in obstacles.items() if is_true), "")


def _pointers(tensors: Sequence[Tensor | None]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(tensors))(*(None if tensor is None else tensor.data_ptr() for tensor in tensors))
