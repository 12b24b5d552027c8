"""Generating a random share of a run's chunks again, with the adapters that made them, and comparing every token.

On the run's kind of processor and with its versions a sample is the same to the bit. Elsewhere the last bits of logits
differ, so that tokens may part. There the stored tokens themselves are put through the model: each has to have the
stored log-prob within a bound, and has to be the token that the sample's seed draws there, within a bound too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from rlft.config import RunConfig
from rlft.model.base import resolve_dtype
from rlft.rollout.engines.batching import drawing_numbers
from rlft.rollout.engines.by_name import traits_of
from rlft.rollout.engines.sampling import kept_probabilities
from rlft.rollout.engines.transformers import TransformersEngine
from rlft.rollout.seeds import turn_seed
from rlft.rollout.worker import RolloutWorker
from rlft.train.rl.verify.findings import Check
from rlft.train.rl.verify.material import Here, with_prompt
from rlft.train.rl.verify.stamps import Unit
from rlft.types import Adapter, Group, SamplingParams, Trajectory, whole_text

LOGPROB_BOUND = {"float32": 2e-3, "bfloat16": 0.5}
"""Largest mean |difference| in nats per token of a sample, as `rollout.weight_proof` allows engines by the type of the
weights."""
DRAW_BOUND = {"float32": 2e-3, "bfloat16": 0.1}
"""How far a sample's uniform number may lie outside of its token's share of the cumulative probability."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """What the model says about stored tokens: of each action its log-prob and how far the seed's draw lies from it."""

    logprobs: Tensor
    """(A,) under the distribution that was sampled."""
    distances: Tensor
    """(A,) 0 where the seed's number draws the stored token; greedily, the probability that it lacks to the largest."""
    entropies: Tensor
    """(A,) nats, of the policy at the sampling temperature (greedily: at 1)."""


def compare_exactly(
    unit: Unit, stored: Mapping[str, Group], again: Sequence[Group]
) -> Iterator[tuple[Trajectory, str]]:
    """Each stored sample of a chunk, and how the one that was generated again differs; empty where it does not."""
    for group in again:
        for old, new in zip(stored[group.task.id].trajectories, group.trajectories, strict=True):
            yield old, _difference(old, new)


def _difference(old: Trajectory, new: Trajectory) -> str:
    if old.token_ids != new.token_ids:
        pairs = list(zip(old.token_ids, new.token_ids, strict=False))
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
        return f"token {at} differs: its text is {old.text[:60]!r}, generated again {new.text[:60]!r}"
    if old.action_mask != new.action_mask or len(old.turns) != len(new.turns):
        return "the tokens are the same, and others of them are actions"
    mine, own = (np.array(t.logprobs, dtype=np.float32) for t in (old, new))
    if not np.array_equal(mine, own):
        at = int(np.flatnonzero(mine != own)[0])
        return f"log-prob of token {at} is {mine[at]:.9g}, generated again {own[at]:.9g}"
    if old.finish_reason != new.finish_reason or old.stop_reason != new.stop_reason:
        return f"it ended by {old.finish_reason}/{old.stop_reason}, again by {new.finish_reason}/{new.stop_reason}"
    if old.text != whole_text(new.text):
        return f"its text is {old.text[:60]!r}, generated again {new.text[:60]!r}"
    if old.environment_reward != new.environment_reward:
        return f"the environment gave {old.environment_reward}, again {new.environment_reward}"
    return ""


class Regenerator:
    """A rollout worker, or the model alone where bits may differ, that makes stored chunks again."""

    def __init__(self, config: RunConfig, here: Here) -> None:
        """Load the engine: the run's own where it has to give the same bits, else the one that runs anywhere."""
        self._config = config
        self.is_exact = not here.inexact
        self._worker = RolloutWorker(config, here.model_folder) if self.is_exact else None
        self._engine = None if self.is_exact else make_teacher(config, here)
        self._version: int | None = None

    def close(self) -> None:
        """End the worker's engine."""
        if self._worker is not None:
            self._worker.close()

    def load(self, adapter: Adapter) -> None:
        """Make chunks of this version from here on."""
        if self._version != adapter.version:
            self._version = adapter.version
            (self._worker or self._engine).load_adapter(adapter)  # type: ignore[union-attr]

    def check(self, unit: Unit, stored: Mapping[str, Group], here: Here, check: Check) -> None:
        """Make a chunk again and compare its samples with the stored ones, by task.

        Args:
            here: with the environment of the chunk.
        """
        if self._worker is not None:
            again = self._worker.run_chunk(unit.chunk)
            for old, difference in compare_exactly(unit, stored, again):
                where = f"{unit.file}, {old.task.id}/{old.sample_index}"
                check.differ(where, difference) if difference else check.agree()
            return
        assert self._engine is not None
        dtype = str(resolve_dtype(self._config.model)).removeprefix("torch.")
        draws = traits_of(self._config.rollout).is_exact  # others do not draw with our numbers
        for task in unit.chunk.tasks:
            for old in with_prompt(here, stored[task.id]).trajectories:
                where = f"{unit.file}, {task.id}/{old.sample_index}"
                taught = teach(self._engine, old, unit.chunk.params)
                difference = _out_of_bounds(old, taught, dtype, with_draws=draws)
                check.differ(where, difference) if difference else check.agree()


def _out_of_bounds(old: Trajectory, taught: Teacher, dtype: str, *, with_draws: bool) -> str:
    stored = torch.tensor([x for turn in old.turns for x in turn.completion.logprobs])
    if not len(stored):
        return ""
    difference = float((stored - taught.logprobs).abs().mean())
    if not difference <= LOGPROB_BOUND[dtype]:
        return f"log-probs differ by {difference:.4f} nats per token on average, {LOGPROB_BOUND[dtype]} is allowed"
    at = int(taught.distances.argmax())
    if with_draws and not float(taught.distances[at]) <= DRAW_BOUND[dtype]:
        return (
            f"token {at} of its actions is not the one that its seed draws: off by {float(taught.distances[at]):.4f} "
            f"of the probability, {DRAW_BOUND[dtype]} is allowed"
        )
    return ""


def make_teacher(config: RunConfig, here: Here) -> TransformersEngine:
    """The engine that puts stored tokens through the model."""
    assert here.tokenizer is not None
    return TransformersEngine(
        here.model_folder,
        here.tokenizer,
        model=config.model,
        adapter=config.adapter,
        threads=config.rollout.threads,
    )


@torch.inference_mode()
def teach(engine: TransformersEngine, trajectory: Trajectory, params: SamplingParams) -> Teacher:
    """Put a stored sample's tokens through the model, one pass for all of its turns.

    Args:
        trajectory: with the tokens of its first prompt.
    """
    assert engine.version is not None
    mask = torch.tensor(trajectory.action_mask, dtype=torch.bool)
    if not mask.any():
        return Teacher(torch.zeros(0), torch.zeros(0), torch.zeros(0))
    logits = engine.logits(trajectory.prompt_ids, trajectory.token_ids, version=engine.version).cpu().float()[mask]
    tokens = torch.tensor(trajectory.token_ids)[mask][:, None]
    policy = (logits / (params.temperature or 1.0)).log_softmax(dim=-1)
    entropies = -(policy.exp() * policy).sum(dim=-1)
    if params.temperature == 0:
        own = policy.gather(1, tokens).squeeze(1)
        return Teacher(own, (policy.max(dim=-1).values.exp() - own.exp()).clamp(min=0), entropies)
    kept = kept_probabilities(logits, params)
    total = kept.double().sum(dim=-1)
    own = kept.gather(1, tokens).squeeze(1)
    numbers = torch.from_numpy(_numbers(trajectory, params.max_new_tokens)).double()
    through = kept.double().cumsum(dim=-1).gather(1, tokens).squeeze(1) / total
    before = through - own.double() / total
    distances = torch.maximum(before - numbers, numbers - through).clamp(min=0)
    return Teacher(own.log() - total.log().float(), distances.float(), entropies)


def _numbers(trajectory: Trajectory, most: int) -> np.ndarray:
    """(A,) the uniform numbers that a sample's actions are drawn with."""
    parts = []
    for number, turn in enumerate(trajectory.turns):
        count = len(turn.completion.token_ids)
        parts.append(drawing_numbers((turn_seed(trajectory.seed, number),), max(most, count))[0, :count])
    return np.concatenate(parts)
