"""What a user's file imports of its own folder: found, hashed, and importable though the folder is on no path.

A file that is loaded by its location becomes a module of a package that stands for its folder, named by the folder's
absolute path. `import helper` or `from .helper import x` in it, at the top or within a function, means `helper.py`
or the folder `helper` beside it. So two folders may each have their own `helper.py`. As in a program that Python runs
from there, what lies beside comes before what is installed, but for a folder without `__init__.py`, which comes last.

Never taken for what lies beside are modules of the standard library, the file itself, and rlft with the packages that
it ships: a second copy of `rlft.types` would have another `Abstain`. Only import statements look beside;
`importlib.import_module` does where it is told the package: `import_module(".helper", __package__)`.
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
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

_ROOT = Path(__file__).absolute().parents[2]
_PREFIX = "rlft_user_"
_INSTALLED = ("site-packages", "dist-packages")
_STANDARD = Path(sysconfig.get_path("stdlib"))
_SHIPPED = ("rewards", "environments")


def load(file: Path) -> ModuleType:
    """The module that a Python file makes; whatever its code raises, and then the module is gone again.

    Args:
        file: absolute.
    """
    package = _package(file.parent)
    name = f"{package}.{_module_name(file.stem)}"
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


def _module_name(stem: str) -> str:
    """The name within its folder's package of the module that a file makes, another for each file."""
    if "." not in stem:
        return stem
    return f"{stem.replace('.', '_')}_{hashlib.sha256(stem.encode()).hexdigest()[:12]}"


def sources(*files: Path) -> dict[str, str]:
    """sha256 of Python files and of the files of their folders that they import, through others too and in functions.

    Of what is installed only the file itself counts, whose version is in the provenance. A reward or environment that
    rlft ships counts with what lies beside it, as a user's does.

    Args:
        files: one at least.

    Returns:
        sha256 by path relative to the first file's folder, which comes first, the others by these paths; that of
        another file which is installed is relative to where packages are installed, so that it is the same on every
        machine.
    """
    files = tuple(file.absolute() for file in files)
    found: dict[Path, str] = {}
    for file in files:
        waiting = [file]
        while waiting:
            each = waiting.pop()
            if each in found:
                continue
            text = each.read_bytes()
            found[each] = hashlib.sha256(text).hexdigest()
            if not _is_foreign(file) or file.parent in [_ROOT / name for name in _SHIPPED]:
                waiting += _imported_files(each, text, top=file.parent)
    first, *others = found
    shown = sorted((_shown(each, first.parent), found[each]) for each in others)
    return {_shown(first, first.parent): found[first], **dict(shown)}


def _shown(file: Path, folder: Path) -> str:
    if file.parent != folder and _is_foreign(file):
        roots = (*(each for each in file.parents if each.name in _INSTALLED), _ROOT, _STANDARD)
        return str(file.relative_to(next(root for root in roots if root in file.parents)))
    return os.path.relpath(file, folder)


def combined(hashes: Mapping[str, str]) -> str:
    """One sha256 of what `sources` gives; of a file that imports nothing of its folder it is that file's."""
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    return hashlib.sha256(json.dumps(sorted(hashes.items())).encode()).hexdigest()


@functools.cache
def _is_foreign(file: Path) -> bool:
    """Whether a file is no user's: part of what is installed, of Python, or of rlft."""
    foreign = (_STANDARD, _ROOT / "rlft", *(_ROOT / name for name in _SHIPPED))
    return bool({*_INSTALLED} & {*file.parts}) or any(folder in file.parents for folder in foreign)


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
    """Whether `first`, where `file` imports it, means a file or folder in `top`."""
    if first in sys.stdlib_module_names or first in ("", "rlft") or _is_foreign(file):
        return False
    beside, folder = top / f"{first}.py", top / first
    if beside.is_file() and beside != file:
        return True
    if not folder.is_dir() or (first in _SHIPPED and (_ROOT / first).is_dir() and folder.samefile(_ROOT / first)):
        return False
    return (folder / "__init__.py").is_file() or not _is_installed(first, folder)


@functools.cache
def _is_installed(name: str, folder: Path) -> bool:
    """Whether the import path has a module or package of that name elsewhere than in `folder`."""
    if name in sys.modules:
        places = getattr(sys.modules[name], "__path__", ())
    else:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return False
        places = spec.submodule_search_locations or ()
    return str(folder) not in places


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
