"""The kernels' library: compiled once, loaded only if it is whole and ours, compared with torch, off or required."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from rlft.model.kernels import build, library, self_test

is_there = sys.platform == "linux" and platform.machine() in build.PROCESSOR_FLAGS and shutil.which("c++") is not None
needs_compiler = pytest.mark.skipif(not is_there, reason="there is nothing to compile kernels for, or with")
needs_linux = pytest.mark.skipif(sys.platform != "linux", reason="kernels are compiled on Linux only")

SOURCE = 'extern "C" long rlft_kernels_abi() { return 1; }'
"""A library that is compiled at once."""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache that is empty, and a small source to compile."""
    (tmp_path / "native").mkdir()
    (tmp_path / "native" / "kernels.cpp").write_text(f'#include "other.h"\n{SOURCE}\n')
    (tmp_path / "native" / "other.h").write_text("// nothing\n")
    monkeypatch.setattr(build, "SOURCES", tmp_path / "native")
    monkeypatch.setattr(build, "FLAGS", ("-shared", "-fPIC"))
    monkeypatch.setenv("RLFT_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("RLFT_KERNELS", raising=False)
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path / "cache"


def file_of(cache: Path, suffix: str = ".so") -> Path:
    (path,) = cache.rglob(f"*{suffix}")
    return path


def use_compiler(monkeypatch: pytest.MonkeyPatch, folder: Path, then: str) -> None:
    """Have a compiler that tells its version and then does something else."""
    compiler = folder / "bin" / "c++"
    compiler.parent.mkdir()
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "odd 1.0" && exit 0\n{then}\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{compiler.parent}:/usr/bin:/bin")


# Whether there is a library


@needs_compiler
def test_a_compiler_that_is_there_builds_the_kernels(tmp_path: Path) -> None:
    """In a process of its own, with nothing in the cache and a umask that would let everybody write."""
    program = (
        "import os, torch; os.umask(0); from rlft.model.kernels import elementwise, library; x = torch.ones(2, 4); "
        "assert torch.allclose(elementwise.rms_norm(x, x[0], 0.0), x); print(library.description())"
    )
    environment = {"RLFT_CACHE": str(tmp_path), "PATH": "/usr/bin:/bin", "RLFT_KERNELS": "required"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("compiled by "), done.stderr
    assert file_of(tmp_path).parent.stat().st_mode & 0o777 == 0o700
    for path in (file_of(tmp_path), file_of(tmp_path, ".sha256")):
        assert path.stat().st_mode & 0o777 == 0o600


def test_kernels_can_be_turned_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLFT_KERNELS", "0")
    loaded = library._load()
    assert (loaded.kernels, loaded.description, loaded.error) == ({}, "torch (RLFT_KERNELS=0)", "")
    assert loaded.lost == ""
    assert not cache.exists()


def test_another_value_is_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLFT_KERNELS", "off")
    with pytest.raises(ValueError, match="RLFT_KERNELS is 'off'; set it to 0 for torch alone or to required"):
        library._load()


@needs_linux
def test_without_a_compiler_torch_computes(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(cache))
    loaded = library._load()
    assert loaded.kernels == {}
    assert loaded.description.startswith("torch (no C++ compiler was found") or not is_there
    assert loaded.lost.startswith("there are no compiled kernels (")
    assert loaded.lost.endswith(library.INSTEAD)
    assert loaded.error == ""
    monkeypatch.setenv("RLFT_KERNELS", "required")
    monkeypatch.setattr(library, "_loaded", None)
    for _ in range(2):  # it is tried once and said every time
        with pytest.raises(RuntimeError, match="RLFT_KERNELS=required, but "):
            library.kernel("rms_norm", torch.ones(2, 2))


@needs_linux
def test_a_compiler_that_fails_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    use_compiler(monkeypatch, tmp_path, 'echo "no such flag" >&2; exit 1')
    text = library._load().description
    assert text.startswith("torch (")
    assert "no such flag" in text
    assert str(tmp_path / "bin" / "c++") in text
    assert not list(cache.rglob("*.so"))


@needs_linux
def test_a_compiler_that_hangs_is_ended_with_its_children(
    cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use_compiler(monkeypatch, tmp_path, f"sleep 100 & echo $! > {tmp_path}/child; wait")
    monkeypatch.setattr(build, "TIMEOUT_S", 1.0)
    with pytest.raises(build.BuildError, match=r"bin/c\+\+ did not finish within 1 s"):
        build.load_library()
    child = Path(f"/proc/{(tmp_path / 'child').read_text().strip()}/stat")
    for _ in range(50):  # it is ended by another process
        if not child.exists() or ") Z " in child.read_text():
            return
        time.sleep(0.1)
    raise AssertionError("its child is still there")


@needs_linux
def test_without_a_home_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLFT_CACHE", "~nobody-of-this-name/cache")
    monkeypatch.delenv("RLFT_KERNELS", raising=False)
    assert library._load().description.startswith("torch (")


# The cache


@needs_compiler
def test_a_library_is_built_once(cache: Path) -> None:
    build.load_library()
    before = file_of(cache).stat().st_mtime_ns
    build.load_library()
    assert file_of(cache).stat().st_mtime_ns == before


@needs_compiler
@pytest.mark.parametrize("damage", ["emptied", "changed", "without its checksum"])
def test_a_library_that_is_not_what_was_written_is_built_again_and_said(cache: Path, damage: str) -> None:
    build.load_library()
    path, checksum = file_of(cache), file_of(cache, ".sha256")
    whole = path.read_bytes()
    path.unlink()  # this process has it mapped
    path.write_bytes({"emptied": b"", "changed": whole[:-1] + b"x"}.get(damage, whole))
    path.chmod(0o600)
    if damage == "without its checksum":
        checksum.unlink()
    with pytest.warns(RuntimeWarning, match=f"{path} is not the library that was written there"):
        loaded, _ = build.load_library()
    assert loaded.rlft_kernels_abi() == 1
    assert checksum.read_text() == build.sha256(path)
    build.load_library()  # without a warning, which would be an error


@needs_compiler
@pytest.mark.parametrize("suffix", [".so", ".sha256", "the folder"])
def test_code_that_others_could_have_written_is_not_run(cache: Path, suffix: str) -> None:
    build.load_library()
    path = file_of(cache, suffix) if suffix.startswith(".") else file_of(cache).parent
    path.chmod(0o770)
    told = library._load().description
    assert told.startswith("torch (")
    assert f"{path} belongs to another user, can be written by others" in told


@needs_compiler
def test_a_link_to_code_is_not_followed(cache: Path, tmp_path: Path) -> None:
    build.load_library()
    path = file_of(cache)
    path.rename(tmp_path / "elsewhere.so")
    path.symlink_to(tmp_path / "elsewhere.so")
    with pytest.raises(build.BuildError, match="or is a link"):
        build.load_library()


@needs_compiler
def test_each_source_and_flag_makes_another_library(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [
        lambda: None,
        lambda: (build.SOURCES / "other.h").write_text("// something\n"),
        lambda: (build.SOURCES / "kernels.cpp").write_text(SOURCE),
        lambda: (build.SOURCES / "third.h").write_text(""),
        lambda: monkeypatch.setattr(build, "FLAGS", (*build.FLAGS, "-O1")),
        lambda: monkeypatch.setattr(build, "_processor", lambda: "flags: another"),
    ]
    for count, change in enumerate(changes, start=1):
        change()
        build.load_library()
        assert len(list(cache.rglob("*.so"))) == count


# The comparison with torch


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch, no_matrix_unit: None) -> dict[library.Key, library.Kernel]:
    """The kernels of this process, in a table of the test's own that the tensor functions use."""
    if not library.operations():
        pytest.skip(library.description())
    loaded = library._library()
    own = loaded._replace(kernels=dict(loaded.kernels))
    monkeypatch.setattr(library, "_loaded", own)
    return own.kernels


def twice(run: library.Kernel, *arguments: Any) -> None:
    """A kernel that computes in place, twice: what comes out is wrong."""
    run(*arguments)
    run(*arguments)


def nothing(*arguments: Any) -> None:
    """A kernel that leaves its result as it was."""


def test_every_kernel_has_a_case_and_agrees(kernels: dict[library.Key, library.Kernel]) -> None:
    assert {name for name, _ in kernels} <= self_test.CASES.keys()
    assert self_test.CASES.keys() == {*library._ARGUMENTS, *library._PRODUCTS}
    assert self_test.disagreeing(kernels) == {}
    with torch.inference_mode():  # of an engine that is the first to call one
        assert self_test.disagreeing(kernels) == {}


@pytest.mark.parametrize("name", sorted(self_test.CASES))
def test_a_kernel_that_computes_something_else_is_found(
    kernels: dict[library.Key, library.Kernel], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = (name, torch.bfloat16)
    if key not in kernels:
        pytest.skip("this processor has no such kernel")
    empty = torch.Tensor.new_empty  # what a kernel does not write is not a number
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda x, *shape, **o: empty(x, *shape, **o).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty_like", lambda x, **o: torch.full_like(x, torch.nan, **o))
    kernels[key] = partial(twice, kernels[key]) if name in {"rotate", "biased_softmax"} else nothing
    wrong = self_test.disagreeing(kernels)
    assert key in wrong
    assert "differs from torch by" in wrong[key]
    products = {"panels_of", "panels_of_transposed", "linear"}  # which need one another
    along_a_tree, of_a_step = {"tree_attention", "tree_attention_backward"}, {"keep_prompt", "cached_attention"}
    together = next((parts for parts in (products, along_a_tree, of_a_step) if name in parts), {name})
    assert {other for other, _ in wrong} <= together
    assert all(dtype == torch.bfloat16 for _, dtype in wrong)


def test_a_kernel_that_its_function_does_not_call_is_found(
    kernels: dict[library.Key, library.Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlft.model.kernels.elementwise.kernel", lambda *operands: None)
    assert self_test.disagreeing(kernels)["rms_norm", torch.float32] == "was not called by its tensor function"


def test_what_disagrees_is_left_to_torch_and_named(
    kernels: dict[library.Key, library.Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RLFT_KERNELS", raising=False)
    monkeypatch.setattr(
        self_test, "disagreeing", lambda kernels: {("rotate", torch.bfloat16): "differs from torch by 1.0"}
    )
    monkeypatch.setattr(library, "_loaded", None)
    assert "; rotate bfloat16 is left to torch: it differs from torch by 1.0" in library.description()
    assert library.lost() == "rotate bfloat16 is left to torch: it differs from torch by 1.0"
    assert "rotate bfloat16" not in library.operations()
    assert "rotate float32" in library.operations()
    monkeypatch.setenv("RLFT_KERNELS", "required")
    monkeypatch.setattr(library, "_loaded", None)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"RLFT_KERNELS=required, but .*rotate bfloat16 is left to torch"):
            library.kernel("rms_norm", torch.ones(2, 2))


class Stub:
    """A library of another version, or without some functions."""

    _name = "stub.so"

    def __init__(self, version: int = library.ABI) -> None:
        self.rlft_kernels_abi = self.function(version)
        self.rlft_kernels_have_products = self.function(0)
        self.omp_set_num_threads = self.function(None)
        self.normed_float32 = self.function(None)

    @staticmethod
    def function(result: Any) -> Any:
        def call(*arguments: Any) -> Any:
            return result

        return call


def test_another_version_of_the_interface_is_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLFT_KERNELS", raising=False)
    monkeypatch.setattr(library, "load_library", lambda: (Stub(version=7), "c++ 1"))
    loaded = library._load()
    assert loaded.kernels == {}
    assert loaded.description == f"torch (stub.so has version 7 of the kernels' interface and rlft calls {library.ABI})"


def test_functions_that_are_missing_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RLFT_KERNELS", raising=False)
    monkeypatch.setattr(library, "load_library", lambda: (Stub(), "c++ 1"))
    monkeypatch.setattr(self_test, "disagreeing", lambda kernels: {})
    loaded = library._load()
    assert list(loaded.kernels) == [("normed", torch.float32)]
    assert "rms_norm float32 is left to torch: the library does not have it" in loaded.description
    monkeypatch.setenv("RLFT_KERNELS", "required")
    assert "RLFT_KERNELS=required, but rms_norm float32 is left to torch" in library._load().error


def test_the_package_has_every_source() -> None:
    """Files that setuptools leaves out would be missing where rlft is installed, not here."""
    import tomllib

    root = Path(__file__).parents[1]
    patterns = tomllib.loads((root / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["rlft"]
    packed = {path for pattern in patterns for path in (root / "rlft").glob(pattern)}
    assert set(build.SOURCES.iterdir()) <= packed
    assert os.path.commonpath([build.SOURCES, root / "rlft"]) == str(root / "rlft")
