"""Compiling the kernels' library on first use, and loading it from rlft's cache only if it is what was compiled.

The file's name holds the hash of the sources, the compiler, its flags and the processor's instructions, so that one
cache serves several machines. A file beside it holds the library's own hash: what a full disk or a power failure left
of it is not run. Both lie in a folder that nobody else can write.

The compiler is what the environment variable `CXX` names, else `c++`: GCC or clang.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from filelock import FileLock

from rlft.common.files import cache_root, sha256, write_file

SOURCES = Path(__file__).with_name("native")
"""Folder of the C++ files; `kernels.cpp` includes the others."""
FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math")
PROCESSOR_FLAGS = {"x86_64": ("-march=native", "-mprefer-vector-width=512"), "aarch64": ("-mcpu=native",)}
"""Flags for the processor that compiles, by the kind of machine; there are kernels for these kinds."""
OPENMP = {"GCC": ("-fopenmp",), "clang": ("-Xclang", "-fopenmp")}
"""Clang's driver would add LLVM's runtime to the library, which `native/clang_openmp.h` replaces."""
TIMEOUT_S = 300.0
"""How long the compiler may take: it needs seconds, and a minute where the machine is busy."""


class BuildError(RuntimeError):
    """There is no library on this machine; the message says why."""


def load_library() -> tuple[ctypes.CDLL, str]:
    """Load the library, and compile it where the cache does not have it whole.

    Returns:
        (the library, the compiler's name and version)

    Raises:
        BuildError: another kind of machine, no compiler, one that failed or hung, or a cache that others could write.
    """
    refuse_other_machines()
    command = compiler()
    try:
        version = _output(*command, "--version")
        return _load(command, version), (version.splitlines() or command)[0]
    except (
        OSError,
        RuntimeError,
    ) as error:  # no place for the cache, none that is safe, or a library that does not load
        raise BuildError(str(error)) from error


def refuse_other_machines() -> None:
    """Raise BuildError where there are no kernels for this kind of machine."""
    if sys.platform != "linux" or platform.machine() not in PROCESSOR_FLAGS:
        raise BuildError(f"kernels are for Linux on x86-64 and aarch64, this is {sys.platform} on {platform.machine()}")


def compiler() -> list[str]:
    """The command of the C++ compiler. Raises BuildError where there is none."""
    asked = os.environ.get("CXX", "").strip()
    try:
        program, *arguments = shlex.split(asked) or ["c++"]
    except ValueError:  # quotes without an end
        program, arguments = asked, []
    if path := shutil.which(program):
        return [path, *arguments]
    if asked:
        raise BuildError(f"CXX is {asked!r}, and no such program was found: unset it, or set it to a C++ compiler")
    raise BuildError("no C++ compiler was found: install `c++`, GCC 11 or clang 14 or newer")


def is_compiled() -> bool:
    """Whether the cache has the library for this compiler and this processor, so that loading it takes no minute.

    False also where nothing could be compiled; `load_library` says why.
    """
    try:
        refuse_other_machines()
        command = compiler()
        _, name = _job(command, _output(*command, "--version"))
    except (OSError, RuntimeError):
        return False
    return (_folder() / name).exists()


def compilation(compiler: Sequence[str], version: str, processor: Sequence[str]) -> list[str]:
    """The command that compiles the library, but for OpenMP's runtime and its target.

    Args:
        compiler: its command.
        version: what it prints as its version, which tells GCC from clang.
        processor: flags that say for which processor.
    """
    openmp = OPENMP["clang" if "clang" in version else "GCC"]
    return [*compiler, *FLAGS, *processor, *openmp, str(SOURCES / "kernels.cpp")]


def _folder() -> Path:
    return cache_root() / f"kernels-{os.getuid()}"


def _job(compiler: Sequence[str], version: str) -> tuple[list[str], str]:
    """(The command that compiles the library, but for its target; the library's name in the cache.)"""
    # Torch has an OpenMP of its own under a name of its own; a second one would be a second pool of threads.
    runtime = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))[:1]
    command = compilation(compiler, version, PROCESSOR_FLAGS[platform.machine()])
    command += [*(map(str, runtime) if runtime else ["-lgomp"]), "-Wl,--as-needed"]
    key = hashlib.sha256("\0".join([*command, version, _processor()]).encode())
    for source in sorted(SOURCES.iterdir()):
        key.update(f"\0{source.name}\0".encode() + source.read_bytes())
    return command, f"{key.hexdigest()[:20]}.so"


def _load(compiler: Sequence[str], version: str) -> ctypes.CDLL:
    command, name = _job(compiler, version)
    folder = _own_folder(_folder())
    target = folder / name
    checksum = target.with_suffix(".sha256")
    with FileLock(folder / "lock"):
        if target.exists() and not _is_whole(target, checksum):
            warnings.warn(
                f"{target} is not the library that was written there (a full disk, a power failure, or somebody "
                "changed it): it is compiled again",
                RuntimeWarning,
                stacklevel=2,
            )
            target.unlink()
        if not target.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                built = Path(scratch) / target.name
                _output(*command, "-o", str(built))
                write_file(checksum, sha256(built), mode=0o600)
                write_file(target, built.read_bytes(), mode=0o600)
        return ctypes.CDLL(str(target))


def _own_folder(folder: Path) -> Path:
    """The folder, made where it is missing, with permissions for this user alone whatever the umask."""
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
    _refuse_foreign(folder)
    folder.chmod(0o700)
    return folder


def _is_whole(target: Path, checksum: Path) -> bool:
    _refuse_foreign(target)
    if not checksum.exists():
        return False
    _refuse_foreign(checksum)
    return checksum.read_text() == sha256(target)


def _refuse_foreign(path: Path) -> None:
    """Refuse code that somebody else could have written.

    Raises:
        PermissionError: what to do about it.
    """
    status = path.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022 or path.is_symlink():
        raise PermissionError(
            f"{path} belongs to another user, can be written by others or is a link: chmod go-w it, or set RLFT_CACHE"
        )


def _output(*command: str) -> str:
    """What a command prints; it is ended with its children when it takes too long or this process is interrupted.

    Raises:
        RuntimeError: it failed or took longer than `TIMEOUT_S`; its own message is in this one.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        env={**os.environ, "LC_ALL": "C"},
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=TIMEOUT_S)
    except BaseException as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        if isinstance(error, subprocess.TimeoutExpired):
            raise RuntimeError(f"{command[0]} did not finish within {TIMEOUT_S:g} s") from None
        raise
    if process.returncode:
        raise RuntimeError(f"{command[0]} failed: {errors.strip()[-400:]}")
    return output


def _processor() -> str:
    """The instructions that this processor has; a cache may be shared between several kinds."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
