"""HTML pages from templates in `page/`: whatever a model, a data set or a config wrote is escaped text in them."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from rlft.curves.text import duration, interval_text, number, percent, shortened, visible

FOLDER = Path(__file__).with_name("page")
"""Templates, styles and scripts."""
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w-]+\.js)";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=const|let|function|async|class)", re.MULTILINE)


def render(template: str, filters: dict[str, Callable[..., str]] | None = None, **values: Any) -> bytes:
    """A page as bytes.

    Args:
        template: file name in `page/`.
        filters: further ones than those for numbers and texts.
        values: what the template names; a name that is missing is an error.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, percent=percent, duration=duration, interval=interval_text, shortened=shortened
    )
    environment.filters.update(filters or {})
    return environment.get_template(template).render(**values).encode("utf-8", errors="backslashreplace")


@cache
def script(entry: str) -> str:
    """The module `entry` of `page/js/` and all that it imports, as one script, each file once and behind its imports.

    A page that works offline cannot import from its own script elements. So all names of the modules are in one scope
    and have to differ, which a test checks.
    """
    order: list[str] = []

    def add(name: str) -> None:
        if name in order:
            return
        source = (FOLDER / "js" / name).read_text(encoding="utf-8")
        for other in _IMPORT.findall(source):
            add(other)
        if name not in order:
            order.append(name)

    add(entry)
    parts = [_EXPORT.sub("", _IMPORT.sub("", (FOLDER / "js" / name).read_text(encoding="utf-8"))) for name in order]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


@cache
def styles(*names: str) -> str:
    """Style sheets of `page/` as one."""
    return "".join((FOLDER / name).read_text(encoding="utf-8") for name in names)


def source_hash(source: str) -> str:
    """What a content security policy calls a script or a style sheet."""
    return "sha256-" + base64.b64encode(hashlib.sha256(source.encode("utf-8")).digest()).decode("ascii")


def as_json(data: Any) -> bytes:
    """Data for a page: every text is visible (`text.visible`), and what is not finite is null."""
    return json.dumps(_shown(data), allow_nan=False, separators=(",", ":")).encode("ascii")


def packed(data: bytes) -> str:
    """Bytes as base64 of gzip, which cannot hold a tag; the same bytes give the same text."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode("ascii")


def unpacked(text: str) -> bytes:
    """The inverse of `packed`."""
    return gzip.decompress(base64.b64decode(text))


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {visible(str(key)): _shown(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value
