"""Everything that transformers and peft load from a model's or an adapter's folder is loaded here.

Two rules hold for all of it. No Python from the folder is run: a model or tokenizer that needs code of its own is
refused. Weights are read from safetensors only: a pickle can run code when it is opened.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GenerationConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlft.model.sources import refuse_pickles

_loading = threading.Lock()
_ONE_THREAD = "HF_DEACTIVATE_ASYNC_LOAD"
"""Of transformers: an environment variable that it looks at whenever it loads weights."""


def load_config(folder: str | Path) -> PretrainedConfig:
    """The model's configuration. Raises ValueError if it needs code from the folder."""
    return _load(AutoConfig.from_pretrained, folder)


def load_generation_config(folder: str | Path) -> GenerationConfig:
    """The model's defaults for generating: its own, or what its configuration says where it has none."""
    if (Path(folder) / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder)
    return GenerationConfig.from_model_config(load_config(folder))


def load_tokenizer(folder: str | Path, **options: Any) -> PreTrainedTokenizerBase:
    """The model's tokenizer. Raises ValueError if it needs code from the folder."""
    return _load(AutoTokenizer.from_pretrained, folder, **options)


def load_causal_lm(folder: str | Path, **options: Any) -> PreTrainedModel:
    """The language model. Raises ValueError if it needs code from the folder, or has pickled weights only."""
    refuse_pickles(folder)
    return _load_weights(AutoModelForCausalLM.from_pretrained, folder, **options)


def load_classifier(folder: str | Path, **options: Any) -> PreTrainedModel:
    """The model with an output layer of its own. Raises ValueError as `load_causal_lm` does."""
    refuse_pickles(folder)
    return _load_weights(AutoModelForSequenceClassification.from_pretrained, folder, **options)


def load_adapter(model: nn.Module, folder: str | Path, name: str = "default", **options: Any) -> PeftModel:
    """The model with the adapter in `folder` on it. Raises ValueError if its weights are pickled only."""
    refuse_pickles(folder)
    return PeftModel.from_pretrained(model, str(folder), name, use_safetensors=True, **options)


def _load_weights(load: Callable[..., Any], folder: str | Path, **options: Any) -> Any:
    with nullcontext() if torch.cuda.is_available() else _in_this_thread():
        return _load(load, folder, use_safetensors=True, **options)


@contextmanager
def _in_this_thread() -> Iterator[None]:
    """Have transformers convert weights in this thread, and not in several.

    glibc gives each thread a heap of its own, and what is freed there serves no other: with several threads a float32
    model of 135M weights takes 0.3 to 0.5 GB more at the peak of a training step, and loads 0.05 s faster.
    """
    with _loading:
        before = os.environ.get(_ONE_THREAD)
        os.environ[_ONE_THREAD] = "1"
        try:
            yield
        finally:
            os.environ.pop(_ONE_THREAD, None)
            if before is not None:
                os.environ[_ONE_THREAD] = before


def _load(load: Callable[..., Any], folder: str | Path, **options: Any) -> Any:
    try:
        return load(folder, trust_remote_code=False, local_files_only=Path(folder).is_dir(), **options)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{folder} needs Python code that lies in its folder (`auto_map` in its JSON files), and rlft runs no code "
            "of a model; use a model that transformers has built in"
        ) from error
