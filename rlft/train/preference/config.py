"""The config of a preference run (`rlft dpo`) as one frozen tree."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from rlft.config import CheckpointConfig, LearnerConfig, PolicyRunConfig, Strict
from rlft.objectives.algorithm import Preference


class PreferenceDataConfig(Strict):
    """Where the preferences come from; the columns are those that TRL documents."""

    source: str
    """A .jsonl, .json, .csv or .parquet file, a folder of such files, or a data set's hub id."""
    subset: str = ""
    """Which of the data sets under a hub id; empty is its only or default one."""
    split: str = "train"
    """Which split of a hub id or folder."""
    heldout: float = Field(0.1, ge=0, lt=1)
    """Share of the prompts that is measured instead of trained on. A hash of the prompt and its tools decides, so that
    further rows move none of the others."""
    max_length: int = Field(0, ge=0)
    """Most tokens of a prompt and one completion; 0 is the model's context."""
    overlong: Literal["error", "drop"] = "error"
    """What a longer row is: an error, or left out and counted."""


class PreferenceConfig(PolicyRunConfig):
    """The config of a preference run: DPO, its relatives, or KTO."""

    kind: Literal["dpo"] = "dpo"
    """Tells the run directory of a preference run from others."""
    data: PreferenceDataConfig
    """The preferences."""
    preference: Preference = Preference()
    """The loss."""
    reference: str = ""
    """Adapter folder, or model as in model.source, that the policy is held to; empty is where training starts."""
    reference_logprobs: Literal["precomputed", "live"] = "precomputed"
    """precomputed: one pass over the data before the first update, kept in the run directory; live: a pass in every
    update. The same numbers up to rounding; precomputed is less work from the second epoch on."""
    epochs: int = Field(1, ge=1)
    """Passes over the training pairs; what does not fill the last update of a pass is left out of it."""
    batch_size: int = Field(16, ge=1)
    """Pairs per optimizer update; for kto completions."""
    learner: LearnerConfig = LearnerConfig()  # type: ignore[call-arg]
    """The optimizer."""
    ray_address: str = ""
    """Address of a Ray cluster to join with learner.workers; empty starts a private one on this machine."""
    checkpoint: CheckpointConfig = CheckpointConfig(every=50)  # type: ignore[call-arg]
    """Snapshots; a step is an update."""

    @model_validator(mode="after")
    def _check(self) -> PreferenceConfig:
        if self.adapter.kind == "head":
            raise ValueError("adapter.kind: head trains no policy, only a reward model's output; use lora or full")
        if self.reference and not self.preference.needs_reference:
            raise ValueError(f"reference is set, but loss {self.preference.loss!r} compares with none; leave it out")
        if self.ray_address and not self.learner.processes:
            raise ValueError("ray_address is set, but one process trains alone; set learner.workers, or leave it out")
        if not self.preference.is_paired and self.batch_size < 2:
            raise ValueError(
                "batch_size is 1, but kto estimates its KL from other prompts' completions; use at least 2"
            )
        return self
