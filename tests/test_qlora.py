"""Adapters on a base in 4 bits, with bitsandbytes itself: `make test-extras`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from rlft.learner.rl import Learner
from rlft.model.adapter import read_folder
from rlft.model.base import load_base
from rlft.train.export.export import export
from rlft.train.rl import launch
from tests.fakes import read_metrics, tiny_config
from tests.test_learner import gradients, made_up_batch, random_tensors

pytest.importorskip("bitsandbytes", reason="the extra `qlora` is not installed")
pytestmark = [
    pytest.mark.timeout(180),
    # peft and bitsandbytes of each other.
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]


def test_the_base_is_in_four_bits(tiny_model: Path) -> None:
    learner = Learner(tiny_config(tiny_model, adapter={"kind": "qlora"}), tiny_model)
    weights = [p for n, p in learner.roles.model.named_parameters() if n.endswith("proj.base_layer.weight")]
    assert len(weights) == 14
    assert {p.dtype for p in weights} == {torch.uint8}
    # gate, up and down: 32 x 64; q and o: 32 x 32; k and v: 16 x 32; two layers of them, two weights in a byte
    assert sum(p.numel() for p in weights) == 2 * (3 * 32 * 64 + 2 * 32 * 32 + 2 * 16 * 32) // 2


@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_an_update_is_that_of_lora_on_what_the_four_bits_stand_for(
    tiny_model: Path, tmp_path: Path, algorithm: str
) -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    base = load_base(tiny_model, torch.float32, device, quantize=True).dequantize()
    base.config.quantization_config = None
    base.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    warm_start = random_tensors(tiny_model)
    results = []
    for folder, kind in ((tiny_model, "qlora"), (tmp_path, "lora")):
        config = tiny_config(folder, adapter={"kind": kind, "rank": 4, "alpha": 8}, algorithm={"preset": algorithm})
        learner = Learner(config, folder, warm_start=warm_start)
        # Passes without gradient come first, as in a step.
        batch = learner.annotate(made_up_batch())
        metrics = learner.update(batch).metrics
        results.append((metrics, gradients(learner)))
    (metrics, grads), (expected_metrics, expected) = results
    assert metrics == pytest.approx(expected_metrics, rel=1e-4, abs=1e-5)
    assert grads.keys() == expected.keys()
    for name, grad in expected.items():
        assert grad.abs().max() > 0 or "critic" in name, name
        torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


def test_a_run_learns_and_its_engine_proves_its_weights(tiny_model: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tiny_model, name="q", output_dir=str(tmp_path), steps=3, adapter={"kind": "qlora", "rank": 4, "alpha": 8}
    )
    summary = launch.train(config)
    rows = read_metrics(tmp_path / "q")
    assert len(rows) == 3
    for row in rows:
        if "policy/mismatch" in row:
            assert row["policy/mismatch"] < 1e-3
    tensors = read_folder(tmp_path / "q" / summary["adapter"])
    assert any(tensor.any() for name, tensor in tensors.items() if "lora_B" in name)


def test_an_exported_adapter_is_proven_on_what_the_four_bits_stand_for(tiny_model: Path, tmp_path: Path) -> None:
    config = tiny_config(
        tiny_model,
        name="q",
        output_dir=str(tmp_path),
        steps=2,
        adapter={"kind": "qlora", "rank": 4, "alpha": 8},
        learner={"lr": 0.01},
    )
    launch.train(config)
    done = export(config.run_dir, to=tmp_path / "adapter")
    assert done.proof.difference < 1e-5 < 0.01 < done.proof.moved
    card = (done.folder / "README.md").read_text(encoding="utf-8")
    compile(card.partition("```python\n")[2].partition("```")[0], "card", "exec")
    assert "load_in_4bit=True" in card
    with pytest.raises(ValueError, match="cannot be merged"):
        export(config.run_dir, merged=True)
