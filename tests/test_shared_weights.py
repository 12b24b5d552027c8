"""Learner and engine of one process compute with one copy of the base's weights, and neither changes the other's."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from rlft.config import AdapterConfig, ModelConfig
from rlft.learner.roles import Role, make_policy, read_role
from rlft.model.adapter import make_adapter
from rlft.model.base import load_base
from rlft.model.pretrained import load_tokenizer
from rlft.rollout.engines import forward
from rlft.rollout.engines.transformers import TransformersEngine

LORA = AdapterConfig(rank=4, alpha=8.0)
CPU = torch.device("cpu")
IDS = torch.tensor([[5, 9, 2, 7, 30, 11]])


def learner(folder: Path) -> Role:
    return make_policy(folder, ModelConfig(source="", dtype="float32"), LORA, device=CPU, seed=0, start=None)


def engine(folder: Path, adapter: AdapterConfig = LORA) -> TransformersEngine:
    model = ModelConfig(source=str(folder), dtype="float32")
    return TransformersEngine(folder, load_tokenizer(folder), model=model, adapter=adapter, threads=1)


def base_of(role: Role) -> PreTrainedModel:
    return role.model.get_base_model()  # type: ignore[no-any-return, operator]


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    named = {name.replace("base_layer.", ""): each for name, each in model.named_parameters()}
    return {name: each for name, each in named.items() if "lora_" not in name}


def logits(role: Role) -> Tensor:
    with torch.no_grad():
        return role.model(input_ids=IDS, use_cache=False).logits


def logprobs(engine: TransformersEngine) -> Tensor:
    ids = IDS[0].tolist()
    return engine.logits(ids[:1], ids[1:], version=engine.version or 0).clone()


@pytest.mark.parametrize("lean", [True, False], ids=["lean", "transformers' layers"])
@pytest.mark.parametrize("first", ["learner", "engine"])
def test_learner_and_engine_share_the_base_and_not_what_they_make_of_it(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, first: str, lean: bool
) -> None:
    if not lean:
        monkeypatch.setattr(forward, "llama_forward_of", lambda model: None)
    alone = logits(learner(tiny_model))
    gc.collect()
    if first == "learner":
        policy = learner(tiny_model)
        generates = engine(tiny_model)
    else:
        generates = engine(tiny_model)
        policy = learner(tiny_model)
    base, own = weights(base_of(policy)), weights(generates._model)
    assert base.keys() == own.keys()
    assert all(base[name] is own[name] for name in base)

    generator = torch.Generator().manual_seed(1)
    shapes = read_role(policy)
    adapter = make_adapter(1, {n: 0.3 * torch.randn(each.shape, generator=generator) for n, each in shapes.items()})
    generates.load_adapter(adapter)
    assert torch.equal(logits(policy), alone)
    merged = logprobs(generates)
    assert (merged - alone[0, :-1]).abs().max() > 0.01
    generates.load_adapter(make_adapter(2, {}))
    assert torch.allclose(logprobs(generates), alone[0, :-1], atol=1e-4)
    assert all(torch.equal(one, weights(base_of(policy))[name]) for name, one in base.items())


def test_tied_weights_stay_tied_and_a_model_that_nobody_has_any_more_is_let_go(tiny_model: Path) -> None:
    first = load_base(tiny_model, torch.float32, CPU, shares_weights=True)
    second = load_base(tiny_model, torch.float32, CPU, shares_weights=True)
    assert first is not second
    assert second.get_input_embeddings().weight is first.get_input_embeddings().weight
    assert second.get_output_embeddings().weight is second.get_input_embeddings().weight
    assert not second.training
    assert torch.equal(first(input_ids=IDS).logits, second(input_ids=IDS).logits)
    weight = second.get_input_embeddings().weight
    del first, second
    gc.collect()
    third = load_base(tiny_model, torch.float32, CPU, shares_weights=True)
    assert third.get_input_embeddings().weight is not weight


def test_what_is_trained_whole_of_another_type_or_from_changed_files_is_its_own(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    first = load_base(folder, torch.float32, CPU, shares_weights=True)

    def place(model: PreTrainedModel) -> int:
        return model.get_input_embeddings().weight.data_ptr()

    assert place(load_base(folder, torch.float32, CPU)) != place(first)
    assert place(load_base(folder, torch.bfloat16, CPU, shares_weights=True)) != place(first)
    assert place(engine(folder, AdapterConfig(kind="full"))._model) != place(first)
    other = load_base(folder, torch.float32, CPU, shares_weights=True)
    assert place(other) == place(first)
    other = load_base(folder, torch.float32, CPU)
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(2)
    other.save_pretrained(folder)
    again = load_base(folder, torch.float32, CPU, shares_weights=True)
    assert torch.equal(again.get_input_embeddings().weight, 2 * first.get_input_embeddings().weight)


def add_one(model: PreTrainedModel) -> None:
    with torch.no_grad():
        model.get_output_embeddings().weight.add_(1)


@pytest.mark.parametrize("change", [add_one, PreTrainedModel.double], ids=["written over", "of another type"])
def test_a_base_that_somebody_changed_is_not_shared_any_further(
    tiny_model: Path, change: Callable[[PreTrainedModel], object]
) -> None:
    def load() -> PreTrainedModel:
        return load_base(tiny_model, torch.float32, CPU, shares_weights=True)

    expected = load_base(tiny_model, torch.float32, CPU).get_output_embeddings().weight
    changed, alike = load(), load()
    change(alike)
    assert alike.get_output_embeddings().weight is changed.get_output_embeddings().weight
    weight = load().get_output_embeddings().weight
    assert weight.dtype == torch.float32
    assert torch.equal(weight, expected)
