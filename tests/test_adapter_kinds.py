"""What can be trained of a model: every kind in the engine, in the learner, in a folder, and as another's reference."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen3MoeConfig

from rlft.config import RunConfig
from rlft.learner.batch import collate
from rlft.learner.rl import Learner
from rlft.learner.roles import read_role
from rlft.model.adapter import (
    bare_base,
    lora_config,
    lora_scale,
    make_adapter,
    merged_weight,
    read_folder,
    save_tensors,
)
from rlft.model.chat import load_tokenizer
from rlft.model.starting_point import reference_source, start_tensors
from rlft.rollout.chunk import make_chunks
from rlft.rollout.engines.transformers import TransformersEngine
from rlft.rollout.generate import run_chunk
from rlft.train.rl import launch
from rlft.train.rl.measure import measure
from rlft.types import Adapter, Group, SamplingParams, Score
from tests.conftest import MakeConfig
from tests.fakes import letters, made_up_group, read_metrics, save_tiny_model, tiny_config

pytestmark = pytest.mark.timeout(120)
KINDS = ("lora", "dora", "rslora", "full")


def config_of(folder: Path, kind: str, **changes: Any) -> RunConfig:
    return tiny_config(
        folder, adapter={"kind": kind}, learner={"threads": 1, "lr": 0.02}, algorithm={"preset": "dr_grpo"}, **changes
    )


def trained(config: RunConfig, folder: Path) -> Learner:
    """A learner after two updates, so that its weights differ from the base."""
    learner = Learner(config, folder)
    for step in range(2):
        groups = [made_up_group([1.0, 0.0, 0.5], task_id=f"{step}{name}") for name in "ab"]
        learner.update(learner.annotate(collate(groups)))
    return learner


def rollouts(engine: TransformersEngine, adapter: Adapter, config: RunConfig, folder: Path) -> list[Group]:
    engine.load_adapter(adapter)
    [chunk] = make_chunks(
        letters().train[:3],
        tasks_per_chunk=3,
        samples_per_task=2,
        params=SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=6),
        run_seed=0,
        stream="train",
        step=1,
        version=adapter.version,
    )
    groups = run_chunk(engine, load_tokenizer(folder), chunk)
    return [
        replace(group, trajectories=tuple(replace(t, outcome=Score(value=0.0)) for t in group.trajectories))
        for group in groups
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_engine_and_learner_agree_before_and_after_updates(tiny_model: Path, kind: str) -> None:
    config = config_of(tiny_model, kind)
    tokenizer = load_tokenizer(tiny_model)
    engine = TransformersEngine(tiny_model, tokenizer, model=config.model, adapter=config.adapter, threads=1)
    start, learner = Learner(config, tiny_model), trained(config, tiny_model)
    seen = []
    for version, one in ((0, start), (2, learner), (0, start)):
        batch = collate(rollouts(engine, one.adapter(version), config, tiny_model))
        own = one.roles.logprobs(batch, one.roles.policy)
        assert torch.allclose(batch.rollout_logprobs, own, rtol=0, atol=2e-5)
        seen.append(own)
    assert not torch.allclose(seen[0][:6], seen[1][:6], atol=1e-2)  # training moved it
    assert torch.equal(seen[0], seen[2])  # and it came back whole


def test_an_output_with_a_weight_of_its_own_can_be_a_target(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "model", tied=False)
    adapter = {"kind": "lora", "target_modules": ["q_proj", "lm_head"]}
    config = tiny_config(folder, adapter=adapter, learner={"threads": 1, "lr": 0.02}, algorithm={"preset": "dr_grpo"})
    learner = trained(config, folder)
    engine = TransformersEngine(folder, load_tokenizer(folder), model=config.model, adapter=config.adapter, threads=1)
    adapter_of = learner.adapter(2)
    assert all(".lora_A." in name or ".lora_B." in name for name in adapter_of.tensors)
    assert [name for name in adapter_of.tensors if "lm_head" in name]
    batch = collate(rollouts(engine, adapter_of, config, folder))
    assert torch.allclose(
        batch.rollout_logprobs, learner.roles.logprobs(batch, learner.roles.policy), rtol=0, atol=2e-5
    )


EXPERTS = {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16}


@pytest.mark.parametrize(
    ("family", "changes", "targets", "words"),
    [
        (LlamaConfig, {}, ["q_proj", "lm_head"], "lm_head has its weight together with"),
        (LlamaConfig, {"tied": False}, ["embed_tokens"], "embed_tokens is no linear layer"),
        (Qwen3MoeConfig, EXPERTS, "all-linear", r"mlp\.experts is no linear layer \(Qwen3MoeExperts\)"),
    ],
    ids=["tied", "embedding", "experts"],
)
@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Model has `tie_word:UserWarning")  # of PEFT
def test_targets_that_cannot_be_merged_are_refused_before_anything_runs(
    tmp_path: Path, family: type[PreTrainedConfig], changes: dict[str, Any], targets: Any, words: str
) -> None:
    folder = save_tiny_model(tmp_path / "model", family=family, **changes)
    config = tiny_config(folder, adapter={"target_modules": targets}, output_dir=str(tmp_path / "runs"))
    expected = rf"adapter\.target_modules: .*{words}.*name others, such as"
    with pytest.raises(ValueError, match=expected):
        Learner(config, folder)
    with pytest.raises(ValueError, match=expected):
        launch.train(config)
    assert not (tmp_path / "runs" / config.name).exists()


@pytest.mark.parametrize("kind", KINDS)
def test_after_the_base_the_engine_is_the_base_again(tiny_model: Path, kind: str) -> None:
    config = config_of(tiny_model, kind)
    engine = TransformersEngine(
        tiny_model, load_tokenizer(tiny_model), model=config.model, adapter=config.adapter, threads=1
    )
    base = rollouts(engine, bare_base(), config, tiny_model)
    rollouts(engine, trained(config, tiny_model).adapter(2), config, tiny_model)
    again = rollouts(engine, bare_base(), config, tiny_model)
    assert [g.trajectories[0].logprobs for g in again] == [g.trajectories[0].logprobs for g in base]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_folder_is_read_by_plain_libraries(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    config = config_of(tiny_model, kind)
    learner = trained(config, tiny_model)
    tensors = learner.adapter(2).tensors
    save_tensors(tmp_path, config.adapter, str(tiny_model), tensors)
    assert {name: t.shape for name, t in read_folder(tmp_path).items()} == {n: t.shape for n, t in tensors.items()}
    if kind == "full":
        plain = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    else:
        base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        plain = PeftModel.from_pretrained(base, tmp_path)
    batch = collate([made_up_group([0.0], task_id="x", lengths=[5])])
    with torch.no_grad():
        logits = plain(input_ids=torch.tensor([batch.prompt_ids[0] + batch.token_ids[0]])).logits[0]
    log_p = logits.log_softmax(dim=-1)
    start = len(batch.prompt_ids[0]) - 1
    expected = torch.stack([log_p[start + t, token] for t, token in enumerate(batch.token_ids[0])])
    assert torch.allclose(learner.roles.logprobs(batch, learner.roles.policy), expected, atol=2e-5)


def test_rslora_scales_by_the_root_of_the_rank(tiny_model: Path) -> None:
    # alpha 8, rank 4: 8 / 4 = 2 and 8 / sqrt(4) = 4
    assert lora_scale(config_of(tiny_model, "lora").adapter) == 2
    assert lora_scale(config_of(tiny_model, "rslora").adapter) == 4


def test_dora_rows_have_the_learnt_length() -> None:
    # W = I, B A = [[0, 0], [4, 0]], scale 0.75: W + s B A = [[1, 0], [3, 1]], rows of length 1 and sqrt(10);
    # magnitudes 2 and 5 make them [[2, 0], [15, 5] / sqrt(10)].
    parts = {
        "lora_A": torch.tensor([[1.0, 0.0]]),
        "lora_B": torch.tensor([[0.0], [4.0]]),
        "lora_magnitude_vector": torch.tensor([2.0, 5.0]),
    }
    merged = merged_weight(torch.eye(2), parts, 0.75, is_transposed=False)
    assert torch.allclose(merged, torch.tensor([[2.0, 0.0], [15 / 10**0.5, 5 / 10**0.5]]))
    transposed = merged_weight(torch.eye(2), parts, 0.75, is_transposed=True)
    assert torch.allclose(transposed, merged.T)


@pytest.mark.parametrize("kind", ["lora", "dora", "rslora"])
@pytest.mark.parametrize("is_transposed", [False, True])
def test_merging_is_what_peft_merges(tiny_model: Path, kind: str, is_transposed: bool) -> None:
    """Of an independent implementation; the scratch that an engine hands in is used and changes nothing."""
    config = config_of(tiny_model, kind)
    tensors = trained(config, tiny_model).adapter(2).tensors
    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    peft = get_peft_model(base, lora_config(config.adapter))
    set_peft_model_state_dict(peft, dict(tensors))
    name = "model.layers.1.mlp.down_proj"
    weight = base.get_parameter(f"{name}.base_layer.weight").detach().clone()
    assert weight.shape[0] != weight.shape[1]
    merged = peft.merge_and_unload().get_parameter(f"{name}.weight")
    assert not torch.allclose(merged, weight, atol=1e-3)
    prefix = f"base_model.model.{name}."
    parts = {
        key.removeprefix(prefix).removesuffix(".weight"): t for key, t in tensors.items() if key.startswith(prefix)
    }
    given, scratch = (weight.T if is_transposed else weight), torch.full((9000,), torch.nan)
    own = merged_weight(given, parts, lora_scale(config.adapter), is_transposed=is_transposed, scratch=scratch)
    assert own.untyped_storage().data_ptr() == scratch.untyped_storage().data_ptr()
    torch.testing.assert_close(own.T if is_transposed else own, merged, rtol=0, atol=1e-6)
    again = merged_weight(given, parts, lora_scale(config.adapter), is_transposed=is_transposed)
    assert torch.equal(own, again)


def test_tensors_of_another_kind_are_refused(tiny_model: Path) -> None:
    lora = trained(config_of(tiny_model, "lora"), tiny_model).adapter(2).tensors
    for kind in ("dora", "full"):
        with pytest.raises(ValueError, match=r"do not fit this model.*adapter\.kind"):
            Learner(config_of(tiny_model, kind), tiny_model, warm_start=lora)
        config = config_of(tiny_model, kind)
        engine = TransformersEngine(
            tiny_model, load_tokenizer(tiny_model), model=config.model, adapter=config.adapter, threads=1
        )
        with pytest.raises(ValueError, match=r"not whole|not this model's"):
            engine.load_adapter(make_adapter(1, lora))


def test_qlora_without_bitsandbytes_says_what_it_needs(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"needs the package bitsandbytes.*rlft\[qlora\].*use adapter\.kind: lora"):
        Learner(config_of(tiny_model, "qlora"), tiny_model)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("adapter.kind=head",), "trains no policy"),
        (("adapter.kind=full", "algorithm=ppo"), "no frozen base that the critic could share"),
        (("algorithm=opd",), "name the teacher in `reference`"),
        (("algorithm=dr_grpo", "reference=x"), "has no KL"),
    ],
)
def test_kinds_and_references_that_make_no_sense_are_refused(
    make_config: MakeConfig, overrides: tuple[str, ...], says: str
) -> None:
    with pytest.raises(ValueError, match=says):
        make_config(*overrides)


# Runs


@pytest.mark.parametrize("kind", ["dora", "full"])
def test_a_run_of_another_kind_with_a_warm_start(make_config: MakeConfig, kind: str) -> None:
    config = make_config(
        "steps=2", "evaluation.tasks=2", f"adapter.kind={kind}", "sft={examples: 8}", "learner.lr=0.001"
    )
    launch.train(config)
    rows = read_metrics(config.run_dir)
    assert [row["policy/mismatch"] < 1e-4 for row in rows] == [True, True]
    assert rows[0]["policy/kl_ref"] < 1e-6  # the reference is the warm start
    names = {path.name for path in (config.run_dir / "adapters" / "v000002").iterdir()}
    assert ("model.safetensors" if kind == "full" else "adapter_model.safetensors") in names
    assert measure(config, config.run_dir / "adapters" / "v000002").accuracy.n == 2


def test_an_adapter_to_start_from_may_lie_at_home(
    make_config: MakeConfig, finished_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(finished_run))
    found = start_tensors(make_config("adapter.start=~/adapters/v000004"))
    assert found is not None
    _near(found, read_folder(finished_run / "adapters" / "v000004"))
    reference = reference_source("~/adapters/v000004")
    assert reference is not None
    assert reference.folder == str(finished_run / "adapters" / "v000004")


def test_a_run_starts_from_a_saved_adapter(make_config: MakeConfig, finished_run: Path, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(finished_run / "adapters" / "v000004", start)
    config = make_config("steps=1", "evaluation.tasks=2", f"adapter.start={start}", "learner.lr=1.0e-9")
    launch.train(config)
    ends = read_folder(config.run_dir / "adapters" / "v000001")
    _near(ends, read_folder(start))
    assert read_metrics(config.run_dir)[0]["policy/kl_ref"] == pytest.approx(0, abs=1e-7)
    with pytest.raises(ValueError, match=r"has lora_alpha 32.0, the config adapter\.alpha=16"):
        launch.train(make_config("name=other", f"adapter.start={start}", "adapter.alpha=16"))


def _near(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)


def test_a_teacher_with_another_vocabulary_is_refused(
    make_config: MakeConfig, tiny_model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    tokenizer = load_tokenizer(other)
    tokenizer.add_tokens(["<more>"])
    tokenizer.save_pretrained(other)
    with pytest.raises(ValueError, match=r"another vocabulary \(\d+ tokens\)"):
        launch.train(make_config("steps=1", "evaluation.tasks=2", "algorithm=opd", f"reference={other}"))


def test_the_reference_of_a_full_run_can_be_a_model(make_config: MakeConfig, tiny_model: Path) -> None:
    config = make_config("steps=1", "evaluation.tasks=2", f"reference={tiny_model}", "adapter.kind=full")
    launch.train(config)
    assert read_metrics(config.run_dir)[0]["policy/kl_ref"] == pytest.approx(0, abs=1e-6)


def test_all_weights_are_trained_with_products_in_bfloat16(tiny_model: Path) -> None:
    config = config_of(tiny_model, "full", model={"dtype": "bfloat16"})
    exact = trained(config_of(tiny_model, "full"), tiny_model).adapter(2).tensors
    rounded = trained(config, tiny_model).adapter(2).tensors
    assert all(tensor.dtype == torch.float32 for tensor in rounded.values())
    base = read_role(Learner(config, tiny_model).roles.policy)
    moved = torch.cat([(exact[name] - base[name]).flatten() for name in base])
    moved_rounded = torch.cat([(rounded[name] - base[name]).flatten() for name in base])
    assert torch.cosine_similarity(moved, moved_rounded, dim=0) > 0.9
