"""Config files: YAML to a frozen tree and back, with `a.b=c` overrides from the command line.

Unknown keys are errors with file, line and a suggestion. A file that `extends` another one is laid over it first.
"""

from __future__ import annotations

import io
import math
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import fields as dataclass_fields
from dataclasses import is_dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, overload

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedSet, TaggedScalar
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from rlft.common.by_path import did_you_mean
from rlft.config import RunConfig
from rlft.config.layers import EXTENDS, Layer, Location, line_of, merged, place, read_layers
from rlft.objectives.presets import PRESETS

C = TypeVar("C", bound=BaseModel)
T = TypeVar("T")
Problem: TypeAlias = tuple[Location, str]
"""(where in the tree, what is wrong there and what to do instead)."""

_PLAIN_DATA = "Arguments are texts, finite numbers, true, false, null, lists and mappings of them"


_ALIASES = {
    "learning_rate": "learner.lr",
    "batch_size": "tasks_per_step",
    "max_steps": "steps",
    "num_generations": "samples_per_task",
    "max_tokens": "sampling.max_new_tokens",
    "max_completion_length": "sampling.max_new_tokens",
    "beta": "algorithm.kl_coef",
}
"""What other systems call a key -> its place in a run's config."""


_SHORT = {"algorithm": "preset", "trackers": "name"}
"""Sections, or lists of them, that may be written as a text alone -> the key that this stands for."""


@overload
def load(
    path: str | Path, overrides: Sequence[str] = (), *, check: Callable[[RunConfig], Iterable[Problem]] | None = None
) -> RunConfig: ...


@overload
def load(
    path: str | Path,
    overrides: Sequence[str],
    kind: type[C],
    *,
    amend: Callable[[Any], None] | None = None,
    check: Callable[[C], Iterable[Problem]] | None = None,
) -> C: ...


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    kind: type[BaseModel] = RunConfig,
    *,
    amend: Callable[[Any], None] | None = None,
    check: Callable[[Any], Iterable[Problem]] | None = None,
) -> BaseModel:
    """Read a config file and those that it extends, apply `key.sub=value` overrides, validate.

    Args:
        kind: the tree that the file holds.
        amend: called with the parsed tree, which it may change in place, before the overrides are applied.
        check: finds further problems in a tree that is valid by itself.

    Raises:
        ValueError: every problem at once, each with file, line, key and what to do instead.
    """
    path = Path(path)
    if path.is_dir():
        what = (
            "a run's folder; name its config.yaml, or go on with it" if (path / "config.yaml").exists() else "a folder"
        )
        raise ValueError(f"{path} is {what}, and a config is a file")
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        raise ValueError(f"no config file {path}.{did_you_mean(str(path), near)}")
    try:
        return _load(path, overrides, kind, amend, check)
    except RecursionError:
        raise ValueError(f"{path}: a value is nested too deeply, or holds itself by an alias") from None


def _load(
    path: Path,
    overrides: Sequence[str],
    kind: type[BaseModel],
    amend: Callable[[Any], None] | None,
    check: Callable[[Any], Iterable[Problem]] | None,
) -> BaseModel:
    layers = read_layers(path, _read)
    found = {} if len(layers) == 1 else dict(_not_kept_in(layers))
    tree = merged(layers)
    if amend:
        amend(tree)
    for override in overrides:
        _apply(tree, override)
    config, unfit = None, list(_not_kept(tree))
    try:
        config = kind.model_validate(_plain(tree))
        unfit += check(config) if check is not None else []
    except ValidationError as error:
        found |= _explain(error, lambda loc: _place(layers, overrides, loc), kind)
    found |= {_place(layers, overrides, loc): what for loc, what in unfit}
    if config is None or found:
        raise ValueError("\n".join(f"{where}: {what}" for where, what in found.items()))
    return config


def _read(path: Path) -> Any:
    """The mapping that one file holds."""
    try:
        tree = YAML(typ="rt").load(path.read_text(encoding="utf-8"))
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 0
        raise ValueError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not UTF-8 text in YAML: {error}") from None
    if not isinstance(tree, dict):
        raise ValueError(f"{path}: expected a mapping of keys to values, found {type(tree).__name__}")
    return tree


def files(path: Path) -> list[Path]:
    """The file itself and those that it extends. Raises ValueError where one is missing or no YAML."""
    return [layer.path for layer in read_layers(path, _read)]


def keys(path: Path) -> set[str]:
    """The keys at the top of a config file and of those that it extends; none if they cannot be read."""
    try:
        return {str(key) for layer in read_layers(path, _read) for key in layer.tree}
    except (OSError, ValueError, RecursionError):
        return set()


def dotted(loc: Location) -> str:
    """A place in the tree as a text, `rewards.0.weight`."""
    return ".".join(map(str, loc))


def dump(config: BaseModel) -> str:
    """The resolved config as YAML; `load` of it gives an equal config.

    Raises:
        ValueError: it would not, as some argument is not plain data: `rlft resume` would go on with another one.
    """
    stream = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    try:
        yaml.dump(config.model_dump(mode="json"), stream)
        kept = type(config).model_validate(_plain(YAML(typ="rt").load(stream.getvalue())))
    except (PydanticSerializationError, ValidationError, YAMLError, RecursionError) as error:
        raise ValueError(f"this config cannot be kept in a config.yaml: {error}. {_PLAIN_DATA}") from error
    if kept != config:
        given, read = config.model_dump(), kept.model_dump()
        names = [name for name in given if given[name] != read[name]]
        shown = "; ".join(f"{name}: {given[name]!r} would come back as {read[name]!r}" for name in names)
        raise ValueError(f"this config does not survive being kept in a config.yaml: {shown}. {_PLAIN_DATA}")
    return stream.getvalue()


def schema(kind: type[BaseModel] = RunConfig) -> dict[str, Any]:
    """JSON Schema of a config file, for editors; a file that extends another one needs no key but that."""
    tree = kind.model_json_schema()
    if kind is RunConfig:
        _describe_algorithm(tree)
    tree["properties"] |= {
        EXTENDS: {
            "type": "string",
            "description": "Path of a config file that this one is a variation of, relative to this file.",
        }
    }
    whole: dict[str, Any] = {"required": tree.pop("required"), "properties": {}}
    for name, section in tree["properties"].items():
        # What a section needs may stand in the file below; sections that are entries of a list are never merged.
        if required := tree["$defs"].get(section.get("$ref", "").rpartition("/")[2], {}).pop("required", None):
            whole["properties"][name] = {"required": required}
    return {**tree, "if": {"not": {"required": [EXTENDS]}}, "then": whole}


def _describe_algorithm(tree: dict[str, Any]) -> None:
    kinds: dict[str, list[str]] = {}
    for name, algorithm in PRESETS.items():
        kinds.setdefault(type(algorithm).__name__, []).append(name)
    for kind, names in kinds.items():
        section = tree["$defs"][kind]
        # What a config leaves out comes from the preset; the preset itself is GRPO's if it is left out.
        section["required"] = [] if RunConfig.model_fields["algorithm"].default.preset in names else ["preset"]
        section["properties"]["preset"]["enum"] = names
    tree["properties"]["algorithm"] = {
        "description": tree["properties"]["algorithm"].get("description", ""),
        "anyOf": [{"enum": list(PRESETS)}, *({"$ref": f"#/$defs/{kind}"} for kind in kinds)],
    }


def read_section(tree: Any, kind: type[T]) -> T:
    """A section of a config that somebody wrote elsewhere, such as a reward on the command line.

    Raises:
        ValueError: every problem at once, each with its key.
    """
    try:
        return TypeAdapter(kind).validate_python(_plain(tree))
    except ValidationError as error:
        found = _explain(error, dotted, kind)
        raise ValueError("; ".join(f"{where}: {what}" if where else what for where, what in found.items())) from None


def _apply(tree: Any, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ValueError(f"override {override!r}: expected key.sub=value")
    if key == EXTENDS:
        raise ValueError(f"override {override!r}: only a file can extend another one; name that file instead")
    *parents, last = key.split(".")
    node = tree
    for depth, part in enumerate(parents, start=1):
        within = parents[depth - 2] if isinstance(node, list) and depth > 1 else part
        at: Any = _index(part, node, override) if isinstance(node, list) else part
        given = node[at] if isinstance(node, list) else node.get(at)
        if within in _SHORT and isinstance(given, str):
            node[at] = {_SHORT[within]: given}
        elif given is None:
            node[at] = {}
        elif not isinstance(given, dict | list):
            instead = f"; write `- path: {given}` in the file" if within == "rewards" else ""
            place = ".".join(parents[:depth])
            raise ValueError(f"override {override!r}: {place} is {given!r}, which has no settings of its own{instead}")
        node = node[at]
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


def _not_kept(node: Any, loc: Location = ()) -> Iterator[Problem]:
    """A problem for every value that a run's config.yaml would not give back as it is."""
    if isinstance(node, CommentedSet | TaggedScalar) or ((tag := getattr(node, "tag", None)) and tag.value):
        yield loc, f"a value with a YAML tag. {_PLAIN_DATA}"
    elif isinstance(node, dict):
        for key, value in node.items():
            if not isinstance(key, str):
                yield (*loc, str(key)), f"the key {key!r} is not text; write it in quotes: '{key}'"
            yield from _not_kept(value, (*loc, str(key)))
    elif isinstance(node, list):
        for position, value in enumerate(node):
            yield from _not_kept(value, (*loc, position))
    elif isinstance(node, float) and not math.isfinite(node):
        yield loc, f"{float(node)} is not a number that a config can keep; write a finite one, or leave the key out"
    elif isinstance(node, date):
        yield loc, f"{node} is read as a date; write it in quotes to keep it as text"
    elif not isinstance(node, str | int | float | None):
        yield loc, f"a value of the type {type(node).__name__}. {_PLAIN_DATA}"


def _plain(node: Any) -> Any:
    """The parsed file as Python's own dicts, lists, texts and numbers."""
    if isinstance(node, dict):
        return {str(key): _plain(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_plain(value) for value in node]
    for kind in (bool, int, float, str):
        if isinstance(node, kind):
            return kind(node)
    return node


def _explain(error: ValidationError, place_of: Callable[[Location], str], kind: type) -> dict[str, str]:
    """What is wrong by where, as `place_of` says it of a place in the tree."""
    found: dict[str, str] = {}
    problems = error.errors()
    for problem in problems:
        depth = len(problem["loc"])
        if problem["type"] == "too_short" and any(p["loc"][:depth] == problem["loc"] != p["loc"] for p in problems):
            continue  # pydantic counts the entries without those that are wrong themselves
        loc, section = _section(kind, [part for part in problem["loc"] if not str(part).startswith("function-")])
        message = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
        if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
            message = _unknown(str(loc[-1]), section, kind)
        elif problem["type"] == "tuple_type" and loc[-1] == "rewards":
            given = problem["input"] if isinstance(problem["input"], str) else "FILE.py:FUNCTION"
            message = f"expected a list: `- path: {given}`"
        elif problem["type"] == "missing":
            message = "this key is required"
        elif not isinstance(problem["input"], dict | list) and message != str(problem["input"]):
            message += f" (got {problem['input']!r})"
        place = place_of(loc)
        found[place] = f"{found[place]}; {message}" if place in found else message
    return found


def _place(layers: Sequence[Layer], overrides: Sequence[str], loc: Location) -> str:
    """Where a value comes from: `override key=value`, or `file:line: key`."""
    names = [str(part) for part in loc]
    for override in reversed(overrides):
        given = override.partition("=")[0].split(".")
        if names[: len(given)] == given:
            return f"override {override}" + (f": {dotted(loc)}" if len(names) > len(given) else "")
    path, line = place(layers, loc)
    return f"{path}:{line}: {dotted(loc) or 'config'}"


def _not_kept_in(layers: Sequence[Layer]) -> Iterator[tuple[str, str]]:
    """(where, what is wrong) of values that a run's config.yaml would not give back, also of those laid over."""
    for layer in layers:
        for loc, what in _not_kept(layer.tree):
            yield f"{layer.path}:{line_of(layer.tree, loc)}: {dotted(loc)}", what


def _section(kind: type, parts: Sequence[str | int]) -> tuple[Location, Any]:
    """(location as the file has it, class of the section that its last part stands in).

    Args:
        parts: location as pydantic has it, in which the class that was chosen of several stands, too.
    """
    loc: list[str | int] = []
    node: Any = kind
    for number, part in enumerate(parts):
        members = [arg for arg in typing.get_args(node) if arg is not type(None)]
        if typing.get_origin(node) in (typing.Union, types.UnionType):
            chosen = [member for member in members if getattr(member, "__name__", "") == part]
            node = (chosen or members)[0]
            if chosen:
                continue
        loc.append(part)
        if number + 1 < len(parts):
            hints = typing.get_type_hints(node) if isinstance(node, type) else {}
            node = members[0] if isinstance(part, int) and members else hints.get(str(part))
    return tuple(loc), node


def _unknown(key: str, section: Any, kind: type) -> str:
    """What to say of a key that a section does not have."""
    names = [field.name for field in dataclass_fields(section)] if is_dataclass(section) else [*section.model_fields]
    if key in (elsewhere := getattr(section, "ELSEWHERE", {})):
        return f"this key has no place here: {elsewhere[key]}"
    here = _ALIASES.get(key, "")
    if here.rpartition(".")[2] in names:
        return f"unknown key. Did you mean {here.rpartition('.')[2]!r}?"
    if here and kind is RunConfig:
        return f"unknown key. It is {here} in this config"
    return "unknown key." + did_you_mean(key, names)
