"""The preference loop: take the epoch's next examples, compare their completions, update the adapter; repeat.

The losses are those of `objectives.preference`: DPO and its relatives on pairs, KTO on single completions. The stages
around it (reading the data, the reference's pass over it, summary) are in `launch_dpo.py`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from rlft.adapters import Role
from rlft.batch import packed_length
from rlft.curves.statistics import accuracy_interval
from rlft.objectives.preference import (
    Loss,
    Preference,
    example_losses,
    is_right,
    kto_reference_point,
    preference_loss,
    preference_metrics,
    sequence_sums,
)
from rlft.preference_config import PreferenceConfig
from rlft.preference_data import Example, PreferenceData, make_batch
from rlft.roles import Roles, lr_factor
from rlft.run import Run
from rlft.tasks import tasks_of_step
from rlft.types import Batch, Metrics
from rlft.view import View

OnChunk = Callable[[int, int], None]
"""Called with (examples done, examples in all)."""
NAMES: dict[Loss, str] = {
    "sigmoid": "DPO",
    "ipo": "IPO",
    "hinge": "SLiC",
    "simpo": "SimPO",
    "orpo": "ORPO",
    "kto": "KTO",
}
"""What the curves call a loss."""


def train_dpo(
    run: Run[PreferenceConfig],
    roles: Roles,
    data: PreferenceData,
    *,
    start: int,
    view: View,
    after_update: Callable[[int], None],
) -> None:
    """Train from update `start` + 1 to the last one.

    Args:
        start: updates that the policy already has behind it.
        after_update: called with the number of each update; measures and saves.

    Raises:
        RuntimeError: too many updates in a row were not finite.
    """
    config = run.config
    total = num_updates(config, data)
    skipped = 0
    for step in range(start + 1, total + 1):
        started = time.perf_counter()
        examples = tasks_of_step(data.train, step=step, count=config.batch_size, seed=config.seed)
        batch, kl = annotate(roles, config.preference, examples, max_length=data.max_length)
        factor = lr_factor(config.learner, update=step - 1, total=total, warmup=config.learner.warmup_steps)
        metrics = update(roles, config.preference, batch, kl=kl, factor=factor)
        skipped = skipped + 1 if metrics["policy/skipped"] else 0
        if skipped:
            run.skip(step, batch, in_a_row=skipped)
        seconds = time.perf_counter() - started
        metrics |= {"time/step": seconds, "time/tokens_per_s": packed_length(batch) / seconds}
        run.log(step, metrics)
        view.step(step, metrics)
        after_update(step)


def num_updates(config: PreferenceConfig, data: PreferenceData) -> int:
    """Updates of the whole run."""
    return config.epochs * updates_per_epoch(config, data)


def updates_per_epoch(config: PreferenceConfig, data: PreferenceData) -> int:
    """Full updates in one pass over the training examples."""
    return len(data.train) // config.batch_size


def annotate(
    roles: Roles, preference: Preference, examples: Sequence[Example], *, max_length: int
) -> tuple[Batch, float]:
    """(the examples as a batch, with the reference's log-probs if the loss needs them; KTO's z0, else 0)"""
    batch = make_batch(examples)
    if preference.needs_reference and batch.ref_logprobs is None:
        batch = replace(batch, ref_logprobs=roles.logprobs(batch, reference(roles)))
    if preference.is_paired:
        return batch, 0.0
    mismatched = mismatch(examples, max_length=max_length)
    return batch, reference_point(roles, mismatched, chunk=len(mismatched))


def update(roles: Roles, preference: Preference, batch: Batch, *, kl: float, factor: float) -> Metrics:
    """One optimizer update.

    Args:
        kl: KTO's z0.
        factor: on the peak learning rate.

    Returns:
        Metrics of the update. With a non-finite loss or gradient the step is skipped, parameters and optimizer stay
        as they were, and `policy/skipped` is 1.
    """
    roles.optimizer.zero_grad(set_to_none=True)
    num_examples = batch.num_sequences // 2 if preference.is_paired else batch.num_sequences

    def loss(part: Batch, logprobs: Tensor, entropy: Tensor) -> tuple[Tensor, Metrics]:
        value, sums = preference_loss(
            preference,
            logprobs=logprobs,
            ref_logprobs=part.ref_logprobs,
            sequence_index=part.sequence_index,
            labels=part.rewards.to(logprobs.device),
            num_examples=num_examples,
            kl=kl,
        )
        return value, sums | {"policy/entropy": float(entropy.detach().sum())}

    total, parts = roles.backward_policy(batch, loss, whole_groups=preference.is_paired, entropy_gradient=False)
    num_chosen = int((batch.rewards > 0).sum())
    metrics: Metrics = {"preference/loss": total}
    metrics |= preference_metrics(
        parts,
        num_examples=num_examples,
        num_chosen=num_chosen,
        num_rejected=batch.num_sequences - num_chosen,
        num_actions=batch.sequence_index.numel(),
    )
    if not preference.is_paired:
        metrics["preference/z0"] = kl
    return metrics | roles.step(factor=factor, is_finite=math.isfinite(total))


def measure(
    roles: Roles, config: PreferenceConfig, data: PreferenceData, *, name: str, step: int, on_chunk: OnChunk | None
) -> dict[str, Any]:
    """The held-out examples' mean loss and margin, and the share on whose label the policy's margin sides.

    Returns:
        The result as `evals/NAME.json` holds it, clustered by prompt.
    """
    preference, examples = config.preference, data.heldout
    batch = make_batch(examples)
    if preference.needs_reference and batch.ref_logprobs is None:
        batch = replace(batch, ref_logprobs=logprobs(roles, reference(roles), examples, chunk=config.batch_size))
    kl = 0.0
    if not preference.is_paired:
        kl = reference_point(roles, mismatch(examples, max_length=data.max_length), chunk=config.batch_size)
    losses, margins, _ = example_losses(
        preference,
        logprobs=logprobs(roles, roles.policy, examples, chunk=config.batch_size, on_chunk=on_chunk),
        ref_logprobs=batch.ref_logprobs,
        sequence_index=batch.sequence_index,
        labels=batch.rewards,
        kl=kl,
    )
    by_task: dict[str, list[float]] = {}
    for example, right in zip(examples, is_right(margins).tolist(), strict=True):
        by_task.setdefault(example.id, []).append(right)
    adapter = roles.adapter(step)
    return {
        "name": name,
        "stage": NAMES[preference.loss],
        "step": step,
        "adapter_version": step,
        "adapter_hash": adapter.hash,
        "metric": "preference",
        "accuracy": accuracy_interval(list(by_task.values())).as_dict(),
        "loss": float(losses.mean()),
        "margin": float(margins.mean()),
        "failed": 0,
        "length": batch.sequence_index.numel() / batch.num_sequences,
        "truncated": 0.0,
        "by_task": by_task,
    }


def logprobs(
    roles: Roles, role: Role, examples: Sequence[Example], *, chunk: int, on_chunk: OnChunk | None = None
) -> Tensor:
    """(A,) float32 on the CPU, of all completions under `role`, `chunk` examples at a time; no gradient."""
    found = [torch.empty(0)]
    for first in range(0, len(examples), chunk):
        found.append(roles.logprobs(make_batch(examples[first : first + chunk]), role))
        if on_chunk:
            on_chunk(min(first + chunk, len(examples)), len(examples))
    return torch.cat(found)


def mismatch(examples: Sequence[Example], *, max_length: int) -> list[Example]:
    """Every prompt with the completion of an example of another prompt, as far as it fits.

    With the examples of a prompt brought together, that is the one as many places before as the most frequent prompt
    has examples: so each completion is taken once. Where one prompt has more than half of the examples, its own take
    the others' in turn. Where there is only one prompt, nothing is mismatched and the list is empty.
    """
    of_prompt: dict[tuple[int, ...], list[int]] = {}
    for index, example in enumerate(examples):
        of_prompt.setdefault(example.prompt_ids, []).append(index)
    if len(of_prompt) < 2:
        return []
    order = [index for indices in of_prompt.values() for index in indices]
    largest = max(map(len, of_prompt.values()))
    taken = dict(zip(order, order[-largest:] + order[:-largest], strict=True))
    for prompt_ids, indices in of_prompt.items():
        if len(indices) > len(order) - largest:
            others = [index for index in order if examples[index].prompt_ids != prompt_ids]
            taken |= {index: others[place % len(others)] for place, index in enumerate(indices)}
    return [
        Example(
            id=example.id,
            prompt_ids=example.prompt_ids,
            completions=(examples[taken[index]].completions[0][: max_length - len(example.prompt_ids)],),
            action_mask=(examples[taken[index]].action_mask[0][: max_length - len(example.prompt_ids)],),
            labels=(0.0,),
        )
        for index, example in enumerate(examples)
    ]


def reference_point(roles: Roles, mismatched: Sequence[Example], *, chunk: int) -> float:
    """KTO's z0: what the policy has gained over the reference on completions that belong to other prompts.

    0, its lowest value, where there are none.
    """
    if not mismatched:
        return 0.0
    ratios = logprobs(roles, roles.policy, mismatched, chunk=chunk) - logprobs(
        roles, reference(roles), mismatched, chunk=chunk
    )
    batch = make_batch(mismatched)
    return kto_reference_point(sequence_sums(ratios, batch.sequence_index, batch.num_sequences))


def reference(roles: Roles) -> Role:
    """The frozen reference of a loss that needs one."""
    assert roles.reference is not None
    return roles.reference
