"""HTML pages from templates in `page/`: whatever a model, a data set or a config wrote is escaped text in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rlft.curves.text import duration, interval_text, number, percent, shortened, visible

FOLDER = Path(__file__).with_name("page")
"""Templates, styles and scripts."""


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
