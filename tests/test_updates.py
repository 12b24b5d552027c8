"""A step's metrics: however many updates and microbatches its data come in, they are those of one update over all."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlft.config import LearnerConfig, ModelConfig, PolicyAdapterConfig
from rlft.learner.batch import minibatches, select
from rlft.learner.rl import Learner
from rlft.learner.update import Update, step_metrics
from rlft.objectives.measures import (
    EffectiveShare,
    ExplainedVariance,
    Largest,
    Last,
    Mean,
    Weighted,
    join,
    numbers,
)
from rlft.train.preference.config import PreferenceConfig, PreferenceDataConfig
from rlft.train.preference.learner import PreferenceLearner
from rlft.types import Batch
from tests.fakes import tiny_config
from tests.test_learner import made_up_batch, random_tensors


def double(values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# By hand


def test_means_are_over_all_that_is_counted() -> None:
    # 2 tokens of mean 1 and 6 of mean 3: (2 + 18) / 8. Of the means alone it would be 2.
    assert Mean.of(double([1, 1])).joined(Mean.of(double([3] * 6))).value == 2.5
    assert Weighted(1.0, 2).joined(Weighted(3.0, 6)).value == 2.5
    assert Mean.of(double([])).value is None
    assert Mean.of(double([])).joined(Mean.of(double([3, 5]))).value == 4


def test_the_largest_and_the_last() -> None:
    assert [Largest(a).joined(Largest(b)).value for a, b in ((1.0, 2.0), (2.0, 1.0))] == [2, 2]
    assert [Last(a).joined(Last(b)).value for a, b in ((1.0, 2.0), (2.0, 1.0))] == [2, 1]


def test_effective_share_by_hand() -> None:
    # 3 tokens with pi_old / pi_rollout = 1, 2 | 3: ESS = (1 + 2 + 3)^2 / (3 * (1 + 4 + 9)) = 36 / 42.
    assert EffectiveShare(3, 5, 2).joined(EffectiveShare(3, 9, 1)).value == pytest.approx(36 / 42)
    # All tokens alike: every sample counts in full, whatever the factor.
    assert EffectiveShare(6, 12, 3).value == pytest.approx(1)
    # One token out of 100 has all the weight: one effective sample.
    assert EffectiveShare(5, 25, 100).value == pytest.approx(0.01)


def test_explained_variance_by_hand() -> None:
    returns = double([0, 2, 4, 6])  # variance (9 + 1 + 1 + 9) / 4 = 5
    assert ExplainedVariance.of(returns, returns).value == 1
    assert ExplainedVariance.of(returns + 7, returns).value == 1  # an offset is no lack of explanation
    assert ExplainedVariance.of(double([3, 3, 3, 3]), returns).value == 0
    # Errors 0, 2, 2, 0 around their mean 1: variance 1, so 1 - 1 / 5.
    assert ExplainedVariance.of(double([0, 0, 2, 6]), returns).value == pytest.approx(0.8)
    # Twice the returns with the sign turned: errors 3 * returns, variance 9 * 5, so 1 - 9.
    assert ExplainedVariance.of(-2 * returns, returns).value == pytest.approx(-8)
    assert ExplainedVariance.of(returns, double([1, 1, 1, 1])).value == 0  # nothing to explain
    # In parts of 1 and 3 returns, of which the first has no variance of its own.
    values = double([0, 0, 2, 6])
    parts = [ExplainedVariance.of(values[part], returns[part]) for part in (slice(0, 1), slice(1, 4))]
    assert parts[0].joined(parts[1]).value == pytest.approx(0.8)


def test_a_metric_that_only_some_parts_have_is_kept() -> None:
    joined = join([{"a": Largest(1.0)}, {"a": Largest(3.0), "b": Last(2.0)}, {"b": Last(5.0)}])
    assert numbers(joined) == {"a": 3, "b": 5}
    assert numbers({"a": Mean(0, 0), "b": Last(1.0)}) == {"b": 1}


def test_skipped_updates_are_counted_and_their_numbers_left_out() -> None:
    made = [Update(measures={"policy/loss": Weighted(value, 2)}) for value in (1.0, 3.0)]
    skipped = Update(measures={"policy/loss": Weighted(math.nan, 2)}, skipped="the loss is not finite")
    assert step_metrics([made[0], skipped, made[1], skipped]) == {"policy/loss": 2, "policy/skipped": 2}
    assert made[0].metrics == {"policy/loss": 1, "policy/skipped": 0}
    # Where none was made, what was measured is all that there is.
    assert math.isnan(step_metrics([skipped])["policy/loss"])
    assert step_metrics([]) == {}


# Several updates and one


def one_and_several(learner: Any, update: Callable[[Batch], Update], parts: Sequence[Batch], whole: Batch) -> None:
    """Updates that change nothing, on all of the data and on its parts, have to measure the same."""
    for group in learner.roles.optimizer.param_groups:
        group["peak_lr"] = 0.0
    one, several = update(whole), [update(part) for part in parts]
    expected, actual = one.metrics, step_metrics(several)
    assert expected.keys() == actual.keys()
    same = expected.keys() - DIFFERENT
    assert {name: actual[name] for name in same} == pytest.approx({name: expected[name] for name in same}, abs=2e-5)
    for name in {"policy/grad_norm", "critic/grad_norm"} & expected.keys():
        assert actual[name] == max(each.metrics[name] for each in several)
    # The data tell the rules apart: the last part alone has other numbers.
    last = several[-1].metrics
    differing = {name for name in same if last.get(name) != pytest.approx(expected[name], abs=2e-5)}
    assert {name for name in same if name.endswith("/loss")} <= differing
    assert 2 * len(differing) > len(same)


DIFFERENT = {"policy/grad_norm", "critic/grad_norm", "preference/z0"}
"""Not those of one update: the largest norm, and z0, which each update estimates from its own prompts."""

ALGORITHMS: dict[str, Any] = {
    **{
        aggregate: {"preset": "grpo", "aggregate": aggregate}
        for aggregate in ("token_mean", "sequence_mean", "sequence_sum", "constant_length")
    },
    "masked": {"preset": "grpo", "correction": "sequence_mask", "correction_range": [0.1, 3.0]},
    "ppo": {"preset": "ppo", "overlong": "penalize"},
    "online_dpo": {"preset": "online_dpo"},
    "simpo": {"preset": "online_dpo", "loss": "simpo"},
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_updates_together_measure_what_one_would(tiny_model: Path, name: str) -> None:
    config = tiny_config(
        tiny_model,
        algorithm=ALGORITHMS[name],
        updates_per_step=2,
        learner={"threads": 1, "lr": 0.05, "tokens_per_microbatch": 16},
        sampling={"max_new_tokens": 6},
    )
    learner = Learner(config, tiny_model, warm_start=random_tensors(tiny_model))
    for _ in range(2):  # so that ratios, KL and values are not 1 and 0
        old = learner.annotate(made_up_batch())
        learner.update(old)
    one_and_several(learner, learner.update, minibatches(old, 3), old)


@pytest.mark.parametrize("loss", ["sigmoid", "orpo", "kto"])
def test_preference_updates_together_measure_what_one_would(tiny_model: Path, loss: Any) -> None:
    config = PreferenceConfig(
        name="tiny",
        model=ModelConfig(source=str(tiny_model), dtype="float32"),
        adapter=PolicyAdapterConfig(rank=4),  # type: ignore[call-arg]
        data=PreferenceDataConfig(source=""),  # type: ignore[call-arg]
        preference={"loss": loss},  # type: ignore[arg-type]
        learner=LearnerConfig(threads=1, lr=0.05, tokens_per_microbatch=16),  # type: ignore[call-arg]
    )
    learner = PreferenceLearner(config, tiny_model, max_length=64)
    pairs = select(made_up_batch(), [0, 1, 3, 4, 5, 6])  # two sequences of each group
    whole, _ = learner.annotate(replace(pairs, rewards=torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0, 0.0])))
    z0 = 0.01 if loss == "kto" else 0.0
    for _ in range(2):
        learner.update(whole, z0, 1.0)
    one_and_several(learner, lambda part: learner.update(part, z0, 1.0), minibatches(whole, 3), whole)
