"""Kernels by each compiler and for each kind of processor: their flags, what they compute, what is said without."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from rlft.model.kernels import build, library, self_test
from rlft.model.layers.slow_paths import is_on_cpu, slow_paths
from tests.emulated_kernels import SERVER, KernelServer

needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled on Linux only")


def use_machine(monkeypatch: pytest.MonkeyPatch, machine: str, system: str = "linux") -> None:
    monkeypatch.setattr(build.platform, "machine", lambda: machine)
    monkeypatch.setattr(build.sys, "platform", system)


@pytest.mark.parametrize(
    ("machine", "version", "expected", "absent"),
    [
        ("x86_64", "c++ (Debian 12.4.0) 12.4.0", {"-march=native", "-mprefer-vector-width=512", "-fopenmp"}, "-Xclang"),
        ("x86_64", "Debian clang version 14.0.6", {"-march=native", "-Xclang", "-fopenmp"}, "-mcpu=native"),
        ("aarch64", "c++ (Debian 14.2.0) 14.2.0", {"-mcpu=native", "-fopenmp"}, "-march=native"),
        ("aarch64", "Debian clang version 19.1.7", {"-mcpu=native", "-Xclang", "-fopenmp"}, "-march=native"),
    ],
)
def test_flags_are_those_of_the_machine_and_the_compiler(
    monkeypatch: pytest.MonkeyPatch, machine: str, version: str, expected: set[str], absent: str
) -> None:
    use_machine(monkeypatch, machine)
    monkeypatch.setattr(build, "_processor", lambda: "flags: some")
    command, _ = build._job(["/usr/bin/c++"], version)
    assert expected <= set(command)
    assert absent not in command
    assert command.index("-fopenmp") == command.index("-Xclang") + 1 if "-Xclang" in command else True
    assert any("gomp" in part for part in command)  # torch's own where it has one: no second pool of threads


@pytest.mark.parametrize(
    ("machine", "system"), [("riscv64", "linux"), ("arm64", "darwin"), ("AMD64", "win32"), ("x86_64", "darwin")]
)
def test_other_machines_are_left_to_torch_and_named(monkeypatch: pytest.MonkeyPatch, machine: str, system: str) -> None:
    monkeypatch.delenv("RLFT_KERNELS", raising=False)
    use_machine(monkeypatch, machine, system)
    loaded = library._load()
    assert loaded.kernels == {}
    assert loaded.description == f"torch (kernels are for Linux on x86-64 and aarch64, this is {system} on {machine})"
    assert loaded.lost.endswith(library.INSTEAD)
    assert not build.is_compiled()


def test_the_compiler_is_the_one_that_cxx_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("c++", "other"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CXX", "")
    assert build.compiler() == [f"{tmp_path}/c++"]
    monkeypatch.setenv("CXX", "other -x 'a b'")
    assert build.compiler() == [f"{tmp_path}/other", "-x", "a b"]
    for wrong in ("g++-of-nobody", "'"):
        monkeypatch.setenv("CXX", wrong)
        with pytest.raises(build.BuildError, match="and no such program was found: unset it, or set it to a C"):
            build.compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(build.BuildError, match=r"no C\+\+ compiler was found: install"):
        build.compiler()


# What they compute

AVX2 = "-march=haswell"


def runtimes() -> set[str]:
    """Runtimes of OpenMP that this process has loaded."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {line.split()[-1] for line in lines if "libgomp" in line or "libomp" in line or "libiomp" in line}


@needs_linux
@pytest.mark.parametrize(
    ("compiler", "flags"),
    [
        ("g++", (AVX2,)),
        ("clang++", build.PROCESSOR_FLAGS.get(platform.machine(), ())),
        pytest.param("clang++", (AVX2,), marks=pytest.mark.sweep),
    ],
    ids=["g++ for AVX2", "clang++ for this processor", "clang++ for AVX2"],
)
def test_each_compiler_makes_kernels_that_agree(
    compiler: str, flags: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_matrix_unit: None
) -> None:
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    if flags == (AVX2,) and "avx2" not in build._processor().split():
        pytest.skip("this processor has no AVX2")
    monkeypatch.setenv("RLFT_CACHE", str(tmp_path))
    monkeypatch.setenv("CXX", compiler)
    monkeypatch.setitem(build.PROCESSOR_FLAGS, platform.machine(), flags)
    before, threads = runtimes(), torch.get_num_threads()
    loaded, version = build.load_library()
    assert ("clang" in version) == (compiler == "clang++")
    assert runtimes() == before  # the threads are torch's
    kernels, missing = library._kernels(loaded)
    assert missing == []
    assert {name for name, _ in kernels} >= library._ARGUMENTS.keys()
    use_threads = library._bound(loaded, "omp_set_num_threads", [ctypes.c_int])
    monkeypatch.setattr(library, "_loaded", library.Library(kernels, version, use_threads))
    torch.set_num_threads(2)
    try:
        assert self_test.disagreeing(kernels) == {}
    finally:
        torch.set_num_threads(threads)


@needs_linux
def test_another_program_computes_kernels_for_this_one(tmp_path: Path) -> None:
    """What `make test-aarch64` does, by a program for this machine."""
    if "compiled by" not in library.description():
        pytest.skip(library.description())
    command = [*build.compiler(), "-std=c++17", "-O0", str(SERVER), "-o", str(tmp_path / "server"), "-ldl"]
    subprocess.run(command, check=True)
    with KernelServer([str(tmp_path / "server"), build.load_library()[0]._name]) as kernels:
        assert self_test.disagreeing(kernels) == {}
        key = ("gated_silu", torch.float32)
        kernels[key] = kernels["gated_silu", torch.bfloat16]  # a wrong one
        assert list(self_test.disagreeing(kernels)) == [key]


# What a run says without


def test_a_model_notes_which_kernels_its_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = nn.Linear(1, 1)
    lost = f"there are no compiled kernels (no compiler): {library.INSTEAD}"
    monkeypatch.setattr(library, "_loaded", library.Library({}, "torch (no compiler)", lost=lost))
    assert is_on_cpu(model)
    assert list(slow_paths(model)) == [lost]
    model = nn.Linear(1, 1)
    monkeypatch.setattr(library, "_loaded", library.Library({}, "torch (RLFT_KERNELS=0)"))  # as it was asked for
    assert is_on_cpu(model)
    assert not slow_paths(model)
