"""Tests that repeat, for further values, what one of their cases has shown: `make test-sweeps` runs those."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def swept(values: Iterable[Any], *, always: Callable[[Any], bool]) -> list[Any]:
    """The values as parameters of a test; those for which `always` is false have the marker `sweep`.

    A tuple has one value for each of several parameters.
    """
    return [value if always(value) else _marked(value) for value in values]


def _marked(value: Any) -> Any:
    return pytest.param(*(value if isinstance(value, tuple) else (value,)), marks=pytest.mark.sweep)
