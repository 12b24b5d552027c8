"""One copy of frozen weights for all models of a process that are loaded from the same folder.

With `backend: inline` the learner and the engine are one process, and each has modules of its own on the same base:
PEFT puts adapters into the learner's, the engine lays merged weights out for its products. The weights below need to be
there once only.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import nn
from transformers import PreTrainedModel

from rlft.common.private_names import private

Key: TypeAlias = tuple[object, ...]
_Facts: TypeAlias = tuple[torch.device, torch.dtype, int]
"""A parameter's device and type, and how often it has been written over."""


@dataclass(frozen=True, slots=True)
class _Plain:
    """A model as it was loaded, before anything was put on it."""

    modules: PreTrainedModel
    """Without memory for its weights."""
    weights: list[tuple[nn.Parameter, nn.Parameter]]
    """A parameter of `modules`, and the one that stands there in all models."""
    facts: list[_Facts]
    """Of each of the latter."""

    def is_as_loaded(self) -> bool:
        """Whether the weights are still what was loaded: neither written over, nor moved or of another type.

        `Module.to` and its like leave the parameter and its version, and give it other values.
        """
        return all(_facts(weight) == facts for (_, weight), facts in zip(self.weights, self.facts, strict=True))

    def another(self) -> PreTrainedModel:
        """Modules like these on the weights that are shared."""
        return copy.deepcopy(self.modules, {id(place): weight for place, weight in self.weights})


_MODELS: WeakValueDictionary[Key, PreTrainedModel] = WeakValueDictionary()
"""The model that was loaded first, as long as it is in use."""
_PLAIN: WeakKeyDictionary[PreTrainedModel, _Plain] = WeakKeyDictionary()


def sharing_weights(
    folder: str | Path, dtype: torch.dtype, device: torch.device, load: Callable[[], PreTrainedModel]
) -> PreTrainedModel:
    """A frozen model from `load`, or one with modules of its own on the parameters of an earlier one of the same kind.

    Nobody may change the parameters of such a model: who needs others puts new ones in their place. What a parameter
    refers to may be laid out anew.
    """
    if (files := _files(folder)) is None:
        return load()
    key = (*files, dtype, device)
    before = _MODELS.get(key)
    if before is not None and _PLAIN[before].is_as_loaded():
        return _PLAIN[before].another()
    model = load()
    weights = [
        (nn.Parameter(torch.empty_like(weight, device="meta"), requires_grad=False), weight)
        for weight in model.parameters()
    ]
    modules = copy.deepcopy(model, {id(weight): place for place, weight in weights})
    _PLAIN[model] = _Plain(modules, weights, [_facts(weight) for _, weight in weights])
    _MODELS[key] = model
    return model


def _facts(weight: nn.Parameter) -> _Facts:
    return weight.device, weight.dtype, private("torch.Tensor._version.__get__")(weight)


def _files(folder: str | Path) -> list[object] | None:
    """What tells whether the folder holds the same model as before; None for what is no folder here."""
    if not Path(folder).is_dir():
        return None
    found: list[object] = [Path(folder).resolve()]
    for path in sorted(Path(folder).iterdir()):
        if path.suffix in (".safetensors", ".json"):
            facts = path.stat()
            found += [path.name, facts.st_size, facts.st_mtime_ns]
    return found
