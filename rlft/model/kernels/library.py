"""The compiled kernels of this process, and which operations they compute.

Between the products of a small model, time goes into passes over memory: a norm, a rotation or a gate takes torch two
to five of them, and attention of one token per row hundreds of small products. The kernels (`native/`) make each in
one, and multiply with weights that stay while they fetch those that come next. The first use compiles them (`build`)
and compares each with torch on a small case (`self_test`); what is missing or disagrees is left to torch, as are other
devices and types.

The environment variable `RLFT_KERNELS` chooses: `0` for torch alone, `required` for an error where a kernel that this
processor can have is missing or wrong; `CXX` names the compiler. Only modules of this folder call kernels; others call
their tensor functions.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from rlft.common.private_names import private
from rlft.model.kernels.build import BuildError, load_library

ABI = 5
"""Number of the library's C interface that this module calls, `rlft_kernels_abi` in `native/kernels.cpp`."""
VECTOR = 32
"""Widths of gates, sizes of heads and vocabularies that kernels take are multiples of this."""
INSTEAD = (
    "torch computes norms, rotations, gates, log-probs, products and attention instead, up to rounding alike; "
    "generation is a third slower in bfloat16 and less than half as fast in float32"
)
"""What a machine without kernels loses."""

_TYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_POINTER, _SIZE = ctypes.c_void_p, ctypes.c_int64
_ARGUMENTS: dict[str, list[Any]] = {
    "rms_norm": [_POINTER] * 4 + [_SIZE] * 2 + [ctypes.c_float],
    "normed": [_POINTER] * 4 + [_SIZE] * 2,
    "rms_norm_backward": [_POINTER] * 6 + [_SIZE] * 2,
    "rotate": [_POINTER] * 4 + [_SIZE] * 5,
    "gated_silu": [_POINTER] * 2 + [_SIZE] * 2,
    "gated_silu_backward": [_POINTER] * 3 + [_SIZE] * 2,
    "selected_logprobs": [_POINTER] * 4 + [_SIZE] * 2 + [ctypes.c_float, _SIZE],
    "biased_softmax": [_POINTER] * 2 + [_SIZE] * 4,
    "keep_prompt": [_POINTER] * 3 + [_SIZE] * 4,
    "cached_attention": [_POINTER] * 9 + [ctypes.c_float],
}
_PRODUCTS: dict[str, list[Any]] = {
    "panels_of": [_POINTER] * 2 + [_SIZE] * 2,
    "panels_of_transposed": [_POINTER] * 2 + [_SIZE] * 2,
    "linear": [_POINTER] * 5 + [_SIZE] * 4,
    "tree_attention": [_POINTER] * 5 + [_SIZE] * 4 + [ctypes.c_float],
    "tree_attention_backward": [_POINTER] * 5 + [_SIZE] * 4 + [ctypes.c_float],
}
"""Of bfloat16 where vector units multiply it; where a processor has a matrix unit, oneDNN is faster."""

Kernel = Callable[..., None]
"""Takes pointers (`Tensor.data_ptr()`), sizes and numbers as `native/kernels.cpp` declares them."""
Key = tuple[str, torch.dtype]
"""Name of an operation and the type of its operands."""


def kernel(name: str, *tensors: Tensor) -> Kernel | None:
    """The kernel for these operands, or None where torch has to compute them: on another device, of a type other than
    float32 and bfloat16 or of several, not contiguous, to be differentiated, inside torch.compile, or without a
    compiled kernel that is right. Whether their shapes fit together is the caller's to check.

    Raises:
        RuntimeError: `RLFT_KERNELS=required` and a kernel is missing or wrong.
        ValueError: `RLFT_KERNELS` has another value.
    """
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
    library = _library()
    run = library.kernels.get((name, dtype))
    if run is not None:
        library.use_threads(torch.get_num_threads())
    return run


def operations() -> list[str]:
    """Operations that compiled kernels compute in this process, such as `rms_norm bfloat16`, for a run's records."""
    return sorted(f"{name} {_TYPES[dtype]}" for name, dtype in _library().kernels)


def description() -> str:
    """What computes the operations in this process, and why it is torch where it is, for a run's records."""
    return _library().description


def lost() -> str:
    """What is left to torch on this machine although nobody asked for it, and why; empty where nothing is."""
    return _library().lost


class Library(NamedTuple):
    """Kernels that may be called."""

    kernels: dict[Key, Kernel]
    description: str
    use_threads: Callable[[int], None] = lambda count: None
    """OpenMP's setting of the calling thread, which torch makes only for the thread that sets it."""
    lost: str = ""
    """What is left to torch although nobody asked for it, and why."""
    error: str = ""
    """What every call raises."""


_lock = threading.RLock()
_loaded: Library | None = None
_under_test: Library | None = None
"""What this thread compares with torch just now, while it holds the lock."""


def _library() -> Library:
    global _loaded
    if _loaded is None:
        with _lock:
            if _under_test is not None:
                return _under_test
            if _loaded is None:
                _loaded = _load()
    if _loaded.error:
        raise RuntimeError(_loaded.error)
    return _loaded


def _load() -> Library:
    wish = os.environ.get("RLFT_KERNELS", "")
    if wish not in ("", "0", "1", "required"):
        raise ValueError(f"RLFT_KERNELS is {wish!r}; set it to 0 for torch alone or to required, or leave it unset")
    if wish == "0":
        return Library({}, "torch (RLFT_KERNELS=0)")
    try:
        loaded, compiler = load_library()
        version = _bound(loaded, "rlft_kernels_abi", [], returns=_SIZE)()
        if version != ABI:
            raise BuildError(f"{loaded._name} has version {version} of the kernels' interface and rlft calls {ABI}")
        kernels, missing = _kernels(loaded)
        use_threads = _bound(loaded, "omp_set_num_threads", [ctypes.c_int])
        library = Library(kernels, f"compiled by {compiler}", use_threads)
        problems = [*missing, *_test(library)]
    except (BuildError, AttributeError) as error:
        lost = f"there are no compiled kernels ({error}): {INSTEAD}"
        library, problems = Library({}, f"torch ({error})", lost=lost), [str(error)]
    if problems and wish == "required":
        return library._replace(error=f"RLFT_KERNELS=required, but {'; '.join(problems)}")
    if library.lost:
        return library
    return library._replace(description="; ".join([library.description, *problems]), lost="; ".join(problems))


def _kernels(loaded: ctypes.CDLL) -> tuple[dict[Key, Kernel], list[str]]:
    """The library's kernels, and a line for each that it lacks."""
    wanted = [(name, arguments, dtype) for name, arguments in _ARGUMENTS.items() for dtype in _TYPES]
    wanted += [(name, arguments, torch.float32) for name, arguments in _PRODUCTS.items()]
    has_products = _bound(loaded, "rlft_kernels_have_products", [], returns=_SIZE)()
    if has_products and not private("torch.cpu._is_amx_tile_supported")():
        wanted += [(name, arguments, torch.bfloat16) for name, arguments in _PRODUCTS.items()]
    kernels: dict[Key, Kernel] = {}
    missing = []
    for name, arguments, dtype in wanted:
        try:
            kernels[name, dtype] = _bound(loaded, f"{name}_{_TYPES[dtype]}", arguments)
        except AttributeError:
            missing.append(f"{name} {_TYPES[dtype]} is left to torch: the library does not have it")
    return kernels, missing


def _bound(loaded: ctypes.CDLL, name: str, arguments: Sequence[Any], returns: Any = None) -> Callable[..., Any]:
    """A function of the library. Raises AttributeError where it has no such function."""
    function = getattr(loaded, name)
    function.argtypes, function.restype = arguments, returns
    return function


def _test(library: Library) -> list[str]:
    """Take the kernels out that disagree with torch; a line for each."""
    global _under_test
    from rlft.model.kernels import self_test  # it calls the tensor functions, which call this module

    _under_test = library
    try:
        wrong = self_test.disagreeing(library.kernels)
    finally:
        _under_test = None
    for key in wrong:
        del library.kernels[key]
    return sorted(f"{name} {_TYPES[dtype]} is left to torch: it {why}" for (name, dtype), why in wrong.items())
