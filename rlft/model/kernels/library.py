"""Kernels for a CPU that torch has no single operation for, compiled on first use by the system's C++ compiler.

Between the products of a small model, time goes into passes over memory: a norm, a rotation or a gate takes torch two
to five of them, and attention of one token per row hundreds of small products. `kernels.cpp` makes each in one, and
multiplies with weights that stay while it fetches those that come next. Where there is no compiler, or for other
devices and types, callers use torch's operations, which give the same up to rounding; `description` says which of both
it is. `RLFT_KERNELS=0` turns the kernels off.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from torch import Tensor, nn

from rlft.common.files import cache_root

VECTOR = 32
"""Widths of gates, sizes of heads and vocabularies that kernels take are multiples of this."""

_SOURCE = Path(__file__).with_name("kernels.cpp")
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math"),
)
_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS = {
    "rms_norm": [_POINTER] * 4 + [_SIZE] * 2 + [ctypes.c_float],
    "normed": [_POINTER] * 4 + [_SIZE] * 2,
    "rms_norm_backward": [_POINTER] * 6 + [_SIZE] * 2,
    "rotate": [_POINTER] * 4 + [_SIZE] * 5,
    "gated_silu": [_POINTER] * 2 + [_SIZE] * 2,
    "gated_silu_backward": [_POINTER] * 3 + [_SIZE] * 2,
    "selected_logprobs": [_POINTER] * 4 + [_SIZE] * 2 + [ctypes.c_float, _SIZE],
    "biased_softmax": [_POINTER] * 2 + [_SIZE] * 4,
    "attend": [_POINTER] * 9 + [ctypes.c_float],
    "panels_of": [_POINTER] * 2 + [_SIZE] * 2,
    "panels_of_transposed": [_POINTER] * 2 + [_SIZE] * 2,
    "linear": [_POINTER] * 5 + [_SIZE] * 4,
    "decode": [_POINTER] * 11,
}

Kernel = Callable[..., None]
"""Takes pointers (`Tensor.data_ptr()`), sizes and numbers as `kernels.cpp` declares them."""


def kernel(name: str, *tensors: Tensor) -> Kernel | None:
    """The kernel for these operands, or None where torch has to compute them: on another device, of a type other than
    float32 and bfloat16 or of several, not contiguous, to be differentiated, inside torch.compile, or without a
    compiled library. Whether their shapes fit together is the caller's to check: a kernel believes what it is told."""
    dtype = tensors[0].dtype
    if torch.compiler.is_compiling() or dtype not in _TYPES:
        return None
    needs_graph = torch.is_grad_enabled()
    for tensor in tensors:
        is_plain = type(tensor) is Tensor or type(tensor) is nn.Parameter
        if not (is_plain and tensor.dtype == dtype and tensor.is_cpu and tensor.is_contiguous()):
            return None
        if needs_graph and tensor.requires_grad:
            return None
    library = _library()[0]
    if library is None:
        return None
    library.use_threads(torch.get_num_threads())
    return library.kernels.get((name, dtype))


def available() -> bool:
    """Whether this process has compiled kernels; the first call builds them."""
    return _library()[0] is not None


def description() -> str:
    """What computes these passes in this process, for a run's records."""
    return _library()[1]


class _Library(NamedTuple):
    kernels: dict[tuple[str, torch.dtype], Kernel]
    use_threads: Callable[[int], None]
    """OpenMP's setting of the calling thread, which torch makes only for the thread that sets it."""


@cache
def _library() -> tuple[_Library | None, str]:
    """(the kernels, None where there are none; a description)"""
    if os.environ.get("RLFT_KERNELS") == "0":
        return None, "torch (RLFT_KERNELS=0)"
    if not (sys.platform == "linux" and platform.machine() == "x86_64"):
        return None, "torch (kernels were measured on Linux with x86-64 only)"
    compiler = shutil.which("c++")
    if compiler is None:
        return None, "torch (no C++ compiler was found)"
    try:
        version = _output(compiler, "--version")
        loaded = _load(compiler, version)
    except subprocess.CalledProcessError as error:
        return None, f"torch ({compiler} failed: {(error.stderr or '').strip()[-400:]})"
    except (OSError, RuntimeError) as error:  # no place for the cache, or none that is safe
        return None, f"torch ({error})"
    kernels = {}
    for name, arguments in _ARGUMENTS.items():
        for dtype, suffix in _TYPES.items():
            function = getattr(loaded, f"{name}_{suffix}", None)
            if function is None:  # products are there for what the processor multiplies by itself
                continue
            function.argtypes, function.restype = arguments, None
            kernels[name, dtype] = function
    use_threads = loaded.omp_set_num_threads
    use_threads.argtypes, use_threads.restype = [ctypes.c_int], None
    return _Library(kernels, use_threads), f"compiled by {version.splitlines()[0]}"


def _load(compiler: str, version: str) -> ctypes.CDLL:
    """The library, compiled once per source, compiler and kind of processor."""
    # Torch has an OpenMP of its own under a name of its own; a second one would be a second pool of threads.
    runtime = sorted((Path(torch.__file__).parent / "lib").glob("libgomp*"))[:1]
    command = [compiler, *_FLAGS, str(_SOURCE), *map(str, runtime), "-Wl,--as-needed"]
    key = "\0".join([*command, version, _processor(), _SOURCE.read_text()])
    folder = cache_root() / f"kernels-{os.getuid()}"
    target = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:20]}.so"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _refuse_foreign(folder)
    with FileLock(folder / "lock"):
        for is_again in (False, True):
            if not target.exists():
                with tempfile.TemporaryDirectory(dir=folder) as scratch:
                    built = Path(scratch) / target.name
                    _output(*command, "-o", str(built))
                    built.replace(target)  # whole or absent, whenever this is interrupted
            _refuse_foreign(target)
            try:
                return ctypes.CDLL(str(target))
            except OSError:
                if is_again:
                    raise
                target.unlink()  # a damaged file; build it again
    raise AssertionError


def _refuse_foreign(path: Path) -> None:
    """Code that somebody else could have written is not run."""
    status = path.stat()
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise PermissionError(
            f"{path} belongs to another user or can be written by others: chmod go-w it, or set RLFT_CACHE"
        )


def _output(*command: str) -> str:
    environment = {**os.environ, "LC_ALL": "C"}
    options: dict[str, Any] = {"capture_output": True, "encoding": "utf-8", "errors": "replace", "env": environment}
    return str(subprocess.run(command, check=True, **options).stdout)


def _processor() -> str:
    """The instructions that this processor has; a cache may be shared between several kinds."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
