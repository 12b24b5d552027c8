"""The architecture, read from the source: who may import whom, what an import costs, and how large a file may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Room -> rooms that it may import, lowest first. A file belongs to the longest room that its path begins with, so a
# new file needs no entry. CONTRIBUTING.md says what each room is for.
BASICS = {"types", "common", "objectives", "config", "config_file"}
MODEL = {*BASICS, "model", "model/layers", "model/kernels"}
ROOMS: dict[str, set[str]] = {
    "types": set(),
    "common": {"types"},
    "objectives": {"types"},
    "config": {"types", "common", "objectives"},
    "config_file": {"types", "common", "objectives", "config"},
    "model/kernels": {"types", "common"},
    "model/layers": {"types", "common", "model/kernels"},
    "model": {*BASICS, "model/layers", "model/kernels"},
    "environment": MODEL,
    "learner": MODEL,
    "run": BASICS,
    "rollout": {*MODEL, "environment"},
    "curves": {"types", "common", "run"},
    "reward": {*MODEL, "environment", "learner", "rollout", "run", "curves"},
    "train": {*MODEL, "environment", "learner", "run", "rollout", "curves", "reward"},
    "cli": {*MODEL, "environment", "learner", "run", "rollout", "curves", "reward", "train"},
}
DOORS = {"__init__", "__main__"}
"""Files beside the rooms that may import any."""
ENTRIES = 17
"""Rooms and files that `ls rlft` shows at most."""

TOO_LONG = {
    # file: why it may have more than 400 lines
}


@cache
def sources(*folders: str) -> dict[str, str]:
    """The modules in some folders of the repository, by dotted name."""
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {_module(path): path.read_text(encoding="utf-8") for path in paths}


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def imported(source: str) -> set[str]:
    """Modules that a source imports anywhere in it; `from rlft import x` counts as `rlft.x`."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the direction"
            assert node.module
            whole = node.module in {"rlft", "rewards", "environments", "tests"}
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if whole else {node.module}
    return names


@cache
def imported_names(source: str) -> set[str]:
    """Like `imported`, but `from x import y` counts as `x.y` always."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def public_names() -> set[str]:
    """What rewards and environments may import: the names in the table of docs/public_names.md."""
    page = (ROOT / "docs" / "public_names.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(rlft\.[\w.]+)` \|", page, re.MULTILINE))


def top(name: str) -> str:
    return name.partition(".")[0]


def room(name: str) -> str:
    """The room of ROOMS that a module belongs to."""
    path = name.removeprefix("rlft").lstrip(".").replace(".", "/") or "__init__"
    found = [each for each in (*ROOMS, *DOORS) if path == each or path.startswith(f"{each}/")]
    assert found, f"{name} is in no room: move it into one, or give its folder a line in ROOMS"
    return max(found, key=len)


def wrong_direction(name: str, source: str) -> list[str]:
    if room(name) in DOORS:
        return []
    return [
        f"{name} imports {other}"
        for other in sorted(imported(source))
        if top(other) == "rlft" and room(other) != room(name) and room(other) not in ROOMS[room(name)]
    ]


def test_no_room_imports_upwards() -> None:
    assert [wrong for name, source in sources("rlft").items() for wrong in wrong_direction(name, source)] == []


def test_an_import_that_goes_up_would_be_found() -> None:
    assert wrong_direction("rlft.learner.batch", "def f():\n    from rlft import train") == [
        "rlft.learner.batch imports rlft.train"
    ]
    assert wrong_direction("rlft.model.layers.x", "import rlft.model.base") == [
        "rlft.model.layers.x imports rlft.model.base"
    ]
    with pytest.raises(AssertionError, match="is in no room"):
        room("rlft.loose.x")
    assert wrong_direction("rlft.reward.x", "from rlft.reward.worker import run\nfrom rlft import types") == []


def test_the_rooms_have_an_order() -> None:
    done: set[str] = set()
    while len(done) < len(ROOMS):
        ready = {each for each in ROOMS if each not in done and ROOMS[each] <= done}
        assert ready, f"a circle among {sorted(ROOMS.keys() - done)}"
        done |= ready


def test_the_listing_shows_the_rooms() -> None:
    names = {path.name for path in (ROOT / "rlft").iterdir() if path.name != "__pycache__"}
    assert len(names) <= ENTRIES, sorted(names)
    folders = {path.name for path in (ROOT / "rlft").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == {each.partition("/")[0] for each in ROOMS} - {"types", "config_file"}


def test_objectives_are_pure_tensor_functions() -> None:
    allowed = ("torch", "rlft.types", "rlft.objectives")
    for module, source in sources("rlft/objectives").items():
        names = {name for name in imported(source) if top(name) not in sys.stdlib_module_names}
        inner = tuple(f"{each}." for each in allowed)
        assert [name for name in names if name not in allowed and not name.startswith(inner)] == [], module


def test_curves_read_run_directories_only() -> None:
    for module, source in sources("rlft/curves").items():
        names = imported(source)
        of_runs = {name for name in names if name.startswith("rlft.run")}
        assert of_runs <= {
            "rlft.run",
            *(f"rlft.run.{name}" for name in ("earlier_configs", "logs", "records", "provenance")),
        }, module
        assert {top(name) for name in names} & {"torch", "ray", "transformers", "peft", "trl", "datasets"} == set(), (
            module
        )


def test_examples_import_public_names_only() -> None:
    for module, source in sources("rewards", "environments").items():
        ours = {name for name in imported_names(source) if top(name) in {"rlft", "rewards", "environments", "tests"}}
        assert ours - public_names() == set(), module


def test_an_internal_import_of_an_example_would_be_found() -> None:
    source = "import rlft.learner\ndef f():\n    from rlft.types import Task, Batch"
    assert imported_names(source) - public_names() == {"rlft.learner", "rlft.types.Batch"}


def test_rlft_imports_neither_examples_nor_tests() -> None:
    outside = {"rewards", "environments", "tests", "benchmarks"}
    found = {name: sorted(set(map(top, imported(source))) & outside) for name, source in sources("rlft").items()}
    assert {name: names for name, names in found.items() if names} == {}


def test_ray_is_imported_in_one_file() -> None:
    users = [name for name, source in sources("rlft").items() if "ray" in set(map(top, imported(source)))]
    assert users == ["rlft.common.cluster"]


KERNELS = ("rlft.model.kernels", {"kernel", "Kernel"})
"""The room that touches memory by address, and what only it may call."""
FOREIGN_CALLS = {"rlft.common.child_guard", "rlft.model.memory"}
"""Modules besides that call C functions: of the operating system, not of ours."""


def addresses(name: str, source: str) -> list[str]:
    """Uses of pointers, of C functions and of the compiled library in a module outside of the kernels' room."""
    room_name, inner = KERNELS
    used = {node.attr for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Attribute)}
    found = ["data_ptr"] if "data_ptr" in used else []
    if "ctypes" in set(map(top, imported(source))) and name not in FOREIGN_CALLS:
        found.append("ctypes")
    return found + sorted(imported_names(source) & {f"{room_name}.library.{each}" for each in inner})


def test_only_kernels_use_pointers() -> None:
    for name, source in sources("rlft").items():
        if room(name) != "model/kernels":
            assert addresses(name, source) == [], name


def test_a_pointer_outside_of_the_kernels_would_be_found() -> None:
    source = "import ctypes\nfrom rlft.model.kernels.library import kernel\nkernel('x')(tensor.data_ptr())"
    assert addresses("rlft.learner.x", source) == ["data_ptr", "ctypes", "rlft.model.kernels.library.kernel"]


@pytest.mark.timeout(60)
def test_light_modules_bring_no_heavy_ones() -> None:
    # `rlft report` and `rlft schema` answer at once, and a reward's process does not load torch.
    program = """
import sys, importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
    heavy = {"torch", "ray", "transformers", "peft", "trl", "datasets"} & sys.modules.keys()
    assert not heavy, f"{name} imports {heavy}"
"""
    light = ["rlft", "rlft.types", "rlft.config", "rlft.cli.main", "rlft.curves.report", "rlft.curves.compare"]
    light += [
        "rlft.environment.contract",
        "rlft.environment.loading",
        "rlft.reward.scoring",
        "rlft.reward.worker",
        "rlft.reward.judge",
    ]
    light += ["rlft.rollout.engines.by_name", "rlft.cli.run_config"]
    done = subprocess.run([sys.executable, "-c", program, *light], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_file_fits_in_the_head() -> None:
    for name, source in sources("rlft", "rewards", "environments").items():
        lines = len(source.splitlines())
        if name in TOO_LONG:
            assert lines > 400, f"{name} is short again: take it out of TOO_LONG"
        else:
            assert lines <= 400, name
