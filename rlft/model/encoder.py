"""Vectors of texts by a model of sentences: an encoder in a local folder."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@functools.lru_cache(maxsize=1024)
def encode(folder: str, text: str) -> Tensor:
    """The vector of a text, of length 1, in float64; cut at the model's longest input, 512 tokens at the most.

    Any encoder works: one of sentence-transformers, whose kind of pooling (first token or mean) is read from it, or a
    plain one of transformers (mean pooling). The first call loads it.

    Args:
        folder: the model's.

    Raises:
        ValueError: there is no model.
    """
    model, tokenizer, pooling = _load(folder)
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=min(tokenizer.model_max_length, 512))
    with torch.no_grad():
        states = model(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).last_hidden_state[0]
    vector = states[0] if pooling == "cls" else states.mean(0)
    return vector.double() / vector.double().norm()


@functools.cache
def _load(folder: str) -> tuple[Any, Any, str]:
    """(model, tokenizer, kind of pooling)"""
    from transformers import AutoModel, AutoTokenizer

    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ValueError(f"no model in {folder}: name the folder of an encoder, with its config.json")
    file = path / "1_Pooling" / "config.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    model = AutoModel.from_pretrained(path, trust_remote_code=False, use_safetensors=True).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    return model, tokenizer, "cls" if settings.get("pooling_mode_cls_token") else "mean"
