"""The RL learner: computes advantages, updates the policy (and the critic), hands out its adapter, saves itself.

Losses are sums under weights that are fixed before a batch is split, so the numbers do not depend on how many
microbatches or processes share the work. What is not needed is not computed: no reference pass without a KL term, no
second log-prob pass when a batch is strictly on-policy and used once.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from rlft.config import RunConfig
from rlft.learner import preference
from rlft.learner.batch import select, single
from rlft.learner.core import Roles, lr_factor
from rlft.learner.ranks import ALONE, Ranks
from rlft.learner.update import Update
from rlft.model.starting_point import ReferenceSource
from rlft.objectives.algorithm import Algorithm, PolicyObjective, Preference, PreferenceObjective
from rlft.objectives.batch_advantages import batch_advantages, included_actions, shaped_rewards
from rlft.objectives.measures import ExplainedVariance, Last, Mean, Measure, Measures, Weighted
from rlft.objectives.policy import (
    adapted_kl_coef,
    aggregation_count,
    aggregation_weights,
    policy_loss,
    value_loss,
)
from rlft.types import Adapter, Batch, Group


class Learner:
    """The policy in training, with the models that its algorithm needs: reference, critic, reward models.

    With several processes (`ranks`) each has one of these, all are called alike, and all results are those of all
    processes; where weights are split, tensors come whole in the first process only (`sharding.whole`).
    """

    def __init__(
        self,
        config: RunConfig,
        model_folder: Path | str,
        *,
        warm_start: Mapping[str, Tensor] | None = None,
        reference: ReferenceSource | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        """Load the base model and put the adapters of all roles on it.

        Args:
            model_folder: what `sources.resolve` gave.
            warm_start: tensors that RL continues; a frozen copy of them is the reference. Without them the policy
                starts as the base, which is then the reference.
            reference: another reference, such as a teacher.

        Raises:
            ValueError: see `Roles`.
        """
        self.config = config
        self.algorithm = config.algorithm
        self.roles = Roles(
            model_folder,
            config.model,
            config.adapter,
            config.learner,
            seed=config.seed,
            temperature=config.sampling.temperature,
            start=warm_start,
            with_reference=self.algorithm.needs_reference,
            reference=reference,
            critic_lr=config.learner.critic_lr if self.algorithm.needs_critic else None,
            reward_models=config.learner_rewards,
            ranks=ranks,
        )
        self.kl_coef = self._kl_target = 0.0  # a preference loss has no KL term
        if isinstance(self.algorithm, PolicyObjective):
            self.kl_coef, self._kl_target = self.algorithm.kl_coef, self.algorithm.kl_target
        self._began_kl_coef = self.kl_coef
        self.num_updates = 0
        self._scheduled = 0
        """Where the schedule of the learning rate stands, in updates of this config; a fork's may be more a step."""

    def scores(self, groups: Sequence[Group], tools: Sequence[Mapping[str, Any]] = ()) -> list[list[list[float]]]:
        """Scores of the reward models on the base for every trajectory: by reward model, group and trajectory.

        Args:
            tools: what the environment's prompts show.
        """
        replies = [[list(t.conversation) for t in group.trajectories] for group in groups]
        return [self.roles.scores(model, replies, tools=tools) for model in self.roles.reward_models]

    def annotate(self, batch: Batch) -> Batch:
        """Add what the algorithm needs of a batch: log-probs under frozen models, values, advantages."""
        algorithm, roles = self.algorithm, self.roles
        needs_old = self.config.updates_per_step > 1 or algorithm.has_kl_in_reward
        batch = replace(batch, old_logprobs=roles.logprobs(batch, roles.policy) if needs_old else None)
        if isinstance(algorithm, PolicyObjective):
            batch = replace(
                batch,
                ref_logprobs=roles.logprobs(batch, roles.reference) if roles.reference else None,
                values=roles.values(batch) if algorithm.needs_critic else None,
            )
        advantages, returns = batch_advantages(
            algorithm, batch, kl_coef=self.kl_coef, max_new_tokens=self._max_new_tokens
        )
        return replace(batch, advantages=advantages, returns=returns)

    def update(self, batch: Batch) -> Update:
        """Make one optimizer update on an annotated batch; it is skipped if a loss or a gradient is not finite."""
        assert batch.advantages is not None
        self.roles.optimizer.zero_grad(set_to_none=True)
        algorithm = self.algorithm
        losses: dict[str, Weighted] = {}
        if isinstance(algorithm, PreferenceObjective):
            losses["policy/loss"], measures = self._compare(batch, algorithm.preference)
        else:
            losses["policy/loss"], measures = self._policy(batch, algorithm)
            if algorithm.needs_critic:
                losses["critic/loss"], critic_measures = self._critic(batch, algorithm)
                measures |= critic_measures
        if algorithm.overlong == "penalize":
            penalty = shaped_rewards(algorithm, batch, max_new_tokens=self._max_new_tokens) - batch.rewards
            measures["reward/overlong_penalty"] = Weighted(float(penalty.mean()), batch.num_sequences)
        factor = lr_factor(
            self.config.learner,
            update=self._scheduled,
            total=self.config.steps * self.config.updates_per_step,
            warmup=self.config.learner.warmup_steps * self.config.updates_per_step,
        )
        is_finite = all(math.isfinite(loss.value) for loss in losses.values())
        update = self.roles.step({**losses, **measures}, factor=factor, is_finite=is_finite)
        if not update.skipped:
            self.num_updates += 1
            self._scheduled += 1
            if self._kl_target:
                self.kl_coef = adapted_kl_coef(self.kl_coef, update.metrics["policy/kl_ref"], self._kl_target)
        if self._kl_target:
            update = replace(update, measures={**update.measures, "policy/kl_coef": Last(self.kl_coef)})
        return update

    def has_gradient(self, batch: Batch) -> bool:
        """Whether the loss on an annotated batch depends on the policy, so that an update means something."""
        return has_gradient(self.algorithm, batch)

    def slow_paths(self) -> list[str]:
        """Why its models are slower than they could be, see `Roles`."""
        return self.roles.slow_paths()

    def adapter(self, version: int) -> Adapter:
        """A copy of the policy's adapter with its version and content hash."""
        return self.roles.adapter(version)

    def logprobs_of(self, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...]) -> list[float]:
        """The policy's log-probs of these tokens behind the prompt, at temperature 1."""
        roles = self.roles
        return roles.logprobs(single(prompt_ids, token_ids), roles.policy, temperature=1.0).tolist()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a resumed run needs: tensors by name, and plain numbers."""
        return self.roles.state(), {
            "num_updates": self.num_updates,
            "scheduled": self._scheduled,
            "updates_per_step": self.config.updates_per_step,
            "kl_coef": self.kl_coef,
            "kl_coef_began": self._began_kl_coef,
        }

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Continue from a saved state, also of a run with other settings, which a fork may change.

        Raises:
            ValueError: the state belongs to another configuration.
        """
        self.roles.load_state(tensors)
        self.num_updates = int(numbers["num_updates"])
        now = self.config.updates_per_step  # what has no such numbers was saved with the same settings
        scheduled, then = numbers.get("scheduled", self.num_updates), numbers.get("updates_per_step", now)
        self._scheduled = int(scheduled) * now // int(then)
        # What was adapted goes on; without a target, or from another beginning, the config's coefficient holds.
        if self._kl_target and numbers.get("kl_coef_began", self._began_kl_coef) == self._began_kl_coef:
            self.kl_coef = float(numbers["kl_coef"])

    def close(self) -> None:
        """End nothing: there is no other process, as a `LearnerGroup` has."""

    @property
    def _max_new_tokens(self) -> int:
        return self.config.sampling.max_new_tokens

    def _policy(self, batch: Batch, algorithm: PolicyObjective) -> tuple[Weighted, dict[str, Measure]]:
        included = included_actions(algorithm, batch)
        weights = aggregation_weights(
            algorithm.aggregate, batch.sequence_index, max_new_tokens=self._max_new_tokens, included=included
        )

        def loss(part: Batch, logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Measures]:
            return policy_loss(
                algorithm,
                kl_coef=self.kl_coef,
                logprobs=logprobs,
                entropy=entropy,
                old_logprobs=logprobs.detach() if part.old_logprobs is None else part.old_logprobs,
                rollout_logprobs=part.rollout_logprobs,
                policy_logprobs=part.policy_logprobs,
                ref_logprobs=part.ref_logprobs,
                advantages=_present(part.advantages),
                weights=_present(part.weights),
                sequence_index=part.sequence_index,
            )

        # The weights are those of the whole batch, so what is left out changes nothing but the time.
        moving = with_gradient(algorithm, replace(batch, weights=weights))
        total, measures = self.roles.backward_policy(moving, loss, entropy_gradient=algorithm.entropy_coef > 0)
        count = aggregation_count(algorithm.aggregate, batch.sequence_index, included)
        share = Mean(moving.sequence_index.numel(), batch.sequence_index.numel())
        return Weighted(total, count), {**measures, "policy/computed": share}

    def _compare(self, batch: Batch, loss: Preference) -> tuple[Weighted, dict[str, Measure]]:
        # A real sample is within the context, so no mismatched one may be longer than the longest of them.
        longest = max(len(prompt) + len(ids) for prompt, ids in zip(batch.prompt_ids, batch.token_ids, strict=True))
        kl = preference.reference_point(self.roles, loss, batch, max_length=longest)
        labels = _present(batch.advantages)[_first_actions(batch)]
        labelled = select(replace(batch, rewards=labels), labels.nonzero().squeeze(1).tolist())
        labelled = preference.with_reference(self.roles, labelled)
        return preference.backward_preference(self.roles, loss, labelled, kl=kl, is_sampled=True)

    def _critic(self, batch: Batch, algorithm: PolicyObjective) -> tuple[Weighted, dict[str, Measure]]:
        values, returns = _present(batch.values), _present(batch.returns)
        # Every state counts the same for the critic, whatever the policy's aggregation.
        weights = aggregation_weights("token_mean", batch.sequence_index, max_new_tokens=1)

        def loss(part: Batch, new_values: Tensor) -> Tensor:
            return value_loss(
                algorithm,
                values=new_values,
                old_values=_present(part.values),
                returns=_present(part.returns),
                weights=_present(part.weights),
            )

        total = self.roles.backward_critic(replace(batch, weights=weights), loss)
        return Weighted(total, values.numel()), {
            "critic/value": Weighted(float(values.mean()), values.numel()),
            "critic/explained_variance": ExplainedVariance.of(values, returns),
        }


def with_gradient(algorithm: PolicyObjective, batch: Batch) -> Batch:
    """The sequences that an update has to compute: those with a token whose loss depends on the policy.

    Of a loss without a term for KL or entropy these are the tokens whose weight and advantage are both not 0: the
    groups in which all rewards are equal need neither a forward nor a backward pass. Where no sequence has such a token
    all are kept, since an update of nothing measures nothing.
    """
    if algorithm.needs_all_sequences:
        return batch
    tokens = _present(batch.advantages) * _present(batch.weights) != 0
    sequences = batch.sequence_index[tokens].unique().tolist()
    return select(batch, sequences) if 0 < len(sequences) < batch.num_sequences else batch


def has_gradient(algorithm: Algorithm, batch: Batch) -> bool:
    """Whether the loss depends on the policy: some advantage is not 0, or a KL or entropy term is in the loss.

    Without this Adam's momentum would move the policy on a step that says nothing.
    """
    assert batch.advantages is not None
    if isinstance(algorithm, PreferenceObjective):
        return bool(batch.advantages.any())
    included = included_actions(algorithm, batch)
    if not bool(included.any()):
        return False
    in_loss = algorithm.kl != "none" and algorithm.kl_coef > 0 and algorithm.kl_in == "loss"
    return bool(batch.advantages[included].any()) or in_loss or algorithm.entropy_coef > 0 or algorithm.needs_critic


def _first_actions(batch: Batch) -> Tensor:
    """Index of the first action of each sequence, (S,)."""
    starts = torch.ones_like(batch.sequence_index, dtype=torch.bool)
    starts[1:] = batch.sequence_index[1:] != batch.sequence_index[:-1]
    return starts.nonzero().squeeze(1)


def _present(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor


class PolicyLearner(Protocol):
    """A learner as the RL loop sees it, in this process or in several; `Learner` says what the methods do."""

    num_updates: int

    def annotate(self, batch: Batch) -> Batch: ...

    def has_gradient(self, batch: Batch) -> bool: ...

    def update(self, batch: Batch) -> Update: ...

    def adapter(self, version: int) -> Adapter: ...

    def logprobs_of(self, prompt_ids: tuple[int, ...], token_ids: tuple[int, ...]) -> list[float]: ...

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None: ...
