"""The preference stage: its numbers are TRL's, every loss teaches, and an interruption changes nothing."""

from __future__ import annotations

import io
import json
import math
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from peft import PeftModel
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from rlft import config_file
from rlft.cli import main
from rlft.config import LearnerConfig, ModelConfig, PolicyAdapterConfig
from rlft.curves.live_panel import View
from rlft.learner.rl import Learner
from rlft.model.adapter import adapter_hash, read_folder
from rlft.model.starting_point import ReferenceSource, start_tensors
from rlft.objectives.algorithm import Preference
from rlft.run.directory import Run
from rlft.train.preference import launch as launch_dpo
from rlft.train.preference import loop
from rlft.train.preference.config import PreferenceConfig, PreferenceDataConfig
from rlft.train.preference.data import PreferenceData, load, make_batch
from rlft.train.preference.learner import PreferenceLearner
from rlft.train.rl import launch
from rlft.types import Batch
from tests.fakes import read_lines, read_metrics, read_result, save_tiny_model, tiny_config
from tests.sweeps import swept
from tests.test_preference import experimental, trainer_for
from tests.test_preference_data import assistant, user, write
from tests.test_report import Page

ROOT = Path(__file__).parents[1]
END = frozenset([0])
FLOAT32 = ModelConfig(source="", dtype="float32")


def pairs(count: int) -> list[dict[str, Any]]:
    """Replies of the letter `a` preferred to those of the letter `b`."""
    return [
        {
            "prompt": [user(f"say {i}")],
            "chosen": [assistant("a" * (2 + i % 3))],
            "rejected": [assistant("b" * (2 + i % 4))],
        }
        for i in range(count)
    ]


def settings(folder: Path, rows: Sequence[dict[str, Any]]) -> PreferenceDataConfig:
    """The data of these rows, all of them to train on."""
    return PreferenceDataConfig(source=str(write(folder / "rows.jsonl", rows)), heldout=0)  # type: ignore[call-arg]


MakeDpo = Callable[..., PreferenceConfig]


@pytest.fixture
def make_dpo(tmp_path: Path, tiny_model: Path) -> MakeDpo:
    """`make_dpo(epochs=2, data={...})`: a run of a second; mappings are merged in."""
    source = write(tmp_path / "pairs.jsonl", pairs(40))

    def make(**changes: Any) -> PreferenceConfig:
        tree: dict[str, Any] = {
            "name": "tiny",
            "output_dir": str(tmp_path / "runs"),
            "model": {"source": str(tiny_model), "dtype": "float32"},
            "adapter": {"rank": 4, "alpha": 8},
            "data": {"source": str(source), "heldout": 0.2},
            "batch_size": 8,
            "learner": {"lr": 1e-2, "threads": 1},
            "checkpoint": {"every": 2},
        }
        for key, value in changes.items():
            both_are_mappings = isinstance(value, dict) and isinstance(tree.get(key), dict)
            tree[key] = {**tree[key], **value} if both_are_mappings else value
        return PreferenceConfig.model_validate(tree)

    return make


# Against TRL


@pytest.fixture(scope="module")
def perturbed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model some way from where it started, so that policy and reference differ."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("perturbed") / "model"
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


@pytest.fixture
def trl_is_quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def learner_of(
    folder: Path,
    preference: Preference,
    adapter: PolicyAdapterConfig,
    settings: LearnerConfig,
    *,
    reference: ReferenceSource | None = None,
) -> PreferenceLearner:
    """A learner of this loss, in float32."""
    config = PreferenceConfig(
        name="tiny",
        model=FLOAT32,
        adapter=adapter,
        data=PreferenceDataConfig(source=""),  # type: ignore[call-arg]
        preference=preference,
        learner=settings,
    )
    return PreferenceLearner(config, folder, max_length=256, reference=reference)


def own_update(
    policy: Path, base: Path, preference: Preference, data: PreferenceData
) -> tuple[dict[str, float], dict[str, Tensor]]:
    """(metrics, gradients) of one update of all weights on all of the data, in its order."""
    settings = LearnerConfig(threads=1, tokens_per_microbatch=60, max_grad_norm=1e9)
    reference = ReferenceSource(folder=str(base))
    learner = learner_of(policy, preference, PolicyAdapterConfig(kind="full"), settings, reference=reference)
    metrics = learner.update(*learner.annotate(make_batch(data.train)), 1.0).metrics
    gradients = {name: p.grad.clone() for name, p in learner.roles.model.named_parameters() if p.grad is not None}
    return metrics, gradients


def trl_update(trainer: Any) -> tuple[float, dict[str, float], dict[str, Tensor]]:
    """(loss, logged numbers, gradients) of the trainer's first batch: the whole data set in its order."""
    model = trainer.model.train()
    batch = trainer._prepare_inputs(trainer.data_collator(list(trainer.train_dataset)))
    loss = trainer.compute_loss(model, batch)
    loss.backward()
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    return loss.item(), logged, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def arguments(folder: Path, rows: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder),
        "per_device_train_batch_size": rows,
        "max_length": None,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "disable_tqdm": True,
    }


def assert_same_gradients(own: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert own.keys() == theirs.keys()
    for name, gradient in own.items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(
            gradient, theirs[name], rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}"
        )


ROWS = [
    *pairs(5),
    {"prompt": [user("x"), assistant("y"), user("z")], "chosen": [assistant("no")], "rejected": [assistant("maybe")]},
]
PLAIN_ROWS = [
    {"prompt": f"{i} is", "chosen": " even" if i % 2 else " so odd", "rejected": " rather odd"} for i in range(6)
]


@pytest.mark.usefixtures("trl_is_quiet")
@pytest.mark.parametrize(
    ("preference", "rows"),
    [
        (Preference(beta=0.3), ROWS),
        (Preference(beta=0.3), PLAIN_ROWS),
        (Preference(loss="ipo", beta=0.5), ROWS),
        (Preference(loss="hinge", beta=2.0), ROWS),
    ],
    ids=["sigmoid", "plain text", "ipo", "hinge"],
)
def test_an_update_is_that_of_dpotrainer(
    tmp_path: Path, tiny_model: Path, perturbed: Path, preference: Preference, rows: Sequence[dict[str, Any]]
) -> None:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    trainer = DPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(perturbed),
        ref_model=AutoModelForCausalLM.from_pretrained(tiny_model),
        args=DPOConfig(**arguments(tmp_path, 6), beta=preference.beta, loss_type=preference.loss),
        train_dataset=Dataset.from_list(list(rows)),
        processing_class=tokenizer,
    )
    loss, logged, gradients = trl_update(trainer)

    data = load(settings(tmp_path, rows), tokenizer, END, context=256, paired=True)
    for example, theirs in zip(data.train, trainer.train_dataset, strict=True):
        assert list(example.prompt_ids) == theirs["prompt_ids"]
        assert list(map(list, example.completions)) == [theirs["chosen_ids"], theirs["rejected_ids"]]
    metrics, own = own_update(perturbed, tiny_model, preference, data)
    assert metrics["preference/loss"] == pytest.approx(loss, abs=1e-5)
    assert_same_gradients(own, gradients)
    for name, theirs in (("logprob_chosen", "logps/chosen"), ("logprob_rejected", "logps/rejected")):
        assert metrics[f"preference/{name}"] == pytest.approx(logged[theirs], rel=1e-5)
    if preference.loss != "ipo":  # whose implicit reward here is per token
        for name, theirs in (
            ("accuracy", "rewards/accuracies"),
            ("margin", "rewards/margins"),
            ("reward_chosen", "rewards/chosen"),
            ("reward_rejected", "rewards/rejected"),
        ):
            assert metrics[f"preference/{name}"] == pytest.approx(logged[theirs], abs=1e-5)


@pytest.mark.usefixtures("trl_is_quiet")
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.5)])
def test_an_update_is_that_of_ktotrainer(
    tmp_path: Path, tiny_model: Path, perturbed: Path, weights: tuple[float, float]
) -> None:
    from datasets import Dataset
    from trl import KTOConfig, KTOTrainer

    rows = [
        {"prompt": row["prompt"], "completion": row["chosen" if i % 2 else "rejected"], "label": bool(i % 2)}
        for i, row in enumerate(pairs(6))
    ]
    preference = Preference(loss="kto", beta=0.5, desirable_weight=weights[0], undesirable_weight=weights[1])
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    trainer = KTOTrainer(
        model=AutoModelForCausalLM.from_pretrained(perturbed),
        ref_model=AutoModelForCausalLM.from_pretrained(tiny_model),
        args=KTOConfig(**arguments(tmp_path, 6), beta=0.5, desirable_weight=weights[0], undesirable_weight=weights[1]),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    loss, logged, gradients = trl_update(trainer)

    data = load(settings(tmp_path, rows), tokenizer, END, context=256, paired=False)
    metrics, own = own_update(perturbed, tiny_model, preference, data)
    assert logged["kl"] > 0.01  # not cut to 0, so that it is compared
    assert metrics["preference/z0"] == pytest.approx(logged["kl"], abs=1e-5)
    assert metrics["preference/loss"] == pytest.approx(loss, abs=1e-5)
    assert_same_gradients(own, gradients)
    for name, theirs in (
        ("reward_chosen", "rewards/chosen"),
        ("reward_rejected", "rewards/rejected"),
        ("logprob_chosen", "logps/chosen"),
        ("logprob_rejected", "logps/rejected"),
    ):
        assert metrics[f"preference/{name}"] == pytest.approx(logged[theirs], rel=1e-4, abs=1e-5)


def mean_logprobs(model: torch.nn.Module, data: PreferenceData) -> tuple[Tensor, Tensor]:
    """Of the chosen and of the rejected completions, one pass for each."""
    means = []
    for example in data.train:
        for completion in example.completions:
            ids = torch.tensor([[*example.prompt_ids, *completion]])
            logprobs = model(ids).logits[0, len(example.prompt_ids) - 1 : -1].log_softmax(-1)
            means.append(logprobs.gather(1, torch.tensor(completion)[:, None]).mean())
    return torch.stack(means[0::2]), torch.stack(means[1::2])


def losses_of_trl(preference: Preference, chosen: Tensor, rejected: Tensor) -> Tensor:
    """By the functions of its trainers; ORPO's likelihood runs over the prompt too there, so that is the paper's."""
    trainer = trainer_for(preference, loss_type="simpo", simpo_gamma=preference.margin, alpha=0.0)
    if preference.loss == "simpo":
        return experimental("cpo").cpo_loss(trainer, chosen, rejected)[0]
    return -chosen - experimental("orpo").odds_ratio_loss(trainer, chosen, rejected)[0]


def losses_of_papers(preference: Preference, chosen: Tensor, rejected: Tensor) -> Tensor:
    if preference.loss == "simpo":  # https://arxiv.org/abs/2405.14734, equation 6
        return -torch.log(torch.sigmoid(preference.beta * (chosen - rejected) - preference.margin))
    odds = [mean.exp() / (1 - mean.exp()) for mean in (chosen, rejected)]  # https://arxiv.org/abs/2403.07691, 6 and 7
    return -chosen - preference.beta * torch.log(torch.sigmoid(torch.log(odds[0] / odds[1])))


@pytest.mark.parametrize(
    ("losses_of", "dtype"),
    [(losses_of_trl, torch.float32), (losses_of_papers, torch.float64)],
    ids=["TRL", "paper in double precision"],
)
@pytest.mark.parametrize(
    "preference",
    [Preference(loss="simpo", beta=2.0, margin=0.5), Preference(loss="orpo", beta=0.5)],
    ids=["simpo", "orpo"],
)
def test_an_update_without_a_reference_is_theirs(
    tmp_path: Path,
    tiny_model: Path,
    perturbed: Path,
    preference: Preference,
    losses_of: Callable[[Preference, Tensor, Tensor], Tensor],
    dtype: torch.dtype,
) -> None:
    data = load(settings(tmp_path, ROWS), AutoTokenizer.from_pretrained(tiny_model), END, context=256, paired=True)
    metrics, own = own_update(perturbed, tiny_model, preference, data)
    model = AutoModelForCausalLM.from_pretrained(perturbed, dtype=dtype)
    loss = losses_of(preference, *mean_logprobs(model, data)).mean()
    loss.backward()
    assert metrics["preference/loss"] == pytest.approx(loss.item(), abs=1e-5)
    assert_same_gradients(own, {name: p.grad.float() for name, p in model.named_parameters() if p.grad is not None})


def test_of_pairs_too_the_reference_point_is_of_other_prompts(
    make_dpo: MakeDpo, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        {"prompt": [user(f"say {i}")], "chosen": [assistant(f"a{i}")], "rejected": [assistant(f"b{i}")]}
        for i in range(24)
    ]
    config = make_dpo(preference={"loss": "kto"}, data={"source": str(write(tmp_path / "rows.jsonl", rows))})
    data = load(config.data, AutoTokenizer.from_pretrained(tiny_model), END, context=256, paired=False)
    prompt_of = {e.completions[0]: e.prompt_ids for e in (*data.train, *data.heldout)}
    learner = PreferenceLearner(config, tiny_model, max_length=data.max_length)
    seen: list[Batch] = []

    def record(batch: Batch | None) -> float:
        assert batch is not None
        seen.append(batch)
        return 0.0

    monkeypatch.setattr(learner.roles, "reference_point", record)
    loop.measure(learner, config, data, name="base", step=0, on_chunk=None)
    learner.annotate(make_batch(data.train[:16]))
    learner.annotate(make_batch(data.train[1:4]))
    assert [batch.num_sequences for batch in seen] == [len(data.heldout), 16, 3]
    for batch in seen:
        pairs_of = zip(batch.prompt_ids, batch.token_ids, strict=True)
        assert [ids for prompt, ids in pairs_of if prompt_of[ids] == prompt] == []


def test_where_only_one_prompt_is_there_the_reference_point_is_0(tmp_path: Path, tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    data = load(settings(tmp_path, pairs(1)), tokenizer, END, context=256, paired=False)
    metrics, _ = own_update(tiny_model, tiny_model, Preference(loss="kto"), data)
    assert metrics["preference/z0"] == 0


# Learning

LOSSES = {
    "sigmoid": {"beta": 0.3},
    "ipo": {"beta": 0.5},
    "hinge": {"beta": 0.3},
    "simpo": {"beta": 2.0, "margin": 0.5},
    "orpo": {"beta": 0.5},
    "kto": {"beta": 0.3},
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_teaches_held_out_preferences(make_dpo: MakeDpo, name: str) -> None:
    config = make_dpo(preference={"loss": name, **LOSSES[name]}, epochs=5, batch_size=8, checkpoint={"every": 100})
    summary = launch_dpo.train(config)
    rows = read_metrics(config.run_dir)
    assert len(rows) == summary["steps"] == 5 * (summary["train_examples"] // 8)
    assert summary["accuracy_trained"]["mean"] == 1.0
    assert summary["accuracy_base"]["mean"] < 0.9
    assert summary["margin_trained"] > summary["margin_base"] + 0.1
    assert summary["loss_trained"] < summary["loss_base"]
    assert rows[-1]["preference/margin"] > rows[0]["preference/margin"] + 0.1
    assert rows[-1]["preference/reward_chosen"] > rows[-1]["preference/reward_rejected"]
    assert ("preference/z0" in rows[0]) == (name == "kto")
    epochs = [f"step-{(epoch + 1) * len(rows) // 5:06d}" for epoch in range(5)]
    assert sorted(path.stem for path in (config.run_dir / "evals").iterdir()) == ["base", *epochs]


def test_where_training_starts_nothing_is_preferred(make_dpo: MakeDpo) -> None:
    summary = launch_dpo.train(make_dpo())
    assert summary["accuracy_base"]["mean"] == 0.5
    assert summary["margin_base"] == 0
    assert summary["loss_base"] == pytest.approx(math.log(2), abs=1e-6)


def test_the_rate_follows_the_schedule(make_dpo: MakeDpo) -> None:
    config = make_dpo(learner={"schedule": "linear", "warmup_steps": 2}, epochs=2)
    launch_dpo.train(config)
    rates = [row["policy/lr"] for row in read_metrics(config.run_dir)]
    # Eight updates: two of warm-up, then six that fall to 0.
    assert rates == pytest.approx([0.005, 0.01, *(0.01 * (1 - i / 6) for i in range(6))][: len(rates)], rel=1e-6)


# What must not matter


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_precomputed_reference_logprobs_equal_live_ones(make_dpo: MakeDpo, loss: str) -> None:
    results = []
    for how in ("precomputed", "live"):
        config = make_dpo(name=how, reference_logprobs=how, epochs=2, preference={"loss": loss})
        summary = launch_dpo.train(config)
        assert (config.run_dir / "reference").exists() == (how == "precomputed")
        results.append((read_metrics(config.run_dir), summary))
    (rows, summary), (live_rows, live_summary) = results
    for row, live_row in zip(rows, live_rows, strict=True):
        assert row == pytest.approx(live_row, rel=1e-3, abs=2e-4)
    assert summary["loss_trained"] == pytest.approx(live_summary["loss_trained"], abs=1e-4)


@pytest.mark.parametrize("loss", ["sigmoid", "orpo", "kto"])
def test_the_microbatch_budget_does_not_change_the_update(tiny_model: Path, tmp_path: Path, loss: Any) -> None:
    preference = Preference(loss=loss)
    data = load(
        settings(tmp_path, pairs(6)),
        AutoTokenizer.from_pretrained(tiny_model),
        END,
        context=256,
        paired=preference.is_paired,
    )
    found = []
    for tokens in (1, 50, 10_000):
        config = LearnerConfig(threads=1, tokens_per_microbatch=tokens, lr=1e-2)
        learner = learner_of(tiny_model, preference, PolicyAdapterConfig(rank=4), config)  # type: ignore[call-arg]
        for _ in range(2):
            metrics = learner.update(*learner.annotate(make_batch(data.train)), 1.0).metrics
        found.append(metrics)
    for metrics in found[1:]:
        assert metrics == pytest.approx(found[0], rel=1e-4, abs=1e-5)


class InterruptError(Exception):
    """What the test raises in the middle of a run."""


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("loss", "kind"),
    swept([("sigmoid", "lora"), ("kto", "lora"), ("sigmoid", "full")], always=lambda of: of == ("sigmoid", "lora")),
)
def test_several_processes_give_the_run_of_one(make_dpo: MakeDpo, loss: str, kind: str) -> None:
    settings = {"tokens_per_microbatch": 40, "lr": 1e-3}
    changes: dict[str, Any] = {"preference": {"loss": loss}, "adapter": {"kind": kind}, "data": {"heldout": 0.3}}
    alone = make_dpo(name="alone", learner=settings, **changes)
    shared = make_dpo(name="shared", learner={**settings, "workers": 2}, **changes)
    summary, expected = launch_dpo.train(shared), launch_dpo.train(alone)
    for row, row_alone in zip(read_metrics(shared.run_dir), read_metrics(alone.run_dir), strict=True):
        assert row == pytest.approx(row_alone, rel=1e-4, abs=1e-5)
    for name in ("accuracy_trained", "loss_trained", "margin_trained"):
        assert summary[name] == pytest.approx(expected[name], rel=1e-4, abs=1e-5)
    tensors, tensors_alone = (read_folder(config.run_dir / summary["adapter"]) for config in (shared, alone))
    assert tensors.keys() == tensors_alone.keys()
    for name, tensor in tensors.items():
        assert torch.allclose(tensor, tensors_alone[name], rtol=0, atol=1e-4), name


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Stop the next run while it logs this update."""
    log = Run.log

    def stop(self: Any, number: int, metrics: Any) -> None:
        if number == step:
            monkeypatch.setattr(Run, "log", log)
            raise InterruptError
        log(self, number, metrics)

    monkeypatch.setattr(Run, "log", stop)


CHANGES: dict[str, dict[str, Any]] = {
    "precomputed": {},
    "live": {"reference_logprobs": "live"},
    "kto": {"preference": {"loss": "kto"}, "data": {"heldout": 0.3}},
    "full": {"adapter": {"kind": "full"}, "learner": {"lr": 1e-3}},
    "two processes": {"learner": {"workers": 2}},
}


@pytest.mark.timeout(120)
@pytest.mark.parametrize("name", swept(CHANGES, always=lambda name: name not in ("live", "two processes")))
@pytest.mark.usefixtures("ray_cluster")
def test_an_interruption_changes_nothing(make_dpo: MakeDpo, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    changes = CHANGES[name]
    whole = make_dpo(name="whole", epochs=2, **changes)
    launch_dpo.train(whole)
    broken = make_dpo(name="broken", epochs=2, **changes)
    interrupt(monkeypatch, 1)  # before the first checkpoint
    with pytest.raises(InterruptError):
        launch_dpo.train(broken)
    interrupt(monkeypatch, 4)  # after one
    with pytest.raises(InterruptError):
        launch_dpo.resume(broken.run_dir)
    launch_dpo.resume(broken.run_dir)
    result, expected = read_result(broken.run_dir), read_result(whole.run_dir)
    assert {**result.pop("summary.json"), "name": "whole"} == expected.pop("summary.json")
    assert result == expected
    assert len(result["metrics.jsonl"]) >= 6


def test_reference_logprobs_are_computed_once(make_dpo: MakeDpo, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_dpo()
    interrupt(monkeypatch, 3)
    with pytest.raises(InterruptError):
        launch_dpo.train(config)
    stored = next((config.run_dir / "reference").iterdir())
    before = stored.stat().st_mtime_ns
    launch_dpo.resume(config.run_dir)
    assert [path.stat().st_mtime_ns for path in (config.run_dir / "reference").iterdir()] == [before]


def test_changed_data_are_not_resumed_on(make_dpo: MakeDpo, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = make_dpo()
    interrupt(monkeypatch, 3)
    with pytest.raises(InterruptError):
        launch_dpo.train(config)
    write(tmp_path / "pairs.jsonl", pairs(41))
    with pytest.raises(ValueError, match=r"(?s)pairs\.jsonl: sha256 .*Restore it, or .* --fork NAME"):
        launch_dpo.resume(config.run_dir)


# Adapters and references


def test_the_adapter_loads_in_peft_and_starts_rl_and_further_preference_runs(
    make_dpo: MakeDpo, tiny_model: Path, tmp_path: Path
) -> None:
    first = make_dpo(name="first")
    summary = launch_dpo.train(first)
    folder = first.run_dir / summary["adapter"]
    tensors = read_folder(folder)
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tiny_model), folder)
    assert {name for name in tensors if "lora_B" in name and tensors[name].any()}
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad(), loaded.disable_adapter():
        base = loaded(ids).logits
    assert (loaded(ids).logits - base).abs().max() > 1e-3

    rl = tiny_config(tiny_model, adapter={"start": str(folder)}, output_dir=str(tmp_path / "rl"), steps=1)
    learner = Learner(rl, tiny_model, warm_start=start_tensors(rl))
    assert learner.adapter(0).hash == adapter_hash(tensors)
    assert launch.train(rl)["steps"] == 1

    # The reference of a run that starts from an adapter is that adapter: nothing is preferred yet.
    second = make_dpo(name="second", adapter={"start": str(folder)})
    assert launch_dpo.train(second)["margin_base"] == 0
    # Held to the base instead, the same policy already prefers.
    base_folder = tmp_path / "base"
    shutil.copytree(tiny_model, base_folder)
    third = make_dpo(name="third", adapter={"start": str(folder)}, reference=str(base_folder))
    assert launch_dpo.train(third)["margin_base"] == pytest.approx(summary["margin_trained"], abs=1e-5)


def test_full_training_leaves_a_model_folder(make_dpo: MakeDpo) -> None:
    config = make_dpo(adapter={"kind": "full"}, learner={"lr": 1e-3}, epochs=3)
    summary = launch_dpo.train(config)
    folder = config.run_dir / summary["adapter"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == 2
    assert AutoTokenizer.from_pretrained(folder).chat_template
    assert summary["margin_trained"] > 0.01


def test_plain_text_needs_no_chat_template(make_dpo: MakeDpo, tiny_model: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model, base)
    (base / "chat_template.jinja").unlink()
    (base / "generation_config.json").unlink()
    source = write(tmp_path / "plain.jsonl", [{**row, "prompt": f"{i} is"} for i, row in enumerate(PLAIN_ROWS * 3)])
    config = make_dpo(model={"source": str(base)}, data={"source": str(source), "heldout": 0.0}, batch_size=6)
    summary = launch_dpo.train(config)
    assert summary["accuracy_trained"] is None
    assert (config.run_dir / "report.html").exists()
    chat_config = make_dpo(name="chat", model={"source": str(base)})
    with pytest.raises(ValueError, match=r"pairs\.jsonl:1: the tokenizer has no chat template"):
        launch_dpo.train(chat_config)
    assert not chat_config.run_dir.exists()


# Trouble


def test_updates_that_are_not_finite_are_skipped_and_three_stop_the_run(
    make_dpo: MakeDpo, monkeypatch: pytest.MonkeyPatch
) -> None:
    annotate = PreferenceLearner.annotate
    calls = [0]

    def poison(learner: PreferenceLearner, batch: Batch) -> tuple[Batch, float]:
        batch, kl = annotate(learner, batch)
        calls[0] += 1
        if calls[0] > 2:
            assert batch.ref_logprobs is not None
            batch = replace(batch, ref_logprobs=batch.ref_logprobs * float("nan"))
        return batch, kl

    monkeypatch.setattr(PreferenceLearner, "annotate", poison)
    config = make_dpo(epochs=3)
    with pytest.raises(RuntimeError, match="3 updates in a row had a loss or gradient that is not finite"):
        launch_dpo.train(config)
    assert [row["policy/skipped"] for row in read_metrics(config.run_dir)] == [0, 0, 1, 1]
    assert len(list((config.run_dir / "skipped").iterdir())) == 3
    assert "update_skipped" in {event["kind"] for event in read_lines(config.run_dir / "events.jsonl")}


def test_more_pairs_than_there_are_is_refused_before_a_run_exists(make_dpo: MakeDpo) -> None:
    config = make_dpo(batch_size=64)
    with pytest.raises(ValueError, match=r"batch_size is 64, but .*pairs\.jsonl has 3\d examples to train on; lower"):
        launch_dpo.train(config)
    assert not config.run_dir.exists()


def test_rows_that_were_left_out_are_told(make_dpo: MakeDpo, capsys: pytest.CaptureFixture[str]) -> None:
    config = make_dpo(data={"max_length": 14, "overlong": "drop", "heldout": 0.0}, batch_size=2)
    summary = launch_dpo.train(config)
    assert 0 < summary["dropped_rows"] < 40
    assert summary["train_examples"] == 40 - summary["dropped_rows"]
    assert f"{summary['dropped_rows']} rows of more than 14 tokens were left out" in capsys.readouterr().out


# Config


def test_a_misspelt_key_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "dpo.yaml"
    file.write_text("name: x\nmodel: {source: m}\ndata:\n  source: d\n  heldoutt: 0.1\npreference: {betta: 1}\n")
    with pytest.raises(
        ValueError, match=r"dpo\.yaml:5: data\.heldoutt: unknown key\. Did you mean 'heldout'\?"
    ) as found:
        config_file.load(file, (), PreferenceConfig)
    assert "dpo.yaml:6: preference" in str(found.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"adapter": {"kind": "head"}}, "head trains no policy"),
        ({"preference": {"loss": "simpo"}, "reference": "x"}, "loss 'simpo' compares with none"),
        ({"preference": {"loss": "kto"}, "batch_size": 1}, "kto estimates its KL"),
        ({"preference": {"loss": "ipo", "label_smoothing": 0.1}}, "label_smoothing goes with loss: sigmoid"),
        ({"preference": {"beta": 0}}, "beta must be above 0"),
        ({"ray_address": "10.0.0.1:6379"}, "one process trains alone"),
        ({"learner": {"workers": 2, "gpus_per_worker": 0.5}}, "two workers could get the same GPU"),
    ],
)
def test_combinations_that_make_no_sense_are_refused(make_dpo: MakeDpo, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make_dpo(**changes)


def test_every_setting_is_documented_and_the_schema_is_valid(make_dpo: MakeDpo) -> None:
    schema = PreferenceConfig.model_json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    sections = {"": schema, **schema["$defs"]}
    bare = [
        f"{name}.{key}"
        for name, section in sections.items()
        for key, value in section["properties"].items()
        if not value.get("description")
    ]
    assert bare == []


# The command line


def rlft(*arguments: str | Path) -> Any:
    """What a command printed and left."""
    return CliRunner().invoke(main.app, [str(a) for a in arguments], env={"COLUMNS": "200"}, catch_exceptions=False)


@pytest.mark.timeout(120)
def test_the_debug_config_runs_from_the_command_line_to_the_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    # The tiny model's tokens are bytes, so the rambling replies are some hundred tokens long.
    model = save_tiny_model(tmp_path / "model", context=1024)
    small = [f"model.source={model}", "model.dtype=float32", f"output_dir={tmp_path}", "learner.threads=1"]
    done = rlft("dpo", "configs/debug/dpo.yaml", *small)
    assert done.exit_code == 0
    run = tmp_path / "debug-dpo"
    summary = json.loads((run / "summary.json").read_text())
    assert summary["stage"] == "DPO"
    assert re.search(r"base model\W+0\.500", done.output)
    assert re.search(rf"after DPO\W+{summary['accuracy_trained']['mean']:.3f}", done.output)
    for name in ("report.html", "reward.png", "summary.json", summary["adapter"]):
        assert str(run / name) in done.output
        assert (run / name).exists()
    assert re.search(r"update 1/2 +loss 0\.69\d+ +accuracy \d+% +margin -?0\.000 .* left 0:0", done.output)

    (run / "report.html").unlink()
    assert rlft("report", run).exit_code == 0
    text = Page(run / "report.html").text
    for words in ("configs/debug/pairs.jsonl", "2 of 2", "(DPO, step 2)", "Preference loss", "Log-probability"):
        assert words in text

    before = read_result(run)
    assert rlft("resume", run).exit_code == 0  # nothing is left to do
    assert read_result(run) == before
    with pytest.raises(ValueError, match=r"debug-dpo holds a run already.*--restart"):
        rlft("dpo", "configs/debug/dpo.yaml", *small)
    with pytest.raises(ValueError, match=r"is a preference run.*--adapter .*v000002"):
        rlft("evaluate", run)


def test_the_schema_of_a_preference_run_is_printed() -> None:
    schema = json.loads(rlft("schema", "--kind", "dpo").output)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert {"data", "preference", "reference_logprobs"} <= schema["properties"].keys()
    assert "tasks_per_step" in json.loads(rlft("schema").output)["properties"]


def test_the_live_panel_shows_updates_loss_accuracy_margin_and_time() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=100)
    view = View("pairs", steps=0, unit="update", console=console)
    view.steps = 10
    for step, margin in enumerate((0.0, 0.2, 0.4), start=1):
        metrics = {"preference/loss": 0.5, "preference/accuracy": 0.75, "preference/margin": margin, "time/step": 3.0}
        view.step(step, metrics)
    console.print(view)
    text = re.sub(r"\x1b\[[0-9;]*m", "", console.file.getvalue())  # type: ignore[attr-defined]
    for words in (
        "pairs  update 3/10",
        r"loss +0\.5000",
        r"accuracy +75%",
        r"margin +0\.400 ▁▄█|margin +0\.400 ▁▅█",
        r"left +0:21",
    ):
        assert re.search(words, text), words
    assert "training" in text
