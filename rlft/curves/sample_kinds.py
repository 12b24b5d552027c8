"""Kinds of samples: those with the same values of the parts that end alike and are written alike; and random ones."""

from __future__ import annotations

import hashlib
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from rlft.common import json_text
from rlft.curves.text import number, shortened

Row: TypeAlias = Mapping[str, Any]
"""A stored sample, with `COLUMNS`."""

COLUMNS = (
    *("step", "task_id", "group_index", "sample_index", "prompt", "completion", "answer", "outcome", "reward", "parts"),
    *("failure_kind", "finish_reason"),
)
MOST_KINDS = 8
"""Kinds that are told apart; the rarer ones are one, `OTHER`."""
OTHER = "other"
_FEW_VALUES = 4
"""A part of at most so many different values is told by its value, another one by low or high."""
_SHAPE = 36
"""Characters of how a completion is written that count."""
_EXCERPT = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """A sample as it is told."""

    step: int
    """RL step that it was made for."""
    task_id: str
    """Its task."""
    sample_index: int
    """Its number within the group."""
    kind: str
    """What kind of sample it is."""
    reward: float | None
    """None unless scored."""
    prompt: str
    """Beginning and end of the prompt's last message."""
    completion: str
    """Beginning and end of what the policy wrote."""
    answer: str
    """The task's answer as JSON."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {name: getattr(self, name) for name in self.__slots__}


def numbers_of(row: Row) -> dict[str, float]:
    """The values of a sample's parts; what is no finite number is left out."""
    try:
        parts = json_text.parse(row["parts"]) if row["parts"] else {}
    except ValueError:
        return {}
    found = parts.items() if isinstance(parts, dict) else ()
    return {n: float(v) for n, v in found if isinstance(v, int | float) and math.isfinite(v)}


def kinds_of(rows: Sequence[Row], parts: Sequence[str]) -> list[str]:
    """The kind of each sample in words, such as `format 1, right 0, written <answer>#</answer>`.

    How it is written (`shape`) is said where samples of the same values are written differently. The most frequent
    kinds are told apart, the others are `OTHER`.

    Args:
        rows: samples, which are compared with each other.
        parts: names of the parts that count.
    """
    values = [numbers_of(row) for row in rows]
    words = {name: _words([each[name] for each in values if name in each]) for name in parts}
    plain = [_plain(row, each, words) for row, each in zip(rows, values, strict=True)]
    written = [shape(row["completion"] or "") for row in rows]
    common = {each for each, _ in Counter(written).most_common(MOST_KINDS)}
    told = [each if each in common else "otherwise" for each in written]
    ways: dict[str, set[str]] = {}
    for each, way in zip(plain, told, strict=True):
        ways.setdefault(each, set()).add(way)
    kinds = [f"{a}, written {b}" if len(ways[a]) > 1 else a for a, b in zip(plain, told, strict=True)]
    kept = {kind for kind, _ in sorted(Counter(kinds).items(), key=lambda each: (-each[1], each[0]))[:MOST_KINDS]}
    return [kind if kind in kept else OTHER for kind in kinds]


def shape(text: str) -> str:
    """How a text is written: numbers are `#`, words `…`, tags and punctuation stay; its beginning."""
    found: list[str] = []
    for token in re.findall(r"</?\w[\w-]*>|\d[\d.,]*\d|\d|[^\W\d_]+|[^\w\s]", text[:2000]):
        kind = "#" if token[0].isdigit() else "\N{HORIZONTAL ELLIPSIS}" if token[0].isalpha() else token
        if not (found and found[-1] == kind and len(kind) == 1):
            found.append(kind)
    line = " ".join(found).replace("> #", ">#").replace("# <", "#<")
    return line if len(line) <= _SHAPE else f"{line[:_SHAPE]}\N{HORIZONTAL ELLIPSIS}"


def drawn(
    rows: Sequence[Row], kinds: Sequence[str], wanted: Mapping[str, float], count: int, seed: int
) -> list[Example]:
    """A random choice of samples: `count` shared by kinds in proportion to `wanted`, each that is wanted at least once.

    Which are chosen follows from `seed` and from what a sample is, not from how many there are or in which order.
    """
    of_kind: dict[str, list[Row]] = {}
    for row, kind in zip(rows, kinds, strict=True):
        if wanted.get(kind, 0) > 0:
            of_kind.setdefault(kind, []).append(row)
    order = sorted(of_kind, key=lambda kind: (-wanted[kind], kind))[:count]
    total = math.fsum(wanted[kind] for kind in order)
    shares = {kind: max(1, math.floor(count * wanted[kind] / total)) for kind in order}
    found: list[Example] = []
    for kind in order:
        shuffled = sorted(of_kind[kind], key=lambda row: _rank(row, seed))
        found += [example(row, kind) for row in shuffled[: min(shares[kind], count - len(found))]]
    return found


def example(row: Row, kind: str) -> Example:
    """A stored sample as it is told."""
    return Example(
        step=int(row["step"]),
        task_id=str(row["task_id"]),
        sample_index=int(row["sample_index"]),
        kind=kind,
        reward=row["reward"],
        prompt=shortened(row["prompt"] or "", _EXCERPT),
        completion=shortened(row["completion"] or "", _EXCERPT),
        answer=shortened(row["answer"] or "", _EXCERPT),
    )


def _plain(row: Row, values: Mapping[str, float], words: Mapping[str, Mapping[float, str] | float]) -> str:
    if row["outcome"] != "score":
        return f"not scored: {row['failure_kind'] or row['outcome']}"
    told = []
    for name, known in words.items():
        if name not in values:
            told.append(f"{name} abstained")
        elif isinstance(known, Mapping):
            told.append(f"{name} {known[values[name]]}")
        else:
            told.append(f"{name} {'low' if values[name] < known else 'high'}")
    return ", ".join([*told, *(["cut"] if row["finish_reason"] == "length" else [])]) or "scored"


def _words(values: Iterable[float]) -> Mapping[float, str] | float:
    """What each value is called, if there are few; else the middle between the lowest and the highest."""
    different = sorted(set(values))
    if len(different) <= _FEW_VALUES:
        return {value: f"{value:g}" if value == round(value) else number(value) for value in different}
    return different[0] / 2 + different[-1] / 2


def _rank(row: Row, seed: int) -> bytes:
    of = f"{seed}\x1f{row['step']}\x1f{row['task_id']}\x1f{row['group_index']}\x1f{row['sample_index']}"
    return hashlib.blake2b(of.encode(errors="surrogatepass"), digest_size=8).digest()
