"""The supervised learner: the mean negative log-likelihood of a batch's learnt tokens, its update, its adapter."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from rlft.config import RunConfig
from rlft.learner.core import Roles
from rlft.learner.processes import LearnerProcesses
from rlft.learner.ranks import ALONE, Ranks
from rlft.learner.update import Update
from rlft.objectives.measures import Mean, Measures, Weighted
from rlft.train.supervised.config import SupervisedConfig
from rlft.types import Adapter, Batch


class SupervisedLearner:
    """The policy in training on demonstrated tokens.

    With several processes (`ranks`) each has one of these, as with `learner.rl.Learner`.
    """

    def __init__(
        self,
        config: SupervisedConfig | RunConfig,
        model_folder: Path | str,
        *,
        start: Mapping[str, Tensor] | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Load the base model and put the policy's adapter on it.

        Args:
            config: has the model, the adapter and the optimizer; of an RL run for its warm start.
            model_folder: what `sources.resolve` gave.
            start: tensors that the policy starts from; without them it is the base.

        Raises:
            ValueError: see `Roles`.
        """
        self.roles = Roles(
            model_folder, config.model, config.adapter, config.learner, seed=config.seed, start=start, ranks=ranks
        )

    def update(self, batch: Batch, factor: float) -> Update:
        """Make one optimizer update; it is skipped if the loss or the gradient is not finite.

        The loss is the mean over all learnt tokens of the batch, whatever the rows that they stand in and however the
        batch is split.

        Args:
            factor: on the peak learning rate.
        """
        self.roles.optimizer.zero_grad(set_to_none=True)
        tokens = batch.sequence_index.numel()

        def loss(part: Batch, logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Measures]:
            return -logprobs.sum() / tokens, {"policy/entropy": Mean.of(entropy.detach())}

        total, measures = self.roles.backward_policy(batch, loss, entropy_gradient=False)
        return self.roles.step(
            {"sft/loss": Weighted(total, tokens), **measures}, factor=factor, is_finite=math.isfinite(total)
        )

    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probs of the batch's learnt tokens, (A,) float32 on the CPU; no gradient."""
        return self.roles.logprobs(batch, self.roles.policy)

    def slow_paths(self) -> list[str]:
        """Why its models are slower than they could be, see `Roles`."""
        return self.roles.slow_paths()

    def adapter(self, version: int) -> Adapter:
        """A copy of the policy's adapter with its version and content hash."""
        return self.roles.adapter(version)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a resumed run needs: tensors by name, and plain numbers, of which there are none."""
        return self.roles.state(), {}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: the state belongs to another configuration.
        """
        self.roles.load_state(tensors)

    def close(self) -> None:
        """End nothing: there is no other process, as a `SupervisedGroup` has."""


class SupervisedGroup(LearnerProcesses):
    """A supervised learner in `learner.workers` processes that work on every batch together.

    Its methods are those of `SupervisedLearner` with the same results, and raise what `LearnerProcesses.call` does.
    """

    def __init__(
        self, config: SupervisedConfig, model_folder: Path | str, *, start: Mapping[str, Tensor] | None = None
    ) -> None:
        """Start the processes, each of which loads the base; arguments as of `SupervisedLearner`."""
        super().__init__(
            SupervisedLearner,
            config,
            processes=config.learner.processes,
            model_folder=model_folder,
            start=start,
        )

    def update(self, batch: Batch, factor: float) -> Update:
        """Make one optimizer update; it is skipped if the loss or the gradient is not finite."""
        result: Update = self.call("update", batch, factor)
        return result

    def logprobs(self, batch: Batch) -> Tensor:
        """Log-probs of the batch's learnt tokens, (A,) float32 on the CPU; no gradient."""
        result: Tensor = self.call("logprobs", batch)
        return result


def make_supervised_learner(
    config: SupervisedConfig, model_folder: Path | str, *, start: Mapping[str, Tensor] | None
) -> SupervisedLearner | SupervisedGroup:
    """The supervised learner in this process, or in as many as the config says."""
    kind = SupervisedGroup if config.learner.processes else SupervisedLearner
    return kind(config, model_folder, start=start)
