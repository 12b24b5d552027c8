"""The RL learner in several processes that share every update, and the choice between one and several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch import Tensor

from rlft.config import RunConfig
from rlft.learner.processes import LIMIT, LearnerProcesses
from rlft.learner.rl import Learner, has_gradient
from rlft.learner.update import Update
from rlft.model.starting_point import ReferenceSource
from rlft.types import Batch, Group


class LearnerGroup(LearnerProcesses):
    """An RL learner in `learner.workers` processes that work on every batch together.

    Its methods are those of `rl.Learner` with the same results, and raise what `LearnerProcesses.call` does.
    """

    def __init__(
        self,
        config: RunConfig,
        model_folder: Path | str,
        *,
        warm_start: Mapping[str, Tensor] | None = None,
        reference: ReferenceSource | None = None,
        limit: timedelta = LIMIT,
    ) -> None:
        """Start the processes, each of which loads the base; arguments as of `Learner` and `LearnerProcesses`."""
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
        """Scores of the reward models on the base for every trajectory: by reward model, group and trajectory."""
        result: list[list[list[float]]] = self.call("scores", groups, tools)
        return result

    def logprobs_of(self, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...]) -> list[float]:
        """The policy's log-probs of these tokens behind the prompt, at temperature 1."""
        result: list[float] = self.call("logprobs_of", prompt_ids, token_ids)
        return result

    def annotate(self, batch: Batch) -> Batch:
        """Add what the algorithm needs of a batch: log-probs under frozen models, values, advantages."""
        result: Batch = self.call("annotate", batch)
        return result

    def update(self, batch: Batch) -> Update:
        """Make one optimizer update on an annotated batch; it is skipped if a loss or a gradient is not finite."""
        result: Update = self.call("update", batch)
        self.num_updates += not result.skipped
        return result

    def has_gradient(self, batch: Batch) -> bool:
        """Whether the loss on an annotated batch depends on the policy, so that an update means something."""
        return has_gradient(self._algorithm, batch)

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Continue from a saved state, in all processes."""
        self.num_updates = numbers["num_updates"]
        self.call("load_state", tensors, numbers)


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
