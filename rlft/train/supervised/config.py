"""The config of a supervised run (`rlft sft` on a table) as one frozen tree."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from pydantic import Field, model_validator

from rlft.config import CheckpointConfig, LearnerConfig, PolicyRunConfig, Strict

Column = Literal["messages", "prompt", "completion", "text", "tools"]


class SupervisedDataConfig(Strict):
    """Which rows are learnt: conversations (`messages`), `prompt` and `completion`, or plain `text`."""

    source: str
    """A .jsonl, .json, .csv or .parquet file, a folder of such files, or a data set's hub id."""
    subset: str = ""
    """Which of the data sets under a hub id; empty is its only or default one."""
    split: str = "train"
    """Which split of a hub id or folder."""
    columns: Mapping[Column, str] = {}
    """What the columns are called there, where it is not messages, prompt, completion, text or tools, as in
    {prompt: question, completion: answer}."""
    loss_on: Literal["replies", "all"] = "replies"
    """Which tokens are learnt: the completion or the assistant's messages, or the prompt too. Of `text` it is all."""
    heldout: float = Field(0.1, ge=0)
    """Share of the prompts that is measured instead of trained on, or from 1 on how many rows at least. A hash of the
    prompt and its tools decides, so that of a share further rows move none of the others."""
    max_length: int = Field(0, ge=0)
    """Most tokens of a row; 0 is the model's context."""
    overlong: Literal["error", "drop"] = "error"
    """What a longer row is: an error, or left out and counted."""

    @model_validator(mode="after")
    def _check(self) -> SupervisedDataConfig:
        if self.heldout > 1 and self.heldout != int(self.heldout):
            raise ValueError(
                f"heldout is {self.heldout}; below 1 it is a share of the prompts, from 1 on a whole number of rows"
            )
        return self


class SupervisedEvaluationConfig(Strict):
    """When the held-out rows are measured, and what follows from it."""

    every: int = Field(0, ge=0)
    """Measure after each so many updates; 0 means only at the start and at the end."""
    patience: int = Field(0, ge=0)
    """Stop when so many measurements in a row are not better than the best one beyond chance (paired by row), and end
    with that one's adapter; 0 never stops early."""
    min_effect: float = Field(0.01, ge=0)
    """The smallest gain of the held-out log-probability per token, nats, that matters: the verdict is SHIP only if the
    whole interval lies above."""
    tasks: str = ""
    """Config file of an RL run: its held-out tasks are answered before and after, and its rewards score the answers.
    Model and adapter are those of this run."""


class SupervisedConfig(PolicyRunConfig):
    """The config of a supervised run."""

    kind: Literal["sft"] = "sft"
    """Tells the run directory of a supervised run from others."""
    data: SupervisedDataConfig
    """The rows."""
    epochs: float = Field(1.0, gt=0)
    """Passes over the training rows, also part of one; what does not fill the last update of a pass is left out of
    it."""
    batch_size: int = Field(16, ge=1)
    """Rows per optimizer update."""
    learner: LearnerConfig = LearnerConfig()  # type: ignore[call-arg]
    """The optimizer."""
    ray_address: str = ""
    """Address of a Ray cluster to join with learner.workers; empty starts a private one on this machine."""
    evaluation: SupervisedEvaluationConfig = SupervisedEvaluationConfig()  # type: ignore[call-arg]
    """The held-out measurement."""
    checkpoint: CheckpointConfig = CheckpointConfig(every=50)  # type: ignore[call-arg]
    """Snapshots; a step is an update."""

    @model_validator(mode="after")
    def _check(self) -> SupervisedConfig:
        if self.adapter.kind == "head":
            raise ValueError("adapter.kind: head trains no policy, only a reward model's output; use lora or full")
        if self.ray_address and not self.learner.processes:
            raise ValueError("ray_address is set, but one process trains alone; set learner.workers, or leave it out")
        stopping = self.evaluation
        if stopping.patience and not (stopping.every and self.data.heldout):
            raise ValueError(
                "evaluation.patience stops by measurements of held-out rows; set evaluation.every and data.heldout too"
            )
        if stopping.patience and self.checkpoint.adapters != "all":
            raise ValueError(
                f"checkpoint.adapters is {self.checkpoint.adapters!r}, but evaluation.patience may end with any of the "
                "measured adapters; use all"
            )
        return self
