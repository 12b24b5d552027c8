"""One frozen base and its adapters: loading, log-probabilities, values, and the identity of an adapter.

Policy, reference and critic are LoRA adapters on the same base. The reference is a frozen copy of the adapter that RL
starts from; where RL starts from nothing, it is the base itself.
"""

from __future__ import annotations

import hashlib
import inspect
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from rlft.attention import NAME as PACKED_ATTENTION
from rlft.attention import Layout
from rlft.batch import Packed
from rlft.config import AdapterConfig, ModelConfig
from rlft.lora import use_lean_lora
from rlft.objectives.logprobs import selected_logprobs
from rlft.types import Adapter

POLICY, REFERENCE, CRITIC = "policy", "reference", "critic"
BASE_VERSION = -1
"""Adapter version of the bare base model."""


def default_device() -> torch.device:
    """The first GPU, or the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def resolve_dtype(config: ModelConfig) -> torch.dtype:
    """Type of the frozen weights: as configured; `auto` is bfloat16 where the machine computes it natively."""
    if config.dtype != "auto":
        return torch.bfloat16 if config.dtype == "bfloat16" else torch.float32
    if torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    return torch.bfloat16 if torch.cpu._is_avx512_bf16_supported() else torch.float32


def load_base(folder: str | Path, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The frozen base model in inference mode, with attention that understands packed rows.

    Raises:
        OSError, ValueError: what transformers says of a folder that holds no causal language model.
    """
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation=PACKED_ATTENTION, local_files_only=Path(folder).is_dir()
    )
    return model.to(device).eval().requires_grad_(False)


def lora_config(config: AdapterConfig) -> LoraConfig:
    """PEFT's description of the adapter."""
    targets = config.target_modules if isinstance(config.target_modules, str) else list(config.target_modules)
    return LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        target_modules=targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )


def add_policy(base: PreTrainedModel, config: AdapterConfig, *, seed: int) -> PeftModel:
    """Put a fresh `policy` adapter on the base; its random half comes from `seed` alone, its other half is zero."""
    with seeded(seed), quiet_libraries():
        model = get_peft_model(base, lora_config(config), adapter_name=POLICY)
    use_lean_lora(model)
    return model


def add_copy(model: PeftModel, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Put another adapter of the same shape, with these tensors, on the same base; `policy` stays active."""
    with quiet_libraries():
        model.add_adapter(name, model.peft_config[POLICY])
    write_adapter(model, name, tensors)
    model.set_adapter(POLICY)


def read_adapter(model: PeftModel, name: str) -> dict[str, Tensor]:
    """The adapter's tensors under PEFT's names, as float32 copies on the CPU."""
    state = get_peft_model_state_dict(model, adapter_name=name)
    return {key: value.detach().to("cpu", torch.float32, copy=True) for key, value in sorted(state.items())}


def write_adapter(model: PeftModel, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the adapter's tensors.

    Raises:
        ValueError: the tensors belong to an adapter of other modules or rank.
    """
    expected = get_peft_model_state_dict(model, adapter_name=name)
    if mismatched := sorted(
        key
        for key in {*expected, *tensors}
        if key not in expected or key not in tensors or expected[key].shape != tensors[key].shape
    ):
        raise ValueError(
            f"the adapter's tensors do not fit this model: {len(mismatched)} differ in name or shape, "
            f"first {mismatched[0]!r}; "
            "check adapter.rank, adapter.target_modules and model.source"
        )
    set_peft_model_state_dict(model, dict(tensors), adapter_name=name)


def read_adapter_folder(folder: Path) -> dict[str, Tensor]:
    """Tensors of a PEFT adapter folder.

    Raises:
        ValueError: there is none at `folder`.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise ValueError(f"{folder} is not an adapter folder: it has no adapter_model.safetensors")
    return dict(sorted(load_file(folder / "adapter_model.safetensors").items()))


def adapter_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and float32 bytes; the empty mapping (bare base model) has a hash too."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def make_adapter(version: int, tensors: Mapping[str, Tensor]) -> Adapter:
    """A stamped snapshot."""
    return Adapter(version=version, hash=adapter_hash(tensors), tensors=tensors)


def bare_base() -> Adapter:
    """The adapter that changes nothing."""
    return make_adapter(BASE_VERSION, {})


@contextmanager
def active(model: PeftModel, name: str | None) -> Iterator[None]:
    """Run with this adapter (None: with none), then go back to the policy."""
    if name is None:
        with model.disable_adapter():
            yield
        return
    model.set_adapter(name)
    try:
        yield
    finally:
        model.set_adapter(POLICY)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Without the deprecation notices that transformers gives to peft and trl, which a user of rlft cannot act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers|peft|trl")
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Global random state from `seed` inside, as it was outside: for libraries that take no generator."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed % 2**63)
        yield


def token_logprobs(model: nn.Module, packed: Packed, temperature: float) -> tuple[Tensor, Tensor]:
    """Log-prob of every action of the row and entropy of its distribution, under the active adapter.

    Only the positions that predict an action are projected to the vocabulary.

    Returns:
        (logprobs (A,), entropy (A,)), float32, with gradient where the adapter has one.
    """
    device = next(model.parameters()).device
    index = packed.predictor_index.to(device)
    layout = Layout(packed.groups)
    inputs = _model_inputs(packed, layout, device)
    if "logits_to_keep" in inspect.signature(_causal_lm(model).forward).parameters:
        logits = model(**inputs, logits_to_keep=index).logits[0]
    else:
        logits = model(**inputs).logits[0, index]
    layout.refuse_unheeded(_num_layers(model))
    return selected_logprobs(logits, packed.target_ids.to(device), temperature)


def token_values(model: nn.Module, head: nn.Linear, packed: Packed) -> Tensor:
    """The critic's value of the state before every action of the row, (A,) float32, under the active adapter."""
    device = next(model.parameters()).device
    body = _causal_lm(model).base_model
    layout = Layout(packed.groups)
    hidden = body(**_model_inputs(packed, layout, device)).last_hidden_state[0]
    layout.refuse_unheeded(_num_layers(model))
    return head(hidden[packed.predictor_index.to(device)].float()).squeeze(-1)


def _model_inputs(packed: Packed, layout: Layout, device: torch.device) -> dict[str, Any]:
    return {
        "input_ids": packed.token_ids.to(device),
        "position_ids": packed.position_ids.to(device),
        "packed_layout": layout,
        "use_cache": False,
    }


def _num_layers(model: nn.Module) -> int:
    return _causal_lm(model).config.get_text_config().num_hidden_layers


def _causal_lm(model: nn.Module) -> PreTrainedModel:
    return model.get_base_model() if isinstance(model, PeftModel) else model
