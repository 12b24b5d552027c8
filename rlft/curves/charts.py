"""The charts of a run's page below the main one (`main_chart`), as plain data.

A chart exists only where there is data for it. Every x axis is the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from rlft.curves.marks import BLUE, GREEN, GREY, ORANGE, RED, VIOLET, Mark, area, bars, course, points
from rlft.curves.reading import Rows
from rlft.curves.series import binned, series, with_solved
from rlft.run.records import Evaluation, Interval

PART = "reward/part/"
"""How the names of metrics begin that are the mean of a reward or of a part of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart of the page."""

    title: str
    """Heading, in words; may hold names from the config."""
    hint: str
    """What is drawn, with its unit."""
    marks: list[Mark]
    """What is drawn, the lowest first."""
    axis: str = "free"
    """The y axis: `free`, `zero` (it begins there) or `share` (likewise, as percentages)."""
    metrics: tuple[str, ...] = ()
    """Names of the metrics that it shows."""
    rail: list[dict[str, Any]] = field(default_factory=list)
    """What happened, by step: `step`, `kind`, `text`."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        told = {"title": self.title, "hint": self.hint, "axis": self.axis, "marks": self.marks}
        return {**told, "metrics": list(self.metrics), **({"rail": self.rail} if self.rail else {})}


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Charts that belong together."""

    title: str
    """Heading."""
    charts: list[Chart]
    """At least one."""


@dataclass(frozen=True, slots=True)
class _Line:
    metric: str
    name: str
    color: str = BLUE


_Spec: TypeAlias = tuple[str, str, str, tuple[_Line, ...]]
"""Title, hint, y axis, lines."""

_FREE, _SHARE, _FROM_ZERO = "free", "share", "zero"

_BEHAVIOUR: tuple[_Spec, ...] = (
    ("KL to the reference", "nats per token", _FREE, (_Line("policy/kl_ref", "KL"),)),
    ("Entropy", "nats per token", _FREE, (_Line("policy/entropy", "entropy"),)),
    ("Completion length", "mean, tokens", _FREE, (_Line("rollout/length", "length"),)),
    ("Cut at the length limit", "share", _SHARE, (_Line("rollout/truncated", "cut", ORANGE),)),
    (
        "Repetition",
        "share of tokens, and of the samples of a task",
        _SHARE,
        (_Line("rollout/repetition", "repeated phrases", ORANGE), _Line("rollout/duplicates", "equal samples", GREY)),
    ),
    (
        "Groups",
        "share of the step's groups",
        _SHARE,
        (
            _Line("groups/with_signal", "signal", BLUE),
            _Line("groups/solved_all", "all solved", GREEN),
            _Line("groups/solved_none", "none solved", GREY),
        ),
    ),
)
_PREFERENCES: tuple[_Spec, ...] = (
    (
        "Pairs on the right side",
        "share; KTO: of the completions",
        _SHARE,
        (_Line("preference/accuracy", "accuracy", GREEN),),
    ),
    (
        "Implicit reward",
        "mean of the completions",
        _FREE,
        (_Line("preference/reward_chosen", "chosen", GREEN), _Line("preference/reward_rejected", "rejected", RED)),
    ),
    (
        "Log-probability",
        "of whole completions, nats",
        _FREE,
        (_Line("preference/logprob_chosen", "chosen", GREEN), _Line("preference/logprob_rejected", "rejected", RED)),
    ),
    ("Reference point", "KTO's z0, nats", _FROM_ZERO, (_Line("preference/z0", "z0", GREY),)),
)
_LEARNER: tuple[_Spec, ...] = (
    ("Gradient norm", "before clipping; the largest of a step's updates", _FREE, (_Line("policy/grad_norm", "norm"),)),
    (
        "Clip fraction",
        "share of tokens",
        _SHARE,
        (_Line("policy/clip_fraction", "clipped"),),
    ),
    ("Largest ratio", "new / old probability of a token", _FREE, (_Line("policy/ratio_max", "ratio"),)),
    ("Mismatch", "engine and learner, nats per token", _FROM_ZERO, (_Line("policy/mismatch", "mismatch", ORANGE),)),
    ("Mismatch KL", "engine and learner, nats", _FROM_ZERO, (_Line("policy/mismatch_kl", "KL", ORANGE),)),
    (
        "Staleness",
        "adapter versions behind the policy",
        _FROM_ZERO,
        (_Line("rollout/staleness_mean", "mean", ORANGE), _Line("rollout/staleness_max", "maximum", GREY)),
    ),
    ("Effective samples", "share of the samples", _SHARE, (_Line("policy/ess", "share"),)),
    (
        "Length of dropped samples",
        "mean, tokens; a gap biases what is learnt",
        _FROM_ZERO,
        (_Line("rollout/length_dropped", "dropped", RED), _Line("rollout/length_kept", "learnt from", GREEN)),
    ),
    (
        "Length of masked samples",
        "mean, tokens; masked by the correction",
        _FROM_ZERO,
        (_Line("policy/length_masked", "masked", RED), _Line("policy/length_kept", "learnt from", GREEN)),
    ),
    ("Policy loss", "", _FREE, (_Line("policy/loss", "loss"),)),
    ("Learning rate", "", _FROM_ZERO, (_Line("policy/lr", "rate", GREY),)),
    ("Critic loss", "", _FROM_ZERO, (_Line("critic/loss", "loss", VIOLET),)),
    (
        "Explained variance",
        "of the returns, by the critic",
        _FREE,
        (_Line("critic/explained_variance", "share", VIOLET),),
    ),
)
_THROUGHPUT: tuple[_Spec, ...] = (
    ("Throughput", "tokens per second", _FREE, (_Line("time/tokens_per_s", "tokens/s", GREEN),)),
)
_TIMES = (("time/rollout", "rollout", BLUE), ("time/score", "score", ORANGE), ("time/learn", "learn", VIOLET))


def sections(rows: Rows, evals: Sequence[Evaluation] = ()) -> list[Section]:
    """Every chart besides the main one, the parts of the reward and the evaluation sets that the data allows."""
    rows = with_solved(rows)
    losses = [*_loss(rows, evals, "sft/loss", "Loss, nats per token")]
    preferences = [*_margin(rows, evals), *_loss(rows, evals, "preference/loss", "Preference loss")]
    built = [
        Section(title="Training", charts=losses),
        Section(title="Environments of the mix", charts=_environments(rows)),
        Section(title="Preferences", charts=[*preferences, *_plain(rows, _PREFERENCES)]),
        Section(title="Behaviour", charts=[*_plain(rows, _BEHAVIOUR), *_failures(rows)]),
        Section(title="Learner", charts=_plain(rows, _LEARNER)),
        Section(title="Speed", charts=[*_plain(rows, _THROUGHPUT), *_times(rows)]),
    ]
    return [section for section in built if section.charts]


def parts_of_reward(rows: Rows, names: Sequence[str]) -> list[Chart]:
    """A chart for each of these parts of the reward that was logged."""
    colors = (BLUE, GREEN, VIOLET, ORANGE, RED, GREY)
    charts = []
    for index, name in enumerate(names):
        if values := series(rows, PART + name):
            marks = [course(values, name, colors[index % len(colors)])]
            charts.append(Chart(title=name, hint="unweighted mean, 95 % band", marks=marks, metrics=(PART + name,)))
    return charts


def step_range(rows: Rows, evals: Sequence[Evaluation]) -> tuple[float, float]:
    """The x axis that all charts share: from 0 if something was evaluated before it, with a little air."""
    steps = [row["step"] for row in rows] + [evaluation.step for evaluation in evals]
    first, last = (min(steps), max(steps)) if steps else (0, 1)
    air = max(0.5, (last - first) * 0.015)
    return first - air, last + air


def reward_parts(rows: Rows) -> list[str]:
    """Names of the reward's parts, in the order in which they were first logged."""
    return list(dict.fromkeys(key.removeprefix(PART) for row in rows for key in row if key.startswith(PART)))


def is_whole_reward(rows: Rows, part: str) -> bool:
    """Whether a part equals the reward at every step, so that its curve says nothing new."""
    both = [row for row in rows if PART + part in row and math.isfinite(row.get("reward/mean", math.nan))]
    return bool(both) and all(
        math.isclose(row[PART + part], row["reward/mean"], rel_tol=1e-6, abs_tol=1e-9) for row in both
    )


def heldout_numbers(evals: Sequence[Evaluation], number: str) -> list[Mark]:
    """The evaluations' `loss` or `margin` as a line, where they have any."""
    known = [(e.step, value) for e in evals if math.isfinite(value := getattr(e, number))]
    if not known:
        return []
    steps, values = [step for step, _ in known], [value for _, value in known]
    return [points(steps, [Interval(v, math.nan, math.nan, 0) for v in values], "held out", ORANGE)]


def _margin(rows: Rows, evals: Sequence[Evaluation]) -> list[Chart]:
    return _course(rows, evals, "preference/margin", "Margin", "by how much the policy sides with the labels")


def _loss(rows: Rows, evals: Sequence[Evaluation], metric: str, title: str) -> list[Chart]:
    return _course(rows, evals, metric, title, "mean of each step")


def _course(rows: Rows, evals: Sequence[Evaluation], metric: str, title: str, hint: str) -> list[Chart]:
    if not (values := series(rows, metric)):
        return []
    number = "margin" if metric.endswith("margin") else "loss"
    marks = [course(values, "train", BLUE), *heldout_numbers(evals, number)]
    return [Chart(title=title, hint=hint, marks=marks, metrics=(metric,))]


def _plain(rows: Rows, specs: Sequence[_Spec]) -> list[Chart]:
    charts = []
    for title, hint, axis, lines in specs:
        known = [(line, values) for line in lines if (values := series(rows, line.metric))]
        if known:
            marks = [course(values, line.name, line.color) for line, values in known]
            metrics = tuple(line.metric for line, _ in known)
            charts.append(Chart(title=title, hint=hint, marks=marks, axis=axis, metrics=metrics))
    return charts


def _environments(rows: Rows) -> list[Chart]:
    """Train reward, signal and length of each environment of a mix."""
    keys = dict.fromkeys(key for row in rows for key in row if key.startswith("environment/"))
    names = list(dict.fromkeys(key.split("/")[1] for key in keys))
    colors = dict(zip(names, (BLUE, ORANGE, GREEN, VIOLET, RED, GREY) * len(names), strict=False))
    wanted = (
        ("Train reward by environment", "mean of each step, 95 % band", _FREE, "reward"),
        ("Groups with signal by environment", "share of the groups whose rewards differ", _SHARE, "with_signal"),
        ("Length by environment", "tokens per completion", _FROM_ZERO, "length"),
    )
    return _plain(
        rows,
        [
            (title, hint, axis, tuple(_Line(f"environment/{name}/{what}", name, colors[name]) for name in names))
            for title, hint, axis, what in wanted
        ],
    )


def _failures(rows: Rows) -> list[Chart]:
    marks, metrics = [], []
    for metric, name, color in (("reward/failed", "failed", RED), ("reward/abstained", "abstained", GREY)):
        known = [(step, value) for step, value in series(rows, metric).finite if value]
        if known:
            marks.append(bars(known, name, color))
            metrics.append(metric)
    if not marks:
        return []
    chart = Chart(title="Not scored", hint="samples per step", marks=marks, axis=_FROM_ZERO, metrics=tuple(metrics))
    return [chart]


def _times(rows: Rows) -> list[Chart]:
    known = [(metric, name, color, binned(series(rows, metric))) for metric, name, color in _TIMES]
    marks = [area(values, name, color) for _, name, color, values in known if values]
    if not marks:
        return []
    metrics = tuple(metric for metric, _, _, values in known if values)
    return [Chart(title="Time per step", hint="seconds", marks=marks, axis=_FROM_ZERO, metrics=metrics)]
