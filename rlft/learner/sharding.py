"""Models whose weights are split over the processes of a learner, https://arxiv.org/abs/2304.11277 (torch's FSDP2).

A decoder layer's weights are put together for its own forward and backward pass and dropped again. Gradients are
reduced to sums over the processes, like everything else that `ranks` exchanges, and each process keeps and updates its
share of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import psutil
import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import GradientCheckpointingLayer

from rlft.model.base import causal_lm

LARGE = 0.5
"""Part of a process's memory from which on frozen models are split too; a copy in each process is faster."""


def is_large(models: Iterable[nn.Module], device: torch.device, *, processes: int, gpus: float) -> bool:
    """Whether models are too large for every process to hold all of their weights.

    Args:
        processes: how many share the machine's memory, on a CPU.
        gpus: the part of the GPU that is this process's.
    """
    size = sum(p.numel() * p.element_size() for model in models for p in model.parameters())
    if device.type == "cuda":
        return size > LARGE * gpus * torch.cuda.get_device_properties(device).total_memory
    return size > LARGE * psutil.virtual_memory().total / processes


def shard(model: nn.Module, device: torch.device) -> None:
    """Split a model's weights over all processes, and bring each one's share to its device.

    Of a frozen model, with adapters or without, only the decoder layers' own weights are split: adapters are small, and
    the output projection is used outside of the model's forward pass.
    """
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    root, kept = model, set[nn.Parameter]()
    if isinstance(model, PeftModel) or not any(p.requires_grad for p in model.parameters()):
        root = causal_lm(model).base_model
        adapters = model.peft_config if isinstance(model, PeftModel) else ()
        split = {
            parameter
            for layer in layers
            for name, parameter in layer.named_parameters()
            if not any(f".{adapter}." in f"{name}." for adapter in adapters)
        }
        kept = {*model.parameters()} - split
    for module in (*reversed(layers), root):
        # By default the root's weights stay together until a backward pass, which not every forward pass has.
        fully_shard(module, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
    for module in root.modules():
        if isinstance(module, FSDPModule):
            module.set_gradient_divide_factor(1.0)  # sums, not means
            module.set_force_sum_reduction_for_comms(True)
    model.to(device)


def whole(tensor: Tensor) -> Tensor:
    """A copy on the CPU. A split tensor is put together, in which all processes take part: the first one gets it, the
    others get an empty one."""
    if isinstance(tensor, DTensor):
        together = tensor.full_tensor()
        tensor = together if dist.get_rank() == 0 else together.new_empty(0)
    return tensor.detach().to("cpu", copy=True)


def split_like(like: Tensor, tensor: Tensor) -> Tensor:
    """A copy of a whole tensor on the device of `like`, and this process's share of it where that is split."""
    tensor = tensor.to(like.device, copy=True)
    if isinstance(like, DTensor):
        return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)
    return tensor


def total_norm(gradients: list[Tensor]) -> Tensor:
    """Euclidean norm of all gradients together, the same in all processes."""
    norm = nn.utils.get_total_norm(gradients)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
