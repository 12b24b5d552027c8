"""The preference learner in several processes."""

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
    """`PreferenceLearner`, in `learner.workers` processes; its methods raise what `LearnerProcesses.call` does."""

    def __init__(
        self,
        config: PreferenceConfig,
        model_folder: Path | str,
        *,
        max_length: int,
        start: Mapping[str, Tensor] | None = None,
        reference: ReferenceSource | None = None,
    ) -> None:
        """See `PreferenceLearner` and `LearnerProcesses`."""
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
        """See `PreferenceLearner`."""
        result: tuple[Batch, float] = self.call("annotate", batch)
        return result

    def update(self, batch: Batch, kl: float, factor: float) -> Update:
        """See `PreferenceLearner`."""
        result: Update = self.call("update", batch, kl, factor)
        return result

    def logprobs(self, batch: Batch, role: RoleName) -> Tensor:
        """See `PreferenceLearner`."""
        result: Tensor = self.call("logprobs", batch, role)
        return result

    def reference_point(self, batch: Batch) -> float:
        """See `PreferenceLearner`."""
        result: float = self.call("reference_point", batch)
        return result

    def drop_reference(self) -> None:
        """See `PreferenceLearner`."""
        self.call("drop_reference")


def make_preference_learner(
    config: PreferenceConfig,
    model_folder: Path | str,
    *,
    max_length: int,
    start: Mapping[str, Tensor] | None,
    reference: ReferenceSource | None,
) -> PreferenceLearner | PreferenceGroup:
    """Likewise for `rlft dpo`."""
    kind = PreferenceGroup if config.learner.processes else PreferenceLearner
    return kind(config, model_folder, max_length=max_length, start=start, reference=reference)
