"""Cache folder, file hashes, and files and folders that are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path


def cache_root() -> Path:
    """Return rlft's cache folder: `$RLFT_CACHE`, else `rlft` in `$XDG_CACHE_HOME`, else `~/.cache/rlft`."""
    default = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "rlft"
    return Path(os.environ.get("RLFT_CACHE") or default).expanduser().absolute()


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_folder(target: Path, write: Callable[[Path], None]) -> None:
    """Make a folder appear whole or not at all: `write` fills a temporary one, which is synced and renamed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
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


def write_file(target: Path, data: str | bytes) -> None:
    """Make a file appear whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{target.name}.{os.getpid()}.tmp"
    try:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)
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
