"""Functions by name: `package.module:function` or `path/to/file.py:function`.

A file is loaded by its location under a module name made from its absolute path, so it never meets another module of
the same name, and may import what lies beside it (`user_folder`). The shipped packages (`rewards`, `environments`) are
found beside `rlft` and loaded the same way: a user's own folder of that name neither hides them nor is hidden by them.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import itertools
import pkgutil
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, cast

from rlft.common import user_folder

_ROOT = Path(__file__).absolute().parents[2]

TRACEBACK_FRAMES = 4
"""Innermost stack frames that an error message keeps."""


def import_function(path: str, *, shipped: str) -> Callable[..., Any]:
    """The function that `path` names.

    Args:
        shipped: the package of ours that holds such functions, `rewards` or `environments`.

    Raises:
        ValueError: there is no such file, module or function, or importing it failed; says what is there instead.
    """
    function = import_object(path, shipped=shipped)
    if inspect.isclass(function) or not callable(function):
        name = path.rpartition(":")[2]
        raise ValueError(f"{path}: {name!r} is a {type(function).__name__}, not a function")
    return cast("Callable[..., Any]", function)


def import_class(path: str, *, shipped: str) -> type:
    """The class that `path` names.

    Raises:
        ValueError: see `import_function`.
    """
    found = import_object(path, shipped=shipped, kind="class")
    if not inspect.isclass(found):
        name = path.rpartition(":")[2]
        raise ValueError(f"{path}: {name!r} is a {type(found).__name__}, not a class")
    return found


def import_object(path: str, *, shipped: str, kind: Literal["function", "class"] = "function") -> object:
    """The object of any kind that `path` names.

    Args:
        kind: what should be there, for the error message.

    Raises:
        ValueError: see `import_function`.
    """
    target, name = split(path, shipped=shipped)
    module = _load_file(target, path) if isinstance(target, Path) else _import(target, name, path, shipped)
    try:
        return getattr(module, name)
    except AttributeError:
        there = sorted(key for key, value in vars(module).items() if _is_defined_in(module, value, kind))
        nothing = "no functions or classes" if kind == "function" else "no classes"
        raise ValueError(
            f"{path}: no {kind} {name!r} in {module.__file__}."
            f"{did_you_mean(name, there)} It defines: {', '.join(there) or nothing}."
        ) from None


def with_absolute_file(path: str, *, shipped: str) -> str:
    """The path with a file in it made absolute, so that it means the same in any working directory."""
    target, name = split(path, shipped=shipped)
    return f"{target.expanduser().absolute()}:{name}" if isinstance(target, Path) else path


def source_file(path: str, *, shipped: str) -> Path | None:
    """The file that `path` names, found without running it; None where there is none, as for a module not in Python.

    Of a function that a module imports from another one it is the file of the module that `path` names.

    Raises:
        ValueError: the path names no function.
    """
    target, _ = split(path, shipped=shipped)
    if isinstance(target, Path):
        file = target.expanduser().absolute()
        return file if file.is_file() else None
    package = target.partition(".")[0]
    imported = getattr(sys.modules.get(target), "__file__", None) or ""
    if package != shipped and imported.endswith(".py"):
        return Path(imported)
    relative = Path(*target.split("."))
    folders = [_ROOT] if package == shipped else [Path(entry or ".").absolute() for entry in sys.path]
    found = (folder / name for folder in folders for name in (relative.with_suffix(".py"), relative / "__init__.py"))
    return next((file for file in found if file.is_file()), None)


def available(shipped: str) -> dict[str, str]:
    """The functions of a shipped package: import path -> first line of the docstring. Runs none of them."""
    found = {}
    folder = _ROOT / shipped
    for module in sorted(info.name for info in pkgutil.iter_modules([str(folder)]) if not info.ispkg):
        for node in ast.parse((folder / f"{module}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                found[f"{shipped}.{module}:{node.name}"] = (ast.get_docstring(node) or "").partition("\n")[0]
    return found


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` Did you mean 'x'?` where the word is a slip of x, or one of the two begins with the other; else nothing."""
    near = _nearest(word, known)
    return f" Did you mean {near!r}?" if near else ""


def _nearest(word: str, known: Iterable[str]) -> str:
    """The name that a word is a slip of, or nothing.

    What all of them have in common up to a separator, as a folder or a package and an ending, makes none of them near.
    """
    names = [*known]
    start = _common_part([word, *names])
    end = _common_part([each[::-1] for each in (word, *names)])
    rests = {name[start : len(name) - end]: name for name in names}
    own = word[start : len(word) - end]
    whole = [name for name in rests if len(name) >= 3 and own.startswith(name)]
    for near in difflib.get_close_matches(own, rests, n=1, cutoff=0.6) or whole[:1]:
        is_slip = difflib.SequenceMatcher(None, near, own).ratio() >= 0.7 or sorted(near) == sorted(own)
        if is_slip or len(_alike([near, own])) >= max(3, min(4, len(near), len(own))):
            return rests[near]
    return ""


def _common_part(words: Sequence[str]) -> int:
    """How many letters all words begin with, up to the last `/`, `.` or `:` in these."""
    return 1 + max(map(_alike(words).rfind, "/.:"))


def _alike(words: Sequence[str]) -> str:
    """What all words begin with."""
    same = itertools.takewhile(lambda letters: len(set(letters)) == 1, zip(*words, strict=False))
    return "".join(letters[0] for letters in same)


def describe_error(error: BaseException) -> str:
    """An exception in a few lines: the innermost frames of its traceback, except rlft's own, and its message."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__, limit=-50)
        if _ROOT / "rlft" not in Path(frame.filename).parents and not frame.filename.startswith("<frozen")
    ]
    text = traceback.format_list(frames[-TRACEBACK_FRAMES:]) + traceback.format_exception_only(error)
    return "".join(text).strip()


def innermost_line(error: BaseException) -> str:
    """`file.py:12`: the innermost line that is neither rlft's, nor Python's, nor a package's; or nothing."""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__, limit=-50) if is_users_code(frame.filename)]
    return f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""


def is_users_code(filename: str) -> bool:
    """Whether a file of a stack frame is neither rlft's, nor Python's, nor an installed package's."""
    installed = {Path(sysconfig.get_path(name)) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders = set(Path(filename).parents)
    return not filename.startswith("<") and _ROOT / "rlft" not in folders and not installed & folders


def split(path: str, *, shipped: str) -> tuple[Path | str, str]:
    """File or module, and the function's name.

    Raises:
        ValueError: the path names no function.
    """
    target, _, name = path.rpartition(":")
    if target and name:
        return (Path(target) if target.endswith(".py") or "/" in target else target), name
    word = path.strip(":")
    if word.endswith(".py"):
        raise ValueError(f"{path!r} names no function: write {word}:FUNCTION")
    functions = {key.rpartition(":")[2]: key for key in available(shipped)}
    near = _nearest(word.rpartition(".")[2], functions)
    meant = f"{word}.py:{word}" if Path(f"{word}.py").is_file() else functions.get(near)
    hint = f" Did you mean {meant!r}?" if meant else ""
    raise ValueError(f"{path!r} must be package.module:function or path/to/file.py:function.{hint}")


def _load_file(file: Path, path: str) -> ModuleType:
    file = file.expanduser().absolute()
    if file.suffix != ".py" or not file.is_file():
        there = sorted(other.name for other in file.parent.glob("*.py")) if file.parent.is_dir() else []
        hint = did_you_mean(file.name, there) if there else f" {file.parent} holds no .py file."
        raise ValueError(f"{path}: there is no Python file {file}.{hint}")
    try:
        return user_folder.load(file)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise ValueError(f"{path}: importing it failed:\n{describe_error(error)}") from error


def _import(target: str, name: str, path: str, shipped: str) -> ModuleType:
    package, *rest = target.split(".")
    own = Path(*target.split(".")).with_suffix(".py")
    hint = f" {own} exists: write {own}:{name}." if own.is_file() else ""
    if package == shipped:
        file = _ROOT.joinpath(shipped, *rest).with_suffix(".py")
        if rest and file.is_file():
            return _load_file(file, path)
        known = available(shipped)
        near = did_you_mean(f"{target}:{name}", known)
        raise ValueError(
            f"{path}: rlft ships no {target!r}.{near}{hint} The package `{shipped}` is rlft's: name your own by file. "
            f"Shipped: {', '.join(known)}."
        )
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing != target and not target.startswith(f"{missing}."):
            raise ValueError(f"{path}: importing it failed:\n{describe_error(error)}") from error
        parent, _, leaf = missing.rpartition(".")
        where = getattr(sys.modules.get(parent), "__path__", []) if parent else None
        near = did_you_mean(leaf, (info.name for info in pkgutil.iter_modules(where)))
        raise ValueError(f"{path}: no module {missing!r} on the import path.{near}{hint}") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path}: importing it failed:\n{describe_error(error)}") from error


def _is_defined_in(module: ModuleType, value: Any, kind: Literal["function", "class"]) -> bool:
    is_kind = inspect.isclass(value) or (kind == "function" and inspect.isfunction(value))
    return is_kind and value.__module__ == module.__name__
