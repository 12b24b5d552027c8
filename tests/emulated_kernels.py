"""Whether the kernels are right on aarch64: compiled for it, run under qemu, compared as on any machine.

    python -m tests.emulated_kernels

The tensor functions of rlft run here and their kernels there: `kernel_server.cpp`, an aarch64 program, calls each for
what this process hands it. So the operations, their shapes and what may differ are those of test_kernels.py. Exit code
1 if one differs, or if a mistake that is planted in a copy of the kernels is not found.
"""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import torch

from rlft.model.kernels import build, library, self_test
from tests import test_kernels

COMPILER, EMULATOR = "aarch64-linux-gnu-g++", ("qemu-aarch64", "-L", "/usr/aarch64-linux-gnu")
PACKAGES = {COMPILER: "g++-aarch64-linux-gnu", EMULATOR[0]: "qemu-user"}
"""Debian's packages of the programs."""
PROCESSORS = {"any aarch64, NEON": ["-march=armv8-a"], "Neoverse V2, NEON and SVE": ["-mcpu=neoverse-v2"]}
SERVER = Path(__file__).with_name("kernel_server.cpp")
MISTAKE = ("4.16664966e-2f", "4.26664966e-2f")
"""A coefficient of e^x in `native/vectors.h`, and what is planted for it."""
HAVE_EXPONENTIALS = {
    *("gate", "gradient of a gate", "log-probs", "softmax"),
    *("attention of a step", "attention along a tree in float32"),
}

_INTEGER, _NULL, _POINTER = range(3)


class KernelServer:
    """Kernels of a library that another program has loaded; while it is open, tensor functions call these."""

    def __init__(self, program: Sequence[str]) -> None:
        """
        Args:
            program: the command that starts `kernel_server.cpp` with its library.
        """
        self._process = subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._patch = pytest.MonkeyPatch()
        self._tensors: dict[int, torch.Tensor] = {}

    def __enter__(self) -> dict[library.Key, library.Kernel]:
        data_ptr = torch.Tensor.data_ptr

        def noted(tensor: torch.Tensor) -> int:  # kept, so that its memory is no other's as long as it may be asked for
            address = data_ptr(tensor)
            self._tensors[address] = tensor
            return address

        self._patch.setattr(torch.Tensor, "data_ptr", noted)
        kernels: dict[library.Key, library.Kernel] = {
            (name, dtype): partial(self._call, f"{name}_{suffix}", kinds)
            for name, kinds in library._ARGUMENTS.items()
            for dtype, suffix in library._TYPES.items()
        }
        kernels |= {
            (name, torch.float32): partial(self._call, f"{name}_float32", kinds)
            for name, kinds in library._PRODUCTS.items()
        }
        self._patch.setattr(library, "_loaded", library.Library(kernels, "emulated"))
        return kernels

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._patch.undo()
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()

    def _call(self, symbol: str, kinds: Sequence[Any], *arguments: Any) -> None:
        memory: dict[int, int] = {}  # address of a tensor's storage or of an array: its size
        encoded, number = b"", 0.0
        for kind, argument in zip(kinds, arguments, strict=True):
            if kind is ctypes.c_float:
                number = argument
            elif kind is ctypes.c_int64:
                encoded += struct.pack("<qqq", _INTEGER, int(argument), 0)
            elif argument is None:
                encoded += struct.pack("<qqq", _NULL, 0, 0)
            else:
                start, size, offset = self._place(argument)
                memory[start] = size
                encoded += struct.pack("<qqq", _POINTER, list(memory).index(start), offset)
        parts = [struct.pack("<q", len(symbol)), symbol.encode(), struct.pack("<q", len(memory))]
        for start, size in memory.items():
            parts += [struct.pack("<q", size), ctypes.string_at(start, size)]
        parts += [struct.pack("<fq", number, len(encoded) // 24), encoded]
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"".join(parts))
        self._process.stdin.flush()
        for start, size in memory.items():
            answer = self._process.stdout.read(size)
            if len(answer) != size:
                raise RuntimeError(f"{symbol}: its process ended with {self._process.wait()}")
            ctypes.memmove(start, answer, size)
        self._tensors.clear()

    def _place(self, argument: Any) -> tuple[int, int, int]:
        """(Where the memory begins that an argument points into, its bytes, the argument's offset.)"""
        if isinstance(argument, ctypes.Array):
            return ctypes.addressof(argument), ctypes.sizeof(argument), 0
        storage = self._tensors[argument].untyped_storage()
        return storage.data_ptr(), storage.nbytes(), argument - storage.data_ptr()


def differences(kernels: dict[library.Key, library.Kernel]) -> Iterator[tuple[str, torch.dtype, int, list[str]]]:
    """Compare with torch what kernels compute.

    Yields:
        (operation of test_kernels.py, type, number of shapes, a line for each shape where they differ)
    """
    for name, operation in test_kernels.OPERATIONS.items():
        for dtype in operation.types:
            if not all((kernel, dtype) in kernels for kernel in operation.kernels):
                continue
            wrong = []
            for shape in operation.shapes:
                try:
                    test_kernels.test_an_operation_is_its_formula(name, shape, dtype)
                except AssertionError as error:
                    said = [line for line in str(error).splitlines() if "Greatest absolute" in line or "nan" in line]
                    wrong.append(f"{shape}: {' '.join(said) or error or 'other kernels were called'}")
            yield name, dtype, len(operation.shapes), wrong


@contextmanager
def emulated(sources: Path, processor: Sequence[str]) -> Iterator[dict[library.Key, library.Kernel]]:
    """The kernels of these sources, compiled for a processor and emulated."""
    with tempfile.TemporaryDirectory() as scratch, pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "SOURCES", sources)
        server, compiled = f"{scratch}/kernel_server", f"{scratch}/kernels.so"
        subprocess.run([COMPILER, "-std=c++17", "-O1", str(SERVER), "-o", server, "-ldl"], check=True)
        subprocess.run([*build.compilation([COMPILER], "GCC", processor), "-o", compiled], check=True)
        with KernelServer([*EMULATOR, server, compiled]) as kernels:
            yield kernels


def main() -> int:
    """Print a line for each operation and type; see the module."""
    if absent := [package for program, package in PACKAGES.items() if shutil.which(program) is None]:
        print(f"this needs Debian's cross compiler and emulator: apt-get install {' '.join(absent)}")
        return 1
    failed = False
    for processor, flags in PROCESSORS.items():
        print(f"compiled for {processor} ({' '.join(flags)})")
        with emulated(build.SOURCES, flags) as kernels:
            for name, dtype, shapes, wrong in differences(kernels):
                failed |= bool(wrong)
                told = "; ".join(["DIFFERS", *wrong]) if wrong else "agrees"
                print(f"  {name:46} {str(dtype).removeprefix('torch.'):9} {shapes:3} shapes  {told}", flush=True)
            wrong_when_loaded = self_test.disagreeing(kernels)
            failed |= bool(wrong_when_loaded)
            print(f"  compared when a run loads them: {wrong_when_loaded or 'all agree'}", flush=True)
    with tempfile.TemporaryDirectory() as copy:
        shutil.copytree(build.SOURCES, copy, dirs_exist_ok=True)
        changed = Path(copy) / "vectors.h"
        text = changed.read_text(encoding="utf-8")
        assert text.count(MISTAKE[0]) == 1
        changed.write_text(text.replace(*MISTAKE), encoding="utf-8")
        with emulated(Path(copy), PROCESSORS["any aarch64, NEON"]) as kernels:
            found = {name for name, dtype, _, wrong in differences(kernels) if wrong and dtype == torch.float32}
    failed |= found != HAVE_EXPONENTIALS
    print(f"a wrong coefficient of e^x, planted: found in {', '.join(sorted(found)) or 'NOTHING'}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
