"""Models and tokenizers from folders that somebody else made: no code of theirs runs, no pickle is opened."""

from __future__ import annotations

import json
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rlft.model import pretrained, sources
from rlft.model.base import load_base
from rlft.model.chat import load_tokenizer
from rlft.model.gguf import edit_json

ROOT = Path(__file__).parents[1]
LOADERS: dict[str, Callable[[Path], object]] = {
    "config": pretrained.load_config,
    "language model": lambda folder: load_base(folder, torch.float32, torch.device("cpu")),
    "classifier": lambda folder: pretrained.load_classifier(folder, num_labels=1),
    "tokenizer": load_tokenizer,
}


def copy(model: Path, folder: Path) -> Path:
    """The model with Python beside it that says that it ran."""
    shutil.copytree(model, folder)
    code = f"from pathlib import Path\nPath({str(folder / 'ran')!r}).touch()\n"
    (folder / "code.py").write_text(code)
    names = {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M", "AutoModelForSequenceClassification": "code.M"}
    edit_json(folder / "config.json", {"auto_map": names})
    edit_json(folder / "tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["code.T", None]}})
    return folder


@pytest.mark.parametrize("what", LOADERS)
def test_code_beside_a_model_that_is_known_never_runs(what: str, tiny_model: Path, tmp_path: Path) -> None:
    folder = copy(tiny_model, tmp_path / "model")
    LOADERS[what](folder)
    assert not (folder / "ran").exists()


@pytest.mark.parametrize("what", LOADERS)
def test_a_model_that_needs_its_own_code_is_refused_without_a_question(
    what: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = copy(tiny_model, tmp_path / "model")
    edit_json(folder / "config.json", {"model_type": "nobodys", "architectures": ["Nobodys"]})
    edit_json(folder / "tokenizer_config.json", {"tokenizer_class": "NobodysTokenizer"})
    with pytest.raises(ValueError, match=r"needs Python code that lies in its folder .* rlft runs no code of a model"):
        LOADERS[what](folder)
    assert not (folder / "ran").exists()


def test_a_folder_with_pickled_weights_only_is_refused_with_how_to_convert_it(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    weights = pretrained.load_causal_lm(folder).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    for load in (pretrained.load_causal_lm, sources.resolve):
        load(str(folder))  # with safetensors beside it the pickle is not opened
    (folder / "model.safetensors").unlink()
    for load in (pretrained.load_causal_lm, pretrained.load_classifier, sources.resolve):
        with pytest.raises(ValueError, match=r"pytorch_model\.bin is a pickle.* convert it once") as caught:
            load(str(folder))
    # The command that it names works.
    program = re.search(r'python -c "(.*)"', str(caught.value))
    assert program is not None
    exec(program[1].replace("NEW", str(tmp_path / "new")))
    assert torch.equal(
        pretrained.load_causal_lm(tmp_path / "new").get_input_embeddings().weight,
        weights["model.embed_tokens.weight"],
    )


def test_an_adapter_that_is_pickled_only_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    torch.save({}, tmp_path / "adapter_model.bin")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(ValueError, match=r"adapter_model\.bin is a pickle"):
        pretrained.load_adapter(pretrained.load_causal_lm(tiny_model), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="where there is a GPU several threads load")
@pytest.mark.parametrize("before", [None, "0"])
def test_one_thread_loads_weights_on_a_cpu(
    before: str | None, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, during = "HF_DEACTIVATE_ASYNC_LOAD", list[str | None]()
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    load = pretrained.AutoModelForCausalLM.from_pretrained

    def noted(*given: object, **options: object) -> object:
        threads = threading.active_count()
        started = list[threading.Thread]()
        start = threading.Thread.start
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", lambda thread: (started.append(thread), start(thread)))
            model = load(*given, **options)
        during.append(os.environ.get(name))
        assert threading.active_count() == threads
        assert not [thread for thread in started if "ThreadPool" in thread.name]
        return model

    monkeypatch.setattr(pretrained.AutoModelForCausalLM, "from_pretrained", noted)
    pretrained.load_causal_lm(tiny_model)
    assert during == ["1"]
    assert os.environ.get(name) == before


def test_nothing_else_loads_from_folders() -> None:
    """Calls of `from_pretrained` elsewhere would have to repeat the two rules."""
    # gguf, the encoder and a reward say the rules themselves, the learner's reads JSON, sources and the model card
    # quote it, and what loads an export has to be plain transformers.
    model = {f"rlft/model/{name}.py" for name in ("pretrained", "gguf", "sources")}
    allowed = {
        *model,
        "rlft/learner/reward_model.py",
        "rlft/curves/model_card.py",
        "rlft/train/export/plain_loading.py",
        "rewards/reward_model_folder.py",
        "rlft/model/encoder.py",
    }
    files = [path for room in ("rlft", "rewards", "environments") for path in (ROOT / room).rglob("*.py")]
    found = {str(p.relative_to(ROOT)) for p in files if ".from_pretrained" in p.read_text(encoding="utf-8")}
    assert found <= allowed, "use rlft.model.pretrained"


def test_a_cached_model_that_was_changed_is_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from rlft.model.cache import cached_folder

    made = []

    def build(folder: Path) -> dict[str, object]:
        made.append(folder)
        (folder / "model.safetensors").write_bytes(bytes(2 << 20))
        (folder / "config.json").write_text("{}")
        return {"origin": "test"}

    folder = cached_folder(tmp_path / "models" / "m", build)
    assert cached_folder(folder, build) == folder
    assert len(made) == 1
    for name, data in (
        ("model.safetensors", b"\1" + bytes((2 << 20) - 1)),
        ("config.json", b"[]"),
        ("source.json", b""),
    ):
        (folder / name).write_bytes(data)  # as large as before, in the first two
        cached_folder(folder, build)
        assert f"The cached model {folder} is damaged" in capsys.readouterr().err
        assert (folder / "model.safetensors").read_bytes() == bytes(2 << 20)
    assert len(made) == 4
