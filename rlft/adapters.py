"""What is trained and what it is compared with: the roles on a base, their tensors, and the identity of those.

`lora`, `dora`, `rslora` and `qlora` train a PEFT adapter; policy, reference and critic are then adapters of one frozen
base. `full` trains all weights in float32, and its reference is a second, frozen copy of the model. Either way the
tensors that were learnt are an `Adapter`: what travels to the engines, is hashed, saved and published.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from rlft.config import AdapterConfig, ModelConfig
from rlft.lean_decoder import use_lean_decoders
from rlft.lean_layers import use_lean_layers
from rlft.lora import use_lean_lora
from rlft.model import load_base, quiet_libraries, resolve_dtype, seeded
from rlft.sharding import whole
from rlft.types import Adapter

POLICY, REFERENCE, CRITIC = "policy", "reference", "critic"
BASE_VERSION = -1
"""Adapter version of the bare base model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A model with one of its adapters switched on."""

    model: nn.Module
    """What is called; several roles can share one."""
    adapter: str | None
    """Name of the PEFT adapter; None is the model without any."""
    is_saved: bool = False
    """For a reference: whether its tensors belong into a checkpoint."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSource:
    """A reference other than the policy's start."""

    folder: str
    """An adapter folder in PEFT's layout, or a model folder."""


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
        use_dora=config.kind == "dora",
        use_rslora=config.kind == "rslora",
    )


def make_policy(
    folder: Path | str,
    model: ModelConfig,
    adapter: AdapterConfig,
    *,
    device: torch.device,
    seed: int,
    start: Mapping[str, Tensor] | None,
) -> Role:
    """The base with what is trained of it: a fresh adapter whose random half comes from `seed`, or all its weights.

    Raises:
        ValueError: `start` belongs to an adapter of other modules, rank or kind.
    """
    dtype = resolve_dtype(model)
    if adapter.kind == "full":
        # Small updates vanish in bfloat16, so the trained weights are float32; products run in `dtype`, see `compute`.
        role = Role(model=load_base(folder, torch.float32, device).requires_grad_(True), adapter=None)
    else:
        base = load_base(folder, dtype, device, quantize=adapter.kind == "qlora")
        role = Role(model=add_policy(base, adapter, seed=seed), adapter=POLICY)
    if start is not None:
        write_role(role, start)
    return role


def add_policy(base: PreTrainedModel, config: AdapterConfig, *, seed: int) -> PeftModel:
    """Put a fresh `policy` adapter on the base; its random half comes from `seed` alone, its other half is zero."""
    with seeded(seed), quiet_libraries():
        model = get_peft_model(base, lora_config(config), adapter_name=POLICY)
    use_lean_lora(model)
    use_lean_layers(model)
    use_lean_decoders(model)
    return model


def make_critic(policy: Role) -> Role:
    """A second adapter on the policy's base, with the policy's tensors."""
    assert isinstance(policy.model, PeftModel)
    add_copy(policy.model, CRITIC, read_role(policy))
    return Role(model=policy.model, adapter=CRITIC)


def make_reference(
    policy: Role,
    folder: Path | str,
    model: ModelConfig,
    *,
    start: Mapping[str, Tensor] | None,
    source: ReferenceSource | None,
) -> Role:
    """What the policy is held to: where it starts, or the adapter or model that `source` names.

    Raises:
        ValueError: a reference model with another vocabulary, or an adapter that does not fit the base.
    """
    device = next(policy.model.parameters()).device
    if source is not None and not is_adapter_folder(Path(source.folder)):
        refuse_other_vocabulary(folder, source.folder)
        return Role(model=load_base(source.folder, resolve_dtype(model), device), adapter=None)
    if isinstance(policy.model, PeftModel):
        if source is not None:
            with quiet_libraries():
                policy.model.load_adapter(source.folder, adapter_name=REFERENCE, is_trainable=False)
            use_lean_lora(policy.model)
            policy.model.set_adapter(POLICY)
            return Role(model=policy.model, adapter=REFERENCE, is_saved=True)
        if start is None:
            return Role(model=policy.model, adapter=None)
        add_copy(policy.model, REFERENCE, start)
        return Role(model=policy.model, adapter=REFERENCE, is_saved=True)
    frozen = Role(model=load_base(folder, resolve_dtype(model), device), adapter=None)
    if source is not None:
        with quiet_libraries():
            frozen = Role(model=PeftModel.from_pretrained(frozen.model, source.folder, REFERENCE), adapter=REFERENCE)
    elif start is not None:
        write_role(frozen, start)
    return frozen


def add_copy(model: PeftModel, name: str, tensors: Mapping[str, Tensor]) -> None:
    """Put another adapter of the same shape, with these tensors, on the same base; `policy` stays active."""
    with quiet_libraries():
        model.add_adapter(name, model.peft_config[POLICY])
    write_role(Role(model=model, adapter=name), tensors)
    model.set_adapter(POLICY)


@contextmanager
def active(role: Role) -> Iterator[None]:
    """Run with this role's adapter, then go back to the policy's."""
    if not isinstance(role.model, PeftModel):
        yield
        return
    if role.adapter is None:
        with role.model.disable_adapter():
            yield
        return
    if role.model.active_adapters == [role.adapter]:
        yield  # switching goes through all modules
        return
    role.model.set_adapter(role.adapter)
    try:
        yield
    finally:
        if POLICY in role.model.peft_config:
            role.model.set_adapter(POLICY)


def named_parameters(role: Role) -> list[tuple[str, nn.Parameter]]:
    """The role's own parameters in the model's order: its adapter's, or all of a model without adapters."""
    if isinstance(role.model, PeftModel):
        return [(n, p) for n, p in role.model.named_parameters() if f".{role.adapter}." in f"{n}."]
    return list(role.model.named_parameters())


def lora_scale(config: AdapterConfig) -> float:
    """Factor on B A: alpha / rank, or alpha / sqrt(rank) for rslora."""
    return config.alpha / (config.rank**0.5 if config.kind == "rslora" else config.rank)


def merged_weight(weight: Tensor, parts: Mapping[str, Tensor], scale: float, *, is_transposed: bool) -> Tensor:
    """The weight with a LoRA or DoRA update in it, float32, as the adapter's layer computes.

    Args:
        weight: (out, in), or (in, out) where `is_transposed` (GPT-2's layers).
        parts: `lora_A` (rank, in), `lora_B` (out, rank), and DoRA's `lora_magnitude_vector` (out).
    """
    down, up = (parts[name].to(weight.device, torch.float32) for name in ("lora_A", "lora_B"))
    merged = (weight.T if is_transposed else weight).float() + scale * (up @ down)
    if (magnitude := parts.get("lora_magnitude_vector")) is not None:
        # Weight decomposition, https://arxiv.org/abs/2402.09353, equation 5: rows of the learnt length.
        merged = merged * (magnitude.to(weight.device, torch.float32) / merged.norm(dim=1))[:, None]
    return merged.T if is_transposed else merged


def read_role(role: Role) -> dict[str, Tensor]:
    """The role's tensors, as float32 copies on the CPU; under PEFT's names for an adapter. See `sharding.whole`."""
    return {key: whole(value).float() for key, value in sorted(_tensors(role).items())}


def write_role(role: Role, tensors: Mapping[str, Tensor]) -> None:
    """Overwrite the role's tensors.

    Raises:
        ValueError: the tensors belong to an adapter of other modules, rank or kind.
    """
    expected = _tensors(role)
    refuse_misfit({key: value.shape for key, value in expected.items()}, tensors)
    if isinstance(role.model, PeftModel):
        set_peft_model_state_dict(role.model, dict(tensors), adapter_name=role.adapter)
        return
    with torch.no_grad():
        for key, parameter in expected.items():
            parameter.copy_(tensors[key])


def adapter_shapes(folder: Path | str, config: AdapterConfig) -> dict[str, torch.Size]:
    """Names and shapes of an adapter's tensors, without the memory of the model."""
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
        with quiet_libraries():
            model = get_peft_model(base, lora_config(config), adapter_name=POLICY)
        return {key: value.shape for key, value in get_peft_model_state_dict(model, adapter_name=POLICY).items()}


def refuse_misfit(shapes: Mapping[str, torch.Size], tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that are not exactly those which `shapes` names.

    Raises:
        ValueError: they belong to an adapter of other modules, rank or kind.
    """
    if mismatched := sorted(
        key
        for key in {*shapes, *tensors}
        if key not in shapes or key not in tensors or shapes[key] != tensors[key].shape
    ):
        raise ValueError(
            f"the adapter's tensors do not fit this model: {len(mismatched)} differ in name or shape, "
            f"first {mismatched[0]!r}; "
            "check adapter.kind, adapter.rank, adapter.target_modules and model.source"
        )


def _tensors(role: Role) -> dict[str, Tensor]:
    if isinstance(role.model, PeftModel):
        return get_peft_model_state_dict(role.model, adapter_name=role.adapter)
    return dict(role.model.named_parameters())


# Folders


def is_adapter_folder(folder: Path) -> bool:
    """Whether a PEFT adapter lies there."""
    return (folder / "adapter_config.json").is_file()


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Tensors of a PEFT adapter folder, or of a model folder that `save_full` wrote.

    Raises:
        ValueError: there is neither at `folder`.
    """
    for name in ("adapter_model.safetensors", "model.safetensors"):
        if (folder / name).is_file():
            return dict(sorted(load_file(folder / name).items()))
    raise ValueError(
        f"{folder} is not an adapter folder: it has no adapter_model.safetensors (nor a trained model.safetensors)"
    )


def save_tensors(folder: Path, config: AdapterConfig, model_folder: str, tensors: Mapping[str, Tensor]) -> None:
    """Write what was learnt into an existing folder: an adapter in PEFT's layout, or a whole model for `full`."""
    if config.kind == "full":
        from transformers import GenerationConfig

        AutoConfig.from_pretrained(model_folder).save_pretrained(folder)
        AutoTokenizer.from_pretrained(model_folder).save_pretrained(folder)
        if (Path(model_folder) / "generation_config.json").is_file():
            GenerationConfig.from_pretrained(model_folder).save_pretrained(folder)
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    lora = lora_config(config)
    lora.target_modules = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors})
    lora.base_model_name_or_path = model_folder
    lora.inference_mode = True
    lora.save_pretrained(folder)
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})


def refuse_other_vocabulary(folder: Path | str, other: Path | str) -> None:
    """Refuse a teacher whose log-probs of the policy's tokens mean nothing.

    Raises:
        ValueError: the vocabularies differ.
    """
    vocabulary, others = (AutoTokenizer.from_pretrained(path).get_vocab() for path in (folder, other))
    if vocabulary != others:
        raise ValueError(
            f"reference {other} has another vocabulary ({len(others)} tokens) than the policy ({len(vocabulary)}): "
            "its log-probs of the policy's tokens would mean nothing; use a model of the same family"
        )


# Identity


def adapter_hash(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, shapes and float32 bytes; the empty mapping (bare base model) has a hash too."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(tensor.numpy().data)
    return digest.hexdigest()


def verified_hash(adapter: Adapter) -> str:
    """Hash of the tensors that arrived.

    Raises:
        ValueError: it is not the one that the adapter claims.
    """
    content_hash = adapter_hash(adapter.tensors)
    if content_hash != adapter.hash:
        raise ValueError(
            f"adapter version {adapter.version} claims hash {adapter.hash[:12]} but its tensors have "
            f"{content_hash[:12]}: it was damaged or mixed up on the way"
        )
    return content_hash


def make_adapter(version: int, tensors: Mapping[str, Tensor]) -> Adapter:
    """A stamped snapshot."""
    return Adapter(version=version, hash=adapter_hash(tensors), tensors=tensors)


def bare_base() -> Adapter:
    """The adapter that changes nothing."""
    return make_adapter(BASE_VERSION, {})
