"""Writing an exported folder: a PEFT adapter or a merged model, with tokenizer, chat template and generation config.

What other software reads is taken over from the base model as it is, byte for byte, where that is possible: a config
or a tokenizer that one release of transformers loads and saves again is not always understood by another one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from rlft.model import chat, pretrained
from rlft.model.adapter import make_adapter
from rlft.rollout.engines.merging import MergedWeights
from rlft.train.export.policy import Policy

Dtype: TypeAlias = Literal["auto", "float32", "bfloat16"]
"""What a merged model's weights are stored in; `auto` is as the base model's are."""

_OF_TOKENIZER = (
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "LICENSE*",
    "NOTICE*",
)
"""Files of a model's folder that say how texts become tokens, and its licence."""


def write_adapter(folder: Path, policy: Policy, base: str) -> str:
    """Write a PEFT adapter into an existing folder; returns the type of its weights.

    Args:
        base: what its config names as the base model.
    """
    save_file(policy.tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = json.loads((policy.folder / "adapter_config.json").read_text(encoding="utf-8"))
    _write_json(folder / "adapter_config.json", {**config, "base_model_name_or_path": base, "inference_mode": True})
    _write_beside(folder, policy)
    return "float32"


def write_merged(folder: Path, policy: Policy, dtype: Dtype) -> str:
    """Write a whole model into an existing folder; returns the type of its weights.

    Raises:
        ValueError: the base's weights are quantized, so that an update cannot be merged into them.
    """
    refuse_quantized(policy)
    own = getattr(pretrained.load_config(policy.model_folder), "dtype", None) or torch.float32
    stored = own if dtype == "auto" else getattr(torch, dtype)
    model = pretrained.load_causal_lm(policy.folder if policy.is_full else policy.model_folder, dtype=stored)
    if not policy.is_full:
        MergedWeights(model, _Parameters(model), policy.config.adapter).load(make_adapter(0, policy.tensors))
    model.save_pretrained(folder)
    name = str(stored).removeprefix("torch.")
    config = json.loads((policy.model_folder / "config.json").read_text(encoding="utf-8"))
    keys = [key for key in ("dtype", "torch_dtype") if key in config] or ["dtype"]
    _write_json(folder / "config.json", {**config, **dict.fromkeys(keys, name)})
    _write_beside(folder, policy)
    return name


def refuse_quantized(policy: Policy) -> None:
    """Refuse to merge into weights that are stored or trained in few bits.

    Raises:
        ValueError: what to do instead.
    """
    config = pretrained.load_config(policy.model_folder)
    if policy.config.adapter.kind == "qlora" or getattr(config, "quantization_config", None):
        raise ValueError(
            "the adapter was trained on a base in few bits, into which it cannot be merged without changing what it "
            "computes; export the adapter (leave --merged out)"
        )


class _Parameters:
    """A model's parameters, which are overwritten once; `merging.Weights`."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model

    def pristine(self, name: str) -> Tensor:
        return self._model.get_parameter(name)

    def load(self, names: Collection[str], weight: Callable[[str], Tensor]) -> None:
        with torch.no_grad():
            for name in names:
                self._model.get_parameter(name).copy_(weight(name))


def _write_beside(folder: Path, policy: Policy) -> None:
    """The tokenizer's files as they are, and a generation config with every token that ends a reply in training."""
    for path in sorted({path for pattern in _OF_TOKENIZER for path in policy.model_folder.glob(pattern)}):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)
    own = policy.model_folder / "generation_config.json"
    config = pretrained.load_generation_config(policy.model_folder)
    ends = chat.end_token_ids(chat.load_tokenizer(policy.model_folder, for_chat=False), config)
    kept: dict[str, Any] = (
        json.loads(own.read_text(encoding="utf-8"))
        if own.is_file()
        else {key: value for key in ("bos_token_id", "pad_token_id") if (value := getattr(config, key)) is not None}
    )
    kept["eos_token_id"] = sorted(ends) if len(ends) > 1 else min(ends)
    _write_json(folder / "generation_config.json", kept)


def _write_json(path: Path, data: dict[str, Any]) -> None:
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
