"""The learner: numbers that do not depend on microbatches, state that survives, and roles that keep to themselves."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rlft.config import AdapterConfig
from rlft.learner import rl
from rlft.learner.batch import collate, minibatches, pack, single
from rlft.learner.core import lr_factor
from rlft.learner.rl import Learner
from rlft.learner.roles import read_role
from rlft.model import base as models
from rlft.model.adapter import adapter_hash, save_tensors
from rlft.model.starting_point import ReferenceSource
from rlft.objectives.presets import PRESETS
from rlft.types import Batch
from tests.fakes import made_up_group, tiny_config

GRPO = {"preset": "grpo"}
PPO = {"preset": "ppo"}
BOTH = pytest.mark.parametrize("algorithm", [GRPO, PPO], ids=["grpo", "ppo"])


def make_learner(folder: Path, *, warm_start: Mapping[str, Tensor] | None = None, **changes: Any) -> Learner:
    return Learner(tiny_config(folder, **changes), folder, warm_start=warm_start)


def made_up_batch(step: int = 0) -> Batch:
    """Three ragged groups whose rewards differ."""
    return collate(
        [
            made_up_group([1.0, 0.0, 0.25], task_id=f"a{step}", prompt_length=4, lengths=[3, 1, 5]),
            made_up_group([0.5, 0.75], task_id=f"b{step}", prompt_length=1, lengths=[2, 6]),
            made_up_group([0.0, 1.0, 0.0, 1.0], task_id=f"c{step}", prompt_length=5, lengths=[1, 2, 4, 4]),
        ]
    )


def random_tensors(folder: Path, *, seed: int = 1, rank: int = 4) -> dict[str, Tensor]:
    """Tensors of an adapter that does something, as an SFT stage leaves them."""
    learner = make_learner(folder, adapter={"rank": rank, "alpha": 2 * rank})
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: tensor.shape for name, tensor in learner.adapter(0).tensors.items()}
    return {name: 0.2 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}


class StandInNorm(nn.RMSNorm):
    """torch's norm with transformers' attributes."""

    def __init__(self, norm: Any) -> None:
        super().__init__(norm.weight.shape, eps=norm.variance_epsilon)
        self.variance_epsilon = norm.variance_epsilon
        self.weight = norm.weight


def widen(learner: Learner) -> Learner:
    """All float64. transformers' RMSNorm computes in float32 whatever it is given: torch's stands for it."""
    for name, module in list(learner.roles.model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            learner.roles.model.set_submodule(name, StandInNorm(module))
    learner.roles.model.double()
    return learner


def gradients(learner: Learner) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in learner.roles.model.named_parameters() if p.grad is not None}


def assert_same_bits(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert not [name for name in one if not torch.equal(one[name], other[name])]


def differing(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> set[str]:
    assert one.keys() == other.keys()
    return {name for name in one if not torch.equal(one[name], other[name])}


# What the choices of an algorithm change


def of_turns(rewards: list[float], turns: list[list[int]], *, cut: bool = False) -> Batch:
    """One group of episodes whose actions have these lengths, with two tokens of an observation between them."""
    batch = collate([made_up_group(rewards, lengths=[sum(lengths) + 2 * (len(lengths) - 1) for lengths in turns])])
    masks = [tuple(x for n in lengths for x in [True] * n + [False] * 2)[:-2] for lengths in turns]
    flat = torch.tensor([is_action for mask in masks for is_action in mask])
    return replace(
        batch,
        action_mask=tuple(masks),
        sequence_index=batch.sequence_index[flat],
        rollout_logprobs=batch.rollout_logprobs[flat],
        turn_index=None,
        turn_rewards=None,
        is_truncated=torch.tensor([cut] + [False] * (len(turns) - 1)),
    )


def test_the_overlong_penalty_is_of_one_action(tiny_model: Path) -> None:
    # 10 tokens are allowed, of which the last two cost 1/2 each; the turns of an episode may have more in all.
    algorithm = {"preset": "dr_grpo", "overlong": "penalize"}
    learner = make_learner(tiny_model, algorithm=algorithm, sampling={"max_new_tokens": 10})
    batch = learner.annotate(of_turns([1.0, 1.0, 0.0], [[8, 8, 8], [3, 9], [10]]))
    assert batch.advantages is not None
    mean = (1.0 + 0.5 - 1.0) / 3
    expected = torch.tensor([1.0 - mean] * 24 + [0.5 - mean] * 12 + [-1.0 - mean] * 10)
    assert torch.allclose(batch.advantages, expected)
    assert learner.update(batch).metrics["reward/overlong_penalty"] == pytest.approx(-0.5)


def test_cut_completions_are_out_of_the_loss_when_masked(tiny_model: Path) -> None:
    results = []
    for overlong in ("mask", "count"):
        learner = make_learner(tiny_model, algorithm={"preset": "dr_grpo", "overlong": overlong})
        learner.update(learner.annotate(of_turns([1.0, 0.0, 0.5], [[4], [3], [5]], cut=True)))
        results.append(gradients(learner))
    learner = make_learner(tiny_model, algorithm={"preset": "dr_grpo"})
    batch = learner.annotate(of_turns([1.0, 0.0, 0.5], [[4], [3], [5]], cut=True))
    assert batch.advantages is not None
    # The constant length of dr_grpo counts sequences, of which one is left out.
    kept = replace(batch, advantages=batch.advantages * (batch.sequence_index > 0) * 1.5)
    learner.update(kept)
    masked, counted, expected = *results, gradients(learner)
    for name, grad in expected.items():
        assert torch.allclose(masked[name], grad, atol=1e-6), name
    assert differing(masked, counted)


def test_an_entropy_bonus_has_a_gradient(tiny_model: Path) -> None:
    grads = []
    for coefficient in (0.0, 0.5):
        learner = make_learner(tiny_model, algorithm={"preset": "dr_grpo", "entropy_coef": coefficient})
        batch = learner.annotate(made_up_batch())
        assert batch.advantages is not None
        learner.update(replace(batch, advantages=torch.zeros_like(batch.advantages)))
        grads.append(gradients(learner))
    without, with_bonus = (sum(float(g.abs().sum()) for g in each.values()) for each in grads)
    assert without == 0
    assert with_bonus > 0


def test_a_steered_coefficient_is_restored(tiny_model: Path) -> None:
    algorithm = {"preset": "grpo", "kl_target": 1e-6}
    learner = make_learner(tiny_model, algorithm=algorithm)
    for step in range(2):
        learner.update(learner.annotate(made_up_batch(step)))
    assert learner.kl_coef != PRESETS["grpo"].kl_coef
    resumed = make_learner(tiny_model, algorithm=algorithm)
    resumed.load_state(*learner.state())
    assert resumed.kl_coef == learner.kl_coef
    one, other = (each.update(each.annotate(made_up_batch(2))).metrics for each in (learner, resumed))
    assert one == other
    assert one["policy/kl_coef"] != PRESETS["grpo"].kl_coef
    # A fork that begins elsewhere, or steers no more, has what its own config says.
    for changed, expected in (({**algorithm, "kl_coef": 0.5}, 0.5), (GRPO, PRESETS["grpo"].kl_coef)):
        fork = make_learner(tiny_model, algorithm=changed)
        fork.load_state(*learner.state())
        assert fork.kl_coef == expected


@pytest.mark.parametrize("loss", ["sigmoid", "simpo", "orpo", "kto"])
def test_pairs_are_compared_with_the_policy_that_sampled_them(tiny_model: Path, loss: str) -> None:
    # The second update of a step finds another policy than the engine had; that is no mismatch.
    learner = make_learner(
        tiny_model,
        algorithm={"preset": "online_dpo", "loss": loss},
        tasks_per_step=4,
        updates_per_step=2,
        learner={"threads": 1, "lr": 0.05},
    )
    assert (learner.roles.reference is None) == (loss in ("simpo", "orpo"))
    batch = made_up_batch()
    exact = learner.roles.logprobs(batch, learner.roles.policy)
    batch = learner.annotate(replace(batch, rollout_logprobs=exact))
    metrics = [learner.update(part).metrics for part in minibatches(batch, 2)]
    assert [m["policy/mismatch"] for m in metrics] == pytest.approx([0.0, 0.0], abs=1e-6)
    assert metrics[0]["policy/loss"] > 0
    assert differing(learner.adapter(1).tensors, make_learner(tiny_model).adapter(0).tensors)


def sums_of(learner: Learner, prompt: tuple[int, ...], ids: tuple[int, ...]) -> float:
    """log pi - log pi_ref of these tokens behind the prompt."""
    roles = learner.roles
    assert roles.reference is not None
    alone = single(prompt, ids)
    return float((roles.logprobs(alone, roles.policy) - roles.logprobs(alone, roles.reference)).sum())


def test_ranked_samples_enter_kto_by_its_formula(tiny_model: Path) -> None:
    algorithm = {"preset": "online_dpo", "loss": "kto", "beta": 0.5}
    config = tiny_config(tiny_model, algorithm=algorithm)
    base = ReferenceSource(folder=str(tiny_model))
    learner = Learner(config, tiny_model, warm_start=random_tensors(tiny_model, seed=4), reference=base)
    groups = [
        made_up_group([1.0, 0.0, 0.5], task_id="a", prompt_length=4, lengths=[3, 1, 5]),  # the last is at the mean
        made_up_group([0.5, 0.5], task_id="b", prompt_length=2, lengths=[2, 6]),  # nothing to rank
        made_up_group([0.1, 0.1, 0.4], task_id="c", prompt_length=5, lengths=[2, 4, 3]),
    ]
    batch = collate(groups)
    prompts, ids = batch.prompt_ids, batch.token_ids
    metrics = learner.update(learner.annotate(batch)).metrics

    learner = Learner(config, tiny_model, warm_start=random_tensors(tiny_model, seed=4), reference=base)
    labels = {0: 1, 1: -1, 5: -1, 6: -1, 7: 1}
    # In the order of their tokens, prompts together, each has the completion of three places before: no prompt has more
    # samples. No longer than the longest sample: 9 tokens.
    order = sorted(range(8), key=lambda s: (prompts[s], ids[s]))
    other = dict(zip(order, order[-3:] + order[:-3], strict=True))
    mismatched = {s: sums_of(learner, prompts[s], ids[t][: 9 - len(prompts[s])]) for s, t in other.items()}
    z0 = max(0.0, sum(mismatched.values()) / len(mismatched))
    rewards = {s: 0.5 * sums_of(learner, prompts[s], ids[s]) for s in labels}
    losses = [1 - 1 / (1 + math.exp(-label * (rewards[s] - 0.5 * z0))) for s, label in labels.items()]
    assert z0 > 0
    assert metrics["preference/z0"] == pytest.approx(z0, abs=1e-5)
    assert metrics["policy/loss"] == pytest.approx(sum(losses) / len(losses), abs=1e-5)
    assert metrics["preference/reward_chosen"] == pytest.approx((rewards[0] + rewards[7]) / 2, abs=1e-5)
    assert metrics["preference/reward_rejected"] == pytest.approx((rewards[1] + rewards[5] + rewards[6]) / 3, abs=1e-5)


def test_ranked_pairs_enter_cdpo_by_its_formula(tiny_model: Path) -> None:
    algorithm = {"preset": "online_dpo", "label_smoothing": 0.2}
    config = tiny_config(tiny_model, algorithm=algorithm)
    base = ReferenceSource(folder=str(tiny_model))
    learner = Learner(config, tiny_model, warm_start=random_tensors(tiny_model), reference=base)
    batch = collate([made_up_group([0.5, 0.0, 1.0], prompt_length=4, lengths=[3, 1, 5])])
    prompt, ids = batch.prompt_ids[0], batch.token_ids
    delta = 0.1 * (sums_of(learner, prompt, ids[2]) - sums_of(learner, prompt, ids[1]))
    expected = 0.8 * math.log1p(math.exp(-delta)) + 0.2 * math.log1p(math.exp(delta))
    assert learner.update(learner.annotate(batch)).metrics["policy/loss"] == pytest.approx(expected, abs=1e-5)


# Microbatches


@BOTH
def test_an_update_does_not_depend_on_the_microbatches(tiny_model: Path, algorithm: dict[str, Any]) -> None:
    warm_start = random_tensors(tiny_model)
    results = []
    for tokens in (4096, 1, 17):
        learner = make_learner(
            tiny_model,
            warm_start=warm_start,
            algorithm={**algorithm, "entropy_coef": 0.01},
            updates_per_step=2,
            learner={"threads": 1, "tokens_per_microbatch": tokens},
        )
        scored = made_up_batch()
        batch = widen(learner).annotate(replace(scored, rewards=scored.rewards.double()))
        metrics = [learner.update(part).metrics for part in minibatches(batch, 2)]
        results.append((batch, metrics, gradients(learner), learner.adapter(1).tensors))
    batch, metrics, grads, tensors = results[0]
    assert batch.old_logprobs is not None
    for other_batch, other_metrics, other_grads, other_tensors in results[1:]:
        assert other_batch.old_logprobs is not None
        assert torch.allclose(other_batch.old_logprobs, batch.old_logprobs, rtol=0, atol=1e-10)
        for own, other in zip(metrics, other_metrics, strict=True):
            assert other == pytest.approx(own, rel=1e-6, abs=1e-7)
        assert grads.keys() == other_grads.keys()
        for name in grads:
            # The critic's head is float32.
            tolerance = 1e-5 if "critic" in name else 1e-9
            assert torch.allclose(other_grads[name], grads[name], rtol=0, atol=tolerance), name
        for name in tensors:
            assert torch.allclose(other_tensors[name], tensors[name], rtol=0, atol=1e-7), name


@pytest.mark.parametrize(
    "algorithm",
    [
        {"preset": "dr_grpo"},
        {"preset": "dapo"},
        {"preset": "gspo", "kl": "none", "kl_coef": 0, "correction": "sequence_mask"},
        {"preset": "ppo", "kl": "none", "kl_coef": 0},
    ],
    ids=lambda algorithm: algorithm["preset"],
)
def test_what_has_no_gradient_is_not_computed_and_changes_nothing(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, algorithm: dict[str, Any]
) -> None:
    warm_start = random_tensors(tiny_model)
    same = [made_up_group([float(g)] * 3, task_id=f"s{g}", prompt_length=3, lengths=[2, 4, 7]) for g in range(2)]
    groups = [same[0], made_up_group([1.0, 0.0, 1.0], task_id="x", prompt_length=4, lengths=[3, 1, 5]), same[1]]
    results = []
    for is_left_out in (True, False):
        with monkeypatch.context() as patch:
            if not is_left_out:
                patch.setattr(rl, "with_gradient", lambda algorithm, batch: batch)
            learner = make_learner(
                tiny_model, warm_start=warm_start, algorithm=algorithm, sampling={"max_new_tokens": 64}
            )
            batch = widen(learner).annotate(collate(groups))
            results.append((learner.update(batch).metrics, gradients(learner), learner.adapter(1).tensors))
    (metrics, grads, tensors), (all_metrics, all_grads, all_tensors) = results
    # A critic's values tell every sequence from the others, so that PPO has nothing to leave out.
    assert metrics["policy/computed"] == pytest.approx(1.0 if algorithm["preset"] == "ppo" else 9 / 35)
    assert all_metrics["policy/computed"] == 1.0
    assert metrics["policy/loss"] == pytest.approx(all_metrics["policy/loss"], abs=1e-9)
    assert max(float(grad.abs().max()) for grad in grads.values()) > 1e-4
    assert grads.keys() == all_grads.keys()
    for name, grad in all_grads.items():
        assert torch.allclose(grads[name], grad, rtol=0, atol=1e-9), name
    for name, tensor in all_tensors.items():
        assert torch.allclose(tensors[name], tensor, rtol=0, atol=1e-7), name


@pytest.mark.parametrize("term", [{}, {"kl": "none", "kl_coef": 0, "entropy_coef": 0.01}], ids=["kl", "entropy"])
def test_a_term_of_every_token_has_all_of_them_computed(tiny_model: Path, term: dict[str, Any]) -> None:
    learner = make_learner(tiny_model, algorithm={**GRPO, **term})
    groups = [made_up_group([1.0, 1.0], task_id="s"), made_up_group([1.0, 0.0], task_id="x")]
    assert learner.update(learner.annotate(collate(groups))).metrics["policy/computed"] == 1.0


def test_log_probs_and_gradients_are_those_of_pefts_own_layers(tiny_model: Path) -> None:
    # rlft.model.layers.lora replaces the arithmetic of peft's layers; without it the same model must give the same.
    warm_start = random_tensors(tiny_model)
    own, peft = (widen(make_learner(tiny_model, warm_start=warm_start)) for _ in range(2))
    replaced = [module for module in peft.roles.model.modules() if module.__dict__.pop("forward", None)]
    assert len(replaced) == 2 * (7 + 2)  # two layers, their q, k, v, o, gate, up, down, and their MLP
    results = []
    for learner in (own, peft):
        logprobs, _ = models.token_logprobs(learner.roles.model, pack(made_up_batch()), 1.0)
        (logprobs * torch.linspace(-1, 1, len(logprobs))).sum().backward()
        results.append((logprobs.detach(), gradients(learner)))
    assert torch.allclose(results[0][0], results[1][0], rtol=0, atol=1e-12)
    assert results[0][1].keys() == results[1][1].keys()
    for name, grad in results[1][1].items():
        assert float(grad.abs().max()) > 1e-6
        assert torch.allclose(results[0][1][name], grad, rtol=0, atol=1e-12), name


def test_the_loss_of_an_update_is_that_of_the_formula(tiny_model: Path) -> None:
    # On the first update the ratio is 1 and, without a warm start, the KL is 0: the loss is minus the mean over
    # sequences of their advantages, which is 0 within every group of GRPO. With sequence_sum it is not:
    # group a, token sums of the advantages: rewards 1, 0, 0.25, mean 5/12, std 0.520416 + 0.0001:
    #   (7/12 * 3 - 5/12 * 1 - 2/12 * 5) / 0.520516 = 0.5 / 0.520516 = 0.960585
    # group b: rewards 0.5, 0.75, std 0.176777 + 0.0001: (-0.125 * 2 + 0.125 * 6) / 0.176877 = 2.826824
    # group c: std 0.577350 + 0.0001: (-0.5 * 1 + 0.5 * 2 - 0.5 * 4 + 0.5 * 4) / 0.577450 = 0.865876
    # loss = -(0.960585 + 2.826824 + 0.865876) / 9 = -0.517032
    plain = make_learner(tiny_model, algorithm=GRPO)
    metrics = plain.update(plain.annotate(made_up_batch())).metrics
    assert metrics["policy/loss"] == pytest.approx(0, abs=1e-6)
    summed = make_learner(tiny_model, algorithm={**GRPO, "aggregate": "sequence_sum"})
    metrics = summed.update(summed.annotate(made_up_batch())).metrics
    assert metrics["policy/loss"] == pytest.approx(-0.517032, abs=1e-5)
    assert metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-6)
    assert metrics["policy/clip_fraction"] == 0
    assert metrics["policy/skipped"] == 0


# Annotation


@pytest.mark.parametrize(
    ("algorithm", "updates", "expected"),
    [
        (GRPO, 1, {"ref_logprobs"}),
        (GRPO, 2, {"old_logprobs", "ref_logprobs"}),
        ({**GRPO, "kl": "none", "kl_coef": 0}, 1, set()),
        (PPO, 1, {"old_logprobs", "ref_logprobs", "values", "returns"}),
        ({**PPO, "kl": "none", "kl_coef": 0}, 1, {"values", "returns"}),
    ],
)
def test_only_what_the_algorithm_needs_is_computed(
    tiny_model: Path, algorithm: dict[str, Any], updates: int, expected: set[str]
) -> None:
    learner = make_learner(tiny_model, algorithm=algorithm, updates_per_step=updates)
    batch = learner.annotate(made_up_batch())
    names = ("old_logprobs", "ref_logprobs", "values", "returns")
    assert {name for name in names if getattr(batch, name) is not None} == expected
    assert batch.advantages is not None
    assert batch.advantages.shape == batch.sequence_index.shape


def test_the_first_of_two_updates_is_on_policy(tiny_model: Path) -> None:
    # With old log-probs from their own pass: the ratio is 1 and nothing is clipped; in the second update it has moved.
    learner = make_learner(tiny_model, updates_per_step=2, learner={"threads": 1, "lr": 0.05})
    first, second = minibatches(learner.annotate(made_up_batch()), 2)
    assert learner.update(first).metrics["policy/ratio_max"] == pytest.approx(1.0, abs=1e-5)
    assert learner.update(second).metrics["policy/ratio_max"] > 1.05


# Updates that are not made


@pytest.mark.parametrize(
    ("algorithm", "poison"),
    [
        (GRPO, {"advantages": math.nan}),
        (GRPO, {"old_logprobs": -1e4}),  # a ratio of exp(9995) = inf
        (PPO, {"advantages": math.inf}),
        (PPO, {"returns": math.nan}),  # only the critic's loss is not finite
    ],
    ids=["grpo-advantage", "grpo-ratio", "ppo-advantage", "ppo-return"],
)
def test_an_update_that_is_not_finite_changes_nothing(
    tiny_model: Path, algorithm: dict[str, Any], poison: dict[str, float]
) -> None:
    learner = make_learner(tiny_model, algorithm=algorithm, updates_per_step=2)
    untouched = make_learner(tiny_model, algorithm=algorithm, updates_per_step=2)
    for other in (learner, untouched):
        other.update(other.annotate(made_up_batch(0)))
    batch = learner.annotate(made_up_batch(1))
    before = learner.state()
    changed = {name: getattr(batch, name).clone() for name in poison}
    for name, value in poison.items():
        changed[name][1 if name != "old_logprobs" else slice(None)] = value
    metrics = learner.update(replace(batch, **changed)).metrics
    assert metrics["policy/skipped"] == 1
    after = learner.state()
    assert_same_bits(before[0], after[0])
    assert before[1] == after[1]
    # And it leaves nothing behind that the next update would feel.
    metrics = learner.update(batch).metrics
    assert metrics["policy/skipped"] == 0
    untouched.update(batch)
    assert_same_bits(learner.state()[0], untouched.state()[0])


# State


@pytest.mark.parametrize("with_warm_start", [False, True], ids=["from the base", "warm start"])
@BOTH
def test_a_restored_learner_goes_on_bit_for_bit(
    tiny_model: Path, algorithm: dict[str, Any], with_warm_start: bool
) -> None:
    changes = {
        "algorithm": algorithm,
        "updates_per_step": 2,
        "learner": {"threads": 1, "lr": 0.01, "schedule": "linear"},
    }
    warm_start = random_tensors(tiny_model) if with_warm_start else None
    learner = make_learner(tiny_model, warm_start=warm_start, **changes)
    for step in range(3):
        learner.update(learner.annotate(made_up_batch(step)))
    tensors, numbers = learner.state()
    kept = {name: tensor.clone() for name, tensor in tensors.items()}

    # The other one begins with another seed: all that has changed since the start comes with the state.
    restored = make_learner(tiny_model, warm_start=warm_start, seed=5, **changes)
    assert differing(restored.state()[0] | tensors, kept) == set()
    restored.load_state(tensors, json.loads(json.dumps(numbers)))
    assert_same_bits(restored.state()[0], kept)
    for step in range(3, 6):
        metrics = [other.update(other.annotate(made_up_batch(step))).metrics for other in (learner, restored)]
        assert metrics[0] == metrics[1]
    assert_same_bits(restored.state()[0], learner.state()[0])
    assert restored.adapter(6).hash == learner.adapter(6).hash
    # What `state` gave is a copy: the updates since then did not reach it.
    assert_same_bits(tensors, kept)


@BOTH
def test_a_learner_can_go_back_to_its_beginning(tiny_model: Path, algorithm: dict[str, Any]) -> None:
    # The optimizer had no state then; what it has now must go.
    learner = make_learner(tiny_model, algorithm=algorithm)
    beginning = learner.state()
    first = learner.update(learner.annotate(made_up_batch())).metrics
    after, _ = learner.state()
    learner.update(learner.annotate(made_up_batch(1)))
    learner.load_state(*beginning)
    assert_same_bits(learner.state()[0], beginning[0])
    assert learner.update(learner.annotate(made_up_batch())).metrics == first
    assert_same_bits(learner.state()[0], after)


@pytest.mark.parametrize("algorithm", [{"preset": "dr_grpo"}, GRPO], ids=["no KL", "another KL"])
def test_a_fork_is_held_to_what_its_config_says(tiny_model: Path, algorithm: dict[str, Any]) -> None:
    start = random_tensors(tiny_model)
    before = make_learner(tiny_model, warm_start=start, algorithm=algorithm)
    before.update(before.annotate(made_up_batch()))
    # The same objective from the beginning, and one that another run's state is put into.
    forked = {"preset": "grpo", "kl_coef": 0.5}
    fresh, fork = (make_learner(tiny_model, warm_start=start, algorithm=forked) for _ in range(2))
    fork.load_state(*before.state())
    assert fork.kl_coef == fresh.kl_coef == 0.5
    batch = made_up_batch(1)
    annotated = fork.annotate(batch)
    assert annotated.ref_logprobs is not None
    assert torch.equal(annotated.ref_logprobs, fresh.annotate(batch).ref_logprobs)  # type: ignore[arg-type]


def test_a_fork_has_the_reference_that_its_config_names(tiny_model: Path, tmp_path: Path) -> None:
    teachers = []
    for seed in (3, 4):
        folder = tmp_path / f"teacher-{seed}"
        folder.mkdir()
        rank = 2 * seed
        tensors = random_tensors(tiny_model, seed=seed, rank=rank)
        save_tensors(folder, AdapterConfig(rank=rank, alpha=2.0 * rank), str(tiny_model), tensors)
        teachers.append(ReferenceSource(folder=str(folder)))
    config, batch = tiny_config(tiny_model, algorithm=GRPO), made_up_batch()
    before, fork, fresh = (Learner(config, tiny_model, reference=teachers[n]) for n in (0, 1, 1))
    fork.load_state(*before.state())
    expected = fresh.annotate(batch).ref_logprobs
    assert torch.equal(fork.annotate(batch).ref_logprobs, expected)  # type: ignore[arg-type]
    assert not torch.equal(before.annotate(batch).ref_logprobs, expected)  # type: ignore[arg-type]


@pytest.mark.parametrize(("then", "now"), [(4, 1), (1, 4), (2, 2)])
def test_a_schedule_goes_on_where_it_was_with_other_updates_a_step(tiny_model: Path, then: int, now: int) -> None:
    def made(updates_per_step: int) -> Learner:
        learner = {"threads": 1, "lr": 0.01, "schedule": "linear"}
        return make_learner(tiny_model, steps=4, tasks_per_step=4, updates_per_step=updates_per_step, learner=learner)

    before = made(then)
    for update in range(2 * then):  # half of the run
        before.update(before.annotate(made_up_batch(update)))
    fork = made(now)
    fork.load_state(*before.state())
    assert fork.num_updates == 2 * then
    rates = [fork.update(fork.annotate(made_up_batch(n))).metrics["policy/lr"] for n in range(2 * now)]
    assert rates == pytest.approx([0.01 * (0.5 - n / (4 * now)) for n in range(2 * now)])
    again = made(now)
    again.load_state(*fork.state())
    assert again.update(again.annotate(made_up_batch())).metrics["policy/lr"] == 0


def test_state_of_another_configuration_is_refused(tiny_model: Path) -> None:
    ppo, grpo = make_learner(tiny_model, algorithm=PPO), make_learner(tiny_model, algorithm=GRPO)
    for learner, other in ((ppo, grpo), (grpo, ppo)):
        with pytest.raises(ValueError, match="do not fit this configuration"):
            learner.load_state(*other.state())


def test_an_adapter_is_a_stamped_copy(tiny_model: Path) -> None:
    learner = make_learner(tiny_model)
    learner.update(learner.annotate(made_up_batch(0)))
    adapter = learner.adapter(1)
    kept = {name: tensor.clone() for name, tensor in adapter.tensors.items()}
    learner.update(learner.annotate(made_up_batch(1)))
    assert_same_bits(adapter.tensors, kept)
    assert adapter.version == 1
    assert adapter.hash == adapter_hash(kept) != learner.adapter(2).hash
    assert all(tensor.dtype == torch.float32 for tensor in kept.values())


def test_a_fresh_adapter_follows_from_the_seed(tiny_model: Path) -> None:
    one, same, other = (make_learner(tiny_model, seed=seed).adapter(0) for seed in (1, 1, 2))
    assert one.hash == same.hash != other.hash


# The reference


@BOTH
def test_the_reference_is_the_warm_start_and_stays_it(tiny_model: Path, algorithm: dict[str, Any]) -> None:
    warm_start = random_tensors(tiny_model)
    learner = make_learner(tiny_model, warm_start=warm_start, algorithm=algorithm, learner={"threads": 1, "lr": 0.02})
    assert_same_bits(learner.adapter(0).tensors, warm_start)  # RL goes on from it
    batch = learner.annotate(made_up_batch())
    first = learner.update(batch).metrics
    assert first["policy/kl_ref"] == pytest.approx(0, abs=1e-7)
    for _ in range(3):
        again = learner.annotate(made_up_batch())
        metrics = learner.update(again).metrics
        assert again.ref_logprobs is not None
        assert batch.ref_logprobs is not None
        assert torch.equal(again.ref_logprobs, batch.ref_logprobs)
    assert metrics["policy/kl_ref"] > 1e-3
    assert learner.roles.reference is not None
    assert_same_bits(read_role(learner.roles.reference), warm_start)
    assert differing(learner.adapter(4).tensors, warm_start) == set(warm_start)


def test_without_a_warm_start_the_reference_is_the_base(tiny_model: Path) -> None:
    learner = make_learner(tiny_model, learner={"threads": 1, "lr": 0.02})
    bare = models.load_base(tiny_model, torch.float32, torch.device("cpu"))
    batch = learner.annotate(made_up_batch())
    with torch.no_grad():
        expected = [
            bare(input_ids=torch.tensor([prompt + tokens])).logits[0].log_softmax(-1)[len(prompt) + t - 1, token]
            for prompt, tokens in zip(batch.prompt_ids, batch.token_ids, strict=True)
            for t, token in enumerate(tokens)
        ]
    assert learner.update(batch).metrics["policy/kl_ref"] == pytest.approx(0, abs=1e-7)
    for _ in range(3):
        batch = learner.annotate(made_up_batch())
        metrics = learner.update(batch).metrics
    assert batch.ref_logprobs is not None
    assert torch.allclose(batch.ref_logprobs, torch.stack(expected), rtol=0, atol=1e-5)
    assert metrics["policy/kl_ref"] > 1e-4


def test_a_warm_start_that_does_not_fit_is_refused(tiny_model: Path) -> None:
    other_rank = random_tensors(tiny_model, rank=8)
    with pytest.raises(ValueError, match=r"check adapter\.kind, adapter\.rank"):
        make_learner(tiny_model, warm_start=other_rank)
    incomplete = dict(list(random_tensors(tiny_model).items())[1:])
    with pytest.raises(ValueError, match="1 differ in name or shape"):
        make_learner(tiny_model, warm_start=incomplete)


# The critic


def test_the_critic_begins_as_the_policy_and_knows_nothing(tiny_model: Path) -> None:
    learner = make_learner(tiny_model, warm_start=random_tensors(tiny_model), algorithm=PPO)
    batch = learner.annotate(made_up_batch())
    assert batch.values is not None
    assert not batch.values.any()


def test_policy_and_critic_do_not_train_each_other(tiny_model: Path) -> None:
    algorithm = {**PPO, "kl": "none", "kl_coef": 0}
    learner = make_learner(tiny_model, warm_start=random_tensors(tiny_model), algorithm=algorithm)
    learner.update(
        learner.annotate(made_up_batch())
    )  # moves the head off 0, so that the critic's adapter has a gradient

    def moved_by(**changes: Tensor) -> set[str]:
        """Roles whose parameters an update moves; without momentum, only a gradient does."""
        learner.roles.optimizer.state.clear()
        before, _ = learner.state()
        learner.update(replace(batch, **changes))
        after, _ = learner.state()
        moved = differing({name: after[name] for name in before}, before)
        return {role for name in moved for role in ("policy", "critic", "value_head") if role in name}

    batch = learner.annotate(made_up_batch())
    assert batch.values is not None
    assert batch.advantages is not None
    assert moved_by(returns=batch.values) == {"policy"}
    batch = learner.annotate(made_up_batch())
    assert batch.advantages is not None
    assert moved_by(advantages=torch.zeros_like(batch.advantages)) == {"critic", "value_head"}


def test_the_critic_learns_what_can_be_known(tiny_model: Path) -> None:
    # The reward of a sample is told by its prompt alone: 0, 1, 2 or 3 for four tasks. A critic that knows it explains
    # all the variance of the returns (lambda 1, no KL: the return of every token is the reward).
    learner = make_learner(
        tiny_model,
        algorithm={**PPO, "kl": "none", "kl_coef": 0, "gae_lambda": 1.0, "value_clip": 0},
        learner={"threads": 1, "lr": 1e-5, "critic_lr": 0.02},
    )
    groups = [made_up_group([float(reward)] * 3, task_id=f"task-{reward}", prompt_length=6) for reward in range(4)]
    explained = [
        learner.update(learner.annotate(collate(groups))).metrics["critic/explained_variance"] for _ in range(25)
    ]
    assert explained[0] == 0  # the values are all 0
    assert explained[-1] > 0.5


# Learning rates


def schedule(name: str, *, steps: int, updates: int = 1, warmup: int = 0) -> list[float]:
    config = tiny_config(
        "none", steps=steps, updates_per_step=updates, learner={"schedule": name, "warmup_steps": warmup}
    )
    total = steps * updates
    return [lr_factor(config.learner, update=update, total=total, warmup=warmup * updates) for update in range(total)]


def test_learning_rates_by_hand() -> None:
    assert schedule("constant", steps=3) == [1, 1, 1]
    assert schedule("linear", steps=4) == pytest.approx([1, 3 / 4, 2 / 4, 1 / 4])
    # cos(0), cos(60), cos(120) degrees: (1 + 1) / 2, (1 + 1/2) / 2, (1 - 1/2) / 2
    assert schedule("cosine", steps=3) == pytest.approx([1, 0.75, 0.25])


@pytest.mark.parametrize("name", ["constant", "linear", "cosine"])
def test_the_warm_up_rises_to_the_peak(name: str) -> None:
    # 2 warm-up steps of 2 updates: 1/4, 2/4, 3/4, 4/4; then the schedule over the remaining 6 updates.
    rates = schedule(name, steps=5, updates=2, warmup=2)
    assert rates[:4] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    rest = {
        "constant": [1.0] * 6,
        "linear": [1 - i / 6 for i in range(6)],
        "cosine": [(1 + math.cos(math.pi * i / 6)) / 2 for i in range(6)],
    }[name]
    assert rates[4:] == pytest.approx(rest)


def test_the_rate_follows_the_updates_that_were_made(tiny_model: Path) -> None:
    learner = make_learner(tiny_model, steps=4, learner={"threads": 1, "lr": 0.01, "schedule": "linear"})
    batch = learner.annotate(made_up_batch())
    assert batch.advantages is not None
    broken = replace(batch, advantages=batch.advantages * math.nan)
    rates = [learner.update(part).metrics["policy/lr"] for part in (batch, broken, batch, batch)]
    # The second update is skipped, so the third has its rate.
    assert rates == pytest.approx([0.01, 0.0075, 0.0075, 0.005])


def test_the_gradient_is_clipped_to_its_norm(tiny_model: Path) -> None:
    learner = make_learner(tiny_model, learner={"threads": 1, "max_grad_norm": 0.001})
    metrics = learner.update(learner.annotate(made_up_batch())).metrics
    assert metrics["policy/grad_norm"] > 0.001
    norm = math.sqrt(sum(float(grad.square().sum()) for grad in gradients(learner).values()))
    assert norm == pytest.approx(0.001, rel=1e-3)


def test_adam_moves_by_the_learning_rate_at_first(tiny_model: Path) -> None:
    # Adam's first step is lr * g / (|g| + 1e-8): every entry with a gradient well above 1e-8 moves by lr.
    learner = make_learner(tiny_model, learner={"threads": 1, "lr": 0.003})
    before = learner.adapter(0).tensors
    learner.update(learner.annotate(made_up_batch()))
    after = learner.adapter(1).tensors
    for name, grad in gradients(learner).items():
        key = name.replace(".policy.", ".")
        large = grad.abs() > 1e-5
        steps = (after[key] - before[key])[large]
        assert torch.allclose(steps, -0.003 * grad[large].sign(), rtol=2e-3, atol=0), name


@BOTH
def test_updates_touch_only_what_is_trained(tiny_model: Path, algorithm: dict[str, Any]) -> None:
    learner = make_learner(tiny_model, warm_start=random_tensors(tiny_model), algorithm=algorithm)
    before = {name: tensor.clone() for name, tensor in learner.roles.model.state_dict().items()}
    for step in range(2):
        learner.update(learner.annotate(made_up_batch(step)))
    moved = differing(learner.roles.model.state_dict(), before)
    roles = {
        part for name in moved for part in name.split(".") if part in ("policy", "reference", "critic", "base_layer")
    }
    assert moved
    assert roles == ({"policy", "critic"} if algorithm is PPO else {"policy"})
    assert all("lora_" in name for name in moved)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_makes_an_update(tiny_model: Path, tmp_path: Path, name: str) -> None:
    reference = None
    if name == "opd":  # distillation needs a teacher that is not the policy
        save_tensors(tmp_path, AdapterConfig(rank=4), str(tiny_model), random_tensors(tiny_model))
        reference = ReferenceSource(folder=str(tmp_path))
    config = tiny_config(tiny_model, algorithm={"preset": name}, reference=str(tmp_path) if reference else "")
    learner = Learner(config, tiny_model, reference=reference)
    before = learner.adapter(0).hash
    batch = learner.annotate(made_up_batch())
    assert learner.has_gradient(batch)
    metrics = learner.update(batch).metrics
    assert metrics["policy/skipped"] == 0
    assert all(math.isfinite(value) for value in metrics.values())
    assert learner.adapter(1).hash != before
