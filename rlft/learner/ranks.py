"""This process's place among the processes that share a learner, and the exchanges between them.

With one process nothing is exchanged. Every exchange is a plain sum or a list in order of rank: losses are weighted
sums, so that sums are all that data parallelism needs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process's rank among the `size` processes of torch.distributed's default group."""

    rank: int = 0
    size: int = 1

    def own(self, parts: Sequence[T]) -> Sequence[T]:
        """This process's share: every `size`-th part."""
        return parts[self.rank :: self.size]

    def gather(self, own: list[T]) -> list[T]:
        """All processes' parts, in the order that `own` dealt them out."""
        if self.size == 1:
            return own
        shares: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(shares, own)
        return [shares[i % self.size][i // self.size] for i in range(sum(map(len, shares)))]

    def sum_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Replace every gradient by the sum over the processes; one exchange for all of them.

        A parameter that has a gradient nowhere keeps none. Sharded ones are left out: theirs are sums already.
        """
        parameters = [p for p in parameters if not isinstance(p, DTensor)]
        if self.size == 1 or not parameters:
            return
        is_used = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
        dist.all_reduce(is_used)
        parameters = [p for p, used in zip(parameters, is_used.tolist(), strict=True) if used]
        if not parameters:
            return
        for parameter in parameters:
            if parameter.grad is None:  # a process without a microbatch
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([_grad(parameter).flatten() for parameter in parameters])
        dist.all_reduce(flat)
        for parameter, summed in zip(parameters, flat.split([p.numel() for p in parameters]), strict=True):
            _grad(parameter).copy_(summed.view_as(parameter))


ALONE = Ranks()
"""The only process."""


def _grad(parameter: torch.nn.Parameter) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
