"""Private names of other packages: the list is complete, is shown, and a name that is gone says what to install."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import re
import sys
import tomllib
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import torch

from rlft.common import private_names, ray_watch
from rlft.common.cluster import Cluster, protect
from rlft.common.private_names import PRIVATE_NAMES, VERSIONS, missing, private
from tests.test_architecture import ROOT, sources, top

OURS = {"rlft", "rewards", "environments", "benchmarks", "tests"}
SCANNED = sources("rlft", "rewards", "environments", "benchmarks")
PYTHON = {"_exit", "_getframe", "_name", "_replace"}
"""Of Python's own, documented: of os, of a ctypes library, of named tuples."""
MARKS = {"_vf_weight"}
"""Left on a function by a decorator of verifiers 0.4; without it the function has its default weight."""
DOCUMENTED = {
    "huggingface_hub.errors",
    "jinja2.exceptions",
    "jsonschema.exceptions",
    "jsonschema.validators",
    "matplotlib.axes",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "matplotlib.layout_engine",
    "matplotlib.ticker",
    "mlflow.entities",
    "mlflow.tracking",
    "numpy.typing",
    "packaging.requirements",
    "packaging.specifiers",
    "peft.tuners.lora",
    "py3langid.langid",
    "pyarrow.compute",
    "pyarrow.parquet",
    "ray.exceptions",
    "ray.job_submission",
    "ray.tune.schedulers",
    "ray.util.scheduling_strategies",
    "reasoning_gym.composite",
    "reasoning_gym.factory",
    "rich.console",
    "rich.live",
    "rich.measure",
    "rich.panel",
    "rich.progress",
    "rich.table",
    "rich.text",
    "ruamel.yaml",
    "ruamel.yaml.comments",
    "ruamel.yaml.error",
    "safetensors.torch",
    "scipy.integrate",
    "scipy.optimize",
    "scipy.sparse",
    "scipy.special",
    "scipy.stats",
    "starlette.applications",
    "starlette.concurrency",
    "starlette.datastructures",
    "starlette.exceptions",
    "starlette.middleware",
    "starlette.requests",
    "starlette.responses",
    "starlette.routing",
    "starlette.types",
    "torch.distributed",
    "torch.distributed.device_mesh",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.nn.attention.bias",
    "torch.nn.functional",
    "torch.nn.utils.rnn",
    "torch.utils.checkpoint",
    "torch.utils.tensorboard",
    "transformers.integrations.sdpa_attention",
    "transformers.masking_utils",
    "transformers.utils",
    "verifiers.clients",
    "verifiers.types",
    "verifiers.v1",
    "verifiers.v1.configs.agent",
    "verifiers.v1.graph",
    "verifiers.v1.task",
    "verifiers.v1.trace",
    "verifiers.v1.types",
    "vllm.inputs",
    "vllm.lora.request",
}
"""Modules within packages from which their documentation imports, too."""


def is_private(name: str) -> bool:
    return re.match(r"_[a-zA-Z]", name) is not None


def own_names(tree: ast.AST) -> set[str]:
    """Names that a file defines itself: functions, classes, variables, attributes of `self`."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
    return names


def _is_self(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name) and node.func.id == "super"
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def used_names(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, private name) of attributes, of arguments and of imports of other packages."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not _is_self(node.value):
            yield node.lineno, node.attr
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.lineno, node.arg
        elif isinstance(node, ast.Dict):
            yield from ((key.lineno, key.value) for key in node.keys if _is_text(key))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("getattr", "hasattr", "setattr") and _is_text(node.args[1]):
                yield node.lineno, node.args[1].value if not _is_self(node.args[0]) else ""
        elif isinstance(node, ast.ImportFrom) and node.module and top(node.module) not in OURS:
            yield from ((node.lineno, part) for part in node.module.split("."))
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from ((node.lineno, part) for alias in node.names for part in alias.name.split("."))


def _is_text(node: ast.AST | None) -> Any:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def unlisted(source: str) -> list[str]:
    """Uses of private names in a file that are neither its own nor in the list."""
    tree = ast.parse(source)
    listed = set(re.findall(r"\w+", " ".join(name for name in PRIVATE_NAMES if name.endswith(")"))))
    known = own_names(tree) | PYTHON | MARKS | listed
    found = [f"line {line}: {name}" for line, name in used_names(tree) if is_private(name) and name not in known]
    asked = [name for name in asked_for(source) if name not in PRIVATE_NAMES]
    return found + asked + sorted(undocumented(tree))


def undocumented(tree: ast.AST) -> set[str]:
    """Modules inside of other packages that their documentation does not import from."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:  # a relative one is our own
            names.add(node.module)
    other = {name for name in names if top(name) not in OURS | sys.stdlib_module_names}
    return {name for name in other if "." in name and name not in DOCUMENTED}


def asked_for(source: str) -> list[str]:
    """Names that a file asks for by `private("...")` or `missing("...")`."""
    return re.findall(r"(?<![.\w])(?:private|missing)\(\s*\"([^\"]+)\"", source)


def test_private_names_of_other_packages_are_listed() -> None:
    found = {name: names for name, source in SCANNED.items() if (names := unlisted(source))}
    assert found == {}, "give it a line in PRIVATE_NAMES, or use a public name"


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import torch\ntorch._C.x()", ["line 2: _C"]),
        ("ray.init(_memory=1)", ["line 1: _memory"]),
        ("options = {'_memory': 1}", ["line 1: _memory"]),
        ("hasattr(model, '_hf_hook')", ["line 1: _hf_hook"]),
        ("from ray._private import worker", ["line 1: _private", "ray._private"]),
        ("from trl.trainer.utils import pad", ["trl.trainer.utils"]),
        ("import trl.experimental", ["trl.experimental"]),
        ('private("torch._new")', ["torch._new"]),
        ("class A:\n    def f(self, other):\n        self._x = other._x\n        super()._y()", []),
        ("import os, torch.nn.functional\nfrom rlft.x import _y\nos._exit(0)", []),
        ("ray.init(_temp_dir=1)", []),
    ],
)
def test_an_unlisted_name_would_be_found(source: str, found: list[str]) -> None:
    assert unlisted(source) == found


def test_each_listed_name_is_used() -> None:
    text = "\n".join(SCANNED.values())
    used = {*asked_for(text), *(f"ray: process {name}" for name in ray_watch.NAMES)}
    used |= {f"ray.init({option})" for option in re.findall(r'^ +"(_\w+)": ', text, re.MULTILINE)}
    assert used >= PRIVATE_NAMES.keys()


@pytest.mark.parametrize("name", [name for name in PRIVATE_NAMES if not name.startswith("ray")])
def test_a_listed_name_exists_in_the_installed_packages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec(top(name)) is None:
        pytest.skip(f"{top(name)} is not installed")
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    if name.startswith("trl.experimental"):  # gone from TRL: the benchmark brings the version that it needs
        with pytest.raises(ImportError, match=r"^trl [\d.]+ has no trl\.experimental.*install 'trl>=1\.0,<1\.13'"):
            private(name)
    else:
        assert callable(private(name))


def test_a_name_that_is_gone_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    name = "torch.cpu._is_avx512_bf16_supported"
    monkeypatch.delattr(name)
    private.cache_clear()
    with pytest.raises(ImportError) as caught:
        private(name)
    assert str(caught.value) == (
        f"torch {importlib.metadata.version('torch')} has no torch.cpu._is_avx512_bf16_supported, which rlft needs for "
        "choosing bfloat16 where the processor computes it; install 'torch>=2.10,<3'"
    )
    monkeypatch.undo()
    assert private(name) is torch.cpu._is_avx512_bf16_supported


def test_a_package_that_is_not_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(private_names.PRIVATE_NAMES, "nowhere.x", "nothing")
    monkeypatch.setitem(private_names.VERSIONS, "nowhere", ">=1")
    with pytest.raises(ImportError, match=r"nowhere \(not installed\) has no nowhere\.x, which rlft needs for nothing"):
        private("nowhere.x")
    with pytest.raises(KeyError, match="is not in PRIVATE_NAMES"):
        missing("torch._anything")


@pytest.mark.parametrize("option", ["_node_ip_address", "_temp_dir"])
def test_an_option_that_ray_does_not_have_any_more_is_said(monkeypatch: pytest.MonkeyPatch, option: str) -> None:
    protect()
    import ray

    def init(**options: Any) -> None:
        assert option in options
        raise RuntimeError(f"Unknown keyword argument(s): {option}")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    with pytest.raises(ImportError, match=rf"^ray [\d.]+ has no ray\.init\({option}\), which rlft needs for a cluster"):
        Cluster("", processes=1)


def test_ray_takes_no_other_options() -> None:
    protect()
    import ray

    with pytest.raises(RuntimeError, match=r"Unknown keyword argument\(s\): _gone"):
        ray.init(address="local", _temp_dir="/nowhere", _node_ip_address="127.0.0.1", _gone=1)


def test_processes_of_ray_that_have_other_names_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "children", lambda *arguments, **named: [])
    with pytest.raises(ImportError, match=r"^ray [\d.]+ has no process raylet, which rlft needs for noticing"):
        ray_watch.Watch()


def test_the_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    bounds = {re.split(r"[^\w-]", line)[0]: re.sub(r"^[\w-]+(\[\w+\])?", "", line) for line in lines}
    assert {name: bounds[name] for name in VERSIONS} == {**VERSIONS, "trl": ">=1.0,<2"}


def test_contributing_shows_the_list() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `([^`]+)` \| ([^|]+) \|$", text, re.MULTILINE) == list(PRIVATE_NAMES.items())
