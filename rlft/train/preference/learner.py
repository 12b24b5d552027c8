"""The preference learner: compares the completions of a batch, updates the policy, hands out its adapter, saves itself.

The losses are those of `objectives.preference`: DPO and its relatives on pairs, KTO on single completions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from rlft.learner import preference
from rlft.learner.core import Roles
from rlft.learner.ranks import ALONE, Ranks
from rlft.learner.update import Update
from rlft.model.starting_point import ReferenceSource
from rlft.train.preference.config import PreferenceConfig
from rlft.types import Adapter, Batch

RoleName = Literal["policy", "reference"]


class PreferenceLearner:
    """The policy in training on preferences, with a frozen reference where the loss needs one.

    With several processes (`ranks`) each has one of these, as with `learner.rl.Learner`.
    """

    def __init__(
        self,
        config: PreferenceConfig,
        model_folder: Path | str,
        *,
        max_length: int,
        start: Mapping[str, Tensor] | None = None,
        reference: ReferenceSource | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Load the base model and put the policy's adapter on it, and the reference's if there is one.

        Args:
            model_folder: what `sources.resolve` gave.
            max_length: most tokens of a prompt and one completion.
            start: tensors that the policy starts from, which are then the reference; without them both are the base.
            reference: another reference.

        Raises:
            ValueError: see `Roles`.
        """
        self.preference = config.preference
        self._max_length = max_length
        self.roles = Roles(
            model_folder,
            config.model,
            config.adapter,
            config.learner,
            seed=config.seed,
            start=start,
            with_reference=self.preference.needs_reference,
            reference=reference,
            ranks=ranks,
        )

    def annotate(self, batch: Batch) -> tuple[Batch, float]:
        """Add the reference's log-probs to a batch, if the loss needs them; returned with KTO's z0, else 0."""
        return preference.with_reference(self.roles, batch), self.reference_point(batch)

    def update(self, batch: Batch, kl: float, factor: float) -> Update:
        """Make one optimizer update on an annotated batch; it is skipped if the loss or the gradient is not finite.

        Args:
            kl: KTO's z0.
            factor: on the peak learning rate.
        """
        self.roles.optimizer.zero_grad(set_to_none=True)
        loss, measures = preference.backward_preference(self.roles, self.preference, batch, kl=kl, is_sampled=False)
        return self.roles.step(
            {"preference/loss": loss, **measures}, factor=factor, is_finite=math.isfinite(loss.value)
        )

    def logprobs(self, batch: Batch, role: RoleName) -> Tensor:
        """Log-probs of the batch's trained tokens under a role, (A,) float32 on the CPU; no gradient."""
        found = self.roles.policy if role == "policy" else self.roles.reference
        assert found is not None
        return self.roles.logprobs(batch, found)

    def reference_point(self, batch: Batch) -> float:
        """KTO's z0 of the batch's prompts; 0 for the other losses."""
        return preference.reference_point(self.roles, self.preference, batch, max_length=self._max_length)

    def drop_reference(self) -> None:
        """Free the reference, if that frees a model: its log-probs are computed beforehand, and no pass follows."""
        reference = self.roles.reference
        if self.preference.is_paired and reference is not None and reference.model is not self.roles.policy.model:
            self.roles.reference = None

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
        """End nothing: there is no other process, as a `PreferenceGroup` has."""
