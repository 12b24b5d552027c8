"""A decoder layer of Llama and its relatives, forwards, with weights that stay for many calls.

    x + W_o attention(rotate(W_q n), rotate(W_k n), W_v n) with n = norm(x),   then   x + W_d (silu(W_g n) * W_u n)

Tokens are rows (N, width) of any sequences; the caller's attention knows which token belongs to which.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from torch import Tensor

from rlft.model.kernels.elementwise import rms_norm, rotate
from rlft.model.kernels.frozen_linear import FrozenLinear

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
