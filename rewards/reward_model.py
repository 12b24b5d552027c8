"""A trained reward model: the score that it gives the conversation. `rlft reward-model` trains one.

Any language model that was made a sequence classifier with one output works: a model folder, or an adapter folder in
PEFT's layout.

It can be cheated by all that the model likes without reason: length, a tone, replies unlike those that it was trained
on. The reward rises then, and nothing else does. So keep a KL term, watch a shadow reward (`role: shadow`), read the
samples that score highest, and train it again on pairs from the policy. What a score means depends on the model: the
cases beside this file say what any model of helpfulness should prefer; write others for yours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlft.model.chat import conversation
from rlft.types import Message

from .reward_model_folder import Classifier


def reward_model(
    prompts: list[list[Message]],
    completions: list[list[Message]],
    folder: str,
    normalize: bool = False,
    threads: int = 1,
    device: str = "",
) -> list[float | ValueError]:
    """The model's output at the last token of each conversation, as the model's own chat template writes it.

    A conversation that is longer than the model's context fails alone. The first call of every scoring process loads
    the model: `scoring.deadline_s` has to leave time for that.

    Args:
        folder: what `rlft reward-model` wrote.
        normalize: subtract the mean and divide by the deviation that the scores of held-out pairs had after training.
        threads: CPU threads of each scoring process.
        device: where the model computes; empty is the first GPU, or the CPU.

    Raises:
        ValueError: there is no such folder or no such model in it.
    """
    torch.set_num_threads(threads)
    model, tokenizer, facts = Classifier.load(folder, device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if normalize and "std" not in facts:
        raise ValueError(f"{folder} has no reward_model.json with the mean and deviation of its scores, for normalize")
    if facts.get("tools"):
        raise ValueError(
            f"{folder} was trained on conversations that show tools, which a reward function does not get; use it as "
            "the reward adapter:FOLDER, on the learner's base"
        )
    context = model.config.get_text_config().max_position_embeddings
    encoded = [
        torch.tensor(conversation(tokenizer, [*prompt, *completion]))
        for prompt, completion in zip(prompts, completions, strict=True)
    ]
    fitting = [row for row in encoded if len(row) <= context]
    scores = iter(_scores(model, tokenizer.pad_token_id, fitting) if fitting else [])
    mean, std = (facts["mean"], facts["std"]) if normalize else (0.0, 1.0)
    return [
        (next(scores) - mean) / std
        if len(row) <= context
        else ValueError(f"a conversation of {len(row)} tokens exceeds the reward model's context of {context}")
        for row in encoded
    ]


def _scores(model: Any, padding: int, rows: list[Tensor]) -> list[float]:
    """The model's output at the last of each row's token ids, all rows in one pass."""
    ids = pad_sequence(rows, batch_first=True, padding_value=padding).to(model.device)
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).to(model.device)
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, 0].double().tolist()
