"""Embedding similarity: how near the reply is in meaning to a reference answer, as a model of sentences sees it."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel, AutoTokenizer

from rlft.types import Message


def embedding_similarity(
    completions: list[list[Message]], answer: list[Any], folder: str, least: float = 0.5, longest: float = 3.0
) -> list[float | None]:
    """Cosine similarity of reply and answer, from `least` (worth 0) to 1; abstains where a task has no answer.

    Any encoder in a local folder works: one of sentence-transformers, whose kind of pooling is read from it, or a plain
    one of transformers (mean pooling). The first call loads it: `scoring.deadline_s` has to leave time for that.

    Near is not right: "the dose is 5 mg" is close to "the dose is 50 mg", and a text about the same thing that says
    nothing is nearer than a right answer in other words. It suits style and topic, never facts. A reply of more than
    `longest` times the answer's words earns 0: an average over everything would be near to everything.

    Args:
        folder: the model's.
        least: similarity that unrelated texts have with this model; measure it.
    """
    replies = [messages[-1]["content"] for messages in completions]
    values: list[float | None] = []
    for reply, wanted in zip(replies, answer, strict=True):
        if not isinstance(wanted, str) or not wanted.strip():
            values.append(None)
        elif not reply.strip() or len(reply) > longest * max(len(wanted), 20):
            values.append(0.0)
        else:
            one, other = _embed(folder, reply), _embed(folder, wanted)
            values.append(min(1.0, max(0.0, (float(one @ other) - least) / (1 - least))))
    return values


@functools.lru_cache(maxsize=1024)
def _embed(folder: str, text: str) -> torch.Tensor:
    """A vector of length 1."""
    model, tokenizer, pooling = _load(folder)
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=min(tokenizer.model_max_length, 512))
    with torch.no_grad():
        states = model(**{name: inputs[name] for name in ("input_ids", "attention_mask")}).last_hidden_state[0]
    vector = states[0] if pooling == "cls" else states.mean(0)
    return vector.double() / vector.double().norm()


@functools.cache
def _load(folder: str) -> tuple[Any, Any, str]:
    """(model, tokenizer, kind of pooling)"""
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ValueError(f"no model in {folder}: name the folder of an encoder, with its config.json")
    file = path / "1_Pooling" / "config.json"
    settings = json.loads(file.read_text()) if file.is_file() else {}
    model = AutoModel.from_pretrained(path, trust_remote_code=False, use_safetensors=True).float().eval()
    tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    return model, tokenizer, "cls" if settings.get("pooling_mode_cls_token") else "mean"
