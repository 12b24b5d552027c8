"""Making policy, frozen reference and critic as adapters of one base, and reading and writing their tensors.

`lora`, `dora`, `rslora` and `qlora` train a PEFT adapter; policy, reference and critic are then adapters of one frozen
base. `full` trains all weights in float32, and its reference is a second, frozen copy of the model. Either way the
tensors that were learnt are an `Adapter`: what travels to the engines, is hashed, saved and published.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import PeftModel, get_peft_model, set_peft_model_state_dict
from torch import Tensor, nn
from transformers import PreTrainedModel

from rlft.config import AdapterConfig, ModelConfig
from rlft.learner.sharding import whole
from rlft.model.adapter import (
    POLICY,
    adapter_tensors,
    is_adapter_folder,
    lora_config,
    refuse_misfit,
    refuse_targets,
)
from rlft.model.base import load_base, quiet_libraries, resolve_dtype, seeded
from rlft.model.layers.decoder_layer import use_lean_decoders
from rlft.model.layers.lora import use_lean_lora
from rlft.model.layers.norms_and_mlps import use_lean_layers
from rlft.model.layers.slow_paths import note, slow_paths
from rlft.model.pretrained import load_adapter, load_tokenizer
from rlft.model.starting_point import ReferenceSource

REFERENCE, CRITIC = "reference", "critic"
"""Names of further adapters in the policy's PEFT model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """A model with one of its adapters switched on."""

    model: nn.Module
    """What is called; several roles can share one."""
    adapter: str | None
    """Name of the PEFT adapter; None is the model without any."""


def make_policy(
    folder: Path | str,
    model: ModelConfig,
    adapter: AdapterConfig,
    *,
    device: torch.device,
    seed: int,
    start: Mapping[str, Tensor] | None,
) -> Role:
    """Load the base with what is trained of it: a fresh adapter whose random half comes from `seed`, or all weights.

    Raises:
        ValueError: `start` belongs to an adapter of other modules, rank or kind.
    """
    dtype = resolve_dtype(model)
    if adapter.kind == "full":
        # Small updates vanish in bfloat16, so the trained weights are float32; products run in `dtype`, see `compute`.
        role = Role(model=load_base(folder, torch.float32, device).requires_grad_(True), adapter=None)
        note(slow_paths(role.model), "adapter.kind=full trains the layers' own weights, which leaves them as they are")
    else:
        base = load_base(folder, dtype, device, quantize=adapter.kind == "qlora", shares_weights=True)
        role = Role(model=add_policy(base, adapter, seed=seed), adapter=POLICY)
    if start is not None:
        write_role(role, start)
    return role


def add_policy(base: PreTrainedModel, config: AdapterConfig, *, seed: int) -> PeftModel:
    """Put a fresh `policy` adapter on the base; its random half comes from `seed` alone, its other half is zero.

    Raises:
        ValueError: see `refuse_targets`.
    """
    with seeded(seed), quiet_libraries():
        model = get_peft_model(base, lora_config(config), adapter_name=POLICY)
    refuse_targets(model)
    use_lean_lora(model)
    use_lean_layers(model)
    use_lean_decoders(model)
    return model


def make_critic(policy: Role) -> Role:
    """Put a critic on the policy's base: a second adapter, which starts with the policy's tensors."""
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
    """Make the frozen reference: a copy of the policy's start, or the adapter or model that `source` names.

    Raises:
        ValueError: a reference model with another vocabulary, or an adapter that does not fit the base.
    """
    device = next(policy.model.parameters()).device
    if source is not None and not is_adapter_folder(Path(source.folder)):
        refuse_other_vocabulary(folder, source.folder)
        role = Role(model=load_base(source.folder, resolve_dtype(model), device), adapter=None)
        note(slow_paths(role.model), "a reference model of its own is computed by transformers")
        return role
    if isinstance(policy.model, PeftModel):
        if source is not None:
            with quiet_libraries():
                policy.model.load_adapter(source.folder, adapter_name=REFERENCE, is_trainable=False)
            use_lean_lora(policy.model)
            policy.model.set_adapter(POLICY)
            return Role(model=policy.model, adapter=REFERENCE)
        if start is None:
            return Role(model=policy.model, adapter=None)
        add_copy(policy.model, REFERENCE, start)
        return Role(model=policy.model, adapter=REFERENCE)
    frozen = Role(model=load_base(folder, resolve_dtype(model), device), adapter=None)
    if source is not None:
        with quiet_libraries():
            frozen = Role(model=load_adapter(frozen.model, source.folder, REFERENCE), adapter=REFERENCE)
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


def _tensors(role: Role) -> dict[str, Tensor]:
    if isinstance(role.model, PeftModel):
        assert role.adapter is not None
        return adapter_tensors(role.model, role.adapter)
    return dict(role.model.named_parameters())


# Folders


def refuse_other_vocabulary(folder: Path | str, other: Path | str) -> None:
    """Refuse a reference model whose vocabulary is not the policy's.

    Raises:
        ValueError: the vocabularies differ.
    """
    vocabulary, others = (load_tokenizer(path).get_vocab() for path in (folder, other))
    if vocabulary != others:
        raise ValueError(
            f"reference {other} has another vocabulary ({len(others)} tokens) than the policy ({len(vocabulary)}): "
            "its log-probs of the policy's tokens would mean nothing; use a model of the same family"
        )


# Identity
