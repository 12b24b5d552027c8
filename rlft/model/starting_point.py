"""What a config's training starts from and is held to: the model's folder, the adapter to start from, the reference."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rlft.common.files import write_folder
from rlft.config import BaseRunConfig, PolicyRunConfig
from rlft.model import sources
from rlft.model.adapter import (
    is_adapter_folder,
    read_folder,
    save_tensors,
)


def resolve_model(config: BaseRunConfig) -> Path:
    """The model's local folder, fetched and converted where needed."""
    return sources.resolve(config.model.source)


def save_adapter(folder: Path, config: BaseRunConfig, model_folder: str, tensors: Mapping[str, Tensor]) -> None:
    """Write an adapter folder, whole or not at all; plain `peft` (for `full`: transformers) loads it."""

    def write(temporary: Path) -> None:
        save_tensors(temporary, config.adapter, model_folder, tensors)

    write_folder(folder, write)


def refuse_other_scale(folder: Path, config: BaseRunConfig) -> None:
    """Refuse an adapter folder whose update is scaled otherwise than the config says: its tensors alone do not tell.

    Raises:
        ValueError: both values.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        return
    saved = json.loads(path.read_text())
    expected = {"lora_alpha": config.adapter.alpha, "use_rslora": config.adapter.kind == "rslora"}
    for key, value in expected.items():
        if saved.get(key, value) != value:
            raise ValueError(
                f"{path} has {key} {saved[key]}, the config adapter.alpha={config.adapter.alpha} and "
                f"adapter.kind={config.adapter.kind}; set the same"
            )


def start_tensors(config: PolicyRunConfig) -> dict[str, Tensor] | None:
    """Tensors of the folder that `adapter.start` names; None when training starts from the model itself.

    Raises:
        ValueError: there is no adapter there, or one that is scaled otherwise.
    """
    if not config.adapter.start:
        return None
    folder = Path(config.adapter.start).expanduser()
    refuse_other_scale(folder, config)
    return read_folder(folder)


def reference_source(reference: str) -> ReferenceSource | None:
    """The reference that a config names, fetched where needed; None if it is where training starts."""
    if not reference:
        return None
    if is_adapter_folder(folder := Path(reference).expanduser()):
        return ReferenceSource(folder=str(folder))
    return ReferenceSource(folder=str(sources.resolve(reference)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceSource:
    """The frozen model that the policy is compared with, where it is not the policy's start."""

    folder: str
    """An adapter folder in PEFT's layout, or a model folder."""
