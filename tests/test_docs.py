"""The documentation is about the code as it is: links, files, modules and names that it mentions exist."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

from tests.test_architecture import ROOMS, public_names, sources

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(ROOT.glob("docs/*.md")),
    *(ROOT / folder / "README.md" for folder in ("benchmarks", "deploy", "rewards")),
]
TOP = ("rlft", "rewards", "environments", "tests", "configs", "docs", "benchmarks")


def dangling_links(text: str, folder: Path) -> list[str]:
    """Relative links of a page in `folder` that lead nowhere."""
    return [link for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text) if not (folder / link).exists()]


def missing_names(text: str) -> list[str]:
    """Dotted names (`rlft.learner.batch.pack`) that are neither a module nor a name that one has or offers."""
    found = set(re.findall(rf"\b((?:{'|'.join(TOP[:4])})(?:\.[a-zA-Z_]\w*)+)(?![\w/])", text))
    return sorted(name for name in found if not name.endswith((".py", ".md", ".yaml")) and not _exists(name))


def _exists(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    if path.is_dir() or path.with_suffix(".py").is_file():
        return True
    module = path.parent.with_suffix(".py")
    return module.is_file() and path.name in _top_level(module)


def _top_level(module: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
            if ast.unparse(targets[0]) == "__all__" and isinstance(node.value, ast.List):
                names |= set(ast.literal_eval(node.value))
    return names


def missing_files(text: str) -> list[str]:
    """Paths such as `rlft/learner/batch.py` or `configs/debug/*.yaml` that are not in the repository."""
    found = set(re.findall(rf"(?<![\w/.-])((?:{'|'.join(TOP)})/[\w./*-]*\w)", text))
    return sorted(path for path in found if not list(ROOT.glob(path)))


def missing_room_files(text: str) -> list[str]:
    """Files in code spans, as in `learner/batch.py`, that are neither in the repository's root nor in rlft/."""
    found = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|cpp))`", text))
    return sorted(path for path in found if not (ROOT / path).is_file() and not (ROOT / "rlft" / path).is_file())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_mentions_exists(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert dangling_links(text, page.parent) == []
    assert missing_names(text) == []
    assert missing_files(text) == []
    assert missing_room_files(text) == []


def test_what_does_not_exist_would_be_found() -> None:
    assert dangling_links("[a](README.md#x), [b](gone.md), [c](https://x.y)", ROOT) == ["gone.md"]
    assert missing_names("`rlft.learner.batch.pack`, rlft.types, `rlft.train_rl`, rlft.types.Gone.") == [
        "rlft.train_rl",
        "rlft.types.Gone",
    ]
    assert missing_files("see rlft/types.py, configs/debug/*.yaml, (rlft/kernels.cpp)") == ["rlft/kernels.cpp"]
    assert missing_room_files("`learner/batch.py` and `learner/gone.py`") == ["learner/gone.py"]


# CONTRIBUTING.md: the rooms.

ABBREVIATIONS = {
    "nothing": set[str](),
    "basics": {"types", "common", "objectives", "config", "config_file"},
    "models": {"types", "common", "objectives", "config", "config_file", "model", "model/layers", "model/kernels"},
}


def test_the_table_of_rooms_is_the_one_that_is_enforced() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w/]+)` \| [^|]+ \| ([^|]+) \| ", text, re.MULTILINE)
    written = {
        room: set[str]().union(*(ABBREVIATIONS.get(word, {word}) for word in listed.split(", ")))
        for room, listed in rows
    }
    assert written == ROOMS
    assert [room for room, _ in rows] == list(ROOMS), "lowest first"


# docs/public_names.md.


def test_a_public_name_can_be_imported() -> None:
    for name in public_names():
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_that_a_page_shows_imports_public_names_only(page: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    shown = {
        f"{module}.{name.strip()}"
        for module, names in re.findall(r"^from (rlft[\w.]*) import (.+)$", "\n".join(blocks), re.MULTILINE)
        for name in names.split(",")
    }
    assert shown - public_names() == set()


# Docstrings.

REFERENCE = re.compile(r"(?:See |Likewise|The same(?:\b)|As `|As with |Of this )")


def docstrings(source: str) -> list[tuple[str, int, str]]:
    """(name, line, first line of the docstring) of the module and of every public class and function in it."""
    tree = ast.parse(source)
    found = [("module", 1, _first_line(tree))]
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and (
            not node.name.startswith("_") or node.name == "__init__"
        ):
            found.append((node.name, node.lineno, _first_line(node)))
    return found


def _first_line(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    text = ast.get_docstring(node)
    return text.splitlines()[0] if text else ""


def only_references(source: str) -> list[str]:
    return [f"{name}, line {line}: {first}" for name, line, first in docstrings(source) if REFERENCE.match(first)]


def test_the_first_line_of_a_docstring_says_something() -> None:
    for name, source in sources("rlft").items():
        assert only_references(source) == [], name


def test_a_docstring_that_only_refers_would_be_found() -> None:
    source = 'class A:\n    """See the module."""\n    def f(self):\n        """Seed of the run."""'
    assert only_references(source) == ["A, line 1: See the module."]
