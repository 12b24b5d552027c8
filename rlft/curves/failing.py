"""What fails in a window of steps: kinds of failures with their counts, typical samples of each, then extremes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlft.curves import reading
from rlft.curves.contributions import Window
from rlft.curves.sample_kinds import Example, Row, drawn, example, kinds_of, numbers_of
from rlft.curves.text import number, percent


@dataclass(frozen=True, slots=True, kw_only=True)
class Failing:
    """What fails in a window."""

    window: Window
    """Its samples."""
    below: float
    """A scored sample fails below this reward: the middle between the lowest and the highest of the window."""
    kinds: Sequence[tuple[str, int]]
    """(what they have in common, how many) of the samples that fail or have no score, the most frequent first."""
    typical: Sequence[Example]
    """A random choice of them, shared by the kinds in proportion to their counts."""
    extremes: Sequence[Example]
    """Those of the lowest reward, each of another task, that are not among the typical ones."""

    @property
    def total(self) -> int:
        """How many samples fail."""
        return sum(count for _, count in self.kinds)

    @property
    def sentence(self) -> str:
        """How much fails, in words."""
        if not self.total:
            return f"Of the {len(self.window.rows)} samples of {self.window.label} none fails."
        why = f"a reward below {number(self.below)}, or no score" if math.isfinite(self.below) else "no score"
        return (
            f"Of the {len(self.window.rows)} samples of {self.window.label} {self.total} fail "
            f"({percent(self.total / len(self.window.rows))}): {why}."
        )

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "sentence": self.sentence,
            "samples": len(self.window.rows),
            "below": self.below if math.isfinite(self.below) else None,
            "kinds": [{"name": name, "count": count, "share": count / self.total} for name, count in self.kinds],
            "typical": [each.as_dict() for each in self.typical],
            "extremes": [each.as_dict() for each in self.extremes],
        }


def failing(config: Mapping[str, Any], window: Window, *, count: int = 6, seed: int | None = None) -> Failing:
    """What fails in a window.

    Args:
        config: the resolved config, for the names of the rewards.
        window: samples of some steps or of an evaluation.
        count: how many typical samples are chosen.
        seed: decides which; the run's if not given.
    """
    rewards = [row["reward"] for row in window.scored]
    below = min(rewards) / 2 + max(rewards) / 2 if rewards and min(rewards) < max(rewards) else -math.inf
    rows = [row for row in window.rows if _reward(row) < below or row["outcome"] != "score"]
    trained = [spec.label for spec in reading.reward_specs(config) if spec.weight]
    kinds = kinds_of(rows, trained or sorted({name for row in rows for name in numbers_of(row)}))
    counted = sorted(Counter(kinds).items(), key=lambda each: (-each[1], each[0]))
    chosen_by = int(config.get("seed") or 0) if seed is None else seed
    typical = drawn(rows, kinds, dict(counted), count, chosen_by)
    return Failing(window=window, below=below, kinds=counted, typical=typical, extremes=_extremes(rows, kinds, typical))


def _extremes(rows: Sequence[Row], kinds: Sequence[str], shown: Sequence[Example], count: int = 3) -> list[Example]:
    scored = [(row, kind) for row, kind in zip(rows, kinds, strict=True) if row["outcome"] == "score"]
    ranked = sorted(scored, key=lambda each: (_reward(each[0]), -each[0]["step"], each[0]["sample_index"]))
    of_task: dict[str, Example] = {}
    for row, kind in ranked:
        told = example(row, kind)
        if told not in shown:
            of_task.setdefault(told.task_id, told)
        if len(of_task) == count:
            break
    return list(of_task.values())


def _reward(row: Row) -> float:
    return math.inf if row["reward"] is None or not math.isfinite(row["reward"]) else float(row["reward"])
