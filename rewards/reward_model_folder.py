"""Loading a sequence classifier with one output, which is what a reward model is: a model folder, or an adapter."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging


class Classifier(NamedTuple):
    """A model with one output, ready to be called."""

    model: Any
    tokenizer: Any
    facts: dict[str, Any]
    """What `reward_model.json` says of it."""

    @staticmethod
    @functools.cache
    def load(folder: str, device: str) -> Classifier:
        """Load it from a folder; once for each process.

        Raises:
            ValueError: there is no such folder, or no such model in it.
        """
        path = Path(folder)
        if not path.is_dir():
            raise ValueError(f"no folder {folder} with a reward model; make one with `rlft reward-model`")
        adapter = _read(path / "adapter_config.json")
        facts = _read(path / "reward_model.json")
        names = [adapter.get("task_type", "")] if adapter else _read(path / "config.json").get("architectures", [""])
        if not names[0].endswith(("SEQ_CLS", "ForSequenceClassification")):
            raise ValueError(f"{folder} holds no reward model: it is {names[0] or 'neither an adapter nor a model'}")
        dtype = getattr(torch, facts.get("dtype", "float32"))
        base = path if not adapter else adapter["base_model_name_or_path"]
        verbosity = logging.get_verbosity()
        logging.set_verbosity_error()  # it would report that the base has no output layer, which the adapter brings
        try:
            model = AutoModelForSequenceClassification.from_pretrained(
                base,
                num_labels=1,
                dtype=dtype if adapter else torch.float32,
                trust_remote_code=False,  # no code from a model's folder is run
                use_safetensors=True,
            )
        finally:
            logging.set_verbosity(verbosity)
        # As in training: the layers below compute in their type, the output layer in float32.
        getattr(model, model.base_model_prefix).to(dtype)
        model.score.float().register_forward_pre_hook(_in_float32)
        if adapter:
            model = PeftModel.from_pretrained(model, folder)
        named = folder if (path / "tokenizer_config.json").is_file() else base
        tokenizer = AutoTokenizer.from_pretrained(named, trust_remote_code=False)
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
        model.config.get_text_config().pad_token_id = tokenizer.pad_token_id
        return Classifier(model.to(device).eval(), tokenizer, facts)


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _in_float32(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].float(),)
