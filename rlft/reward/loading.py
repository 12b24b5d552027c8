"""Finding reward functions by name: `package.module:function` or `path/to/file.py:function`.

A file is loaded by its location under a module name made from its absolute path, so it never meets another
module of the same name; the shipped package `rewards` is found beside `rlft` and loaded the same way, so a
user's own folder called `rewards/` neither hides it nor is hidden by it. Loading runs the module's code: it
happens in the scoring processes, and in the driver only with `workers: 0`.
"""

from __future__ import annotations

import ast
import difflib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import keyword
import pkgutil
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from rlft.reward.contract import RewardFunction, did_you_mean, ignore

_SHIPPED = Path(__file__).absolute().parents[2] / "rewards"

TRACEBACK_FRAMES = 4
"""Innermost stack frames that an error message keeps."""
REPRODUCE_LIMIT = 100_000
"""Longest program that `reproduce` writes, in characters: the system takes 128 KiB after `python -c`."""

_IMPORTS = {
    **{name: f"from rlft.types import {name}" for name in ("Completion", "Group", "Task", "Trajectory", "Turn")},
    **{name: f"from rlft.types import {name}" for name in ("Abstain", "Failed", "Score")},
    "Decimal": "from decimal import Decimal",
    "Fraction": "from fractions import Fraction",
    "datetime": "import datetime",
    "ignore": "from rlft.reward.contract import ignore",
    "inf": "from math import inf",
    "load": "from rlft.reward.loading import load",
    "namespace": "from types import SimpleNamespace as namespace",
    "nan": "from math import nan",
}
"""What the repr of plain data refers to, and the line that makes it evaluate."""


def load(path: str) -> RewardFunction:
    """The function that `path` names.

    Raises:
        ValueError: if there is no such file, module or function, or if importing it failed; the message says
            what is there instead.
    """
    target, name = _split(path)
    module = _load_file(target, path) if isinstance(target, Path) else _import(target, name, path)
    try:
        function = getattr(module, name)
    except AttributeError:
        there = sorted(key for key, value in vars(module).items() if _is_defined_in(module, value))
        raise ValueError(
            f"reward {path}: no function {name!r} in {module.__file__}."
            f"{did_you_mean(name, there)} It defines: {', '.join(there) or 'no functions'}."
        ) from None
    if inspect.isclass(function) or not callable(function):
        raise ValueError(f"reward {path}: {name!r} is a {type(function).__name__}, not a function")
    return function


def absolute(path: str) -> str:
    """The same reward, named independently of the working directory."""
    target, name = _split(path)
    return f"{target.expanduser().absolute()}:{name}" if isinstance(target, Path) else path


def available() -> dict[str, str]:
    """The shipped rewards: import path -> first line of the docstring. Runs none of them."""
    found = {}
    for module in sorted(info.name for info in pkgutil.iter_modules([str(_SHIPPED)])):
        for node in ast.parse((_SHIPPED / f"{module}.py").read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not node.name.startswith("_"):
                found[f"rewards.{module}:{node.name}"] = (ast.get_docstring(node) or "").partition("\n")[0]
    return found


def source_hash(path: str) -> str:
    """sha256 of the file that defines a reward; loads it, and raises ValueError as `load` does."""
    return function_hash(load(path))


def function_hash(function: RewardFunction) -> str:
    """sha256 of the file that defines a function, looking through decorators and `partial`.

    Raises:
        ValueError: if it comes from no file.
    """
    while isinstance(function, functools.partial):
        function = function.func
    function = inspect.unwrap(function)
    code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
    module = sys.modules.get(function.__module__)
    for file in (code and code.co_filename, module and getattr(module, "__file__", None)):
        if file and Path(file).is_file():
            return hashlib.sha256(Path(file).read_bytes()).hexdigest()
    raise ValueError(f"{function!r} comes from no file; wrap it in a `def` in a file")


def reproduce(path: str, arguments: Mapping[str, Any], *, is_async: bool) -> str:
    """A program for `python -c` that calls a reward with these arguments and prints what it returns.

    Arguments that are not plain data or do not fit a command line cannot be written: the program says so.
    """
    values = {name: "ignore" if value is ignore else repr(value) for name, value in arguments.items()}
    if all(name.isidentifier() and not keyword.iskeyword(name) for name in values):
        listed = ", ".join(f"{name}={value}" for name, value in values.items())
    else:  # a column whose name is no Python name arrives in **kwargs
        listed = f"**{{{', '.join(f'{name!r}: {value}' for name, value in values.items())}}}"
    call = f"load({absolute(path)!r})({listed})"
    problem = "are too long" if len(call) > REPRODUCE_LIMIT else ""
    names: set[str] = set()
    if not problem:
        try:
            names = {node.id for node in ast.walk(ast.parse(call)) if isinstance(node, ast.Name)}
        except (SyntaxError, RecursionError, MemoryError):
            problem = "are not all plain data"
        if unknown := sorted(names - _IMPORTS.keys() - {"set", "frozenset", "bytearray"}):
            problem = f"contain {unknown[0]}(...), which is not plain data"
    if problem:
        return f"raise SystemExit({f'the arguments of {path} {problem}; take the sample from the rollouts'!r})"
    imports = [_IMPORTS[name] for name in sorted(names & _IMPORTS.keys())]
    if is_async:
        return "\n".join(["import asyncio", *imports, f"print(asyncio.run({call}))"])
    return "\n".join([*imports, f"print({call})"])


def describe_error(error: BaseException) -> str:
    """An exception in a few lines: the innermost frames of its traceback, except rlft's, and its message."""
    here = Path(__file__).parent
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__, limit=-50)
        if Path(frame.filename).parent != here and not frame.filename.startswith("<frozen")
    ]
    text = traceback.format_list(frames[-TRACEBACK_FRAMES:]) + traceback.format_exception_only(error)
    return "".join(text).strip()


def _split(path: str) -> tuple[Path | str, str]:
    """File or module, and the function's name."""
    target, _, name = path.rpartition(":")
    if target and name:
        return (Path(target) if target.endswith(".py") or "/" in target else target), name
    word = path.strip(":")
    if word.endswith(".py"):
        raise ValueError(f"reward {path!r} names no function: write {word}:FUNCTION")
    shipped = {key.rpartition(":")[2]: key for key in available()}
    close = difflib.get_close_matches(word.rpartition(".")[2], shipped, n=1, cutoff=0.5)
    hint = f" Did you mean {shipped[close[0]]!r}?" if close else ""
    raise ValueError(f"reward {path!r} must be package.module:function or path/to/file.py:function.{hint}")


def _load_file(file: Path, path: str) -> ModuleType:
    file = file.expanduser().absolute()
    if file.suffix != ".py" or not file.is_file():
        there = sorted(other.name for other in file.parent.glob("*.py")) if file.parent.is_dir() else []
        hint = did_you_mean(file.name, there) if there else f" {file.parent} holds no .py file."
        raise ValueError(f"reward {path}: there is no Python file {file}.{hint}")
    name = f"rlft_reward_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # before running it, as import does: dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        if isinstance(error, KeyboardInterrupt):
            raise
        hint = ""
        if isinstance(error, ModuleNotFoundError) and error.name and (file.parent / f"{error.name}.py").is_file():
            hint = (
                f"\n{error.name}.py lies beside it, but a reward named by file is loaded alone: merge them, "
                "or put their folder on PYTHONPATH and name the reward package.module:function"
            )
        raise ValueError(f"reward {path}: importing it failed:\n{describe_error(error)}{hint}") from error
    return module


def _import(target: str, name: str, path: str) -> ModuleType:
    package, *rest = target.split(".")
    own = Path(*target.split(".")).with_suffix(".py")
    hint = f" {own} exists: write {own}:{name}." if own.is_file() else ""
    if package == _SHIPPED.name:
        file = _SHIPPED.joinpath(*rest).with_suffix(".py")
        if rest and file.is_file():
            return _load_file(file, path)
        near = did_you_mean(f"{target}:{name}", available())
        raise ValueError(
            f"reward {path}: rlft ships no {target!r}.{near}{hint} `rewards` is rlft's package: name your "
            f"own reward by file. Shipped: {', '.join(available())}."
        )
    try:
        return importlib.import_module(target)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing != target and not target.startswith(f"{missing}."):
            raise ValueError(f"reward {path}: importing it failed:\n{describe_error(error)}") from error
        parent, _, leaf = missing.rpartition(".")
        where = getattr(sys.modules.get(parent), "__path__", []) if parent else None
        near = did_you_mean(leaf, (info.name for info in pkgutil.iter_modules(where)))
        raise ValueError(f"reward {path}: no module {missing!r} on the import path.{near}{hint}") from None
    except (Exception, SystemExit) as error:
        raise ValueError(f"reward {path}: importing it failed:\n{describe_error(error)}") from error


def _is_defined_in(module: ModuleType, value: Any) -> bool:
    return inspect.isfunction(value) and value.__module__ == module.__name__
