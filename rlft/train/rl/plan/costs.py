"""Time and memory from a model of costs, where nothing is to be started.

Times count multiplications and additions and divide by what this machine does of them in the type of the weights; the
shares of that rate that rlft reaches are those of benchmarks/README.md. It says the order of magnitude: a probe is
nearer, as it also sees how long completions are.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from rlft.config import RunConfig
from rlft.rollout.engines.traits import ENGINES
from rlft.train.rl.plan.arithmetic import evaluations
from rlft.train.rl.plan.forecast import Stage
from rlft.train.rl.plan.sizes import Sizes

LEARNER_SHARE, ROLLOUT_SHARE = 0.5, 0.5
"""Shares of the machine's rate of products that the update and generation reach (benchmarks/README.md)."""
PROCESS_BYTES = 0.5e9
"""Python with torch and transformers, and what libraries hold besides weights."""
RAY_BYTES = 0.5e9
"""Ray's own processes."""
SCORING_BYTES = 0.1e9
"""A scoring process whose reward loads no model."""
START_S = 20.0
"""Imports, Ray, the engine and the learner."""
CAUTION = (
    "completions are taken to be as long as they may be; expect half to twice of this, and less where they are shorter"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run takes."""

    stages: list[Stage]
    memory: list[tuple[str, int, float]]
    """(role, processes, bytes of each)."""
    caution: str = CAUTION

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "seconds": sum(stage.seconds for stage in self.stages),
            "stages": [{"name": stage.name, "seconds": stage.seconds, "how": stage.how} for stage in self.stages],
            "memory_bytes": {role: {"processes": n, "peak_of_one": size} for role, n, size in self.memory},
            "caution": self.caution,
        }


def estimate(config: RunConfig, sizes: Sizes) -> Estimate:
    """Time and memory of a run."""
    rate = product_rate(sizes.dtype, config.learner.threads)
    counts, lengths = sizes.counts(config, sizes.longest), sizes.longest
    per_token = 2.0 * sizes.parameters
    made = counts.completions_per_step * lengths.completion
    prompts = config.tasks_per_step * lengths.prompt
    rollout = per_token * (made + prompts) / (ROLLOUT_SHARE * rate) / config.rollout.workers
    # Forward and backward through frozen weights, old log-probs; one more for a reference, three for a critic.
    passes = 2 + 1 + (config.algorithm.needs_reference) + 3 * (config.algorithm.needs_critic)
    passes += 1 if config.adapter.kind == "full" else 0
    learn = passes * per_token * counts.tokens_per_step / (LEARNER_SHARE * rate) / config.learner.workers
    answered = 0.0
    for _, times, answers in counts.evaluations:
        seconds = per_token * answers * (lengths.completion + lengths.prompt) / (ROLLOUT_SHARE * rate)
        answered += times * seconds / config.rollout.workers
    stages = [
        Stage(name="start", seconds=START_S, how="imports, engine, learner"),
        Stage(name="evaluations", seconds=answered, how=f"{evaluations(config, config.evaluation.every)} times"),
    ]
    if config.sft is not None:
        rows = counts.sft_updates * min(config.sft.batch_size, config.sft.examples)
        seconds = 3 * per_token * rows * sizes.demonstration / (LEARNER_SHARE * rate)
        how = f"{counts.sft_updates} updates, {sizes.demonstration:.0f} tokens a demonstration"
        stages.append(Stage(name="warm start", seconds=seconds, how=how))
    stages.append(
        Stage(
            name="steps",
            seconds=config.steps * (rollout + learn),
            how=f"{config.steps} of {rollout + learn:.1f} s (rollout {rollout:.1f}, learn {learn:.1f})",
        )
    )
    return Estimate(stages=stages, memory=_memory(config, sizes))


def product_rate(dtype: torch.dtype, threads: int) -> float:
    """Multiplications and additions a second of this machine's matrix products, measured in a fraction of a second.

    Args:
        dtype: of the matrices.
        threads: CPU threads.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        rows, size = 1024, 2048 if device == "cpu" else 8192
        a = torch.ones(rows, size, dtype=dtype, device=device)
        b = torch.ones(size, size, dtype=dtype, device=device)
        best, until = float("inf"), time.perf_counter() + 0.5
        while time.perf_counter() < until:
            began = time.perf_counter()
            (a @ b).sum().item()
            best = min(best, time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return 2.0 * rows * size * size / best


def _memory(config: RunConfig, sizes: Sizes) -> list[tuple[str, int, float]]:
    model, lengths = sizes.config, sizes.longest
    width = torch.empty((), dtype=sizes.dtype).element_size()
    weights = float(sizes.parameters * width)
    trained = float(sizes.parameters)
    if config.adapter.kind != "full":
        trained = 2.0 * config.adapter.rank * 7 * model.hidden_size * model.num_hidden_layers * 2
    head = getattr(model, "head_dim", None) or model.hidden_size // model.num_attention_heads
    cache = 2 * model.num_hidden_layers * model.num_key_value_heads * head * width
    rows = config.rollout.tasks_per_chunk * config.samples_per_task
    counts = sizes.counts(config, lengths)
    packed = min(counts.microbatch_tokens, counts.tokens_per_step)
    # Kept for the backward pass: of each layer about fourteen vectors of the hidden size; log-probs in float32 once.
    activations = packed * (14 * model.hidden_size * model.num_hidden_layers * width + 8 * model.vocab_size)
    roles = 1 + config.algorithm.needs_critic
    learner = PROCESS_BYTES + weights + roles * trained * 16 + activations
    engine = PROCESS_BYTES + 2 * weights + rows * (lengths.prompt + lengths.completion) * cache
    if config.backend == "inline":
        is_shared = ENGINES[config.rollout.engine].shares_weights and config.adapter.kind not in ("full", "qlora")
        return [("driver", 1, learner + engine - PROCESS_BYTES - is_shared * weights)]
    found = [("rollout worker", config.rollout.workers, engine), ("Ray", 1, RAY_BYTES)]
    if config.learner.processes:
        found += [("learner process", config.learner.processes, learner), ("driver", 1, PROCESS_BYTES)]
    else:
        found.append(("driver", 1, learner))
    return [*found, ("scoring process", max(1, config.scoring.workers), SCORING_BYTES)]
