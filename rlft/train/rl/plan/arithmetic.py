"""How many completions, tokens, microbatches and updates a config asks for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rlft.config import RunConfig
from rlft.train.task_order import num_updates


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Mean numbers of tokens of a rollout."""

    prompt: float
    """Tokens of the (first) prompt."""
    completion: float
    """Tokens behind it: what the policy sampled, and in episodes what the environment said in between."""
    is_measured: bool
    """Whether rollouts were made; else the completion is the longest that there may be."""

    def read(self, samples: int) -> float:
        """Tokens of so many completions in a packed row, which ends before their last ones: these predict nothing, see
        `learner.batch`."""
        return samples * max(self.completion - 1, 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What a run makes and computes; numbers of tokens are means."""

    completions_per_step: int
    """Samples that a step draws (without those of refills and greedy baselines)."""
    tokens_per_step: float
    """Tokens of a step's packed rows: what all prompts begin with stands once in each, and so does the prompt of a
    group that is too long for one."""
    microbatch_tokens: int
    """Packed tokens that the learner forwards together."""
    microbatches_per_update: int
    """Of one optimizer update."""
    updates: int
    """Optimizer updates of the RL stage, where every group has signal."""
    completions: int
    """Samples of all steps."""
    passes: float
    """How often each training task is used, on average."""
    sft_updates: int
    """Optimizer updates of the warm start; 0 without one."""
    evaluations: tuple[tuple[str, int, int], ...]
    """(name of the set, empty for the headline; how many evaluations; answers of each)."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        sets = [{"set": name, "times": times, "answers": answers} for name, times, answers in self.evaluations]
        return {**asdict(self), "evaluations": sets}


def count(
    config: RunConfig,
    *,
    train: int,
    heldout: Mapping[str, int],
    lengths: Lengths,
    default_microbatch: int,
    prefix: int = 0,
) -> Counts:
    """The arithmetic of a config.

    Args:
        train: training tasks.
        heldout: held-out tasks of each evaluation set by its name; of the headline under the empty one.
        lengths: of prompts and completions.
        default_microbatch: `learner.tokens_per_microbatch` where the config leaves it out.
        prefix: tokens that all prompts begin with; see `learner.batch.shared_prefix`.
    """
    tasks, samples = config.tasks_per_step, config.samples_per_task
    read = lengths.read(samples)
    size = config.learner.tokens_per_microbatch or default_microbatch
    # Rows repeat what all prompts begin with, those of a group that is too long for one its prompt.
    repeated = lengths.prompt if samples > 1 and lengths.prompt + read > size else prefix
    own = tasks * (read if repeated > prefix else max(1, lengths.prompt - prefix) + read)
    sequences = math.ceil(tasks * samples / config.updates_per_step)  # each row holds one at least
    microbatches = min(sequences, math.ceil(own / config.updates_per_step / max(1, size - repeated)))
    sft = config.sft
    return Counts(
        completions_per_step=tasks * samples,
        tokens_per_step=own + config.updates_per_step * microbatches * repeated,
        microbatch_tokens=size,
        microbatches_per_update=microbatches,
        updates=config.steps * config.updates_per_step,
        completions=config.steps * tasks * samples,
        passes=config.steps * tasks / train,
        sft_updates=num_updates(sft.examples, batch_size=sft.batch_size, epochs=sft.epochs) if sft else 0,
        evaluations=(
            ("", evaluations(config, config.evaluation.every), _answers(config, "", heldout)),
            *(
                (each.name, evaluations(config, each.every), _answers(config, each.name, heldout))
                for each in config.evaluations
            ),
        ),
    )


def evaluations(config: RunConfig, every: int) -> int:
    """How many times a set is evaluated: the base, after SFT, each `every` steps, and after the last one."""
    within = (config.steps - 1) // every if every else 0
    return 2 + (config.sft is not None) + within


def _answers(config: RunConfig, name: str, heldout: Mapping[str, int]) -> int:
    measured = next((each for each in config.evaluations if each.name == name), config.evaluation)
    return min(measured.tasks, heldout.get(name, measured.tasks)) * measured.samples_per_task
