"""The preference learner in several processes that share every update, and the choice between one and several."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from rlft.learner.processes import LearnerProcesses
from rlft.learner.update import Update
from rlft.model.starting_point import ReferenceSource
from rlft.train.preference.config import PreferenceConfig
from rlft.train.preference.learner import PreferenceLearner, RoleName
from rlft.types import Batch


class PreferenceGroup(LearnerProcesses):
    """A preference learner in `learner.workers` processes that work on every batch together.

    Its methods are those of `PreferenceLearner` with the same results, and raise what `LearnerProcesses.call` does.
    """

    def __init__(
        self,
        config: PreferenceConfig,
        model_folder: Path | str,
        *,
        max_length: int,
        start: Mapping[str, Tensor] | None = None,
        reference: ReferenceSource | None = None,
    ) -> None:
        """Start the processes, each of which loads the base; arguments as of `PreferenceLearner`."""
        super().__init__(
            PreferenceLearner,
            config,
            processes=config.learner.processes,
            model_folder=model_folder,
            max_length=max_length,
            start=start,
            reference=reference,
        )

    def annotate(self, batch: Batch) -> tuple[Batch, float]:
        """Add the reference's log-probs to a batch, if the loss needs them; returned with KTO's z0, else 0."""
        result: tuple[Batch, float] = self.call("annotate", batch)
        return result

    def update(self, batch: Batch, kl: float, factor: float) -> Update:
        """Make one optimizer update on an annotated batch; it is skipped if the loss or the gradient is not finite."""
        result: Update = self.call("update", batch, kl, factor)
        return result

    def logprobs(self, batch: Batch, role: RoleName) -> Tensor:
        """Log-probs of the batch's trained tokens under the policy or the reference, (A,) float32 on the CPU."""
        result: Tensor = self.call("logprobs", batch, role)
        return result

    def reference_point(self, batch: Batch) -> float:
        """KTO's z0 of the batch's prompts; 0 for the other losses."""
        result: float = self.call("reference_point", batch)
        return result

    def drop_reference(self) -> None:
        """Free the reference, if that frees a model: its log-probs are computed beforehand."""
        self.call("drop_reference")


def make_preference_learner(
    config: PreferenceConfig,
    model_folder: Path | str,
    *,
    max_length: int,
    start: Mapping[str, Tensor] | None,
    reference: ReferenceSource | None,
) -> PreferenceLearner | PreferenceGroup:
    """The preference learner in this process, or in as many as the config says."""
    kind = PreferenceGroup if config.learner.processes else PreferenceLearner
    return kind(config, model_folder, max_length=max_length, start=start, reference=reference)
