"""The learner: annotate a batch, update the adapters, hand out the policy's adapter, save and restore itself.

Losses are sums under weights that are fixed before a batch is split, so the numbers do not depend on how many
microbatches the token budget asks for. What is not needed is not computed: no reference pass without a KL term, no
second log-prob pass when a batch is strictly on-policy and used once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from rlft import model as models
from rlft.batch import microbatches, pack, select
from rlft.config import LearnerConfig, RunConfig
from rlft.objectives.advantages import explained_variance, token_advantages
from rlft.objectives.policy import aggregation_weights, policy_loss, value_loss
from rlft.types import Adapter, Batch, Metrics


class Learner:
    """Policy, reference and critic adapters on one frozen base, and their optimizer."""

    def __init__(
        self, config: RunConfig, model_folder: Path | str, *, warm_start: Mapping[str, Tensor] | None = None
    ) -> None:
        """Load the base and make the adapters.

        Args:
            model_folder: what `sources.resolve` gave.
            warm_start: tensors of the SFT adapter: RL continues it, and a frozen copy of it is the reference. Without
                them the policy starts as the base, which is then the reference.

        Raises:
            ValueError: the warm-start tensors do not fit the adapter's configuration.
        """
        self.config = config
        self.algorithm = config.algorithm
        self.device = models.default_device()
        base = models.load_base(model_folder, models.resolve_dtype(config.model), self.device)
        self.model: PeftModel = models.add_policy(base, config.adapter, seed=config.seed)
        self.reference: str | None = None
        if warm_start is not None:
            models.write_adapter(self.model, models.POLICY, warm_start)
            if self.algorithm.needs_reference:
                models.add_copy(self.model, models.REFERENCE, warm_start)
                self.reference = models.REFERENCE
        self.value_head: nn.Linear | None = None
        if self.algorithm.needs_critic:
            models.add_copy(self.model, models.CRITIC, models.read_adapter(self.model, models.POLICY))
            self.value_head = nn.Linear(base.config.get_text_config().hidden_size, 1).to(self.device)
            nn.init.zeros_(self.value_head.weight)
            nn.init.zeros_(self.value_head.bias)
        self.optimizer = _make_optimizer(self._parameters(), config.learner)
        self.num_updates = 0

    def annotate(self, batch: Batch) -> Batch:
        """Add what the algorithm needs from frozen passes: old and reference log-probs, values; then advantages."""
        algorithm = self.algorithm
        needs_old = self.config.updates_per_step > 1 or (algorithm.needs_reference and algorithm.kl_in == "reward")
        with torch.no_grad():
            batch = replace(
                batch,
                old_logprobs=self._logprobs(batch, models.POLICY) if needs_old else None,
                ref_logprobs=self._logprobs(batch, self.reference) if algorithm.needs_reference else None,
                values=self._values(batch) if algorithm.needs_critic else None,
            )
        advantages, returns = token_advantages(
            algorithm,
            rewards=batch.rewards,
            group_index=batch.group_index,
            sequence_index=batch.sequence_index,
            policy_logprobs=batch.rollout_logprobs if batch.old_logprobs is None else batch.old_logprobs,
            ref_logprobs=batch.ref_logprobs,
            values=batch.values,
        )
        return replace(batch, advantages=advantages, returns=returns)

    def update(self, batch: Batch) -> Metrics:
        """One optimizer update on an annotated batch.

        Returns:
            Metrics of the update. With a non-finite loss or gradient the step is skipped, parameters and optimizer
            stay as
            they were, and `policy/skipped` is 1.
        """
        torch.set_num_threads(self.config.learner.threads)
        assert batch.advantages is not None
        weights = aggregation_weights(
            self.algorithm.aggregate, batch.sequence_index, max_new_tokens=self.config.sampling.max_new_tokens
        )
        batch = replace(batch, weights=weights)
        self.optimizer.zero_grad(set_to_none=True)
        metrics = self._accumulate_policy(batch)
        if self.value_head is not None:
            metrics |= self._accumulate_critic(batch)
        metrics |= self._step(math.isfinite(metrics["policy/loss"]) and math.isfinite(metrics.get("critic/loss", 0.0)))
        return metrics

    def adapter(self, version: int) -> Adapter:
        """A stamped copy of the policy adapter."""
        return models.make_adapter(version, models.read_adapter(self.model, models.POLICY))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Everything that a resumed run needs: tensors by name, and plain numbers."""
        tensors = {f"parameter/{name}": p.detach().to("cpu", copy=True) for name, p in self._named_parameters()}
        if self.reference is not None:
            reference = models.read_adapter(self.model, self.reference)
            tensors |= {f"reference/{name}": tensor for name, tensor in reference.items()}
        for name, parameter in self._named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer/{key}/{name}"] = value.detach().to("cpu", copy=True)
        return tensors, {"num_updates": self.num_updates}

    def load_state(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """Take over what `state` returned.

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
                parameter.copy_(tensors[f"parameter/{name}"])
        if self.reference is not None:
            reference = {k.removeprefix("reference/"): v for k, v in tensors.items() if k.startswith("reference/")}
            models.write_adapter(self.model, self.reference, reference)
        self.optimizer.state.clear()
        for name, tensor in tensors.items():
            if name.startswith("optimizer/"):
                _, key, parameter_name = name.split("/", 2)
                on_device = tensor.clone() if key == "step" else tensor.to(self.device, copy=True)
                self.optimizer.state[named[parameter_name]][key] = on_device
        self.num_updates = int(numbers["num_updates"])

    def _logprobs(self, batch: Batch, adapter: str | None) -> Tensor:
        torch.set_num_threads(self.config.learner.threads)
        with models.active(self.model, adapter):
            parts = [
                models.token_logprobs(self.model, pack(part), self.config.sampling.temperature)[0].cpu()
                for part in self._microbatches(batch)
            ]
        return torch.cat(parts)

    def _values(self, batch: Batch) -> Tensor:
        assert self.value_head is not None
        torch.set_num_threads(self.config.learner.threads)
        with models.active(self.model, models.CRITIC):
            return torch.cat(
                [
                    models.token_values(self.model, self.value_head, pack(part)).cpu()
                    for part in self._microbatches(batch)
                ]
            )

    def _microbatches(self, batch: Batch) -> Iterator[Batch]:
        for sequences in microbatches(batch, self.config.learner.tokens_per_microbatch):
            yield select(batch, sequences)

    def _accumulate_policy(self, batch: Batch) -> Metrics:
        """Backward of the policy loss, microbatch by microbatch; metrics are means over the update's tokens."""
        total = 0.0
        sums: Metrics = {}
        for part in self._microbatches(batch):
            logprobs, entropy = models.token_logprobs(self.model, pack(part), self.config.sampling.temperature)
            old = logprobs.detach() if part.old_logprobs is None else part.old_logprobs.to(self.device)
            loss, part_sums = policy_loss(
                self.algorithm,
                logprobs=logprobs,
                entropy=entropy,
                old_logprobs=old,
                ref_logprobs=None if part.ref_logprobs is None else part.ref_logprobs.to(self.device),
                advantages=_on(part.advantages, self.device),
                weights=_on(part.weights, self.device),
                sequence_index=part.sequence_index.to(self.device),
            )
            loss.backward()
            total += loss.item()
            log_ratio = old - part.rollout_logprobs.to(self.device)
            part_sums["policy/mismatch"] = float(log_ratio.abs().sum())
            part_sums["policy/mismatch_kl"] = float((log_ratio.exp() - 1 - log_ratio).sum())
            ratio_max = max(sums.get("policy/ratio_max", 0.0), part_sums["policy/ratio_max"])
            sums = {key: sums.get(key, 0.0) + value for key, value in part_sums.items()}
            sums["policy/ratio_max"] = ratio_max
        num_tokens = batch.sequence_index.numel()
        means = {key: value if key == "policy/ratio_max" else value / num_tokens for key, value in sums.items()}
        return {"policy/loss": total, **means}

    def _accumulate_critic(self, batch: Batch) -> Metrics:
        assert self.value_head is not None
        assert batch.values is not None
        assert batch.returns is not None
        # Every state counts the same for the critic, whatever the policy's aggregation.
        weights = aggregation_weights("token_mean", batch.sequence_index, max_new_tokens=1)
        total = 0.0
        with models.active(self.model, models.CRITIC):
            for part in self._microbatches(replace(batch, weights=weights)):
                loss = value_loss(
                    self.algorithm,
                    values=models.token_values(self.model, self.value_head, pack(part)),
                    old_values=_on(part.values, self.device),
                    returns=_on(part.returns, self.device),
                    weights=_on(part.weights, self.device),
                )
                loss.backward()
                total += loss.item()
        return {
            "critic/loss": total,
            "critic/value": float(batch.values.mean()),
            "critic/explained_variance": explained_variance(batch.values, batch.returns),
        }

    def _step(self, is_finite: bool) -> Metrics:
        policy, critic = self.optimizer.param_groups[0], self.optimizer.param_groups[1:]
        grad_norm = nn.utils.clip_grad_norm_(policy["params"], self.config.learner.max_grad_norm)
        is_finite = is_finite and bool(torch.isfinite(grad_norm))
        metrics = {"policy/grad_norm": float(grad_norm)}
        for group in critic:
            norm = nn.utils.clip_grad_norm_(group["params"], self.config.learner.max_grad_norm)
            is_finite = is_finite and bool(torch.isfinite(norm))
            metrics["critic/grad_norm"] = float(norm)
        factor = lr_factor(self.config, self.num_updates)
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak_lr"] * factor
        metrics |= {"policy/lr": policy["lr"], "policy/skipped": float(not is_finite)}
        if is_finite:
            self.optimizer.step()
            self.num_updates += 1
        return metrics

    def _named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Trained parameters in a fixed order, policy first."""
        named = [(n, p) for n, p in self.model.named_parameters() if f".{models.POLICY}." in n]
        if self.value_head is not None:
            named += [(n, p) for n, p in self.model.named_parameters() if f".{models.CRITIC}." in n]
            named += [(f"value_head.{n}", p) for n, p in self.value_head.named_parameters()]
        return named

    def _parameters(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """(policy parameters, critic parameters)"""
        named = self._named_parameters()
        policy = [p for name, p in named if f".{models.POLICY}." in name]
        return policy, [p for _, p in named[len(policy) :]]


def lr_factor(config: RunConfig, update: int) -> float:
    """Factor on the peak rate at this update: linear warm-up, then constant, linear or cosine to zero over the run."""
    total = config.steps * config.updates_per_step
    warmup = config.learner.warmup_steps * config.updates_per_step
    if update < warmup:
        return (update + 1) / warmup
    progress = (update - warmup) / max(1, total - warmup)
    if config.learner.schedule == "linear":
        return max(0.0, 1 - progress)
    if config.learner.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return 1.0


def _make_optimizer(
    parameters: tuple[list[nn.Parameter], list[nn.Parameter]], config: LearnerConfig
) -> torch.optim.AdamW:
    policy, critic = parameters
    groups: list[dict[str, Any]] = [{"params": policy, "peak_lr": config.lr}]
    if critic:
        groups.append({"params": critic, "peak_lr": config.critic_lr})
    return torch.optim.AdamW(
        groups,
        lr=config.lr,
        betas=(0.9, config.beta2),
        eps=1e-8,
        weight_decay=config.weight_decay,
        foreach=False,
    )


def _on(tensor: Tensor | None, device: torch.device) -> Tensor:
    assert tensor is not None
    return tensor.to(device)
