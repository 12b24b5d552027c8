"""Policy, reference, critic and reward models on one frozen base: passes over batches, gradients, the optimizer.

What the algorithms share: passes over a batch in microbatches under a token budget, gradients that are sums, a guarded
optimizer step, and a state that can be saved. Which loss enters is the caller's choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from rlft.config import AdapterConfig, LearnerConfig, ModelConfig
from rlft.learner import sharding
from rlft.learner.batch import PER_SEQUENCE, pack, select
from rlft.learner.microbatches import default_tokens_of, even_microbatches
from rlft.learner.ranks import ALONE, Ranks
from rlft.learner.reward_model import RewardModel, add_reward_model, conversations
from rlft.learner.roles import (
    Role,
    active,
    make_critic,
    make_policy,
    make_reference,
    named_parameters,
    read_role,
)
from rlft.learner.update import Update
from rlft.model import base as models
from rlft.model.adapter import make_adapter
from rlft.model.layers.slow_paths import slow_paths
from rlft.model.starting_point import ReferenceSource
from rlft.objectives.measures import Largest, Last, Measure, Measures, join
from rlft.objectives.preference import kto_reference_point, sequence_sums
from rlft.types import Adapter, Batch, Message, RewardSpec

T = TypeVar("T")
PolicyLoss = Callable[[Batch, Tensor, Tensor], tuple[Tensor, Measures]]
"""From a microbatch on the device, its log-probs (A,) and entropies (A,): the loss, and what is measured beside it."""
ValueLoss = Callable[[Batch, Tensor], Tensor]
"""From a microbatch on the device and its values (A,): the loss."""


BETA2 = 0.99
"""AdamW's second-moment decay; RL runs are short, so it forgets faster than 0.999."""


class Roles:
    """The policy and the models beside it on one base, with the passes and updates that all algorithms share."""

    def __init__(
        self,
        model_folder: Path | str,
        model: ModelConfig,
        adapter: AdapterConfig,
        config: LearnerConfig,
        *,
        seed: int,
        temperature: float = 1.0,
        start: Mapping[str, Tensor] | None = None,
        with_reference: bool = False,
        reference: ReferenceSource | None = None,
        critic_lr: float | None = None,
        reward_models: Sequence[RewardSpec] = (),
        ranks: Ranks = ALONE,
    ) -> None:
        """Load the base model and put the adapters of all roles on it.

        Args:
            model_folder: what `sources.resolve` gave.
            temperature: of every log-probability.
            start: tensors that the policy starts from; without them it starts as the base.
            with_reference: whether a frozen reference is asked for.
            reference: another reference than the policy's start: an adapter folder or a model of its own.
            critic_lr: peak learning rate of a critic, which starts as a copy of the policy with a head of zeros; None
                is without one.
            reward_models: rewards whose folders `reward_model.check` let pass; they are never trained.

        Raises:
            ValueError: tensors that do not fit the adapter's configuration, or a reference with another vocabulary.
        """
        self.config = config
        self.temperature = temperature
        self.ranks = ranks
        self.device = models.default_device()
        # Several processes see only after loading whether each of them can hold all weights.
        is_quantized = adapter.kind == "qlora"
        loading = self.device if ranks.size == 1 or is_quantized else torch.device("cpu")
        # Weights that are trained themselves are float32; their products are of the model's type.
        self._autocast = models.resolve_dtype(model) if adapter.kind == "full" else None
        self.policy = make_policy(model_folder, model, adapter, device=loading, seed=seed, start=start)
        self.model = self.policy.model
        self.reference: Role | None = None
        if with_reference:
            self.reference = make_reference(self.policy, model_folder, model, start=start, source=reference)
        self.critic: Role | None = None
        self.value_head: nn.Linear | None = None
        if critic_lr is not None:
            self.critic = make_critic(self.policy)
            self.value_head = nn.Linear(models.hidden_size(self.model), 1).to(self.device)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        self.reward_models = [
            add_reward_model(self.policy, reward, name=f"reward-{index}", device=self.device)
            for index, reward in enumerate(reward_models)
        ]
        if config.activations == "recompute":
            models.recompute_layers(self.model)
        self.is_sharded = ranks.size > 1 and not is_quantized and self._must_be_sharded(adapter)
        for module in self._models():
            if self.is_sharded:
                sharding.shard(module, self.device)
            elif loading != self.device:
                module.to(self.device)
        if config.activations == "offload" and self.device.type == "cpu":
            raise ValueError("learner.activations: offload moves them from the GPU to the CPU; here use recompute")
        self.optimizer = _make_optimizer(*self._parameters(), config, critic_lr)

    # Passes

    def logprobs(self, batch: Batch, role: Role, *, temperature: float | None = None) -> Tensor:
        """Log-probs of the batch's actions under a role, (A,) float32 on the CPU; no gradient.

        Args:
            temperature: another one than the roles' own.
        """
        with torch.no_grad(), active(role):
            return self._collect(batch, lambda part: self._token_logprobs(role, part, temperature=temperature)[0])

    def values(self, batch: Batch) -> Tensor:
        """The critic's value of the state before each action, (A,) float32 on the CPU; no gradient."""
        critic = self._critic()
        with torch.no_grad(), active(critic):
            return self._collect(batch, lambda part: self._token_values(critic, part))

    def reference_point(self, batch: Batch | None) -> float:
        """KTO's z0: how much likelier the policy finds mismatched completions than the reference does, nats.

        Args:
            batch: what `batch.mismatched` made; None, where nothing could be mismatched, gives 0, the lowest value.
        """
        if batch is None:
            return 0.0
        assert self.reference is not None
        ratios = self.logprobs(batch, self.policy) - self.logprobs(batch, self.reference)
        return kto_reference_point(sequence_sums(ratios, batch.sequence_index, batch.num_sequences))

    def scores(
        self,
        model: RewardModel,
        groups: Sequence[Sequence[Sequence[Message]]],
        *,
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> list[list[float]]:
        """The reward model's scores of groups of conversations in which these tools are shown; no gradient."""
        if not any(groups):
            return [[] for _ in groups]
        with torch.no_grad(), active(model.role):
            scores = self._collect(
                conversations(model, groups, tools=tools),
                lambda part: models.sequence_scores(model.role.model, model.head, pack(part, with_ends=True)),
                with_ends=True,
            )
        flat = iter(((scores - model.mean) / model.std).tolist())
        return [[next(flat) for _ in group] for group in groups]

    def backward_policy(
        self, batch: Batch, loss: PolicyLoss, *, whole_groups: bool = False, entropy_gradient: bool = True
    ) -> tuple[float, dict[str, Measure]]:
        """Add the gradient of the policy's loss, microbatch by microbatch.

        Args:
            whole_groups: never split a group, for losses that compare its sequences.
            entropy_gradient: False where the loss does not depend on the entropy, which saves a product.

        Returns:
            (the loss, what was measured), of all microbatches and processes.
        """

        def one(part: Batch, weight: float) -> tuple[float, Measures]:
            with self._saved_tensors():
                logprobs, entropy = self._token_logprobs(self.policy, part, entropy_gradient=entropy_gradient)
                value, measures = loss(part, logprobs, entropy)
            (weight * value).backward()
            return value.item(), measures

        with active(self.policy):
            done = self._each(batch, one, whole_groups=whole_groups)
        return sum(value for value, _ in done), join([measures for _, measures in done])

    def backward_critic(self, batch: Batch, loss: ValueLoss) -> float:
        """Add the gradient of the critic's loss; returns the loss, of all processes."""
        critic = self._critic()

        def one(part: Batch, weight: float) -> float:
            with self._saved_tensors():
                value = loss(part, self._token_values(critic, part))
            (weight * value).backward()
            return value.item()

        with active(critic):
            return sum(self._each(batch, one))

    def step(self, measures: Measures, *, factor: float, is_finite: bool) -> Update:
        """Make one optimizer step with the gradients that were added, unless something is not finite.

        Args:
            measures: what the backward passes measured; gradient norms and the learning rate are added.
            factor: on the peak learning rates.
            is_finite: whether the losses were; if not, or if a gradient is not, parameters and optimizer stay.
        """
        policy, critic = self._parameters()
        self.ranks.sum_gradients([*policy, *critic])
        problem = "" if is_finite else "the loss is not finite"
        measured: dict[str, Measure] = {}
        for name, parameters in (("policy", policy), ("critic", critic)):
            if parameters:
                norm = sharding.total_norm([p.grad for p in parameters if p.grad is not None])
                nn.utils.clip_grads_with_norm_(parameters, self.config.max_grad_norm, norm)
                if not torch.isfinite(norm):
                    problem = problem or f"the gradient of the {name} is not finite"
                measured[f"{name}/grad_norm"] = Largest(float(norm))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        if not problem:
            self.optimizer.step()
        measured["policy/lr"] = Last(self.config.lr * factor)
        return Update(measures={**measures, **measured}, skipped=problem)

    def slow_paths(self) -> list[str]:
        """Why parts of the models are slower than they could be, as far as that has come up; each once."""
        return list(dict.fromkeys(reason for model in self._models() for reason in slow_paths(model)))

    # State

    def adapter(self, version: int) -> Adapter:
        """A copy of the policy's adapter with its version and content hash."""
        return make_adapter(version, read_role(self.policy))

    def state(self) -> dict[str, Tensor]:
        """Everything that a resumed run needs, as tensors by name; see `sharding.whole`.

        Frozen roles are not among it: the configuration says what they are, and a fork's may say something else.
        """
        tensors = {f"parameter/{name}": sharding.whole(p) for name, p in self._named_parameters()}
        for name, parameter in self._named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = sharding.whole(value)
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from a saved state.

        Raises:
            ValueError: the state belongs to another configuration.
        """
        named = dict(self._named_parameters())
        saved = {name.removeprefix("parameter/") for name in tensors if name.startswith("parameter/")}
        if saved != named.keys():
            raise ValueError(
                "the checkpoint's parameters do not fit this configuration (model, adapter or algorithm differ)"
            )
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(sharding.split_like(parameter, tensors[f"parameter/{name}"]))
        self.optimizer.state.clear()
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, key, parameter_name = name.split("/", 2)
                parameter = named[parameter_name]
                placed = tensor.clone() if key == "step" else sharding.split_like(parameter, tensor)
                self.optimizer.state[parameter][key] = placed

    # Parts

    def _token_logprobs(
        self, role: Role, part: Batch, *, entropy_gradient: bool = False, temperature: float | None = None
    ) -> tuple[Tensor, Tensor]:
        temperature = self.temperature if temperature is None else temperature
        with self._computing():
            return models.token_logprobs(role.model, pack(part), temperature, entropy_gradient=entropy_gradient)

    def _token_values(self, role: Role, part: Batch) -> Tensor:
        assert self.value_head is not None
        with self._computing():
            return models.token_values(role.model, self.value_head, pack(part))

    def _computing(self) -> AbstractContextManager[Any]:
        if self._autocast == torch.bfloat16:
            # The cache would keep rounded copies of all layers, where sharding drops each one after its use.
            return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=not self.is_sharded)
        return nullcontext()

    def _collect(self, batch: Batch, compute: Callable[[Batch], Tensor], *, with_ends: bool = False) -> Tensor:
        return torch.cat(self._each(batch, lambda part, weight: compute(part).cpu(), with_ends=with_ends))

    def _each(
        self,
        batch: Batch,
        one: Callable[[Batch, float], T],
        *,
        whole_groups: bool = False,
        with_ends: bool = False,
    ) -> list[T]:
        """`one(microbatch on the device, 1.0)` of all microbatches in order, this process's share computed here.

        Sharded weights are put together by all processes at once, so that each has to make as many passes as the
        others: `one(microbatch, 0.0)` fills up, and what it returns is dropped.
        """
        torch.set_num_threads(self.config.threads)
        ranks = self.ranks
        tokens = self.config.tokens_per_microbatch or default_tokens_of(
            batch, self.device.type, whole_groups=whole_groups, with_ends=with_ends
        )
        parts = even_microbatches(batch, tokens, ranks.size, whole_groups=whole_groups, with_ends=with_ends)
        own = [one(_to(select(batch, sequences), self.device), 1.0) for sequences in ranks.own(parts)]
        if self.is_sharded and len(own) < math.ceil(len(parts) / ranks.size):
            one(_to(select(batch, parts[-1]), self.device), 0.0)
        return ranks.gather(own)

    def _models(self) -> list[nn.Module]:
        """The models that the roles are on, each once."""
        return list(dict.fromkeys(role.model for role in (self.policy, self.reference) if role))

    def _must_be_sharded(self, adapter: AdapterConfig) -> bool:
        """Whether any process cannot hold copies of all weights; trained ones come with gradients and moments."""
        ranks = self.ranks
        is_large = sharding.is_large(
            self._models(), self.device, processes=ranks.size, gpus=self.config.gpus_per_worker
        )
        return adapter.kind == "full" or any(ranks.gather([is_large]))

    def _saved_tensors(self) -> AbstractContextManager[Any]:
        if self.config.activations == "offload":
            return torch.autograd.graph.save_on_cpu(pin_memory=self.device.type == "cuda")
        return nullcontext()

    def _critic(self) -> Role:
        assert self.critic is not None
        return self.critic

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Trained parameters in a fixed order, policy first."""
        named = named_parameters(self.policy)
        if self.critic is not None and self.value_head is not None:
            named += named_parameters(self.critic)
            named += [(f"value_head.{n}", p) for n, p in self.value_head.named_parameters()]
        return named

    def _parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(policy parameters, critic parameters)"""
        num_policy = len(named_parameters(self.policy))
        parameters = [p for _, p in self._named_parameters()]
        return parameters[:num_policy], parameters[num_policy:]


def lr_factor(config: LearnerConfig, *, update: int, total: int, warmup: int) -> float:
    """Factor on the peak rate at this update: linear warm-up, then constant, linear or cosine to zero over `total`."""
    if update < warmup:
        return (update + 1) / warmup
    progress = (update - warmup) / max(1, total - warmup)
    if config.schedule == "linear":
        return max(0.0, 1 - progress)
    if config.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return 1.0


def _make_optimizer(
    policy: list[nn.Parameter], critic: list[nn.Parameter], config: LearnerConfig, critic_lr: float | None
) -> torch.optim.AdamW:
    groups: list[dict[str, Any]] = [{"params": policy, "peak_lr": config.lr}]
    if critic:
        groups.append({"params": critic, "peak_lr": critic_lr})
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=(0.9, BETA2),
        eps=1e-8,
        weight_decay=config.weight_decay,
        foreach=False,
    )


def _to(batch: Batch, device: torch.device) -> Batch:
    """The batch with its per-action tensors on the device."""
    if device.type == "cpu":
        return batch
    values = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name not in PER_SEQUENCE}
    moved: dict[str, Any] = {name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)}
    return replace(batch, **moved)
