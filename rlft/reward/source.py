"""What can be read in the source of a reward without running it: where it is defined, and what it looks like."""

from __future__ import annotations

import ast
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.common import by_path
from rlft.reward import systems
from rlft.reward.loading import SHIPPED


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A function as its file has it."""

    file: Path
    line: int
    """Of its `def`."""
    returns: bool
    """Whether a `return` or `yield` with a value stands in it."""
    defaults: dict[str, Any]
    """Its parameters' defaults that are plain numbers, texts and the like, by name."""

    @property
    def where(self) -> str:
        """`file:line`."""
        return f"{self.file}:{self.line}"


def source_file(path: str) -> Path | None:
    """The file of a reward, None where that cannot be told from its path alone, as of another system's package.

    Raises:
        ValueError: the path names no function.
    """
    system, path = systems.split(path)
    if system and not systems.SYSTEMS[system].takes_path:
        return None
    system, name = systems.split(path)
    if system and not (systems.SYSTEMS[system].takes_path and ":" in name):
        return None
    target, _ = by_path.split(name, shipped=SHIPPED)
    if isinstance(target, Path):
        return target if target.is_file() else None
    relative = Path(*target.split("."))
    ours = Path(__file__).parents[2]
    folders = [ours] if target.partition(".")[0] == SHIPPED else [Path(entry or ".") for entry in sys.path]
    found = (folder / name for folder in folders for name in (relative.with_suffix(".py"), relative / "__init__.py"))
    return next((file for file in found if file.is_file()), None)


def definition(path: str) -> Definition | None:
    """A reward's `def`, None where there is none to be read, as for a class or an alias.

    Raises:
        ValueError: the path names no function.
    """
    file = source_file(path)
    if file is None:
        return None
    try:
        tree = ast.parse(file.read_bytes())
    except SyntaxError:
        return None  # loading it says so
    name = path.rpartition(":")[2]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name:
            return Definition(
                file=file,
                line=node.lineno,
                returns=node.decorator_list != [] or any(map(_gives, _own(node))),
                defaults=_defaults(node.args),
            )
    return None


def _own(function: ast.AST) -> list[ast.AST]:
    """The nodes of a function, without those of functions inside it."""
    found: list[ast.AST] = []
    for node in ast.iter_child_nodes(function):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            found += [node, *_own(node)]
    return found


def _gives(node: ast.AST) -> bool:
    if isinstance(node, ast.Return):
        return node.value is not None and not (isinstance(node.value, ast.Constant) and node.value.value is None)
    return isinstance(node, ast.Yield | ast.YieldFrom)


def _defaults(arguments: ast.arguments) -> dict[str, Any]:
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(reversed(positional), reversed(arguments.defaults), strict=False)]
    pairs += [(name, value) for name, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value]
    return {name.arg: value.value for name, value in pairs if isinstance(value, ast.Constant)}
