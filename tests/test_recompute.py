"""`learner.activations: recompute` keeps less for the backward pass and changes no bit of the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlft.learner.rl import Learner
from tests.fakes import tiny_config
from tests.test_learner import assert_same_bits, gradients, made_up_batch

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"adapter": {"kind": "lora"}},
    "dora": {"adapter": {"kind": "dora"}},
    "full": {"adapter": {"kind": "full"}},
    "critic": {"algorithm": {"preset": "ppo"}},
}


def make(folder: Path, kind: str, activations: str) -> Learner:
    config = tiny_config(folder, **KINDS[kind], updates_per_step=2, learner={"threads": 1, "activations": activations})
    return Learner(config, folder)


def kept_bytes(learner: Learner) -> int:
    """Bytes of an update's forward passes, parameters left out, that wait for the backward passes."""
    parameters = {p.untyped_storage().data_ptr() for p in learner.roles.model.parameters()}
    total = 0

    def keep(tensor: Tensor) -> Tensor:
        nonlocal total
        if tensor.untyped_storage().data_ptr() not in parameters:
            total += tensor.numel() * tensor.element_size()
        return tensor

    batch = learner.annotate(made_up_batch())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        learner.update(batch)
    return total


@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_changes_no_bit(tiny_model: Path, kind: str) -> None:
    kept, recomputed = make(tiny_model, kind, "keep"), make(tiny_model, kind, "recompute")
    for step in range(2):
        metrics = [learner.update(learner.annotate(made_up_batch(step))).metrics for learner in (kept, recomputed)]
        assert metrics[0] == metrics[1]
        assert_same_bits(gradients(kept), gradients(recomputed))
    assert_same_bits(kept.state()[0], recomputed.state()[0])


@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_keeps_a_layers_input_only(tiny_model: Path, kind: str) -> None:
    kept, recomputed = (kept_bytes(make(tiny_model, kind, activations)) for activations in ("keep", "recompute"))
    assert 0 < recomputed < kept / 2, (kept, recomputed)


def test_offloading_is_refused_without_a_gpu(tiny_model: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(ValueError, match=r"learner\.activations: offload .* here use recompute"):
        make(tiny_model, "lora", "offload")
