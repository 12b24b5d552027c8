"""Names of other packages that rlft uses although nobody promises to keep them: each with its purpose, in one list.

`private` gives the thing behind a name of the list, or an error that says which version of the package to install.
CONTRIBUTING.md shows the list, and a test refuses other private names.
"""

from __future__ import annotations

import importlib
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PRIVATE_NAMES = {
    "torch.cpu._is_avx512_bf16_supported": "choosing bfloat16 where the processor computes it",
    "torch.cpu._is_amx_tile_supported": "leaving products to torch where the processor has a matrix unit",
    "torch.Tensor._version.__get__": "seeing that somebody wrote over weights that two models share",
    "torch._softmax_backward_data": "the gradient of attention in blocks",
    "torch.ops.mkldnn._is_mkldnn_bf16_supported": "products of frozen layers on CPUs in bfloat16",
    "torch.ops.mkldnn._reorder_linear_weight": "products of frozen layers on CPUs in bfloat16",
    "torch.ops.mkldnn._linear_pointwise.default": "products of frozen layers on CPUs in bfloat16",
    "torch.ops.mkldnn._linear_pointwise.binary": "products of frozen layers on CPUs in bfloat16",
    "transformers.activations.SiLUActivation": "knowing SiLU in a layer, to compute it inside of a product",
    "ray.init(_node_ip_address)": "a cluster that listens on the loopback interface only",
    "ray.init(_temp_dir)": "a cluster whose files lie in a folder that only its user can enter",
    "ray: process raylet": "noticing that a run's cluster has died",
    "ray: process gcs_server": "noticing that a run's cluster has died",
    "verifiers.v1.utils.generic.concrete_type": "the config class of a taskset of verifiers",
    "trl.experimental.ppo.PPOConfig": "the peer of benchmarks/ppo_memory.py",
    "trl.experimental.ppo.PPOTrainer": "the peer of benchmarks/ppo_memory.py",
}
"""What rlft uses it for, by name: something in a module, a hidden argument of a function, or the name of a process."""

VERSIONS = {
    "torch": ">=2.10,<3",
    "transformers": ">=5.0,<6",
    "ray": ">=2.54,<3",
    "verifiers": ">=0.3.1,<0.4",
    "trl": ">=1.0,<1.13",
}
"""Versions that have them, by package: those of pyproject.toml; of TRL those of benchmarks/ppo_memory.py."""


@cache
def private(name: str) -> Any:
    """Something of another package that may be missing in another version of it.

    Args:
        name: of `PRIVATE_NAMES`, with its package and modules.

    Raises:
        ImportError: see `missing`.
    """
    purpose_of(name)
    module, *parts = name.split(".")
    try:
        found = importlib.import_module(module)
        for part in parts:
            module = f"{module}.{part}"
            if hasattr(found, "__path__") and not hasattr(found, part):
                importlib.import_module(module)  # which makes it an attribute of its package
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise missing(name) from error
    return found


def purpose_of(name: str) -> str:
    """What a private name is for.

    Raises:
        KeyError: it is not in the list.
    """
    if name not in PRIVATE_NAMES:
        raise KeyError(f"{name} is not in PRIVATE_NAMES: say there what it is for")
    return PRIVATE_NAMES[name]


def missing(name: str) -> ImportError:
    """The error to raise where the installed package has no such name: what for, and which versions have it."""
    package = name.replace(":", ".").partition(".")[0]
    try:
        installed = f"{package} {version(package)}"
    except PackageNotFoundError:
        installed = f"{package} (not installed)"
    return ImportError(
        f"{installed} has no {name.removeprefix(f'{package}: ')}, which rlft needs for {purpose_of(name)}; "
        f"install '{package}{VERSIONS[package]}'"
    )
