"""Training a reward model: it learns, TRL's loss is the one that is written down, and what cannot work is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import MambaConfig
from typer.testing import CliRunner

from rlft import config_file
from rlft.cli.main import app
from rlft.train.preference import data as preference_data
from rlft.train.reward_model import launch as launch_reward
from rlft.train.reward_model import train as train_reward
from rlft.train.reward_model.config import RewardModelConfig
from tests.fakes import byte_tokenizer, read_lines
from tests.fakes_reward import PAIRS, reward_model_config

pytestmark = pytest.mark.timeout(120)

KINDS = ("lora", "dora", "head", "full")


def test_the_held_out_accuracy_rises_from_chance(tmp_path: Path, tiny_model: Path) -> None:
    for kind in KINDS:
        config = reward_model_config(tmp_path, tiny_model, name=kind, adapter={"kind": kind})
        summary = launch_reward.train(config)
        before, after = summary["accuracy_before"], summary["accuracy_after"]
        assert 0.3 < before["mean"] < 0.7, kind
        assert after["mean"] > 0.9, kind
        assert before["high"] < after["low"], kind
        assert before["n"] == after["n"] == summary["n"] > 50, kind
        assert json.loads((config.run_dir / "summary.json").read_text()) == summary


def test_what_a_run_leaves(tmp_path: Path, tiny_model: Path) -> None:
    config = reward_model_config(tmp_path, tiny_model, epochs=1)
    summary = launch_reward.train(config)
    run = config.run_dir
    assert config_file.load(run / "config.yaml", (), RewardModelConfig) == config
    assert list(json.loads((run / "provenance.json").read_text())["sha256"]) == [config.data.source]
    rows = read_lines(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, math.ceil((PAIRS - summary["n"]) / 8) + 1))
    assert all({"preference/loss", "preference/accuracy", "preference/margin"} <= row.keys() for row in rows)
    facts = json.loads((run / "reward-model" / "reward_model.json").read_text())
    assert facts["source"] == str(tiny_model)
    assert facts["dtype"] == "float32"
    assert facts["accuracy"] == summary["accuracy_after"]
    tensors = load_file(run / "reward-model" / "adapter_model.safetensors")
    assert {name for name in tensors if "lora_" not in name} == {"base_model.model.score.weight"}
    assert (run / "reward-model" / "tokenizer_config.json").is_file()


def test_the_seed_decides_everything(tmp_path: Path, tiny_model: Path) -> None:
    def tensors(name: str, seed: int) -> dict[str, torch.Tensor]:
        config = reward_model_config(tmp_path, tiny_model, name=name, seed=seed, epochs=0.3)
        torch.manual_seed(len(name))  # the global generator decides nothing
        launch_reward.train(config)
        return load_file(config.run_dir / "reward-model" / "adapter_model.safetensors")

    first, again, other = tensors("first", 3), tensors("second", 3), tensors("other", 4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def prepared(config: RewardModelConfig) -> tuple[torch.nn.Module, Any, list[preference_data.Example]]:
    """(model, tokenizer, training pairs)"""
    tokenizer = train_reward.load_tokenizer(config.model.source)
    data = preference_data.load(config.data, tokenizer, None, context=256, paired=True)
    return train_reward.load_model(config, config.model.source, tokenizer), tokenizer, data.train


def test_the_loss_is_bradley_terry(tmp_path: Path, tiny_model: Path) -> None:
    config = reward_model_config(tmp_path, tiny_model, batch_size=PAIRS, epochs=1)
    model, tokenizer, pairs = prepared(config)
    scores = train_reward.score(model, [row for pair in pairs for row in pair.completions], pad=0, batch_size=7)
    margins = scores[0::2] - scores[1::2]
    seen: list[dict[str, float]] = []
    train_reward.fit(config, model, tokenizer, pairs, lambda done, total, metrics: seen.append(metrics))
    assert len(seen) == 1
    assert seen[0]["preference/loss"] == pytest.approx(float(-torch.nn.functional.logsigmoid(margins).mean()), abs=1e-5)
    assert seen[0]["preference/margin"] == pytest.approx(float(margins.mean()), abs=1e-5)
    assert seen[0]["preference/accuracy"] == pytest.approx(float((margins > 0).float().mean()), abs=1e-5)


def test_a_score_does_not_depend_on_its_batch(tmp_path: Path, tiny_model: Path) -> None:
    model, _, pairs = prepared(reward_model_config(tmp_path, tiny_model))
    rows = [row for pair in pairs[:6] for row in pair.completions]
    rows.append(rows[0] * 9)
    together = train_reward.score(model, rows, pad=0, batch_size=len(rows))
    alone = train_reward.score(model, rows, pad=0, batch_size=1)
    assert torch.allclose(together, alone, atol=1e-6)
    assert together.unique().numel() > 6


def test_an_equal_score_is_half_right(tmp_path: Path, tiny_model: Path) -> None:
    config = reward_model_config(tmp_path, tiny_model)
    model, _, pairs = prepared(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "score" in name:
                parameter.zero_()
    assert train_reward.measure(config, model, pairs, pad=0).accuracy.mean == 0.5


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_is_bfloat16_and_what_is_trained_float32(tmp_path: Path, tiny_model: Path, kind: str) -> None:
    config = reward_model_config(tmp_path, tiny_model, model={"dtype": "bfloat16"}, adapter={"kind": kind})
    model, tokenizer, pairs = prepared(config)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in trained.values()} == {torch.float32}
    frozen = {p.dtype for name, p in model.named_parameters() if not p.requires_grad and "score" not in name}
    assert frozen == (set() if kind == "full" else {torch.bfloat16})
    assert {"score" in name for name in trained} == ({True} if kind == "head" else {True, False})
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train_reward.fit(config, model, tokenizer, pairs[:8])
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert changed <= trained.keys()
    assert any("score" in name for name in changed)
    result = train_reward.measure(config, model, pairs[:8], pad=0)
    # The output layer's products are not rounded to bfloat16, whose numbers have 8 bits.
    assert any(float(torch.tensor(score).bfloat16()) != score for score in result.scores)


# What is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter": {"kind": "qlora"}}, "qlora is for policies"),
        ({"data": {"heldout": 0}}, "the accuracy is measured on held-out pairs"),
        ({"kind": "dpo"}, "reward-model"),
    ],
)
def test_configs_that_make_no_sense(tmp_path: Path, tiny_model: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        reward_model_config(tmp_path, tiny_model, **changes)


def test_an_unknown_key_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "rm.yaml"
    file.write_text("name: rm\nmodel: {source: x}\ndata: {source: y}\nepoch: 3\n")
    with pytest.raises(ValueError, match=r"rm\.yaml:4: epoch: unknown key\. Did you mean 'epochs'"):
        config_file.load(file, (), RewardModelConfig)


def test_long_pairs_are_refused_or_dropped(tmp_path: Path, tiny_model: Path) -> None:
    config = reward_model_config(tmp_path, tiny_model, data={"max_length": 12}, epochs=1)
    with pytest.raises(ValueError, match=r"pairs\.jsonl:\d+: .*more than data\.max_length, 12.*data\.overlong=drop"):
        launch_reward.train(config)
    assert not config.run_dir.exists()
    config = reward_model_config(tmp_path, tiny_model, data={"max_length": 12, "overlong": "drop"}, epochs=1)
    assert 0 < launch_reward.train(config)["n"] < 50


def test_text_is_read_as_a_conversation(tmp_path: Path, tiny_model: Path) -> None:
    as_text, as_messages = tmp_path / "text.jsonl", tmp_path / "messages.jsonl"
    reply = [{"role": "assistant", "content": "yes"}], [{"role": "assistant", "content": "no"}]
    rows = [
        {"prompt": [{"role": "user", "content": f"q{i}"}], "chosen": reply[0], "rejected": reply[1]} for i in range(9)
    ]
    as_messages.write_text("".join(json.dumps(row) + "\n" for row in rows))
    as_text.write_text("".join(f'{{"prompt": "q{i}", "chosen": "yes", "rejected": "no"}}\n' for i in range(9)))
    tokenizer = train_reward.load_tokenizer(str(tiny_model))
    examples = []
    for source in (as_text, as_messages):
        config = reward_model_config(tmp_path, tiny_model, data={"source": str(source), "heldout": 0.3})
        data = preference_data.load(config.data, tokenizer, None, context=256, paired=True)
        examples.append(sorted(example.completions for example in (*data.train, *data.heldout)))
    assert examples[0] == examples[1]
    assert tokenizer.decode(examples[0][0][0]) == "<|user|>q0<|end|><|assistant|>yes<|end|>"


def test_a_model_without_a_classifying_version_is_refused(tmp_path: Path) -> None:
    MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=300).save_pretrained(tmp_path / "mamba")
    byte_tokenizer().save_pretrained(tmp_path / "mamba")
    config = reward_model_config(tmp_path, tmp_path / "mamba")
    with pytest.raises(ValueError, match=r"mamba cannot be a reward model: Unrecognized configuration class"):
        train_reward.load_model(config, config.model.source, train_reward.load_tokenizer(config.model.source))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chat_template": None}, "no chat template"),
        ({"pad_token": None, "eos_token": None}, "neither a padding token"),
    ],
)
def test_tokenizers_that_cannot_serve(tmp_path: Path, change: dict[str, None], message: str) -> None:
    tokenizer = byte_tokenizer()
    for name, value in change.items():
        setattr(tokenizer, name, value)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        train_reward.load_tokenizer(str(tmp_path))


def test_a_divergence_stops_the_run_before_a_folder_is_written(tmp_path: Path, tiny_model: Path) -> None:
    config = reward_model_config(tmp_path, tiny_model, lr=1e30, epochs=0.3)
    with pytest.raises(RuntimeError, match="not finite; lower lr"):
        launch_reward.train(config)
    assert not (config.run_dir / "reward-model").exists()
    assert not (config.run_dir / "summary.json").exists()


def test_an_existing_run_is_kept_unless_asked(tmp_path: Path, tiny_model: Path) -> None:
    config = reward_model_config(tmp_path, tiny_model, epochs=0.1)
    launch_reward.train(config)
    with pytest.raises(ValueError, match="holds a run already"):
        launch_reward.train(config)
    launch_reward.train(config, restart=True)
    assert len(list(config.run_dir.parent.glob("rm.*"))) == 1


# The command


def test_the_command(tmp_path: Path, tiny_model: Path) -> None:
    config = reward_model_config(tmp_path, tiny_model)
    (tmp_path / "rm.yaml").write_text(config_file.dump(config))
    result = CliRunner().invoke(app, ["reward-model", str(tmp_path / "rm.yaml"), "epochs=1"], env={"COLUMNS": "300"})
    assert result.exit_code == 0, result.output
    assert "before" in result.output
    assert f"path: adapter:{config.run_dir / 'reward-model'}" in result.output
    for command in ("resume", "evaluate"):
        refused = CliRunner().invoke(app, [command, str(config.run_dir)])
        assert isinstance(refused.exception, ValueError)
        assert f"which `rlft {command}` is not for" in str(refused.exception)
    described = json.loads(CliRunner().invoke(app, ["schema", "--kind", "reward-model"]).output)
    assert all("description" in field for field in described["properties"].values() if "$ref" not in field)


@pytest.mark.parametrize("name", ["configs/reward_model.yaml", "configs/debug/reward_model.yaml"])
def test_the_shipped_configs_load(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    config = config_file.load(name, (), RewardModelConfig)
    assert Path(config.data.source).is_file()
