"""The architecture, read from the source: who may import whom, what an import costs, and how large a file may be."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# A module may import modules of lower layers, and of its own package. A new module needs a place here.
LAYERS = [
    {"rlft", "rlft.types", "rlft.imports", "rlft.files", "rlft.shapes"},
    {"rlft.objectives", "rlft.curves", "rlft.arithmetic", "rlft.rows", "rlft.kernels"},
    {"rlft.products"},
    {
        "rlft.config",
        "rlft.conversion",
        "rlft.model_cache",
        "rlft.checkpoint",
        "rlft.lifeline",
        "rlft.templates",
        "rlft.memory",
        "rlft.served",
        "rlft.block_attention",
        "rlft.joint_projection",
    },
    {"rlft.config_file", "rlft.preference_config", "rlft.cluster"},
    {
        "rlft.batch",
        "rlft.chat",
        "rlft.metrics",
        "rlft.preference_rows",
        "rlft.reward_model_config",
        "rlft.rollout_table",
        "rlft.tasks",
        "rlft.sources",
        "rlft.view",
    },
    {"rlft.attention", "rlft.lora", "rlft.passes", "rlft.projected_logprobs", "rlft.run", "rlft.preference_data"},
    {"rlft.lean_layers", "rlft.environment"},
    {"rlft.lean_decoder"},
    {"rlft.model", "rlft.ranks", "rlft.trl_stage"},
    {"rlft.sharding"},
    {"rlft.adapters"},
    {"rlft.reward_model"},
    {"rlft.roles", "rlft.rollout", "rlft.reward"},
    {"rlft.learner", "rlft.preference_learner", "rlft.learner_processes"},
    {"rlft.learner_group"},
    {"rlft.step_rollouts"},
    {"rlft.train_rl", "rlft.train_sft", "rlft.train_dpo", "rlft.train_reward", "rlft.evaluate", "rlft.env_check"},
    {"rlft.services"},
    {"rlft.launch"},
    {"rlft.launch_dpo", "rlft.launch_env", "rlft.launch_reward", "rlft.chaos"},
    {"rlft.cli_env"},
    {"rlft.cli"},
]
PACKAGES = {"rlft.objectives", "rlft.curves", "rlft.rollout", "rlft.reward", "rlft.environment"}

TOO_LONG = {
    # file: why it may have more than 400 lines
}


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


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


def top(name: str) -> str:
    return name.partition(".")[0]


def unit(name: str) -> str:
    """The module or package of LAYERS that a module belongs to."""
    return ".".join(name.split(".")[:2]) if name != "rlft" else name


def layer(name: str) -> int:
    for index, members in enumerate(LAYERS):
        if unit(name) in members:
            return index
    raise AssertionError(f"{name} has no layer; give {unit(name)} a place in LAYERS")


def wrong_direction(name: str, source: str) -> list[str]:
    return [
        f"{name} imports {other}"
        for other in sorted(imported(source))
        if top(other) == "rlft"
        and not (unit(other) == unit(name) and unit(name) in PACKAGES)
        and layer(other) >= layer(name)
    ]


@pytest.mark.parametrize("path", sources("rlft"), ids=module)
def test_imports_go_down_only(path: Path) -> None:
    assert wrong_direction(module(path), path.read_text(encoding="utf-8")) == []


def test_an_import_that_goes_up_would_be_found() -> None:
    assert wrong_direction("rlft.batch", "def f():\n    from rlft import learner") == [
        "rlft.batch imports rlft.learner"
    ]
    assert wrong_direction("rlft.reward.x", "import rlft.rollout.pool") == ["rlft.reward.x imports rlft.rollout.pool"]
    assert wrong_direction("rlft.reward.x", "from rlft.reward.worker import run\nfrom rlft import types") == []


@pytest.mark.parametrize("path", sources("rlft/objectives"), ids=module)
def test_objectives_are_pure_tensor_functions(path: Path) -> None:
    names = {name for name in imported(path.read_text(encoding="utf-8")) if top(name) not in sys.stdlib_module_names}
    allowed = ("torch", "rlft.types", "rlft.objectives")
    assert [
        name for name in names if name not in allowed and not name.startswith(tuple(f"{a}." for a in allowed))
    ] == []


@pytest.mark.parametrize("path", sources("rlft/curves"), ids=module)
def test_curves_read_run_directories_only(path: Path) -> None:
    names = imported(path.read_text(encoding="utf-8"))
    assert [name for name in names if top(name) == "rlft" and not name.startswith("rlft.curves")] == []
    assert {top(name) for name in names} & {"torch", "ray", "transformers", "peft", "trl", "datasets"} == set()


@pytest.mark.parametrize("path", sources("rewards", "environments"), ids=module)
def test_examples_import_public_contracts_only(path: Path) -> None:
    names = imported(path.read_text(encoding="utf-8"))
    ours = {name for name in names if top(name) in {"rlft", "rewards", "environments", "tests"}}
    assert ours <= _PUBLIC


def test_rlft_imports_neither_examples_nor_tests() -> None:
    found = {
        module(path): names
        for path in sources("rlft")
        if (names := {n for n in imported(path.read_text(encoding="utf-8")) if top(n) in _OUTSIDE})
    }
    assert found == {}


_PUBLIC = {
    "rlft.types",
    "rlft.arithmetic",
    "rlft.rows",
    "rlft.environment.contract",
    "rlft.environment.tools",
    "rlft.reward.judge",
    "rlft.reward.sandbox",
}
_OUTSIDE = {"rewards", "environments", "tests", "benchmarks"}


def test_ray_is_imported_in_one_file() -> None:
    users = [module(p) for p in sources("rlft") if "ray" in set(map(top, imported(p.read_text(encoding="utf-8"))))]
    assert users == ["rlft.cluster"]


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
    light = ["rlft", "rlft.types", "rlft.config", "rlft.cli", "rlft.curves.report", "rlft.environment.contract"]
    light += ["rlft.environment.loading", "rlft.reward.scoring", "rlft.reward.worker", "rlft.reward.judge"]
    done = subprocess.run([sys.executable, "-c", program, *light], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", sources("rlft", "rewards", "environments"), ids=module)
def test_a_file_fits_in_the_head(path: Path) -> None:
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if module(path) in TOO_LONG:
        assert lines > 400, f"{module(path)} is short again: take it out of TOO_LONG"
    else:
        assert lines <= 400
