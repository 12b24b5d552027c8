"""Config files: YAML to a frozen tree and back, with `a.b=c` overrides from the command line.

Unknown keys are errors with file, line and a suggestion.
"""

from __future__ import annotations

import io
import types
import typing
from collections.abc import Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from rlft.common.by_path import did_you_mean
from rlft.config import RunConfig
from rlft.objectives.presets import PRESETS

C = TypeVar("C", bound=BaseModel)


@overload
def load(path: str | Path, overrides: Sequence[str] = ()) -> RunConfig: ...


@overload
def load(path: str | Path, overrides: Sequence[str], kind: type[C]) -> C: ...


def load(path: str | Path, overrides: Sequence[str] = (), kind: type[BaseModel] = RunConfig) -> BaseModel:
    """Read a config file, apply `key.sub=value` overrides, validate.

    Args:
        kind: the tree that the file holds.

    Raises:
        ValueError: every problem at once, each with file, line, key and what to do instead.
    """
    path = Path(path)
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ValueError(f"no config file {path}.{did_you_mean(str(path), near)}")
    try:
        tree = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ValueError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not UTF-8 text in YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a mapping of keys to values, found {type(tree).__name__}")
    for override in overrides:
        _apply(tree, override)
    try:
        return kind.model_validate(_plain(tree))
    except ValidationError as error:
        raise ValueError(_explain(error, tree, str(path), kind)) from None


def dump(config: BaseModel) -> str:
    """The resolved config as YAML; `load` of it gives an equal config."""
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump(config.model_dump(mode="json"), stream)
    return stream.getvalue()


def schema() -> dict[str, Any]:
    """JSON Schema of a config file, for editors."""
    tree = RunConfig.model_json_schema()
    algorithm = tree["$defs"]["Algorithm"]
    del algorithm["required"]  # what a config leaves out comes from the preset
    algorithm["properties"]["preset"]["enum"] = list(PRESETS)
    field = tree["properties"]["algorithm"]
    tree["properties"]["algorithm"] = {
        "description": field.get("description", ""),
        "anyOf": [{"enum": list(PRESETS)}, {"$ref": "#/$defs/Algorithm"}],
    }
    return tree


def _apply(tree: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r}: expected key.sub=value")
    *parents, last = key.split(".")
    node = tree
    for part in parents:
        if isinstance(node, list):
            node = node[_index(part, node, override)]
        else:
            if not isinstance(node.get(part), dict | list):
                node[part] = {}
            node = node[part]
    try:
        value = YAML(typ="safe").load(text) if text else ""
    except YAMLError as error:
        raise ValueError(f"override {override!r}: the value is not valid YAML: {error}") from None
    if isinstance(node, list):
        node[_index(last, node, override)] = value
    else:
        node[last] = value


def _index(part: str, node: list[Any], override: str) -> int:
    if not part.isdigit() or int(part) >= len(node):
        raise ValueError(f"override {override!r}: {part!r} is not a position in a list of {len(node)}")
    return int(part)


def _plain(node: Any) -> Any:
    """ruamel's round-trip containers as plain dicts and lists."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    return node


def _explain(error: ValidationError, tree: Any, path: str, kind: type[BaseModel]) -> str:
    lines, problems = [], error.errors()
    for problem in problems:
        depth = len(problem["loc"])
        if problem["type"] == "too_short" and any(p["loc"][:depth] == problem["loc"] != p["loc"] for p in problems):
            continue  # pydantic counts the entries without those that are wrong themselves
        loc = tuple(part for part in problem["loc"] if not str(part).startswith("function-"))
        where = ".".join(map(str, loc)) or "config"
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            message = "unknown key." + did_you_mean(str(loc[-1]), _field_names(kind, loc[:-1]))
        elif problem["type"] == "missing":
            message = "this key is required"
        elif not isinstance(problem["input"], dict | list) and message != str(problem["input"]):
            message += f" (got {problem['input']!r})"
        lines.append(f"{path}:{_line(tree, loc)}: {where}: {message}")
    return "\n".join(lines)


def _line(tree: Any, loc: tuple[Any, ...]) -> int:
    """1-based line of the deepest part of `loc` that the file has."""
    line, node = 1, tree
    for part in loc:
        position = getattr(node, "lc", None)
        try:
            line = position.key(part)[0] + 1 if isinstance(node, dict) else position.item(part)[0] + 1  # type: ignore[union-attr]
            node = node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _field_names(kind: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Names of the fields that may stand at `loc`."""
    node: Any = kind
    for part in loc:
        if isinstance(part, int):
            node = typing.get_args(node)[0]
        else:
            hints = typing.get_type_hints(node)
            node = hints.get(part)
        if typing.get_origin(node) in (typing.Union, types.UnionType):
            node = next(arg for arg in typing.get_args(node) if arg is not type(None))
    if is_dataclass(node):
        return [field.name for field in dataclass_fields(node)]
    return list(getattr(node, "model_fields", {}))
