"""The variables in a grader's texts: `{{ item.NAME }}` of the task's row, `{{ sample.NAME }}` of the reply."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

_TEMPLATE = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_STEP = re.compile(r"\.?([A-Za-z_]\w*)|\[(\d+)\]|\[(['\"])(.+?)\3\]")


class AbsentError(Exception):
    """The reply has nothing under that name."""


def _steps(path: str) -> list[str | int]:
    steps: list[str | int] = []
    end = 0
    for step in _STEP.finditer(path):
        if step.start() != end:
            break
        steps.append(step[1] or step[4] or int(step[2] or 0))
        end = step.end()
    if end != len(path) or not steps or steps[0] not in ("item", "sample"):
        raise ValueError(f"the template {{{{ {path} }}}} is not understood: write item.NAME or sample.NAME")
    return steps


def paths(written: Any) -> Iterator[list[Any]]:
    """The paths of all templates in a grader; the source of a python grader has none."""
    if isinstance(written, str):
        yield from (_steps(path) for path in _TEMPLATE.findall(written))
    elif isinstance(written, Mapping):
        yield from (path for key, each in written.items() if key != "source" for path in paths(each))
    elif isinstance(written, list):
        yield from (path for each in written for path in paths(each))


def fill(template: str, spaces: Mapping[str, Any]) -> str:
    """The template with its variables: texts as they are, other values as JSON."""

    def variable(found: re.Match[str]) -> str:
        value: Any = spaces
        for step in (steps := _steps(found[1])):
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                value = None
                break
        if value is None and steps[0] == "sample":
            raise AbsentError(found[1])
        if value is None:
            raise ValueError(f"the task has no {found[1]}")
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return _TEMPLATE.sub(variable, template)
