"""What moved the reward between two windows of steps, or two evaluations: contributions that add up to the change.

The mean is that of `reward/mean`: over the groups of a window, in each over its scored samples. A sample that could not
be scored counts in neither; a group without any counts not at all.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from rlft.curves import reading
from rlft.curves.group_change import interval_of_groups
from rlft.curves.sample_kinds import COLUMNS, Example, Row, drawn, kinds_of, numbers_of
from rlft.curves.text import interval_text, shortened
from rlft.run.records import EVALS, Interval

REST = "not in the parts"
"""What the reward has beyond the weighted sum of the parts, such as what an environment gave."""
Right: TypeAlias = tuple[tuple[int, int], tuple[int, int]]
"""(samples with value 1, samples that have a value), before and after."""
_MOST_CLUSTERS, _MOST_NAMED = 8, 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The samples of some steps, or of an evaluation."""

    label: str
    """Such as `steps 1-5` or `SFT`."""
    rows: Sequence[Row]
    """Its stored samples, with `COLUMNS`."""
    cut: str = ""
    """Says so where more steps were asked for than there are."""
    contents: Mapping[str, str] = field(default_factory=dict)
    """Content of an evaluation's tasks by id: those of equal content are one cluster."""

    def task(self, row: Row) -> str:
        """What to pair a sample by."""
        return self.contents.get(row["task_id"], row["task_id"])

    @property
    def scored(self) -> list[Row]:
        """The samples that have a finite reward."""
        return [row for row in self.rows if row["reward"] is not None and math.isfinite(row["reward"])]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What one reward adds to the change, its weight included."""

    name: str
    """Its label, or `REST`."""
    weight: float
    """Its weight in the reward."""
    added: float
    """Weight times the change of its mean; a sample that it abstained on counts with 0."""
    interval: Interval
    """The same with its 95 % interval; a mean over the tasks that both windows have, where they are the same tasks."""
    right: Right | None
    """How often it was right; None where there are other values than 0 and 1."""

    def says(self, before: Window, after: Window) -> str:
        """The contribution in a sentence."""
        told = f"{self.name}: {_signed(self.added)}"
        if self.interval.bounded:
            told += f" [{_signed(self.interval.low)}, {_signed(self.interval.high)}]"
        told += " of the reward" + (f" (weight {self.weight:g})" if self.weight != 1 and self.name != REST else "")
        return f"{told}." if self.right is None else f"{told}; {_right_in(self.right, before, after)}."

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        told = {"name": self.name, "weight": self.weight, "added": self.added, "right": self.right}
        return {**told, "interval": self.interval.as_dict()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What the tasks of one kind add to the change."""

    name: str
    """What they have in common."""
    share: tuple[float, float]
    """Their share of the groups, before and after."""
    mean: tuple[float, float]
    """Their mean reward, before and after; nan where there are none."""
    within: float
    """What their being answered better or worse adds: mean share times the change of their mean."""
    mix: float
    """What their being more or fewer adds: change of their share times how far their mean lies from that of all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How often a kind of sample came."""

    name: str
    """What the samples have in common."""
    count: tuple[int, int]
    """Samples before and after."""
    share: tuple[float, float]
    """The same as shares of all samples."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """What moved the mean reward from one window to another."""

    before: Window
    """The first window."""
    after: Window
    """The second one."""
    mean: tuple[float, float]
    """Mean reward of each; nan where nothing is scored."""
    interval: Interval
    """Their difference with its 95 % interval: paired where both have the same tasks."""
    is_paired: bool
    """Whether it is."""
    parts: Sequence[Part]
    """What adds up to the difference, the largest first."""
    named: Sequence[tuple[str, Right]]
    """How often the named parts of the rewards were right, and rewards of weight 0; they add nothing of their own."""
    clusters: Sequence[Cluster]
    """What adds up to it, too (`within` and `mix` of all), the largest first."""
    kinds: Sequence[Kind]
    """Kinds of samples, by how far their share changed."""
    appeared: Sequence[Example]
    """A stratified random choice of the kinds that became more frequent, from the second window."""
    disappeared: Sequence[Example]
    """The same of those that became rarer, from the first one."""

    @property
    def total(self) -> float:
        """Change of the mean reward."""
        return self.mean[1] - self.mean[0]

    @property
    def sentences(self) -> list[str]:
        """The change in words."""
        before, after = self.before, self.after
        a, b = self.mean
        how = "paired by task" if self.is_paired else "not the same tasks"
        told = [
            f"The mean reward went from {a:.3f} ({before.label}) to {b:.3f} ({after.label}): "
            f"{interval_text(self.interval, '+')} (95 % interval, {how}, {self.interval.n})."
        ]
        told += [part.says(before, after) for part in self.parts]
        told += [f"{name}: {_right_in(right, before, after)}." for name, right in self.named[:_MOST_NAMED]]
        mix = math.fsum(cluster.mix for cluster in self.clusters)
        if len(self.clusters) > 1:
            told.append(f"{_signed(mix)} of it is another mix of tasks, {_signed(self.total - mix)} other answers.")
        missing = [f"{len(w.rows) - len(w.scored)} of {len(w.rows)} in {w.label}" for w in (before, after)]
        if any(len(w.rows) > len(w.scored) for w in (before, after)):
            told.append(f"Samples without a score, which are in none of this: {', '.join(missing)}.")
        told += [window.cut for window in (before, after) if window.cut]
        return told

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON; what is not known is None."""

        def known(values: Sequence[float]) -> list[float | None]:
            return [value if math.isfinite(value) else None for value in values]

        return {
            "from": {"label": self.before.label, "samples": len(self.before.rows), "mean": known(self.mean)[0]},
            "to": {"label": self.after.label, "samples": len(self.after.rows), "mean": known(self.mean)[1]},
            "change": {**self.interval.as_dict(), "mean": known([self.total])[0], "paired": self.is_paired},
            "parts": [
                {
                    "name": p.name,
                    "weight": p.weight,
                    "added": p.added,
                    "interval": p.interval.as_dict(),
                    "right": p.right,
                }
                for p in self.parts
            ],
            "tasks": [
                {"name": c.name, "share": c.share, "mean": known(c.mean), "within": c.within, "mix": c.mix}
                for c in self.clusters
            ],
            "kinds": [{"name": k.name, "count": k.count, "share": k.share} for k in self.kinds],
            "appeared": [each.as_dict() for each in self.appeared],
            "disappeared": [each.as_dict() for each in self.disappeared],
            "sentences": self.sentences,
        }


def read_window(run: Path, name: str) -> Window:
    """The samples of `1-5` or `7`, steps of training, or of the evaluation `base`, `sft`, `step-000010` or `last`.

    Raises ValueError if there are none, naming what there is, or if a file is damaged, but see `damage.left_out`.
    """
    if match := re.fullmatch(r"(\d+)(?:-(\d+))?", name):
        first, last = int(match[1]), int(match[2] or match[1])
        stored = reading.rollout_steps(run)
        steps = [step for step in stored if first <= step <= last]
        if not steps:
            there = f"stored: {stored[0]} to {stored[-1]}" if stored else "there are none yet"
            raise ValueError(f"{run} has no rollouts of steps {name}; {there}")
        rows = reading.read_rollouts(run, COLUMNS, steps).to_pylist()
        begin, end = max(first, stored[0]), min(last, stored[-1])
        cut = f"Steps {name} were asked for, and stored are steps {stored[0]} to {stored[-1]}."
        label = f"step {begin}" if begin == end else f"steps {begin}-{end}"
        return Window(label=label, rows=rows, cut=cut if (begin, end) != (first, last) else "")
    evals = reading.evals_of_result(run)
    measured = [each for each in evals if (run / EVALS / f"{each.name}.parquet").is_file()]
    found = measured[-1:] if name == "last" else [each for each in measured if each.name == name]
    if not found:
        names = ", ".join(each.name for each in measured) or "none whose samples are stored"
        raise ValueError(f"{run} has no evaluation {name!r} (there are: {names}); or give steps, as in 1-5")
    table = reading.read_eval_samples(run, found[0].name, COLUMNS)
    rows = table.to_pylist() if table is not None else []
    return Window(label=found[0].label, rows=rows, contents=reading.read_contents(run, found))


def explain(
    config: Mapping[str, Any], before: Window, after: Window, *, count: int = 6, seed: int | None = None
) -> Change:
    """What moved the mean reward from one window to another.

    Args:
        config: the resolved config, for the weights of the rewards.
        before: the first window.
        after: the second one.
        count: how many samples are chosen of what appeared, and of what disappeared.
        seed: decides which; the run's if not given.

    Raises:
        ValueError: nothing is scored in one of them, so there is no change.
    """
    for window in (before, after):
        if not window.scored:
            raise ValueError(f"{window.label}: none of {len(window.rows)} samples has a score, so nothing has moved it")
    weights = {spec.label: spec.weight for spec in reading.reward_specs(config) if spec.weight}
    sides = [_weighted(window) for window in (before, after)]
    means = [math.fsum(weight * row["reward"] for row, weight in side) for side in sides]
    is_paired = {*map(before.task, before.scored)} == {*map(after.task, after.scored)}
    rows = [*before.rows, *after.rows]
    kinds = kinds_of(rows, list(weights) or sorted({name for row in rows for name in numbers_of(row)}))
    of_before, of_after = kinds[: len(before.rows)], kinds[len(before.rows) :]
    counted = _kinds(of_before, of_after)
    more = {kind.name: kind.share[1] - kind.share[0] for kind in counted}
    chosen_by = int(config.get("seed") or 0) if seed is None else seed
    return Change(
        before=before,
        after=after,
        mean=(means[0], means[1]),
        interval=_interval(before, after, lambda row: row["reward"], is_paired=is_paired),
        is_paired=is_paired,
        parts=_parts(weights, before, after, sides, is_paired=is_paired),
        named=_named(weights, before, after),
        clusters=_clusters(sides),
        kinds=counted,
        appeared=drawn(after.rows, of_after, more, count, chosen_by),
        disappeared=drawn(before.rows, of_before, {kind: -by for kind, by in more.items()}, count, chosen_by),
    )


def _weighted(window: Window) -> list[tuple[Row, float]]:
    """Each scored sample with its weight in the mean: groups count alike, and the scored samples within each."""
    scored = window.scored
    sizes = Counter(_group(row) for row in scored)
    return [(row, 1 / (len(sizes) * sizes[_group(row)])) for row in scored]


def _group(row: Row) -> tuple[int, int, str]:
    return row["step"], row["group_index"], row["task_id"]


def _interval(before: Window, after: Window, value: Callable[[Row], float], *, is_paired: bool) -> Interval:
    """Change of the mean of a value over groups."""
    first: dict[tuple[int, int, str], list[float]] = {}
    last: dict[tuple[int, int, str], list[float]] = {}
    for window, found in ((before, first), (after, last)):
        for row in window.scored:
            step, index, _ = _group(row)
            found.setdefault((step, index, window.task(row)), []).append(value(row))
    return interval_of_groups(first, last, is_paired=is_paired)


def _parts(
    weights: Mapping[str, float],
    before: Window,
    after: Window,
    sides: Sequence[Sequence[tuple[Row, float]]],
    *,
    is_paired: bool,
) -> list[Part]:
    """What each reward adds, and what is left of the change."""

    def added(row: Row, name: str) -> float:
        return weights[name] * numbers_of(row).get(name, 0.0)

    def rest(row: Row) -> float:
        numbers = numbers_of(row)
        return float(row["reward"]) - math.fsum(weight * numbers.get(name, 0.0) for name, weight in weights.items())

    def part(name: str, weight: float, value: Callable[[Row], float]) -> Part:
        first, last = (math.fsum(share * value(row) for row, share in side) for side in sides)
        interval = _interval(before, after, value, is_paired=is_paired)
        right = _right(before, after, name) if name in weights else None
        return Part(name=name, weight=weight, added=last - first, interval=interval, right=right)

    found = [part(name, weight, partial(added, name=name)) for name, weight in weights.items()]
    beyond = max((abs(rest(row)) for side in sides for row, _ in side), default=0.0)
    largest = max((abs(row["reward"]) for side in sides for row, _ in side), default=0.0)
    if beyond > 1e-9 * max(1.0, largest):  # more than the rounding of a sum
        found.append(part(REST, 1.0, rest))
    return sorted(found, key=lambda each: -abs(each.added))


def _right(before: Window, after: Window, name: str) -> Right | None:
    sides = [[numbers[name] for row in w.scored if name in (numbers := numbers_of(row))] for w in (before, after)]
    if any(value not in (0, 1) for side in sides for value in side):
        return None
    a, b = ((sum(value == 1 for value in side), len(side)) for side in sides)
    return a, b


def _named(weights: Mapping[str, float], before: Window, after: Window) -> list[tuple[str, Right]]:
    names = {name for window in (before, after) for row in window.scored for name in numbers_of(row)}
    found = ((name, _right(before, after, name)) for name in sorted(names - weights.keys()))
    known = [(name, right) for name, right in found if right is not None and right[0][1] and right[1][1]]
    return sorted(known, key=lambda each: -abs(each[1][1][0] / each[1][1][1] - each[1][0][0] / each[1][0][1]))


def _right_in(right: Right, before: Window, after: Window) -> str:
    (a, of_a), (b, of_b) = right
    return f"right in {b} of {of_b} samples of {after.label}, before in {a} of {of_a} of {before.label}"


def _clusters(sides: Sequence[Sequence[tuple[Row, float]]]) -> list[Cluster]:
    """A shift-share decomposition over kinds of tasks, with the average of both windows as the base of each term."""
    names = _kinds_of_tasks({row["prompt"] or "" for side in sides for row, _ in side})
    shares: list[dict[str, float]] = []
    sums: list[dict[str, float]] = []
    for side in sides:
        of_cluster: dict[str, list[tuple[float, float]]] = {}
        for row, weight in side:
            of_cluster.setdefault(names[row["prompt"] or ""], []).append((weight, weight * row["reward"]))
        shares.append({name: math.fsum(weight for weight, _ in each) for name, each in of_cluster.items()})
        sums.append({name: math.fsum(total for _, total in each) for name, each in of_cluster.items()})
    of_all = (math.fsum(sums[0].values()) + math.fsum(sums[1].values())) / 2
    found = []
    for name in sorted({*shares[0], *shares[1]}):
        before, after = shares[0].get(name, 0.0), shares[1].get(name, 0.0)
        mean = (_ratio(sums[0], shares[0], name), _ratio(sums[1], shares[1], name))
        # A kind that there is only on one side was not answered in another way: all of it is mix.
        first = mean[0] if math.isfinite(mean[0]) else mean[1]
        last = mean[1] if math.isfinite(mean[1]) else mean[0]
        within = (before + after) / 2 * (last - first)
        mix = (after - before) * ((first + last) / 2 - of_all)
        found.append(Cluster(name=name, share=(before, after), mean=mean, within=within, mix=mix))
    return sorted(found, key=lambda each: -abs(each.within + each.mix))


def _ratio(sums: Mapping[str, float], shares: Mapping[str, float], name: str) -> float:
    return sums[name] / shares[name] if name in shares else math.nan


def _kinds_of_tasks(prompts: Collection[str]) -> dict[str, str]:
    """What kind of task each prompt is: those that differ in their numbers only are one.

    Where that tells nothing apart, the digits of the numbers count, too; where it leaves too many, the rarer ones are
    one, and where each prompt is one of its own they are told apart by their length.
    """
    for digit in (r"\d+", r"\d"):
        kinds = {prompt: re.sub(digit, "#", shortened(prompt, 200)) for prompt in sorted(prompts)}
        counted = Counter(kinds.values())
        if len(counted) > 1:
            break
    if len(counted) <= _MOST_CLUSTERS or len(counted) < len(prompts) / 2:
        kept = {kind for kind, _ in sorted(counted.items(), key=lambda each: (-each[1], each[0]))[:_MOST_CLUSTERS]}
        return {prompt: kind if kind in kept else "other tasks" for prompt, kind in kinds.items()}
    lengths = sorted(map(len, prompts))
    short, long = lengths[len(lengths) // 3], lengths[2 * len(lengths) // 3]
    names = (f"prompts of up to {short} characters", f"of {short + 1} to {long}", f"of more than {long}")
    return {prompt: names[(len(prompt) > short) + (len(prompt) > long)] for prompt in prompts}


def _kinds(before: Sequence[str], after: Sequence[str]) -> list[Kind]:
    counts = Counter(before), Counter(after)
    found = []
    for name in sorted({*counts[0], *counts[1]}):
        first, last = counts[0][name], counts[1][name]
        shares = (first / len(before), last / len(after))
        found.append(Kind(name=name, count=(first, last), share=shares))
    return sorted(found, key=lambda each: -abs(each.share[1] - each.share[0]))


def _signed(value: float) -> str:
    return f"{value:+.3f}"
