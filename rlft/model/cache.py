"""Folders that are made once and then shared: whole or absent, by one process at a time, sealed with their hashes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout
from rich.console import Console

from rlft.common.files import remembered_sha256, sha256


class SourceError(ValueError):
    """A model could not be had. The message says what, why and what to do: show it as it is."""


def cached_folder(folder: Path, build: Callable[[Path], dict[str, object]]) -> Path:
    """Return `folder`, made by `build` unless complete; `build` fills an empty folder and says from what."""
    if _is_complete(folder):
        return folder
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _lock(folder):
            if _is_complete(folder):
                return folder
            try:
                shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
                partial.mkdir()
                _seal(partial, build(partial))
                shutil.rmtree(folder, ignore_errors=True)
                partial.replace(folder)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise SourceError(
            f"cannot write the model cache {folder.parent} ({error}): free some space, or set RLFT_CACHE to "
            "a folder that can be written"
        ) from error
    say(f"Model ready: {folder}")
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether the folder holds what was put there; damage is said, and the folder is then made again."""
    if not folder.exists():
        return False
    try:
        files = json.loads((folder / "source.json").read_text())["files"]
        changed = [name for name, facts in files.items() if remembered_sha256(folder / name) != facts["sha256"]]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        say(f"The cached model {folder} is damaged ({type(error).__name__}: {error}) and is made again.")
        return False
    if changed:
        say(f"The cached model {folder} is damaged ({', '.join(changed)} changed since it was made) and is made again.")
    return not changed


def _seal(folder: Path, record: dict[str, object]) -> None:
    """Write `source.json`; make every file durable and readable by all (safetensors come out with 0600)."""
    paths = sorted(folder.iterdir())
    files = {path.name: {"bytes": path.stat().st_size, "sha256": sha256(path)} for path in paths}
    (folder / "source.json").write_text(json.dumps({**record, "files": files}, indent=2) + "\n")
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open("rb") as file:
            os.fsync(file.fileno())


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    lock = FileLock(folder.with_name(f".{folder.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say(f"Another process is preparing {folder.name}; waiting for it ...")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def say(message: str) -> None:
    """Print a line on standard error."""
    Console(stderr=True).print(message, markup=False, highlight=False, soft_wrap=True)
