"""The policy's adapter: identity of its tensors, its folder, PEFT's description of it, merging it into a weight."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, Conv1D

from rlft.config import AdapterConfig
from rlft.model import pretrained
from rlft.model.base import quiet_libraries
from rlft.types import Adapter

POLICY = "policy"
"""Name of the policy's adapter in a PEFT model."""
BASE_VERSION = -1
"""Adapter version of the bare base model."""


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


def lora_scale(config: AdapterConfig) -> float:
    """Factor on B A: alpha / rank, or alpha / sqrt(rank) for rslora."""
    return config.alpha / (config.rank**0.5 if config.kind == "rslora" else config.rank)


def merged_weight(
    weight: Tensor, parts: Mapping[str, Tensor], scale: float, *, is_transposed: bool, scratch: Tensor | None = None
) -> Tensor:
    """The weight with a LoRA or DoRA update in it, float32: the one way in which adapters are merged.

    Args:
        weight: (out, in), or (in, out) where `is_transposed` (GPT-2's layers).
        parts: `lora_A` (rank, in), `lora_B` (out, rank), and DoRA's `lora_magnitude_vector` (out).
        scratch: float32 of at least the weight's size, in which the result then lies.
    """
    if scratch is None:
        scratch = torch.empty(weight.numel(), device=weight.device, dtype=torch.float32)
    merged = scratch[: weight.numel()].view(weight.shape).copy_(weight)
    wide = merged.T if is_transposed else merged
    down, up = (parts[name].to(weight.device, torch.float32) for name in ("lora_A", "lora_B"))
    wide.addmm_(up, down, alpha=scale)
    if (magnitude := parts.get("lora_magnitude_vector")) is not None:
        # Weight decomposition, https://arxiv.org/abs/2402.09353, equation 5: rows of the learnt length.
        wide.mul_((magnitude.to(weight.device, torch.float32) / wide.norm(dim=1))[:, None])
    return merged


def adapter_tensors(model: PeftModel, name: str) -> dict[str, Tensor]:
    """The tensors of one of a model's adapters, under PEFT's names."""
    # Else PEFT adds the frozen embedding where an update of it, or of the output, is among them.
    return get_peft_model_state_dict(model, adapter_name=name, save_embedding_layers=False)


def adapter_shapes(folder: Path | str, config: AdapterConfig) -> dict[str, torch.Size]:
    """Names and shapes of an adapter's tensors, without the memory of the model.

    Raises:
        ValueError: see `refuse_targets`; or no module of the model is a target.
    """
    with torch.device("meta"):
        base = AutoModelForCausalLM.from_config(pretrained.load_config(folder))
        with quiet_libraries():
            model = get_peft_model(base, lora_config(config), adapter_name=POLICY)
        refuse_targets(model)
        return {key: value.shape for key, value in adapter_tensors(model, POLICY).items()}


def refuse_targets(model: PeftModel) -> None:
    """Refuse updates that cannot be merged into a weight which is the module's own.

    Raises:
        ValueError: which module it is, and what to name instead.
    """
    shared = model.get_base_model().get_input_embeddings().weight
    for name, module in model.named_modules():
        if not isinstance(module, LoraLayer):
            continue
        base = module.get_base_layer()
        if not isinstance(base, nn.Linear | Conv1D):
            why = f"is no linear layer ({type(base).__name__})"
        elif base.weight is shared:
            why = "has its weight together with the input embeddings"
        else:
            continue
        raise ValueError(
            f"adapter.target_modules: {name.removeprefix('base_model.model.')} {why}, so that no update of it can be "
            "merged; name others, such as [q_proj, k_proj, v_proj, o_proj]"
        )


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


def is_adapter_folder(folder: Path) -> bool:
    """Whether a PEFT adapter lies there."""
    return (folder / "adapter_config.json").is_file()


def read_folder(folder: Path) -> dict[str, Tensor]:
    """Tensors of a PEFT adapter folder, or of a model folder that `save_full` wrote.

    Raises:
        ValueError: there is neither at `folder`, or it is damaged.
    """
    for name in ("adapter_model.safetensors", "model.safetensors"):
        if (folder / name).is_file():
            try:
                return dict(sorted(load_file(folder / name).items()))
            except SafetensorError as error:
                raise ValueError(
                    f"{folder / name} is damaged ({error}); take another adapter of the run, or restore it from a copy "
                    "(`rlft resume` of its run writes the last adapter again)"
                ) from error
    raise ValueError(
        f"{folder} is not an adapter folder: it has no adapter_model.safetensors (nor a trained model.safetensors)"
    )


def save_tensors(folder: Path, config: AdapterConfig, model_folder: str, tensors: Mapping[str, Tensor]) -> None:
    """Write what was learnt into an existing folder: an adapter in PEFT's layout, or a whole model for `full`."""
    if config.kind == "full":
        pretrained.load_config(model_folder).save_pretrained(folder)
        pretrained.load_tokenizer(model_folder).save_pretrained(folder)
        if (Path(model_folder) / "generation_config.json").is_file():
            pretrained.load_generation_config(model_folder).save_pretrained(folder)
        save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
        return
    lora = lora_config(config)
    lora.target_modules = sorted({name.split(".lora_")[0].rpartition(".")[2] for name in tensors})
    lora.base_model_name_or_path = model_folder
    lora.inference_mode = True
    lora.save_pretrained(folder)
    save_file(dict(tensors), folder / "adapter_model.safetensors", metadata={"format": "pt"})


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
