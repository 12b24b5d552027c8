"""All rollouts of a run, asked for page by page: by step, task, kind of group and text."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlft.curves.samples import read_groups, read_light
from rlft.curves.sampling_of_groups import Groups, groups_of
from rlft.curves.text import shortened, visible

PAGE = 20
"""Groups of one answer."""
_SECONDS = 2.0
"""How long texts are searched for one answer; the next one goes on from there."""
_STEPS_AT_ONCE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """What is asked for; what is empty is not asked."""

    step: int | None = None
    """This step, or the nearest one that has fitting groups."""
    task: str = ""
    """A task, as the page writes it."""
    kind: str = ""
    """`differ` or `alike` in their rewards, or `failed`."""
    text: str = ""
    """Something that a sample, its prompt or its answer says, in any case."""
    start: int = 0
    """How many fitting groups to pass over."""


class RunSamples:
    """The rollouts of one run. Its table of numbers is kept; texts are read when they are shown."""

    def __init__(self, run: Path) -> None:
        """Read the numbers of all rollouts. Raises ValueError as `read_rollouts` does."""
        self._run = run
        light = read_light(run)
        self._groups: Groups | None = groups_of(light) if light is not None and len(light) else None

    def find(self, query: Query) -> dict[str, Any]:
        """A page of groups, the latest first, as plain data: `groups`, `next` (where the next page starts; None at the
        end), `searched` (how far back texts were searched, in words) and `total` (how many rollouts there are)."""
        if self._groups is None:
            return {"groups": [], "next": None, "searched": "", "total": 0}
        return {**self._found(query, self._groups), "total": int(sum(self._groups.size))}

    def _found(self, query: Query, of: Groups) -> dict[str, Any]:
        import numpy as np

        at = np.flatnonzero(self._fits(query))
        if query.step is not None and len(at):
            steps = of.step[at]
            at = at[steps == steps[np.abs(steps - query.step).argmin()]]
        order = at[np.lexsort((of.index[at], -of.step[at]))]
        if query.text:
            return self._search(query, order)
        shown = order[query.start : query.start + PAGE]
        end = query.start + len(shown)
        groups = read_groups(self._run, [of.key(each) for each in shown])
        return {"groups": groups, "next": end if end < len(order) else None, "searched": ""}

    def _fits(self, query: Query) -> Any:
        import numpy as np

        assert self._groups is not None
        groups = self._groups
        fits = np.ones(len(groups.size), bool)
        if query.task:
            same = {task for task in set(groups.task) if visible(shortened(task, 300)) == query.task}
            fits &= np.fromiter((task in same for task in groups.task), bool, len(fits))
        if query.kind == "failed":
            fits &= groups.failed > 0
        elif query.kind:
            fits &= (groups.failed == 0) & ((groups.best > groups.worst) == (query.kind == "differ"))
        return fits

    def _search(self, query: Query, order: Any) -> dict[str, Any]:
        assert self._groups is not None
        wanted, began = query.text.lower(), time.monotonic()
        found: list[Any] = []
        at, step = query.start, None
        while at < len(order) and len(found) < PAGE and time.monotonic() - began < _SECONDS:
            keys = [self._groups.key(each) for each in order[at : at + PAGE * _STEPS_AT_ONCE]]
            read = {(group["step"], group["group"]): group for group in read_groups(self._run, keys)}
            for key in keys:  # one of a damaged file is not there
                at, step = at + 1, key[0]
                if key in read and _says(read[key], wanted):
                    found.append(read[key])
                    if len(found) == PAGE:
                        break
        more = at < len(order)
        searched = f" Searched back to step {step}." if more and step is not None else ""
        return {"groups": found, "next": at if more else None, "searched": searched}


def _says(group: Mapping[str, Any], wanted: str) -> bool:
    texts = [group["task"], group["prompt"], group["answer"]]
    for each in group["samples"]:
        texts += [each["text"], *(content for _, content in each.get("conversation", ()))]
    return any(wanted in text.lower() for text in texts)
