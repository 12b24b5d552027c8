"""`rlft head`: what is trained, kept, saved, loaded and refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from rewards.classifier import classifier
from rlft import config_file
from rlft.cli.head import show_head
from rlft.cli.main import app
from rlft.model.head import Classifier
from rlft.run.directory import Run
from rlft.train.head import launch
from rlft.train.head.config import HeadConfig
from tests.fakes_head import head_config


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLFT_CACHE", str(tmp_path / "cache"))


def texts_of(config: HeadConfig) -> list[Any]:
    lines = Path(config.data.source).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["text"] for line in lines]


def test_a_linear_head_on_a_frozen_trunk(tiny_model: Path, tmp_path: Path) -> None:
    config = head_config(tmp_path, tiny_model)
    summary = launch.train(config)
    accuracy = {name: each["accuracy"]["mean"] for name, each in summary["predictors"].items()}
    assert accuracy["head"] > 0.9  # type: ignore[operator]
    assert accuracy["bag_of_words"] < 0.7  # type: ignore[operator]
    assert summary["verdict"] == "better"
    assert summary["difference"]["low"] > 0  # type: ignore[operator]
    assert summary["texts"]["train"] + summary["texts"]["validation"] + summary["texts"]["heldout"] == 240
    assert json.loads((config.run_dir / "summary.json").read_text()) == summary
    losses = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert losses[-1]["head/loss"] < losses[0]["head/loss"]


def test_features_are_computed_once(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = launch.train(head_config(tmp_path, tiny_model, count=60))
    assert first["features"] == {"computed": 60, "kept": 0}
    more = launch.train(head_config(tmp_path, tiny_model, count=80, name="more"))
    assert more["features"] == {"computed": 20, "kept": 60}
    with monkeypatch.context() as patched:
        patched.setattr("rlft.train.head.features.hidden_states", lambda *_: pytest.fail("computed again"))
        again = launch.train(head_config(tmp_path, tiny_model, count=60, name="again", lr=0.01))
    assert again["features"] == {"computed": 0, "kept": 60}
    other = launch.train(head_config(tmp_path, tiny_model, count=60, name="other", trunk_layers=1))
    assert other["features"] == {"computed": 60, "kept": 0}  # another trunk has other features
    for shard in (tmp_path / "cache" / "features").rglob("*.safetensors"):
        shard.write_bytes(shard.read_bytes()[:100])
    mended = launch.train(head_config(tmp_path, tiny_model, count=60, name="mended"))
    assert mended["features"] == {"computed": 60, "kept": 0}
    assert mended["predictors"] == first["predictors"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pooling": "attention", "hidden_sizes": [16, 8]},
        {"pooling": "max", "task": "multilabel", "class_weights": "balanced", "trunk_layers": 1},
        {"pooling": "mean", "task": "regression", "hidden_sizes": [8]},
        {"adapter": {"kind": "lora"}, "trunk_lr": 5e-3, "epochs": 2},
        {"adapter": {"kind": "full"}, "trunk_lr": 1e-3, "epochs": 2, "pooling": "mean"},
    ],
    ids=["linear", "attention", "multilabel", "regression", "lora", "full"],
)
def test_what_was_measured_is_what_is_saved(
    tiny_model: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[Any] = []
    train_head = launch.train_head

    def spied(*args: Any) -> Any:
        seen[:] = [args[3], train_head(*args)]
        return seen[1]

    monkeypatch.setattr(launch, "train_head", spied)
    config = head_config(tmp_path, tiny_model, count=80, **changes)
    summary = launch.train(config)
    loaded = Classifier(config.run_dir / "head")
    found = loaded.logits([example.text for example in seen[0][2]])
    trained = seen[1].outputs[1]
    if config.task == "regression":
        errors = [each.target for each in seen[0][0]]
        mean, std = torch.tensor(errors).double().mean(), torch.tensor(errors).double().std(correction=0)
        trained = trained * std + mean
    torch.testing.assert_close(found, trained.float(), atol=1e-4, rtol=1e-4)
    assert set(summary["predictors"]) == {"majority", "bag_of_words", "head"}
    show_head(config.run_dir, summary)
    printed = capsys.readouterr().out
    assert all(words in printed for words in ("bag of words", summary["sentence"], str(config.run_dir / "head")))
    if config.adapter.kind == "lora":  # and training moved the trunk
        own = load_file(tiny_model / "model.safetensors")
        merged = load_file(config.run_dir / "head" / "model.safetensors")
        name = "model.layers.0.self_attn.q_proj.weight"
        assert not torch.equal(own[name], merged[name])


PLAIN = """
import json, sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer
import torch
folder, texts = sys.argv[1], json.loads(sys.argv[2])
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
with torch.no_grad():
    logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits
print(json.dumps({"logits": logits.tolist(), "labels": model.config.id2label, "rlft": "rlft" in sys.modules}))
"""


def test_plain_transformers_loads_a_linear_head_at_the_last_token(tiny_model: Path, tmp_path: Path) -> None:
    config = head_config(tmp_path, tiny_model, count=80, trunk_layers=1)
    launch.train(config)
    texts = texts_of(config)[:9]
    folder = config.run_dir / "head"
    done = subprocess.run(
        [sys.executable, "-c", PLAIN, str(folder), json.dumps(texts)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["labels"] == {"0": "disliked", "1": "liked"}
    assert not told["rlft"]
    torch.testing.assert_close(torch.tensor(told["logits"]), Classifier(folder).logits(texts), atol=1e-5, rtol=1e-5)


def test_plain_transformers_reads_the_same_token_where_padding_is_the_end_token(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
    tokenizer.save_pretrained(model)
    config = head_config(tmp_path, model, count=80, chat=True)
    launch.train(config)
    folder = config.run_dir / "head"
    texts = texts_of(config)[:9]
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        texts, padding=True, return_tensors="pt", return_dict=True
    )
    with torch.no_grad():
        wanted = plain(**inputs).logits
    assert wanted.std() > 0.1
    torch.testing.assert_close(Classifier(folder).logits(texts), wanted, atol=1e-5, rtol=1e-5)


def test_a_head_is_a_reward(tiny_model: Path, tmp_path: Path) -> None:
    config = head_config(tmp_path, tiny_model, count=120)
    launch.train(config)
    folder = str(config.run_dir / "head")
    replies = [[{"role": "assistant", "content": text}] for text in ["BBBBA", "AAAAB", " "]]
    prompts = [[{"role": "user", "content": "q"}]] * 3
    liked = classifier(prompts, replies, folder, "liked")  # type: ignore[arg-type]
    disliked = classifier(prompts, replies, folder, "disliked")  # type: ignore[arg-type]
    assert liked[0] > 0.5 > liked[1]
    assert liked[0] + disliked[0] == pytest.approx(1)
    assert liked[2] == disliked[2] == 0.0
    with pytest.raises(ValueError, match=r"no label 'likd'; it has disliked, liked\. Did you mean 'liked'"):
        classifier(prompts, replies, folder, "likd")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="this head was trained on texts"):
        Classifier.load(folder).predict([replies[0]])  # type: ignore[list-item]
    with pytest.raises(ValueError, match="did you mean"):
        Classifier(config.run_dir)


def test_a_head_on_conversations_reads_prompt_and_reply(tiny_model: Path, tmp_path: Path) -> None:
    config = head_config(tmp_path, tiny_model, count=80, chat=True)
    launch.train(config)
    prompt, reply = [{"role": "user", "content": "ABC"}], [{"role": "assistant", "content": "D"}]
    folder = str(config.run_dir / "head")
    value = classifier([prompt], [reply], folder, "liked")[0]  # type: ignore[list-item]
    wanted = Classifier.load(folder).predict([[*prompt, *reply]])[0, 1]  # type: ignore[list-item]
    assert value == pytest.approx(float(wanted))


def test_the_same_config_gives_the_same_head(tiny_model: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"hidden_sizes": [8], "count": 80}
    files = []
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        config = head_config(tmp_path, tiny_model, name=name, seed=seed, **changes)
        launch.train(config)
        files.append((config.run_dir / "head" / "head.safetensors").read_bytes())
    assert files[0] == files[1] != files[2]


@pytest.mark.parametrize(
    ("rows", "changes", "message"),
    [
        ([{"txt": "a", "label": "x"}], {}, r"rows.jsonl:1: no column 'text'; it has txt, label.*data\.text.*'txt'"),
        ([{"text": " ", "label": "x"}], {}, "rows.jsonl:1: the text is empty"),
        ([{"text": 3, "label": "x"}], {}, "must hold a text or a list of messages"),
        ([{"text": "a", "label": 0.5}], {}, "a number to predict: task=regression"),
        ([{"text": "a", "label": ["x"]}], {}, "several labels of a text: task=multilabel"),
        ([{"text": "a", "label": "x"}], {"task": "multilabel"}, "must be a list of texts"),
        ([{"text": "a", "label": "x"}], {"task": "regression"}, "is not a finite number"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "x"}], {}, "the only label is 'x'"),
        ([{"text": "a", "label": "liket"}], {"labels": ["liked", "other"]}, "'liket' is not one of labels.*'liked'"),
        ([{"text": "a" * 300, "label": "x"}, {"text": "b", "label": "y"}], {}, "rows.jsonl:1: the text has 300 tokens"),
        ([{"text": "a", "label": "x"}, {"text": "b", "label": "y"}], {}, "texts, too few"),
        ([{"text": f"a{n}", "label": "xy"[n == 0]} for n in range(80)], {}, "the label 'y' has . of the .* too few"),
        ([], {}, "has no rows"),
    ],
)
def test_rows_that_cannot_be_used(
    tiny_model: Path, tmp_path: Path, rows: list[Any], changes: dict[str, Any], message: str
) -> None:
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = head_config(tmp_path, tiny_model, count=4, data={"source": str(source)}, **changes)
    with pytest.raises(ValueError, match=message):
        launch.train(config)
    assert not config.run_dir.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "regression", "labels": ["a", "b"]}, "labels are for classification"),
        ({"task": "regression", "class_weights": "balanced"}, "class_weights are for classification"),
        ({"labels": ["a"]}, "needs two or more"),
        ({"labels": ["a", "a"]}, "'a' stands twice"),
        ({"hidden_sizes": [1, 2, 3, 4]}, "at most 3"),
        ({"adapter": {"kind": "qlora"}}, "adapter.kind"),
    ],
)
def test_settings_that_make_no_sense(tiny_model: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        head_config(tmp_path, tiny_model, count=4, **changes)


def test_more_layers_than_there_are(tiny_model: Path, tmp_path: Path) -> None:
    config = head_config(tmp_path, tiny_model, count=80, trunk_layers=3)
    with pytest.raises(ValueError, match="trunk_layers is 3, but the model has 2 layers"):
        launch.train(config)
    assert not config.run_dir.exists()


def test_rows_of_the_same_text_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    config = head_config(tmp_path, tiny_model, count=80)
    source = Path(config.data.source)
    rows = [json.loads(line) for line in source.read_text().splitlines()]
    again = {**rows[1], "label": "disliked" if rows[1]["label"] == "liked" else "liked"}
    source.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[0], again]))
    summary = launch.train(config)
    assert summary["texts"]["repeated"] == summary["texts"]["conflicting"] == 1


def test_a_limit_takes_the_same_texts_in_any_order(tiny_model: Path, tmp_path: Path) -> None:
    config = head_config(tmp_path, tiny_model, count=200, data={"limit": 80})
    first = launch.train(config)
    source = Path(config.data.source)
    source.write_text("\n".join(reversed(source.read_text().splitlines())) + "\n")
    assert launch.train(config, restart=True)["predictors"] == first["predictors"]
    assert sum(first["texts"][name] for name in ("train", "validation", "heldout")) == 80


def test_the_command(tiny_model: Path, tmp_path: Path) -> None:
    config = head_config(tmp_path, tiny_model, count=80)
    file = tmp_path / "head.yaml"
    file.write_text(config_file.dump(config))
    result = CliRunner().invoke(app, ["head", str(file), "pooling=mean"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    for words in ("held-out texts, 95 % intervals", "bag of words", "macro F1", "disliked", "80 texts computed"):
        assert words in result.output
    assert f"args: {{folder: {config.run_dir / 'head'}, label: liked}}" in result.output
    for command, words in (
        (["report", str(config.run_dir)], "rlft head"),
        (["resume", str(config.run_dir)], "holds a head"),
        (["evaluate", str(config.run_dir)], "holds a head"),
        (["head", str(file), "poling=mean"], "Did you mean 'pooling'"),
        (["train", str(file)], "this looks like a config of `rlft head`"),
        (["data", "check", str(file)], "51 rows to train on, 29 held out"),
    ):
        said = CliRunner().invoke(app, command, env={"COLUMNS": "200"})
        assert words in said.output + str(said.exception), command


def test_another_run_of_that_name(tiny_model: Path, tmp_path: Path) -> None:
    config = head_config(tmp_path, tiny_model, count=60)
    launch.train(config)
    with pytest.raises(ValueError, match="holds a run already"):
        launch.train(config)
    assert Run.reopen(config.run_dir, HeadConfig).config == config
