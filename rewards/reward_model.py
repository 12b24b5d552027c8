"""A trained reward model: the score that it gives the conversation. `rlft reward-model` trains one.

Any language model that was made a sequence classifier with one output works: a model folder, or an adapter folder in
PEFT's layout.
"""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from rlft.model.chat import conversation
from rlft.types import Message


def reward_model(
    prompts: list[list[Message]],
    completions: list[list[Message]],
    folder: str,
    normalize: bool = False,
    threads: int = 1,
    device: str = "",
) -> list[float]:
    """The model's output at the last token of each conversation, as the model's own chat template writes it.

    The first call of every scoring process loads the model: `scoring.deadline_s` has to leave time for that.

    Args:
        folder: what `rlft reward-model` wrote.
        normalize: subtract the mean and divide by the deviation that the scores of held-out pairs had after training.
        threads: CPU threads of each scoring process.
        device: where the model computes; empty is the first GPU, or the CPU.

    Raises:
        ValueError: there is no such folder or no such model in it, or a conversation is longer than its context.
    """
    torch.set_num_threads(threads)
    model, tokenizer, facts = _load(folder, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if normalize and "std" not in facts:
        raise ValueError(f"{folder} has no reward_model.json with the mean and deviation of its scores, for normalize")
    if facts.get("tools"):
        raise ValueError(
            f"{folder} was trained on conversations that show tools, which a reward function does not get; use it as "
            "the reward adapter:FOLDER, on the learner's base"
        )
    context = model.config.get_text_config().max_position_embeddings
    rows: list[Tensor] = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = conversation(tokenizer, [*prompt, *completion])
        if len(ids) > context:
            raise ValueError(f"a conversation of {len(ids)} tokens exceeds the reward model's context of {context}")
        rows.append(torch.tensor(ids))
    with torch.no_grad():
        output = model(
            input_ids=pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id).to(model.device),
            attention_mask=pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device),
            use_cache=False,
        )
    scores = output.logits[:, 0].double()
    return ((scores - facts["mean"]) / facts["std"] if normalize else scores).tolist()


@functools.cache
def _load(folder: str, device: str) -> tuple[Any, Any, dict[str, Any]]:
    """(model, tokenizer, what is noted in reward_model.json)"""
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
    return model.to(device).eval(), tokenizer, facts


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text()) if path.is_file() else {}


def _in_float32(layer: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0].float(),)
