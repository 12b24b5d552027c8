"""pass@k and pass^k: whether one of k samples solves a task, and whether all of them do.

Of a task's n scored samples, c right, the share of all choices of k samples that hold a right one is
1 - C(n - c, k) / C(n, k), and the share that holds only right ones is C(c, k) / C(n, k). Both are unbiased, which
1 - (1 - c / n)^k is not (https://arxiv.org/abs/2107.03374; pass^k: https://arxiv.org/abs/2406.12045).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import comb
from typing import Any

from rlft.curves.contents import merged
from rlft.curves.statistics import mean_interval
from rlft.curves.text import interval_text
from rlft.run.records import Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Passes:
    """Both shares for one k, as means over tasks with 95 % intervals by task."""

    k: int
    """Samples of a task that are taken together."""
    any_right: Interval
    """pass@k: at least one of k is right; n counts the tasks with at least k scored samples."""
    all_right: Interval
    """pass^k: all k are right."""
    left_out: int
    """Tasks with fewer than k scored samples, which are in neither mean."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        both = {"pass_at_k": self.any_right.as_dict(), "pass_all_k": self.all_right.as_dict()}
        return {"k": self.k, **both, "tasks_left_out": self.left_out}

    @property
    def sentence(self) -> str:
        """`pass@4 0.62 [0.55, 0.69], pass^4 0.31 [0.25, 0.38]`, and how many tasks are missing."""
        missing = f" ({self.left_out} tasks with fewer than {self.k} scored samples left out)" if self.left_out else ""
        both = f"pass@{self.k} {interval_text(self.any_right)}, pass^{self.k} {interval_text(self.all_right)}"
        return both + missing


def pass_at_k(samples: int, right: int, k: int) -> float:
    """Share of the choices of k out of a task's samples that hold a right one.

    Raises ValueError unless 0 <= right <= samples and 1 <= k <= samples.
    """
    _check(samples, right, k)
    return 1 - comb(samples - right, k) / comb(samples, k)


def pass_all_k(samples: int, right: int, k: int) -> float:
    """Share of the choices of k out of a task's samples that are all right; raises as `pass_at_k` does."""
    _check(samples, right, k)
    return comb(right, k) / comb(samples, k)


def passes(
    by_task: Mapping[str, Sequence[float]], same: Mapping[str, str] | None = None, level: float = 0.95
) -> list[Passes]:
    """pass@k and pass^k of an evaluation, for k = 2, 4, 8, ... and the number of samples.

    Empty where no task has two scored samples, or where a value is neither 0 nor 1: then there is no right. Tasks of
    equal content (`Evaluation.same`) are one in the intervals; their samples are not put together to a larger k.
    """
    counts = {t: (len(values), sum(value == 1 for value in values)) for t, values in by_task.items() if len(values)}
    most = max((samples for samples, _ in counts.values()), default=0)
    if most < 2 or any(value not in (0, 1) for values in by_task.values() for value in values):
        return []
    sizes = sorted({2**power for power in range(1, most.bit_length()) if 2**power <= most} | {most})
    result = []
    for k in sizes:
        known = {task: (samples, right) for task, (samples, right) in counts.items() if samples >= k}
        shares = [{t: [share(n, c, k)] for t, (n, c) in known.items()} for share in (pass_at_k, pass_all_k)]
        any_right, all_right = (mean_interval(merged(each, same or {}), level) for each in shares)
        result.append(
            Passes(
                k=k,
                any_right=any_right,
                all_right=all_right,
                left_out=len(by_task) - len(known),
            )
        )
    return result


def _check(samples: int, right: int, k: int) -> None:
    if not 0 <= right <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"{k} of {samples} samples, {right} right: k must be 1 to the number of samples, and right within 0 to it"
        )
