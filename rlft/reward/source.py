"""What can be read in the source of a reward without running it: where it is defined, and what it looks like."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.common import by_path
from rlft.reward import systems
from rlft.reward.contract import REPLY_NAMES
from rlft.types import RewardSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """A function as its file has it."""

    file: Path
    line: int
    """Of its `def`."""
    text: str
    """Its source, without comments."""
    returns: bool
    """Whether a `return` or `yield` with a value stands in it."""
    may_end: bool
    """Whether its end can be reached without a `return`, which gives None."""
    reads_reply: bool
    """Whether it may look at what it is to score: it names it in its body, hands on all that it gets, or is wrapped."""
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
    system, name = systems.split(path)
    if system and not (systems.SYSTEMS[system].takes_path and ":" in name):
        return None
    return by_path.source_file(name, shipped=systems.SHIPPED)


def definition(path: str) -> Definition | None:
    """A reward's `def`, None where the last that its file says of the name is no `def`, as for a class or an alias.

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
    for node in reversed(tree.body):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            if node.name != name:
                continue
            if isinstance(node, ast.ClassDef):
                return None
            return Definition(
                file=file,
                line=node.lineno,
                text=ast.unparse(node),
                returns=node.decorator_list != [] or any(map(_gives, _own(node))),
                may_end=node.decorator_list == [] and _may_end(node.body),
                reads_reply=node.decorator_list != [] or _reads_reply(node),
                defaults=_defaults(node.args),
            )
        if any(_binds(each, name) for each in ast.walk(node)):
            return None
    return None


def definition_of(spec: RewardSpec) -> Definition | None:
    """Like `definition`, and None also where the path names no function: loading it says what is wrong."""
    try:
        return definition(spec.path)
    except ValueError:
        return None


def _reads_reply(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    others = {each.arg for each in (function.args.vararg, function.args.kwarg) if each}
    names = {node.id for part in function.body for node in ast.walk(part) if isinstance(node, ast.Name)}
    return bool(names & (REPLY_NAMES | others)) or "locals" in names


def _binds(node: ast.AST, name: str) -> bool:
    """Whether a node gives a name another meaning: an assignment, an import, a definition within an `if`."""
    if isinstance(node, ast.Name):
        return node.id == name and not isinstance(node.ctx, ast.Load)
    if isinstance(node, ast.alias):
        return (node.asname or node.name.partition(".")[0]) == name
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.name == name


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


def _may_end(body: Sequence[ast.stmt]) -> bool:
    """Whether the end of some statements can be reached; what is not known to leave does not."""
    last = body[-1]
    if isinstance(last, ast.If):
        return not last.orelse or _may_end(last.body) or _may_end(last.orelse)
    if isinstance(last, ast.With | ast.AsyncWith):
        return _may_end(last.body)
    if isinstance(last, ast.Try):
        if last.finalbody and not _may_end(last.finalbody):
            return False
        return _may_end(last.orelse or last.body) or any(_may_end(each.body) for each in last.handlers)
    if isinstance(last, ast.Match):
        takes_all = any(isinstance(each.pattern, ast.MatchAs) and each.pattern.pattern is None for each in last.cases)
        return not takes_all or any(_may_end(each.body) for each in last.cases)
    if isinstance(last, ast.While):
        return not (isinstance(last.test, ast.Constant) and last.test.value)
    return not isinstance(last, ast.Return | ast.Raise)


def _defaults(arguments: ast.arguments) -> dict[str, Any]:
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [*zip(reversed(positional), reversed(arguments.defaults), strict=False)]
    pairs += [(name, value) for name, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value]
    return {name.arg: value.value for name, value in pairs if isinstance(value, ast.Constant)}
