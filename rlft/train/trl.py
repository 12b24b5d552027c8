"""What a stage that TRL trains needs, as the reward model's: trainer settings, progress, quiet libraries."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

OnLog = Callable[[int, int, dict[str, float]], None]
"""Called with (updates done, updates in all, what the trainer logged of the update, with its `loss`)."""


def be_quiet() -> None:
    """Turn off the libraries' notices and progress bars; call it before TRL is imported, which takes seconds."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    from datasets import disable_progress_bars

    disable_progress_bars()


def settings(
    *, output_dir: str, batch_size: int, epochs: float, lr: float, seed: int, device: torch.device, bf16: bool
) -> dict[str, Any]:
    """Arguments of any of TRL's trainers: one pass after another at a falling rate, nothing written or printed.

    Args:
        bf16: products in bfloat16 of weights that are trained in float32.
    """
    return {
        "output_dir": output_dir,
        "per_device_train_batch_size": batch_size,
        "num_train_epochs": epochs,
        "learning_rate": lr,
        "lr_scheduler_type": "linear",
        "seed": seed,
        "max_length": None,
        "gradient_checkpointing": False,
        "use_cpu": device.type == "cpu",
        "bf16": bf16,
        "dataloader_pin_memory": False,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def train(trainer: Any, on_log: OnLog) -> None:
    """Run a TRL trainer to its end; `on_log` replaces the callback that prints log lines."""
    from transformers import PrinterCallback, TrainerCallback

    class Progress(TrainerCallback):
        def on_log(
            self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any
        ) -> None:
            if logs and "loss" in logs:
                on_log(state.global_step, state.max_steps, logs)

    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(Progress())
    trainer.train()
