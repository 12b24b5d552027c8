"""The supervised warm start: TRL's SFTTrainer on the environment's demonstrations, loss on the replies only.

It is short by design, so an interrupted stage starts over; what it made is kept only when it is complete.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlft.config import RunConfig, SFTStageConfig
from rlft.learner.roles import Role, make_policy, read_role
from rlft.model import base as models
from rlft.model import chat
from rlft.model.adapter import lora_config
from rlft.train import trl
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
        ValueError: the config has no `sft` section, or there are fewer demonstrations than `sft.examples` asks for.
    """
    stage = config.sft
    if stage is None:
        raise ValueError("the config has no `sft` section; add one, for example `sft: {examples: 256}`")
    check_demonstrations(stage, demonstrations)
    trl.be_quiet()
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    torch.set_num_threads(config.learner.threads)
    device = models.default_device()
    dtype = models.resolve_dtype(config.model)
    peft_config = None
    if config.adapter.kind == "full" or start is not None:
        role = make_policy(model_folder, config.model, config.adapter, device=device, seed=config.seed, start=start)
        model: nn.Module = role.model
    else:
        model = models.load_base(model_folder, dtype, device, quantize=config.adapter.kind == "qlora")
        peft_config = lora_config(config.adapter)
    tokenizer = chat.load_tokenizer(model_folder, special_tokens_in_text=config.model.special_tokens_in_text)
    rows = []
    for row, messages in enumerate(demonstrations[: stage.examples]):
        token_ids, is_reply = chat.demonstration(tokenizer, messages, tools=tools[row] if tools else ())
        rows.append({"input_ids": token_ids, "completion_mask": list(map(int, is_reply))})
    with tempfile.TemporaryDirectory() as scratch, models.seeded(config.seed), models.quiet_libraries():
        trainer = SFTTrainer(
            model=model.train(),
            args=SFTConfig(
                completion_only_loss=True,
                **trl.settings(
                    output_dir=scratch,
                    batch_size=stage.batch_size,
                    epochs=stage.epochs,
                    lr=stage.lr,
                    seed=config.seed,
                    device=device,
                    bf16=config.adapter.kind == "full" and dtype == torch.bfloat16,
                ),
            ),
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
            peft_config=peft_config,
        )
        trl.train(trainer, lambda done, total, logs: on_update(done, total, logs["loss"]) if on_update else None)
    if peft_config is None:
        return read_role(role)
    return read_role(Role(model=trainer.model, adapter="default"))


def check_demonstrations(stage: SFTStageConfig, demonstrations: Sequence[tuple[Message, ...]]) -> None:
    """Refuse a stage that asks for more demonstrations than there are.

    Raises:
        ValueError: both numbers.
    """
    if len(demonstrations) < stage.examples:
        raise ValueError(
            f"sft.examples is {stage.examples}, but the environment offers {len(demonstrations)} demonstrations"
        )
