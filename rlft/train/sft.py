"""The supervised warm start on the environment's demonstrations, loss on the replies only.

It runs in the driver, also where the RL learner has processes of its own (`learner.workers`).
It is short by design, so an interrupted stage starts over; what it made is kept only when it is complete.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from rlft.config import RunConfig, SFTStageConfig
from rlft.learner.core import lr_factor
from rlft.model import chat, pretrained
from rlft.train.supervised.data import Example, make_batch
from rlft.train.supervised.learner import SupervisedLearner
from rlft.train.task_order import num_updates, tasks_of_step
from rlft.types import Message

OnUpdate = Callable[[int, int, float], None]
"""Called with (updates done, updates in all, loss)."""


def train_sft(
    config: RunConfig,
    model_folder: str,
    demonstrations: Sequence[tuple[Message, ...]],
    on_update: OnUpdate | None = None,
    *,
    start: Mapping[str, Tensor] | None = None,
    tools: Sequence[Sequence[Mapping[str, Any]]] = (),
) -> dict[str, Tensor]:
    """Train a fresh adapter, or one that starts from `start`, on the demonstrations.

    Args:
        tools: those that the prompt of each demonstration shows, as in rollouts; empty for none.

    Returns:
        The adapter's tensors under PEFT's names (for `full` the model's own), float32.

    Raises:
        ValueError: the config has no `sft` section, there are fewer demonstrations than `sft.examples` asks for, or the
            chat template does not write one as it is.
        RuntimeError: an update was not finite.
    """
    stage = config.sft
    if stage is None:
        raise ValueError("the config has no `sft` section; add one, for example `sft: {examples: 256}`")
    check_demonstrations(stage, demonstrations)
    torch.set_num_threads(config.learner.threads)
    settings = config.learner.model_copy(
        update={"lr": stage.lr, "schedule": "linear", "warmup_steps": 0, "weight_decay": 0.0}
    )
    tokenizer = chat.load_tokenizer(model_folder, special_tokens_in_text=config.model.special_tokens_in_text)
    end_ids = chat.end_token_ids(tokenizer, pretrained.load_generation_config(model_folder))
    examples = [
        _example(row, messages, tokenizer, end_ids, tools[row] if tools else ())
        for row, messages in enumerate(demonstrations[: stage.examples])
    ]
    count = min(stage.batch_size, len(examples))
    total = num_updates(len(examples), batch_size=count, epochs=stage.epochs)
    learner = SupervisedLearner(config.model_copy(update={"learner": settings}), model_folder, start=start)
    for step in range(1, total + 1):
        batch = make_batch(tasks_of_step(examples, step=step, count=count, seed=config.seed))
        update = learner.update(batch, lr_factor(settings, update=step - 1, total=total, warmup=0))
        if update.skipped:
            raise RuntimeError(
                f"update {step} of {total} of the SFT warm start: {update.skipped}; lower sft.lr (now {stage.lr:g})"
            )
        if on_update:
            on_update(step, total, update.metrics["sft/loss"])
    return dict(learner.adapter(0).tensors)


def _example(
    row: int,
    messages: Sequence[Message],
    tokenizer: PreTrainedTokenizerBase,
    end_ids: frozenset[int],
    tools: Sequence[Mapping[str, Any]],
) -> Example:
    where = f"demonstration {row}"
    try:
        prompt_ids, token_ids = chat.demonstration(tokenizer, messages, end_ids, tools=tools)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    return Example(
        where=where,
        id=str(row),
        prompt_ids=prompt_ids,
        token_ids=token_ids,
        action_mask=(True,) * len(token_ids),
    )


def check_demonstrations(stage: SFTStageConfig, demonstrations: Sequence[tuple[Message, ...]]) -> None:
    """Refuse a stage that asks for more demonstrations than there are.

    Raises:
        ValueError: both numbers.
    """
    if len(demonstrations) < stage.examples:
        raise ValueError(
            f"sft.examples is {stage.examples}, but the environment offers {len(demonstrations)} demonstrations"
        )
