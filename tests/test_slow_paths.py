"""What is not replaced by rlft's faster computation says why: on the model, and once in the run's events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from rlft.config import AdapterConfig
from rlft.learner.batch import pack
from rlft.learner.roles import add_policy
from rlft.model import base as models
from rlft.model.base import token_logprobs
from rlft.model.kernels import library
from rlft.model.layers import decoder_layer, lora, norms_and_mlps
from rlft.model.layers.decoder_layer import use_lean_decoders
from rlft.model.layers.lora import use_lean_lora
from rlft.model.layers.norms_and_mlps import use_lean_layers
from rlft.model.layers.slow_paths import ON_GPU, is_on_cpu, note_all, slow_paths
from rlft.rollout.engines.forward import forward_pass
from rlft.rollout.engines.llama_forward import LlamaForward
from rlft.run.directory import Run
from rlft.train.rl import launch
from tests.conftest import MakeConfig
from tests.fakes import read_lines
from tests.test_batch import RAGGED, made_up_batch, tiny
from tests.test_llama_forward import random_model

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture(autouse=True)
def _all_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is no compiler, which is a reason of its own (test_kernel_builds.py)."""
    monkeypatch.setattr(library, "lost", lambda: "")


def reasons(model: nn.Module) -> list[str]:
    return list(slow_paths(model))


def test_modules_with_the_same_reason_are_one() -> None:
    noted: dict[str, None] = {}
    verdicts = [(nn.Linear(1, 1), "it is odd"), (nn.Linear(1, 1), ""), (nn.Linear(1, 1), "it is odd"), (nn.ReLU(), "x")]
    for _ in range(2):
        note_all(noted, "parts", verdicts)
    assert list(noted) == [
        "2 of 4 parts (Linear) are not replaced: it is odd",
        "1 of 4 parts (ReLU) are not replaced: x",
    ]


# Learner


def policy(folder: Path, **adapter: Any) -> Any:
    return add_policy(models.load_base(folder, torch.float32, torch.device("cpu")), AdapterConfig(**adapter), seed=0)


def test_a_llama_under_lora_has_no_slow_path(tiny_model: Path) -> None:
    assert reasons(policy(tiny_model)) == []


def test_dora_is_pefts(tiny_model: Path) -> None:
    assert reasons(policy(tiny_model, kind="dora")) == [
        "14 of 14 LoRA layers (Linear) are not replaced: its active adapter is more than B A x (DoRA, dropout, several "
        "at once)",
        "2 of 2 decoder layers (LlamaDecoderLayer) are not replaced: a projection is no frozen linear layer with at "
        "most one plain LoRA update",
    ]


@pytest.mark.parametrize(
    ("config_class", "changes", "expected"),
    [
        (
            "Qwen3Config",
            {"head_dim": 8},
            ["decoder layers (Qwen3DecoderLayer) are not replaced: it computes something"],
        ),
        ("LlamaConfig", {"hidden_act": "gelu"}, ["not replaced: its activation is not silu"]),
        (
            "GemmaConfig",
            {"head_dim": 8},
            ["norms and MLPs (GemmaMLP) are not replaced: it computes something else"],
        ),
    ],
)
def test_other_layers_say_why(config_class: str, changes: dict[str, Any], expected: list[str]) -> None:
    base = tiny(config_class, changes, torch.float32).requires_grad_(False)
    said = "\n".join(reasons(add_policy(base, AdapterConfig(target_modules=ALL), seed=0)))
    for text in expected:
        assert text in said


def test_layers_of_gpt2_say_why() -> None:
    base = tiny("GPT2Config", {"n_inner": 48}, torch.float32).requires_grad_(False)
    model = get_peft_model(base, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    for use in (use_lean_lora, use_lean_layers, use_lean_decoders):
        use(model)
    assert reasons(model) == [
        "2 of 2 LoRA layers (Linear) are not replaced: its base layer is Conv1D",
        "2 of 2 decoder layers (GPT2Block) are not replaced: it is another kind of layer ('GPT2Block' object has no "
        "attribute 'self_attn')",
    ]


def test_trained_norms_say_so() -> None:
    model = tiny("LlamaConfig", {}, torch.float32).requires_grad_(True)
    use_lean_layers(model)
    [reason] = reasons(model)
    assert reason.startswith("5 of 7 norms and MLPs (")
    assert reason.endswith("RMSNorm) are not replaced: its own weights are trained")


def test_a_layer_that_was_replaced_and_is_not_used_says_why() -> None:
    model = tiny("LlamaConfig", {}, torch.float32).requires_grad_(False)
    model = add_policy(model, AdapterConfig(target_modules=ALL), seed=0)
    packed = pack(made_up_batch(RAGGED))
    token_logprobs(model, packed, 1.0)  # also passes that are no packed rows, to look at the model's head
    assert reasons(model) == []
    model.train()
    token_logprobs(model, packed, 1.0)
    assert reasons(model) == [
        "decoder layers (LlamaDecoderLayer) were computed by transformers: it is in training mode or under autocast"
    ]


def test_on_another_device_layers_stay() -> None:
    model = tiny("LlamaConfig", {}, torch.float32)
    peft = get_peft_model(model.to("meta"), LoraConfig(target_modules=ALL))
    for use in (use_lean_lora, use_lean_layers, use_lean_decoders):
        use(peft)
    assert not is_on_cpu(peft)
    assert reasons(peft) == [ON_GPU]
    assert not any("forward" in module.__dict__ for module in peft.modules())


def test_replaced_layers_that_are_moved_to_another_device_compute_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    model, on_cpu = (
        add_policy(tiny("LlamaConfig", {}, torch.float32), AdapterConfig(target_modules=ALL), seed=0) for _ in range(2)
    )
    model.to("meta")
    ours = [decoder_layer._AttentionInput, lora._LoraLinear, norms_and_mlps._RMSNorm, norms_and_mlps._GatedLoraLinear]
    for function in ours:
        monkeypatch.setattr(function, "apply", lambda *arguments: pytest.fail("it computes on another device"))
    ids = torch.ones(1, 4, dtype=torch.int64)
    assert model(input_ids=ids.to("meta")).logits.device.type == "meta"
    with pytest.raises(pytest.fail.Exception):  # here it does
        on_cpu(input_ids=ids)


# Engine


def test_models_that_an_engine_leaves_to_transformers_say_why() -> None:
    model = random_model("GPT2Config", n_inner=48)
    forward_pass(model, compile=False)
    assert reasons(model) == [
        "GPT2LMHeadModel is another kind of model than Llama ('GPT2Model' object has no attribute 'layers')"
    ]
    model = random_model("GraniteConfig", residual_multiplier=0.5)
    forward_pass(model, compile=False)
    assert reasons(model)[0].startswith("GraniteForCausalLM computes something else than Llama: logits differ by ")
    model = random_model("LlamaConfig")
    forward_pass(model, compile=False)
    assert reasons(model) == []


def test_compiled_layers_were_asked_for() -> None:
    model = random_model("LlamaConfig")
    forward_pass(model, compile=True)
    assert reasons(model) == ["rollout.engine_args.compile asks for transformers' layers"]


# Run


def slow_path_events(run: Path) -> list[str]:
    return [event["message"] for event in read_lines(run / "events.jsonl") if event["kind"] == "slow_path"]


def test_a_run_says_each_reason_once(make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config("steps=2", "adapter.kind=dora", "evaluation.tasks=2", "rollout.engine_args.compile=false")
    real = LlamaForward.step

    def step(self: LlamaForward, *arguments: Any) -> Any:
        slow_paths(self._model).setdefault("made up")  # as what comes up in a pass is noted
        return real(self, *arguments)

    monkeypatch.setattr(LlamaForward, "step", step)
    launch.train(config)
    said = slow_path_events(config.run_dir)
    assert [text.partition(":")[0] for text in said] == ["rollout engine", "learner", "learner"]
    assert said[0] == "rollout engine: made up"
    assert "2 of 2 decoder layers (LlamaDecoderLayer)" in said[2]
    with Run.reopen(config.run_dir) as run:  # as a resumed run does
        for text in [*said, "another"]:
            run.event_once("slow_path", text)
    assert slow_path_events(config.run_dir) == [*said, "another"]
