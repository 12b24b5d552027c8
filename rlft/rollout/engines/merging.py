"""Merging an adapter into a model's weights, always from the pristine ones, so that nothing accumulates."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import torch
from torch import Tensor
from transformers import Conv1D, PreTrainedModel

from rlft.config import AdapterConfig
from rlft.model.adapter import lora_scale, merged_weight
from rlft.types import Adapter


class Weights(Protocol):
    """Parameters that can be replaced: those of a forward pass, or of a model that is to be saved."""

    def pristine(self, name: str) -> Tensor:
        """A parameter of the base model."""
        ...

    def load(self, names: Collection[str], weight: Callable[[str], Tensor]) -> None:
        """Replace these parameters by what `weight` gives for their names."""
        ...


class MergedWeights:
    """Weights that carry one adapter at a time."""

    def __init__(self, model: PreTrainedModel, forward: Weights, config: AdapterConfig) -> None:
        """Take over a model's weights, into which nothing is merged yet."""
        self._model, self._forward = model, forward
        self._kind, self._rank, self._scale = config.kind, config.rank, lora_scale(config)
        self._names = {"lora_A", "lora_B"} | ({"lora_magnitude_vector"} if config.kind == "dora" else set())
        self.merged: set[str] = set()
        """Parameters that an adapter is merged into."""
        self._scratch: dict[torch.device, Tensor] = {}

    @torch.no_grad()
    def load(self, adapter: Adapter) -> None:
        """Merge an adapter in float32; modules that it does not have get their pristine weights.

        Raises:
            ValueError: the tensors are not those of an adapter of this model; no weight has changed then.
        """
        updates = self.check(adapter)
        changed = [*updates, *sorted(self.merged - updates.keys())]
        self.merged |= updates.keys()  # some of them, if this is interrupted
        self._forward.load(changed, lambda name: self._weight(name, updates.get(name)))
        self.merged = set(updates)
        self._scratch.clear()

    def _weight(self, name: str, parts: Mapping[str, Tensor] | None) -> Tensor:
        pristine = self._forward.pristine(name)
        if parts is None:
            return pristine
        scratch = self._scratch.get(pristine.device)
        if scratch is None or scratch.numel() < pristine.numel():
            scratch = self._scratch[pristine.device] = torch.empty(pristine.numel(), device=pristine.device)
        is_transposed = self._is_transposed(name)
        merged = merged_weight(pristine, parts, self._scale, is_transposed=is_transposed, scratch=scratch)
        return merged.to(pristine.dtype, copy=True)

    def check(self, adapter: Adapter) -> dict[str, dict[str, Tensor]]:
        """The adapter's tensors by parameter of the base model; all are checked before a single weight changes.

        Raises:
            ValueError: they are not those of an adapter of this model.
        """
        updates: dict[str, dict[str, Tensor]] = {}
        parameters = dict(self._model.named_parameters())
        for name in sorted(adapter.tensors):
            stem, _, which = name.removesuffix(".weight").rpartition(".")
            parameter = f"{stem.removeprefix('base_model.model.')}.weight"
            if which not in self._names or parameter not in parameters:
                raise ValueError(f"the adapter's tensor {name!r} is not part of a {self._kind} update of this model")
            updates.setdefault(parameter, {})[which] = adapter.tensors[name]
        for parameter, parts in updates.items():
            if parts.keys() != self._names:
                raise ValueError(f"the adapter's update of {parameter} is not whole: it has {', '.join(sorted(parts))}")
            down, up = parts["lora_A"], parts["lora_B"]
            if down.shape[0] != self._rank or up.shape[1] != self._rank:
                raise ValueError(f"the adapter's update of {parameter} has another rank than adapter.rank={self._rank}")
            shape = parameters[parameter].shape
            if (up.shape[0], down.shape[1]) != tuple(reversed(shape) if self._is_transposed(parameter) else shape):
                raise ValueError(f"the adapter's update of {parameter} does not have the weight's shape {tuple(shape)}")
        return updates

    def _is_transposed(self, parameter: str) -> bool:
        """Whether the weight is stored as (inputs, outputs), as in GPT-2."""
        return isinstance(self._model.get_submodule(parameter.rpartition(".")[0]), Conv1D)
