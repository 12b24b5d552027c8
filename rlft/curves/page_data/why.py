"""Why the reward moved: its weighted parts as a tree and over the steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlft.curves import reading
from rlft.curves.charts import PART, Chart, is_whole_reward, parts_of_reward, reward_parts
from rlft.curves.marks import BLUE, GREEN, GREY, ORANGE, RED, VIOLET, area, course, short
from rlft.curves.page_data.health import moved
from rlft.curves.reading import Rows
from rlft.curves.series import Series, binned, series

DRAWN = 24
"""Parts of the reward that have a chart of their own; the others are in the tree, and found by searching."""
_STACKED = 6
_COLORS = (BLUE, ORANGE, GREEN, VIOLET, RED, GREY)


def why(rows: Rows, config: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parts of the reward: `tree` (a line for each), `stack` (weighted, over the steps) and `charts`.

    The largest come first, by weight times how far they moved; below a reward stand its own parts. None without parts,
    and where the only part is the reward itself.
    """
    names = reward_parts(rows)
    if not names or (len(names) == 1 and is_whole_reward(rows, names[0])):
        return None
    specs = {spec.label: spec for spec in reading.reward_specs(config)}
    lines = {name: _line(rows, name, specs) for name in names}
    below: dict[str, list[str]] = {}
    for name in names:
        parent = name.partition("/")[0]
        below.setdefault(parent if parent in lines and parent != name else "", []).append(name)
    order: list[str] = []
    for name in sorted(below.get("", ()), key=lambda each: _size(lines[each])):
        order += [name, *sorted(below.get(name, ()), key=lambda each: _size(lines[each]))]
    tops = [name for name in order if name in below.get("", ())]
    stack = _stack(rows, [(name, specs[name].weight) for name in tops if name in specs and specs[name].weight])
    charts = [{**chart.as_dict(), "went": lines[chart.title]["went"]} for chart in parts_of_reward(rows, order[:DRAWN])]
    return {
        "tree": [{**lines[name], "depth": int(name not in tops)} for name in order],
        "stack": stack.as_dict() if stack else None,
        "charts": charts,
        "width": max(3, reading.window(rows)),
    }


def _line(rows: Rows, name: str, specs: Mapping[str, Any]) -> dict[str, Any]:
    start, end, _ = moved(rows, PART + name)
    line: dict[str, Any] = {"name": name, "start": short(start), "end": short(end)}
    line["went"] = f"{start:.3g} \N{RIGHTWARDS ARROW} {end:.3g}" if math.isfinite(start) else ""
    spec = specs.get(name)
    if spec is not None:
        line["weight"] = spec.weight
        line["role"] = "shadow" if spec.role == "shadow" else "observed" if spec.weight == 0 else "trained"
        if spec.weight and math.isfinite(end - start):
            line["added"] = short(spec.weight * (end - start))
    return line


def _size(line: Mapping[str, Any]) -> tuple[float, float]:
    """Sorts what adds most to the reward's change first, then what moved most."""
    away = abs((line["end"] or 0.0) - (line["start"] or 0.0))
    return (-abs(line.get("added") or 0.0), -away)


def _stack(rows: Rows, weighted: Sequence[tuple[str, float]]) -> Chart | None:
    """Weighted means over the steps: areas that add up where none is negative, else lines."""
    known = [(name, weight, series(rows, PART + name)) for name, weight in weighted]
    known = [(name, weight, values) for name, weight, values in known if values][:_STACKED]
    if len(known) < 2:
        return None
    scaled = [(name, [(step, weight * value) for step, value in binned(values)]) for name, weight, values in known]
    metrics = tuple(PART + name for name, _ in scaled)
    more = f"; the {_STACKED} that moved it most of {len(weighted)}" if len(weighted) > len(known) else ""
    if all(value >= 0 for _, values in scaled for _, value in values):
        marks = [area(values, name, color) for (name, values), color in zip(scaled, _COLORS, strict=False)]
        hint = f"weight \N{MULTIPLICATION SIGN} mean of each reward, stacked{more}"
        return Chart(title="What the reward is made of", hint=hint, marks=marks, axis="zero", metrics=metrics)
    marks = [
        course(_series(values), name, color, plain=True) for (name, values), color in zip(scaled, _COLORS, strict=False)
    ]
    hint = f"weight \N{MULTIPLICATION SIGN} mean of each reward{more}"
    return Chart(title="What the reward is made of", hint=hint, marks=marks, metrics=metrics)


def _series(values: Sequence[tuple[float, float]]) -> Series:
    nothing = (math.nan, math.nan)
    return Series(steps=[x for x, _ in values], values=[y for _, y in values], bounds=[nothing for _ in values])
