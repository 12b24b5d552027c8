"""Decoder layers of Llama and its relatives, forwards, with weights that stay for many calls.

    x + W_o attention(rotate(W_q n), rotate(W_k n), W_v n) with n = norm(x),   then   x + W_d (silu(W_g n) * W_u n)

Tokens are rows (N, width) of any sequences; the caller's attention knows which token belongs to which. A step of one
token per row is a few hundred short operations, and with few rows looking each one's kernel up, checking its operands
and allocating its result takes as long as computing it. So where kernels compute all of a layer, its weights are
checked when they are loaded and the rest once in a step, and all layers of a step write into the same few buffers,
which the processor's cache then holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol, TypeAlias

from torch import Tensor

from rlft.model.kernels.elementwise import rms_norm, rotate
from rlft.model.kernels.frozen_linear import FrozenLinear
from rlft.model.kernels.kv_cache import KVCache
from rlft.model.kernels.library import VECTOR, kernel
from rlft.model.kernels.products import CODES

Norm: TypeAlias = tuple[Tensor, float]
"""Weight and epsilon of an RMS norm."""


class Attention(Protocol):
    """Attention among the tokens of a pass."""

    def __call__(self, layer_index: int, heads: Tensor, num_heads: int, scale: float) -> Tensor:
        """Attention of queries over keys and values (N, num_heads + 2 H_kv, D) of the tokens, and over earlier ones
        that it keeps; returns (N, num_heads, D)."""
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
        output = attention(index, self.heads(x, cos, signed_sin), self.num_heads, self.scale)
        x = self.output.plus(output.reshape(len(x), -1), x)
        n = rms_norm(x, *self.inner_norm)
        gate = self.gate.silu(n) if self.activation is None else self.activation(self.gate(n))
        return self.down.plus(self.up.times(n, gate), x)

    def heads(self, x: Tensor, cos: Tensor, signed_sin: Tensor) -> Tensor:
        """Queries, keys and values (N, H + 2 H_kv, D), as attention takes them."""
        num_rotated = self.num_heads + self.num_key_heads
        heads = self.input(rms_norm(x, *self.input_norm)).view(len(x), num_rotated + self.num_key_heads, -1)
        self.norm_heads(heads)
        rotate(heads, num_rotated, cos, signed_sin)
        return heads

    def norm_heads(self, heads: Tensor) -> None:
        """Apply the norms of queries and keys, where there are any, to heads (N, H + 2 H_kv, D) in place."""
        if self.query_norm is None and self.key_norm is None:
            return
        parts = heads.split([self.num_heads, self.num_key_heads, self.num_key_heads], dim=1)
        for part, norm in zip(parts, (self.query_norm, self.key_norm), strict=False):
            if norm is not None:
                part.copy_(rms_norm(part.contiguous(), *norm))


class LlamaLayers:
    """All layers of a model, one behind the other."""

    def __init__(self, layers: Sequence[LlamaLayer]) -> None:
        """Take the layers. Their norms' weights may change in place; what else becomes of them changes nothing here."""
        # Pointers are kept to these aliases' memory, which stays although a parameter may get another.
        self._layers = [
            replace(layer, input_norm=_alias(layer.input_norm), inner_norm=_alias(layer.inner_norm)) for layer in layers
        ]
        kinds = {_sizes(layer) for layer in self._layers}
        self._sizes = kinds.pop() if len(kinds) == 1 else None
        self._pointers = [] if self._sizes is None else [_Pointers.of(layer) for layer in self._layers]

    def __call__(self, x: Tensor, cos: Tensor, signed_sin: Tensor, attention: Attention) -> Tensor:
        """The last layer's output for x (N, width), with cos and signed_sin (N, 1, D)."""
        for index, layer in enumerate(self._layers):
            x = layer(index, x, cos, signed_sin, attention)
        return x

    def last_heads(self, x: Tensor, cos: Tensor, signed_sin: Tensor, attention: Attention) -> tuple[Tensor, int]:
        """All of the last layer that is needed where nobody asks for its output: the queries, keys and values
        (N, H + 2 H_kv, D), and H."""
        *layers, last = self._layers
        for index, layer in enumerate(layers):
            x = layer(index, x, cos, signed_sin, attention)
        return last.heads(x, cos, signed_sin), last.num_heads

    def step(self, x: Tensor, cos: Tensor, signed_sin: Tensor, cache: KVCache) -> Tensor:
        """The last layer's output for the tokens of the cache's current step, x (R, width); the same to the bit as that
        with `KVCache.attention`."""
        y = self._by_kernels(x, cos, signed_sin, cache)
        return self(x, cos, signed_sin, cache.attention) if y is None else y

    def _by_kernels(self, x: Tensor, cos: Tensor, signed_sin: Tensor, cache: KVCache) -> Tensor | None:
        """A step by kernels, None where they do not take its operands."""
        sizes, rows = self._sizes, cache.width
        if sizes is None or x.shape != (rows, sizes.width):
            return None
        width, num_heads, num_key_heads, size, inner = sizes
        num_rotated, num_all = num_heads + num_key_heads, num_heads + 2 * num_key_heads
        operands = (x, cos, signed_sin, self._layers[0].input_norm[0])
        norm, linear, turn = (kernel(name, *operands) for name in ("rms_norm", "linear", "rotate"))
        are_angles = cos.shape == signed_sin.shape == (rows, 1, size)
        if norm is None or linear is None or turn is None or not are_angles:
            return None
        if (attention := cache.kernel_operands(x, num_heads, num_key_heads, size)) is None:
            return None
        attend, of_rows, shape, of_layers = attention
        heads = x.new_empty(rows, num_all, size)
        y, normed, attended, gated = (x.new_empty(rows, n) for n in (width, width, num_heads * size, inner))
        at_x, at_cos, at_sin, at_heads, at_keys, at_y, at_normed, at_attended, at_gated = (
            each.data_ptr() for each in (x, cos, signed_sin, heads, heads[:, num_heads:], y, normed, attended, gated)
        )
        for layer, at, kept in zip(self._layers, self._pointers, of_layers, strict=True):
            norm(at_x, at.input_norm, at_normed, None, rows, width, layer.input_norm[1])
            linear(at_normed, *at.input, None, at_heads, rows, width, num_all * size, CODES["none"])
            layer.norm_heads(heads)
            turn(at_heads, at_heads, at_cos, at_sin, rows, num_all, num_rotated, size, False)
            attend(at_heads, at_keys, *kept, *of_rows, at_attended, shape, layer.scale)
            linear(at_attended, *at.output, at_x, at_y, rows, num_heads * size, width, CODES["add"])
            norm(at_y, at.inner_norm, at_normed, None, rows, width, layer.inner_norm[1])
            linear(at_normed, *at.gate, None, at_gated, rows, width, inner, CODES["silu"])
            linear(at_normed, *at.up, at_gated, at_gated, rows, width, inner, CODES["mul"])
            linear(at_gated, *at.down, at_y, at_y, rows, inner, width, CODES["add"])
            at_x = at_y
        return y


def _alias(norm: Norm) -> Norm:
    return norm[0].detach(), norm[1]


class _Sizes(NamedTuple):
    """Of a layer whose weights fit together and are as the kernels take them."""

    width: int
    num_heads: int
    num_key_heads: int
    size: int
    inner: int


def _sizes(layer: LlamaLayer) -> _Sizes | None:
    (inner, width), num_heads, num_key_heads = layer.up.shape, layer.num_heads, layer.num_key_heads
    size, norms = layer.output.shape[1] // num_heads, (layer.input_norm[0], layer.inner_norm[0])
    linears = (layer.input, layer.output, layer.gate, layer.up, layer.down)
    shapes = [
        ((num_heads + 2 * num_key_heads) * size, width),
        (width, num_heads * size),
        *((inner, width), (inner, width), (width, inner)),
    ]
    is_known = (
        layer.activation is None
        and [tuple(linear.shape) for linear in linears] == shapes
        and all(linear.panels is not None for linear in linears)
        and all(norm.shape == (width,) for norm in norms)
        and kernel("linear", *norms) is not None
        and size % VECTOR == 0
        and num_heads % num_key_heads == 0
    )
    return _Sizes(width, num_heads, num_key_heads, size, inner) if is_known else None


class _Pointers(NamedTuple):
    """To a layer's weights, which the layer keeps; to a product's weight in panels and its bias."""

    input_norm: int
    input: tuple[int, int | None]
    output: tuple[int, int | None]
    inner_norm: int
    gate: tuple[int, int | None]
    up: tuple[int, int | None]
    down: tuple[int, int | None]

    @classmethod
    def of(cls, layer: LlamaLayer) -> _Pointers:
        return cls(
            input_norm=layer.input_norm[0].data_ptr(),
            input=layer.input.pointers(),
            output=layer.output.pointers(),
            inner_norm=layer.inner_norm[0].data_ptr(),
            gate=layer.gate.pointers(),
            up=layer.up.pointers(),
            down=layer.down.pointers(),
        )
