"""What a user's file imports of its own folder: found, hashed, and importable though the folder is on no path.

A file that is loaded by its location becomes a module of a package that stands for its folder, named by the folder's
absolute path. `import helper` or `from .helper import x` in it, at the top or within a function, means `helper.py`
beside it, as it does in a program that Python runs from there. So two folders may each have their own `helper.py`.
Modules of the standard library are never taken for files beside, and a file never for itself.
"""

from __future__ import annotations

import ast
import builtins
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

_ROOT = Path(__file__).absolute().parents[2]
_PREFIX = "rlft_user_"
_INSTALLED = ("site-packages", "dist-packages")


def load(file: Path) -> ModuleType:
    """The module that a Python file makes; whatever its code raises, and then the module is gone again.

    Args:
        file: absolute.
    """
    package = _package(file.parent)
    name = f"{package}.{file.stem.replace('.', '_')}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file, loader=_Loader(name, str(file)))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before running it, as import does: dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def sources(file: Path) -> dict[str, str]:
    """sha256 of a Python file and of the files of its folder that it imports, through others too and in functions too.

    Of what is installed, and of what rlft ships, only the file itself counts: their versions are in the provenance.

    Returns:
        sha256 by path relative to the file's folder; the file itself comes first.
    """
    file = file.absolute()
    found: dict[Path, str] = {}
    waiting = [file]
    while waiting:
        each = waiting.pop()
        if each in found:
            continue
        text = each.read_bytes()
        found[each] = hashlib.sha256(text).hexdigest()
        if not _is_foreign(file):
            waiting += _imported_files(each, text, top=file.parent)
    first, *others = found
    return {os.path.relpath(each, file.parent): found[each] for each in (first, *sorted(others))}


def combined(hashes: Mapping[str, str]) -> str:
    """One sha256 of what `sources` gives; of a file that imports nothing of its folder it is that file's."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()


@functools.cache
def _is_foreign(file: Path) -> bool:
    """Whether a file is no user's: part of what is installed, of Python, or of rlft."""
    ours = (_ROOT / "rlft", _ROOT / "rewards", _ROOT / "environments")
    return bool({*_INSTALLED} & {*file.parts}) or any(folder in file.parents for folder in ours)


def _imported_files(file: Path, text: bytes, *, top: Path) -> Iterator[Path]:
    """The files of its folder or of its own package that the import statements of a file name."""
    try:
        nodes = list(ast.walk(ast.parse(text)))
    except (SyntaxError, ValueError):
        return  # importing it says what is wrong
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files_of(file, alias.name, 0, top)
        elif isinstance(node, ast.ImportFrom):
            yield from _files_of(file, node.module or "", node.level, top)
            for alias in node.names:  # which may be a module, too
                yield from _files_of(file, f"{node.module or ''}.{alias.name}".lstrip("."), node.level, top)


def _files_of(file: Path, name: str, level: int, top: Path) -> Iterator[Path]:
    """The files that importing `name` from `file` runs, of those that are the user's."""
    first, *rest = name.split(".")
    if level:
        base = file.parents[level - 1]
    elif _is_beside(file, first, top):
        base = top
    elif own := next((folder for folder in file.parents if folder.name == first and first not in ("", "rlft")), None):
        base = own.parent  # by the name of its own package
    else:
        return
    for number in range(len(rest) + 1):
        place = base.joinpath(first, *rest[:number])
        for candidate in (place.with_name(f"{place.name}.py"), place / "__init__.py"):
            if first and candidate.is_file():
                yield candidate


def _is_beside(file: Path, first: str, top: Path) -> bool:
    if first in sys.stdlib_module_names or not first or _is_foreign(file):
        return False
    beside = top / f"{first}.py"
    return (beside.is_file() and beside != file) or (top / first / "__init__.py").is_file()


def _package(folder: Path) -> str:
    """The package that stands for a folder; made where it is not there."""
    name = f"{_PREFIX}{hashlib.sha256(str(folder).encode()).hexdigest()[:12]}"
    if name not in sys.modules:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [str(folder)]
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return name


class _Loader(SourceFileLoader):
    """Runs a file of a user's folder with an `import` that looks beside it."""

    def exec_module(self, module: ModuleType) -> None:
        package = module.__name__.partition(".")[0]
        (folder,) = sys.modules[package].__path__
        # Functions keep the builtins of the module that defines them, so this holds when they are called, too.
        module.__dict__["__builtins__"] = {**vars(builtins), "__import__": _import_of(package, Path(folder), module)}
        super().exec_module(module)


def _import_of(package: str, folder: Path, module: ModuleType) -> Any:
    file = Path(str(module.__file__))

    def find(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        first = name.partition(".")[0]
        if level or not _is_beside(file, first, folder):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        found = importlib.import_module(f"{package}.{name}")
        if not fromlist:
            return sys.modules[f"{package}.{first}"]
        return builtins.__import__(found.__name__, globals, locals, fromlist, 0)

    return find


class _Finder:
    """Finds modules of the packages that stand for folders, so that their imports look beside them, too."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        """The specification of a module of such a package; None of all others."""
        if not name.startswith(_PREFIX) or path is None:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(name, str(spec.origin))
        return spec


sys.meta_path.insert(0, _Finder)
