"""Cache folder, file hashes, and files and folders that are written whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


def cache_root() -> Path:
    """Return rlft's cache folder: `$RLFT_CACHE`, else `rlft` in `$XDG_CACHE_HOME`, else `~/.cache/rlft`."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "rlft"
    return Path(os.environ.get("RLFT_CACHE") or default).expanduser().absolute()


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


MODEL_FILES = (".safetensors", ".json", ".jinja", ".model", ".txt")
"""Endings of the files that decide what a model or an adapter computes."""
_REMEMBERED_BYTES = 1 << 20
"""Size from which on a file's hash is remembered, since reading it takes noticeable time."""


def folder_sha256(folder: Path) -> str:
    """Hex digest over names and contents of a model's or an adapter's files (`MODEL_FILES`, no subfolders).

    Of large files the hash is remembered until their size or one of their times changes.
    """
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in MODEL_FILES and path.is_file() and path.name != "source.json":
            digest.update(f"{path.name}\0{remembered_sha256(path)}\0".encode())
    return digest.hexdigest()


def remembered_sha256(path: Path) -> str:
    """`sha256`, of a large file remembered until its size or one of its times changes."""
    status = path.stat()
    if status.st_size < _REMEMBERED_BYTES:
        return sha256(path)
    name, memory = str(path.resolve()), cache_root() / "sha256.json"
    facts = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
    try:
        known = json.loads(memory.read_text())
    except (OSError, ValueError):  # not there yet, or of a write that was cut off: it is only a memory
        known = {}
    if isinstance(known, dict) and known.get(name, [None])[:-1] == facts:
        return str(known[name][-1])
    digest = sha256(path)
    with suppress(OSError):  # a cache that cannot be written costs the time of hashing again
        write_file(memory, json.dumps({**(known if isinstance(known, dict) else {}), name: [*facts, digest]}))
    return digest


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an error of the system name the file that it is about; of a write to an open file it does not.

    Raises:
        OSError: with a file name, also where a library that wrote the file raises something of its own.
    """
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise
    except Exception as error:  # safetensors has an error of its own, which quotes the system's number
        if number := re.search(r"\(os error (\d+)\)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        raise


def describe_os_error(error: OSError) -> str:
    """An error of the system in words: what, which file, and of a full disk how many bytes are left."""
    told = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
    if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not error.filename:
        return told
    folder = next(folder for folder in Path(os.fsdecode(error.filename)).absolute().parents if folder.exists())
    return f"{told} ({shutil.disk_usage(folder).free} bytes are free there); make room for what the run keeps"


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Make a folder appear whole or not at all: `write` fills a temporary one, which is synced and renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with naming(target):
            write(temporary)
            for path in temporary.iterdir():
                path.chmod(0o644)
                _sync(path)
            _sync(temporary)
            if target.exists():
                shutil.rmtree(target)
            temporary.rename(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(target.parent)


def remove_folder(folder: Path) -> None:
    """Remove a folder so that no half of it is ever seen under its name."""
    doomed = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    folder.rename(doomed)
    shutil.rmtree(doomed)


def write_file(target: Path, data: str | bytes, *, mode: int | None = None) -> None:
    """Make a file appear whole or not at all.

    Args:
        mode: its permissions; without them those that the umask leaves.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        with naming(target):
            temporary.write_bytes(data.encode() if isinstance(data, str) else data)
            if mode is not None:
                temporary.chmod(mode)
            _sync(temporary)
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(target.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
