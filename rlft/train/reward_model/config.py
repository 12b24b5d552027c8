"""The config of a reward model's training (`rlft reward-model`) as one frozen tree."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlft.config import BaseRunConfig
from rlft.train.preference.config import PreferenceDataConfig


class RewardModelConfig(BaseRunConfig):
    """The training of a reward model: TRL's RewardTrainer, on pairs."""

    kind: Literal["reward-model"] = "reward-model"
    """Tells the run directory of a reward model from others."""
    data: PreferenceDataConfig
    """The preferences; they are read as conversations, plain text as a user's message and its reply."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the training pairs."""
    batch_size: int = Field(8, ge=1)
    """Pairs per optimizer update."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate; linear decay."""
    threads: int = Field(2, ge=1)
    """CPU threads."""

    @model_validator(mode="after")
    def _check(self) -> RewardModelConfig:
        if self.adapter.kind == "qlora":
            raise ValueError(
                "adapter.kind: qlora is for policies; a reward model takes lora, dora, rslora, full or head"
            )
        if not self.data.heldout:
            raise ValueError("data.heldout is 0, but the accuracy is measured on held-out pairs; hold out 0.1, say")
        return self
