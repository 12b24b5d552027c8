"""Config files that vary another one: `extends: FILE` names it, and what the variation says is laid over it.

Sections are merged key by key, lists and single values replace what was there, and `null` takes a key back, so that
its default holds. Every file stays apart as a layer, so that an error names the file and line of the wrong value.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from rlft.common.by_path import did_you_mean

EXTENDS = "extends"
"""The key that names the file below; it is no setting, and no run's config.yaml has it."""

Location: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A config file as it was read, without `extends`."""

    path: Path
    tree: Any
    """A mapping as the YAML reader gives it, which knows its lines."""


def read_layers(path: Path, read: Callable[[Path], Any]) -> list[Layer]:
    """A config file and those below it, the file itself first.

    Args:
        read: parses one file to a mapping; raises ValueError where it cannot.

    Raises:
        ValueError: `extends` names no file, or leads back to a file that is above; the chain is shown.
    """
    layers: list[Layer] = []
    chain: list[Path] = []
    while True:
        tree = read(path)
        line = line_of(tree, (EXTENDS,))
        below = tree.pop(EXTENDS, None)
        layers.append(Layer(path=path, tree=tree))
        chain.append(path.resolve())
        if below is None:
            return layers
        where = f"{path}:{line}: {EXTENDS}"
        if not isinstance(below, str) or not below:
            raise ValueError(f"{where}: expected the path of one config file (got {below!r})")
        path = path.parent / Path(below).expanduser()
        if path.resolve() in chain:
            shown = " -> ".join(str(layer.path) for layer in layers)
            raise ValueError(f"{where}: the files extend each other in a circle: {shown} -> {path}")
        if not path.is_file():
            near = sorted(each.name for each in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
            raise ValueError(
                f"{where}: no config file {path}; the path is relative to this file.{did_you_mean(path.name, near)}"
            )


def merged(layers: Sequence[Layer]) -> Any:
    """The tree that the layers make together; of a single layer its own tree."""
    *above, base = layers
    tree = base.tree
    for layer in reversed(above):
        tree = _lay_over(tree, layer.tree)
    return tree


def place(layers: Sequence[Layer], loc: Location) -> tuple[Path, int]:
    """File and 1-based line of a value: where it stands, or the nearest section around it that stands somewhere."""
    deepest, found = -1, layers[0]
    for layer in layers:
        depth, is_open = _depth(layer.tree, loc)
        if depth > deepest:
            deepest, found = depth, layer
        if depth == len(loc) or not is_open:
            break  # what lies below does not count there
    return found.path, line_of(found.tree, loc)


def line_of(tree: Any, loc: Location) -> int:
    """1-based line of the deepest part of `loc` that a parsed file has."""
    line, node = 1, tree
    for part in loc:
        position = getattr(node, "lc", None)
        try:
            line = position.key(part)[0] + 1 if isinstance(node, dict) else position.item(part)[0] + 1  # type: ignore[union-attr]
            node = node[part]
        except (AttributeError, KeyError, IndexError, TypeError):
            break
    return line


def _lay_over(below: Any, above: Any) -> Any:
    """A section with another one laid over it; neither is changed."""
    if not isinstance(above, dict) or not isinstance(below, dict):
        return above
    tree = dict(below)
    for key, value in above.items():
        if value is None and key in tree:
            del tree[key]
            continue
        given = tree.get(key)
        if key == "algorithm" and isinstance(given, str) and isinstance(value, dict):
            given = {"preset": given}  # choices of a preset that the file below names alone
        tree[key] = _lay_over(given, value)
    return tree


def _depth(tree: Any, loc: Location) -> tuple[int, bool]:
    """(how many parts of `loc` a tree has, whether the layers below it still count there)."""
    node, is_open = tree, True
    for depth, part in enumerate(loc):
        is_open = is_open and isinstance(node, dict)  # lists are replaced whole
        is_entry = isinstance(node, list) and isinstance(part, int) and part < len(node)
        if not is_entry and not (isinstance(node, dict) and part in node):
            return depth, is_open
        node = node[part]
    return len(loc), False
