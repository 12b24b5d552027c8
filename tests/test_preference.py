"""Preference losses: by hand, as plain loops from their papers, and against TRL's trainers.

As in `test_policy_trl.py`, TRL's own methods run on bare objects that have only the settings which they read, and give
them log-probs that we choose.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import DPOTrainer, KTOTrainer

from rlft.objectives.algorithm import Preference
from rlft.objectives.measures import Measures, join, numbers
from rlft.objectives.preference import (
    _log1mexp,
    example_losses,
    is_right,
    kto_reference_point,
    preference_loss,
    sequence_sums,
)

PAIRED = {
    "dpo": Preference(beta=0.3),
    "cdpo": Preference(beta=0.3, label_smoothing=0.2),
    "ipo": Preference(loss="ipo", beta=0.4),
    "hinge": Preference(loss="hinge", beta=0.3),
    "simpo": Preference(loss="simpo", beta=2.0, margin=0.5),
    "orpo": Preference(loss="orpo", beta=0.25),
}
ALL = PAIRED | {"kto": Preference(loss="kto", beta=0.3, desirable_weight=1.33, undesirable_weight=0.7)}

# Six completions; in pairs, the chosen one stands first, second, first.
LENGTHS = [3, 5, 1, 4, 2, 7]
LABELS = [1, -1, -1, 1, 1, -1]
INDEX = torch.repeat_interleave(torch.tensor(LENGTHS))
Z0 = 0.4
"""KTO's reference point."""


def double(values: list[float], *, grad: bool = False) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


def made_up(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-probs of the policy and of the reference, flat over the tokens of the six completions."""
    generator = torch.Generator().manual_seed(seed)
    logprobs = -torch.rand(sum(LENGTHS), generator=generator, dtype=torch.float64) * 2 - 0.01
    ref = logprobs + 0.5 * torch.randn(sum(LENGTHS), generator=generator, dtype=torch.float64)
    return logprobs.requires_grad_(), ref


def loss_of(
    preference: Preference,
    logprobs: Tensor,
    ref: Tensor | None,
    *,
    lengths: list[int] = LENGTHS,
    labels: list[int] = LABELS,
    num_examples: int | None = None,
    kl: float = Z0,
) -> tuple[Tensor, Measures]:
    return preference_loss(
        preference,
        logprobs=logprobs,
        ref_logprobs=ref if preference.needs_reference else None,
        sequence_index=torch.repeat_interleave(torch.tensor(lengths)),
        labels=torch.tensor(labels),
        num_examples=num_examples or (len(lengths) // 2 if preference.is_paired else len(lengths)),
        kl=kl,
    )


def slope_of(preference: Preference, logprobs: Tensor, ref: Tensor | None, **changes: Any) -> list[float]:
    loss, _ = loss_of(preference, logprobs, ref, **changes)
    return torch.autograd.grad(loss, logprobs)[0].tolist()


# By hand


def test_losses_of_a_pair_by_hand() -> None:
    # The chosen completion has tokens with log-probs -0.5, -0.7, under the reference -0.6, -1.0: s = 0.4; the rejected
    # one has -0.3 and -0.1: s = -0.2. Per token 0.2 and -0.2, and without the reference -0.6 and -0.3.
    logprobs, ref = double([-0.5, -0.7, -0.3], grad=True), double([-0.6, -1.0, -0.1])

    def value(preference: Preference) -> float:
        return loss_of(preference, logprobs, ref, lengths=[2, 1], labels=[1, 0])[0].item()

    # -log sigmoid(0.5 * 0.6) = log(1 + e^-0.3) = 0.554355; swapped log(1 + e^0.3) = 0.854355
    assert value(Preference(beta=0.5)) == pytest.approx(0.554355, abs=1e-6)
    assert value(Preference(beta=0.5, label_smoothing=0.1)) == pytest.approx(0.584355, abs=1e-6)
    # (0.2 + 0.2 - 1 / (2 * 0.5))^2 = 0.36
    assert value(Preference(loss="ipo", beta=0.5)) == pytest.approx(0.36)
    # 1 - 0.5 * 0.6 = 0.7, and nothing once the margin is above 1: 2 * 0.6 = 1.2
    assert value(Preference(loss="hinge", beta=0.5)) == pytest.approx(0.7)
    assert value(Preference(loss="hinge", beta=2.0)) == 0
    # -log sigmoid(2 * (-0.6 + 0.3) - 0.5) = log(1 + e^1.1) = 1.387335
    assert value(Preference(loss="simpo", beta=2.0, margin=0.5)) == pytest.approx(1.387335, abs=1e-6)
    # Odds e^-0.6 / (1 - e^-0.6) = 1.216369 and e^-0.3 / (1 - e^-0.3) = 2.858296; their ratio 0.425557;
    # 0.6 - 0.25 * log(0.425557 / 1.425557) = 0.6 + 0.25 * 1.208918 = 0.902230
    assert value(Preference(loss="orpo", beta=0.25)) == pytest.approx(0.902230, abs=1e-6)


def test_kto_by_hand() -> None:
    # The same completions, one labelled good and one bad, with z0 = 0.1 and beta 0.5:
    #   good: 1 - sigmoid(0.5 * (0.4 - 0.1)) = 1 - 0.537430 = 0.462570, times 2
    #   bad: 1 - sigmoid(0.5 * (0.1 + 0.2)) = 0.462570, times 3
    # mean of 0.925140 and 1.387710 = 1.156425
    logprobs, ref = double([-0.5, -0.7, -0.3], grad=True), double([-0.6, -1.0, -0.1])
    preference = Preference(loss="kto", beta=0.5, desirable_weight=2.0, undesirable_weight=3.0)
    loss, measures = loss_of(preference, logprobs, ref, lengths=[2, 1], labels=[1, 0], kl=0.1)
    assert loss.item() == pytest.approx(1.156425, abs=1e-6)
    # Rewards 0.5 * 0.4 and 0.5 * -0.2; margins 0.15 and 0.15, both on the right side.
    assert numbers(measures) == pytest.approx(
        {
            "preference/margin": 0.15,
            "preference/accuracy": 1.0,
            "preference/reward_chosen": 0.2,
            "preference/reward_rejected": -0.1,
            "preference/logprob_chosen": -1.2,  # of the whole completion, -0.5 - 0.7
            "preference/logprob_rejected": -0.3,
        }
    )


def test_metrics_of_pairs_by_hand() -> None:
    # Two pairs of one token each: s = 0.4, -0.2 | -0.5 (rejected), -0.7 (chosen). beta 0.5: margins 0.3 and -0.1.
    logprobs, ref = double([-0.6, -1.2, -1.5, -1.7], grad=True), double([-1.0, -1.0, -1.0, -1.0])
    _, measures = loss_of(Preference(beta=0.5), logprobs, ref, lengths=[1, 1, 1, 1], labels=[1, 0, 0, 1])
    assert numbers(measures) == pytest.approx(
        {
            "preference/margin": 0.1,
            "preference/accuracy": 0.5,
            "preference/reward_chosen": -0.075,  # 0.5 * (0.4 - 0.7) / 2
            "preference/reward_rejected": -0.175,  # 0.5 * (-0.2 - 0.5) / 2
            "preference/logprob_chosen": -1.15,  # (-0.6 - 1.7) / 2
            "preference/logprob_rejected": -1.35,  # (-1.2 - 1.5) / 2
        }
    )


def test_kto_reference_point_is_the_mean_and_never_negative() -> None:
    assert kto_reference_point(double([0.5, -0.1, 0.2])) == pytest.approx(0.2)
    assert kto_reference_point(double([-0.5, 0.1])) == 0


def test_example_losses_are_those_of_the_pairs_in_order() -> None:
    # One token each, beta 0.5; the second pair's chosen one stands second: margins 0.5 * 0.6 and 0.5 * -0.2.
    losses, margins, rewards = example_losses(
        Preference(loss="hinge", beta=0.5),
        logprobs=double([-0.6, -1.2, -1.5, -1.7]),
        ref_logprobs=double([-1.0, -1.0, -1.0, -1.0]),
        sequence_index=torch.arange(4),
        labels=torch.tensor([1, 0, 0, 1]),
    )
    assert losses.tolist() == pytest.approx([0.7, 1.1])
    assert margins.tolist() == pytest.approx([0.3, -0.1])
    assert rewards.tolist() == pytest.approx([0.2, -0.1, -0.25, -0.35])


def test_a_policy_that_sides_with_neither_is_half_right() -> None:
    assert is_right(double([0.3, -0.1, 0.0])).tolist() == [1, 0, 0.5]


def test_sequence_sums_by_hand() -> None:
    # Sequence 1 has no tokens.
    assert sequence_sums(double([1, 2, 4, 8]), torch.tensor([0, 0, 2, 2]), 3).tolist() == [3, 0, 12]


# From the papers


def paper_loss(preference: Preference, logprobs: Tensor, ref: Tensor) -> Tensor:
    """Token by token; shares nothing with the code."""
    rows, start = [], 0
    for length in LENGTHS:
        rows.append((list(logprobs[start : start + length]), ref[start : start + length].tolist()))
        start += length
    beta, losses = preference.beta, []

    def sigmoid(x: Tensor) -> Tensor:
        return 1 / (1 + torch.exp(-x))

    if preference.loss == "kto":  # https://arxiv.org/abs/2402.01306, equation 8
        for (own, others), label in zip(rows, LABELS, strict=True):
            ratio = sum(own) - sum(others)
            if label > 0:
                losses.append(preference.desirable_weight * (1 - sigmoid(beta * (ratio - Z0))))
            else:
                losses.append(preference.undesirable_weight * (1 - sigmoid(beta * (Z0 - ratio))))
        return sum(losses) / len(losses)
    for first in range(0, len(rows), 2):
        pair = (first, first + 1) if LABELS[first] > 0 else (first + 1, first)
        (chosen, chosen_ref), (rejected, rejected_ref) = (rows[number] for number in pair)
        ratios = [sum(chosen) - sum(chosen_ref), sum(rejected) - sum(rejected_ref)]
        means = [sum(chosen) / len(chosen), sum(rejected) / len(rejected)]
        delta = ratios[0] - ratios[1]
        if preference.loss == "sigmoid":  # https://arxiv.org/abs/2305.18290, equation 7, and cDPO
            right, wrong = torch.log(sigmoid(beta * delta)), torch.log(sigmoid(-beta * delta))
            losses.append(-(1 - preference.label_smoothing) * right - preference.label_smoothing * wrong)
        elif preference.loss == "ipo":  # https://arxiv.org/abs/2310.12036, equation 17, on means over tokens
            losses.append((ratios[0] / len(chosen) - ratios[1] / len(rejected) - 1 / (2 * beta)) ** 2)
        elif preference.loss == "hinge":  # https://arxiv.org/abs/2305.10425
            losses.append(max(0.0, 1 - beta * delta))
        elif preference.loss == "simpo":  # https://arxiv.org/abs/2405.14734, equation 6
            losses.append(-torch.log(sigmoid(beta * means[0] - beta * means[1] - preference.margin)))
        else:  # https://arxiv.org/abs/2403.07691, equations 4, 6 and 7
            odds = [torch.exp(mean) / (1 - torch.exp(mean)) for mean in means]
            losses.append(-means[0] - beta * torch.log(sigmoid(torch.log(odds[0] / odds[1]))))
    return sum(losses) / len(losses)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ALL)
def test_loss_and_gradient_equal_those_of_the_paper(name: str, seed: int) -> None:
    logprobs, ref = made_up(seed)
    ours, _ = loss_of(ALL[name], logprobs, ref)
    papers = paper_loss(ALL[name], logprobs, ref)
    assert ours.item() == pytest.approx(papers.item(), abs=1e-9)
    own, other = (torch.autograd.grad(loss, logprobs)[0] for loss in (ours, papers))
    assert float(other.abs().max()) > 1e-3
    assert torch.allclose(own, other, rtol=0, atol=1e-9)


# Properties


@pytest.mark.parametrize("name", ALL)
def test_a_loss_raises_the_chosen_and_lowers_the_rejected(name: str) -> None:
    # At the start the policy is the reference.
    logprobs, _ = made_up()
    slope = slope_of(ALL[name], logprobs, logprobs.detach())
    for value, sequence in zip(slope, INDEX.tolist(), strict=True):
        assert value * LABELS[sequence] < 0


@pytest.mark.parametrize("name", ["dpo", "cdpo", "ipo", "hinge"])
def test_a_policy_that_is_the_reference_has_no_margin(name: str) -> None:
    logprobs, _ = made_up()
    loss, measures = loss_of(ALL[name], logprobs, logprobs.detach())
    metrics = numbers(measures)
    for of in ("margin", "reward_chosen", "reward_rejected"):
        assert metrics[f"preference/{of}"] == 0
    assert metrics["preference/accuracy"] == 0.5  # it sides with neither
    # log 2; log 2; (1 / 0.8)^2; 1
    assert loss.item() == pytest.approx({"dpo": math.log(2), "cdpo": math.log(2), "ipo": 1.5625, "hinge": 1}[name])


@pytest.mark.parametrize("name", ALL)
def test_the_parts_of_an_update_add_up(name: str) -> None:
    # Parts of one pair each (two completions for KTO), divided by the examples of the whole update.
    logprobs, ref = made_up()
    whole, measures = loss_of(ALL[name], logprobs, ref)
    num_examples = 3 if ALL[name].is_paired else 6
    total, parts = 0.0, []
    for first in (0, 2, 4):
        tokens = torch.isin(INDEX, torch.tensor([first, first + 1]))
        part, of_part = loss_of(
            ALL[name],
            logprobs[tokens],
            ref[tokens],
            lengths=LENGTHS[first : first + 2],
            labels=LABELS[first : first + 2],
            num_examples=num_examples,
        )
        total += part.item()
        parts.append(of_part)
    assert total == pytest.approx(whole.item(), abs=1e-12)
    assert numbers(join(parts)) == pytest.approx(numbers(measures), abs=1e-12)


@pytest.mark.parametrize("name", PAIRED)
def test_the_labels_say_which_one_is_chosen_not_the_order(name: str) -> None:
    # Every pair turned around, with its labels: the same loss, and the slope of every token moves with it.
    logprobs, ref = made_up()
    tokens = torch.arange(len(INDEX)).split(LENGTHS)
    order = torch.cat([tokens[sequence] for sequence in (1, 0, 3, 2, 5, 4)])
    turned = {"lengths": [5, 3, 4, 1, 7, 2], "labels": [-label for label in LABELS]}
    loss, measures = loss_of(PAIRED[name], logprobs, ref)
    turned_loss, turned_measures = loss_of(PAIRED[name], logprobs[order], ref[order], **turned)
    assert turned_loss.item() == pytest.approx(loss.item(), abs=1e-12)
    assert numbers(turned_measures) == pytest.approx(numbers(measures), abs=1e-12)
    own, other = (torch.autograd.grad(value, logprobs)[0] for value in (loss, turned_loss))
    assert torch.allclose(own, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("preference", "margin"),
    [
        # IPO is content where the difference per token is 1 / (2 beta).
        (Preference(loss="ipo", beta=0.25), 2.0),
        # cDPO where sigmoid(beta delta) = 0.9: delta = log 9 / beta.
        (Preference(beta=0.5, label_smoothing=0.1), math.log(9) / 0.5),
    ],
)
def test_where_a_loss_comes_to_rest(preference: Preference, margin: float) -> None:
    def slope(delta: float) -> float:
        return slope_of(
            preference, double([-1.0, -9.0], grad=True), double([-1.0 - delta, -9.0]), lengths=[1, 1], labels=[1, 0]
        )[0]

    assert slope(margin) == pytest.approx(0, abs=1e-9)
    assert slope(margin - 0.5) < -1e-3
    assert slope(margin + 0.5) > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orpo_is_finite_and_exact_at_both_ends(dtype: torch.dtype) -> None:
    # log(1 - e^x) near 0 and far below; its slope is -e^x / (1 - e^x).
    x = torch.tensor([-50.0, -5.0, -0.7, -0.69, -1e-3, -1e-6], dtype=dtype, requires_grad=True)
    result = _log1mexp(x)
    (slope,) = torch.autograd.grad(result.sum(), x)
    for value, own, own_slope in zip(x.tolist(), result.tolist(), slope.tolist(), strict=True):
        assert own == pytest.approx(math.log(-math.expm1(value)), rel=1e-5 if dtype == torch.float32 else 1e-12)
        assert own_slope == pytest.approx(math.exp(value) / math.expm1(value), rel=1e-4)
    # A completion that is certain (log-prob 0) has no finite odds; loss and slope stay finite all the same.
    logprobs = torch.tensor([0.0, -1.0], dtype=dtype, requires_grad=True)
    loss, _ = loss_of(PAIRED["orpo"], logprobs, None, lengths=[1, 1], labels=[1, 0])
    loss.backward()
    assert math.isfinite(loss.item())
    assert logprobs.grad is not None
    assert bool(logprobs.grad.isfinite().all())


# What is refused


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"beta": 0.0}, "beta must be above 0, got 0.0; 0.1 is usual, 2 for simpo"),
        ({"beta": -1.0}, "beta must be above 0"),
        ({"label_smoothing": 0.5}, r"must lie in \[0, 0.5\)"),
        ({"label_smoothing": -0.1}, r"must lie in \[0, 0.5\)"),
        ({"loss": "ipo", "label_smoothing": 0.1}, "goes with loss: sigmoid, not ipo"),
        ({"margin": 0.1}, "only with loss: simpo"),
        ({"loss": "simpo", "margin": -0.1}, "at least 0"),
        ({"desirable_weight": 2.0}, "desirable_weight is KTO's: .* only with loss: kto"),
        ({"loss": "kto", "undesirable_weight": -1.0}, "undesirable_weight is KTO's: at least 0"),
    ],
)
def test_preferences_that_contradict_themselves_are_refused(choices: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preference(**choices)


def test_what_a_loss_needs() -> None:
    assert {name for name, preference in ALL.items() if not preference.needs_reference} == {"simpo", "orpo"}
    assert {name for name, preference in ALL.items() if not preference.is_paired} == {"kto"}


# TRL


def rows_of(flat: Tensor, *, good: bool) -> list[Tensor]:
    """The rows of the completions with this label, in order."""
    return [row for row, label in zip(flat.split(LENGTHS), LABELS, strict=True) if (label > 0) == good]


def trainer_for(preference: Preference, **settings: Any) -> SimpleNamespace:
    """What the loss methods of TRL's preference trainers read of their trainer, for one process."""
    return SimpleNamespace(
        beta=preference.beta,
        label_smoothing=preference.label_smoothing,
        model=SimpleNamespace(training=True),
        accelerator=SimpleNamespace(
            device=torch.device("cpu"), gather=lambda tensor: tensor, gather_for_metrics=lambda tensor: tensor
        ),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        _total_train_tokens=0,
        _tp_size=1,
        _metrics={"train": defaultdict(list)},
        **settings,
    )


def trl_inputs(rows: list[Tensor]) -> tuple[dict[str, Tensor], Any]:
    """(a batch of one prompt token and a padded completion per row, a model that gives the rows' log-probs)"""
    log_probs = pad_sequence(rows, batch_first=True)
    mask = pad_sequence([torch.ones(1 + len(row), dtype=torch.int64) for row in rows], batch_first=True)
    completion_mask = mask.clone()
    completion_mask[:, 0] = 0
    zeros = torch.zeros(log_probs.shape)
    outputs = SimpleNamespace(log_probs=log_probs, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())
    inputs = {"input_ids": mask, "attention_mask": mask, "completion_mask": completion_mask}
    return inputs, lambda **kwargs: outputs


def assert_same(ours: Tensor, theirs: Tensor, leaf: Tensor, tolerance: float = 1e-9) -> None:
    assert ours.item() == pytest.approx(theirs.item(), abs=tolerance)
    own, other = (torch.autograd.grad(loss, leaf)[0] for loss in (ours, theirs))
    assert float(other.abs().max()) > 1e-3
    assert torch.allclose(own, other, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["dpo", "ipo", "hinge"])
def test_dpo_and_relatives_equal_those_of_trl(name: str) -> None:
    preference = PAIRED[name]
    logprobs, ref = made_up()
    ours, measures = loss_of(preference, logprobs, ref)
    trainer = trainer_for(
        preference,
        loss_types=[preference.loss],
        loss_weights=[1.0],
        f_divergence_type="reverse_kl",
        ld_alpha=None,
        use_weighting=False,
    )
    # TRL's batch is all chosen ones, then all rejected ones.
    inputs, model = trl_inputs(rows_of(logprobs, good=True) + rows_of(logprobs, good=False))
    for side, good in (("chosen", True), ("rejected", False)):
        inputs[f"ref_{side}_logps"] = torch.stack([row.sum() for row in rows_of(ref, good=good)])
    if name == "ipo":
        # TRL's means over tokens are divided by its mask's counts, as ours.
        assert inputs["completion_mask"].sum(1).tolist() == [3, 4, 2, 5, 1, 7]
    assert_same(ours, DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False), logprobs)
    metrics, own = trainer._metrics["train"], numbers(measures)
    if name != "ipo":  # whose margin is per token here and per completion there
        assert own["preference/margin"] == pytest.approx(metrics["rewards/margins"][0], abs=1e-9)
        assert own["preference/reward_chosen"] == pytest.approx(metrics["rewards/chosen"][0], abs=1e-9)
        assert own["preference/reward_rejected"] == pytest.approx(metrics["rewards/rejected"][0], abs=1e-9)
        assert own["preference/accuracy"] == pytest.approx(metrics["rewards/accuracies"][0], abs=1e-6)
    for side in ("chosen", "rejected"):
        assert own[f"preference/logprob_{side}"] == pytest.approx(metrics[f"logps/{side}"][0], abs=1e-9)


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.33, 0.7)])
def test_kto_equals_that_of_trl(weights: tuple[float, float]) -> None:
    preference = replace(ALL["kto"], desirable_weight=weights[0], undesirable_weight=weights[1])
    logprobs, ref = made_up()
    # Log-probs of mismatched completions, from which z0 comes; here the caller makes it, there the trainer.
    kl_logprobs, kl_ref = double([-3.0, -2.0, -5.0, -4.0, -2.5, -6.0]), double([-4.0, -2.5, -4.5, -4.0, -3.5, -6.5])
    ours, measures = loss_of(preference, logprobs, ref, kl=kto_reference_point(kl_logprobs - kl_ref))
    trainer = trainer_for(
        preference,
        loss_type="kto",
        calculate_KL=True,
        desirable_weight=weights[0],
        undesirable_weight=weights[1],
        _compute_kl_logps=lambda model, batch: kl_logprobs,
    )
    inputs, model = trl_inputs(list(logprobs.split(LENGTHS)))
    inputs |= {
        "label": torch.tensor([label > 0 for label in LABELS]),
        "ref_logps": torch.stack([row.sum() for row in ref.split(LENGTHS)]),
        "ref_KL_logps": kl_ref,
    }
    assert_same(ours, KTOTrainer._compute_loss(trainer, model, inputs, return_outputs=False), logprobs)
    metrics, own = trainer._metrics["train"], numbers(measures)
    assert metrics["kl"][0] == pytest.approx(0.416667, abs=1e-6)  # (1 + 0.5 - 0.5 + 0 + 1 + 0.5) / 6
    assert own["preference/reward_chosen"] == pytest.approx(metrics["rewards/chosen"][0], abs=1e-9)
    assert own["preference/reward_rejected"] == pytest.approx(metrics["rewards/rejected"][0], abs=1e-9)


def experimental(name: str) -> Any:
    """A trainer of `trl.experimental`, which warns that it may change."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return getattr(importlib.import_module(f"trl.experimental.{name}"), f"{name.upper()}Trainer")


def stacked(rows: list[Tensor], reduce: Any) -> Tensor:
    return torch.stack([reduce(row) for row in rows])


def test_simpo_equals_that_of_trl() -> None:
    preference = PAIRED["simpo"]
    logprobs, _ = made_up()
    ours, _ = loss_of(preference, logprobs, None)
    trainer = trainer_for(preference, loss_type="simpo", simpo_gamma=preference.margin, alpha=0.0)
    # Its caller averages the log-probs for SimPO, and adds no likelihood (cpo_alpha 0).
    chosen, rejected = (stacked(rows_of(logprobs, good=good), torch.mean) for good in (True, False))
    losses, _, _ = experimental("cpo").cpo_loss(trainer, chosen, rejected)
    assert_same(ours, losses.mean(), logprobs)


def test_label_smoothing_equals_that_of_trl() -> None:
    # DPOTrainer has no smoothed sigmoid any more; CPO's is the same function of log-probs, without a reference. Given
    # log-ratios to the reference in their place it is cDPO.
    preference = PAIRED["cdpo"]
    logprobs, ref = made_up()
    ours, _ = loss_of(preference, logprobs, ref)
    trainer = trainer_for(preference, loss_type="sigmoid", alpha=0.0)
    chosen, rejected = (stacked(rows_of(logprobs - ref, good=good), torch.sum) for good in (True, False))
    losses, _, _ = experimental("cpo").cpo_loss(trainer, chosen, rejected)
    assert_same(ours, losses.mean(), logprobs)


def test_the_odds_ratio_of_orpo_equals_that_of_trl() -> None:
    # TRL's likelihood runs over prompt and completion, and over all tokens of a batch; the paper's, and ours, is the
    # mean over the chosen completion. So only the odds ratio is compared, in TRL's float32.
    preference = PAIRED["orpo"]
    logprobs, _ = made_up()
    ours, _ = loss_of(preference, logprobs, None)
    chosen, rejected = (stacked(rows_of(logprobs, good=good), torch.mean) for good in (True, False))
    losses, *_ = experimental("orpo").odds_ratio_loss(trainer_for(preference), chosen, rejected)
    assert_same(ours + chosen.mean(), -losses.mean(), logprobs, tolerance=1e-6)
