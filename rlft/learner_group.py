"""Learners in several processes: `learner_processes.py` with the methods of `Learner` and of `PreferenceLearner`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import Tensor

from rlft.adapters import ReferenceSource
from rlft.config import RunConfig
from rlft.learner import Learner, has_gradient
from rlft.learner_processes import LIMIT, LearnerProcesses
from rlft.preference_config import PreferenceConfig
from rlft.preference_learner import PreferenceLearner, RoleName
from rlft.types import Batch, Group, Metrics


class LearnerGroup(LearnerProcesses):
    """`Learner`, in `learner.workers` processes; its methods raise what `LearnerProcesses.call` does."""

    def __init__(
        self,
        config: RunConfig,
        model_folder: Path | str,
        *,
        warm_start: Mapping[str, Tensor] | None = None,
        reference: ReferenceSource | None = None,
        limit: timedelta = LIMIT,
    ) -> None:
        """See `Learner` and `LearnerProcesses`."""
        self._algorithm = config.algorithm
        self.num_updates = 0
        super().__init__(
            Learner,
            config,
            processes=config.processes,
            limit=limit,
            model_folder=model_folder,
            warm_start=warm_start,
            reference=reference,
        )

    def scores(self, groups: Sequence[Group], tools: Sequence[Mapping[str, Any]] = ()) -> list[list[list[float]]]:
        """See `Learner`."""
        result: list[list[list[float]]] = self.call("scores", groups, tools)
        return result

    def logprobs_of(self, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...]) -> list[float]:
        """See `Learner`."""
        result: list[float] = self.call("logprobs_of", prompt_ids, token_ids)
        return result

    def annotate(self, batch: Batch) -> Batch:
        """See `Learner`."""
        result: Batch = self.call("annotate", batch)
        return result

    def update(self, batch: Batch) -> Metrics:
        """See `Learner`."""
        result: Metrics = self.call("update", batch)
        self.num_updates += not result["policy/skipped"]
        return result

    def has_gradient(self, batch: Batch) -> bool:
        """See `Learner`."""
        return has_gradient(self._algorithm, batch)

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """See `Learner`."""
        self.num_updates = numbers["num_updates"]
        self.call("load_state", tensors, numbers)


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

    def update(self, batch: Batch, kl: float, factor: float) -> Metrics:
        """See `PreferenceLearner`."""
        result: Metrics = self.call("update", batch, kl, factor)
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


def make_learner(
    config: RunConfig,
    model_folder: Path | str,
    *,
    warm_start: Mapping[str, Tensor] | None,
    reference: ReferenceSource | None,
) -> Learner | LearnerGroup:
    """The learner in this process, or in as many as the config says."""
    kind = LearnerGroup if config.learner.processes else Learner
    return kind(config, model_folder, warm_start=warm_start, reference=reference)


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
