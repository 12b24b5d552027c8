"""The charts of a report as plotly traces: plain dicts, so that building them needs no plotly.

A chart exists only where there is data for it. Every x axis is the step. Colours are mid-tones that can be
read on a light and on a dark page; text and grid take the page's colours in `page/report.js`.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from rlft.curves.evaluation_sets import EvaluationSet
from rlft.curves.plotly_traces import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    RED,
    VIOLET,
    Trace,
    course,
    curve,
    event_rail,
    interval_points,
)
from rlft.curves.reading import Rows
from rlft.curves.series import MANY, Series, series, span
from rlft.curves.shadow import Shadow
from rlft.run.records import Evaluation, Event, word_for

_PART = "reward/part/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """One chart of the report."""

    title: str
    """Heading, in words; may hold names from the config and is escaped by the page."""
    hint: str
    """What is drawn, with its unit."""
    traces: list[Trace]
    """plotly.js traces."""
    layout: dict[str, Any] = field(default_factory=dict)
    """plotly.js layout keys besides the shared look."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Charts that belong together."""

    title: str
    """Heading."""
    charts: list[Chart]
    """At least one."""
    wide: bool = False
    """Whether the charts are drawn large."""


@dataclass(frozen=True, slots=True)
class _Line:
    metric: str
    name: str
    color: str = BLUE


_Spec: TypeAlias = tuple[str, str, dict[str, Any], tuple[_Line, ...]]
"""Title, hint, layout of the y axis, lines."""

_SHARE = {"tickformat": ".0%", "rangemode": "tozero"}
_FROM_ZERO = {"rangemode": "tozero"}

_BEHAVIOUR: tuple[_Spec, ...] = (
    ("KL to the reference", "nats per token", {}, (_Line("policy/kl_ref", "KL"),)),
    ("Entropy", "nats per token", {}, (_Line("policy/entropy", "entropy"),)),
    ("Completion length", "mean, tokens", {}, (_Line("rollout/length", "length"),)),
    ("Cut at the length limit", "share", _SHARE, (_Line("rollout/truncated", "cut", ORANGE),)),
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
        {},
        (_Line("preference/reward_chosen", "chosen", GREEN), _Line("preference/reward_rejected", "rejected", RED)),
    ),
    (
        "Log-probability",
        "of whole completions, nats",
        {},
        (_Line("preference/logprob_chosen", "chosen", GREEN), _Line("preference/logprob_rejected", "rejected", RED)),
    ),
    ("Reference point", "KTO's z0, nats", _FROM_ZERO, (_Line("preference/z0", "z0", GREY),)),
)
_LEARNER: tuple[_Spec, ...] = (
    ("Gradient norm", "before clipping; the largest of a step's updates", {}, (_Line("policy/grad_norm", "norm"),)),
    (
        "Clip fraction",
        "share of tokens",
        {**_SHARE, "tickformat": ".1%"},
        (_Line("policy/clip_fraction", "clipped"),),
    ),
    ("Largest ratio", "new / old probability of a token", {}, (_Line("policy/ratio_max", "ratio"),)),
    ("Mismatch KL", "engine and learner, nats", _FROM_ZERO, (_Line("policy/mismatch_kl", "KL", ORANGE),)),
    (
        "Staleness",
        "adapter versions behind the policy",
        _FROM_ZERO,
        (_Line("rollout/staleness_mean", "mean", ORANGE), _Line("rollout/staleness_max", "maximum", GREY)),
    ),
    ("Effective samples", "share of the samples", {**_SHARE, "tickformat": ".1%"}, (_Line("policy/ess", "share"),)),
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
    ("Policy loss", "", {}, (_Line("policy/loss", "loss"),)),
    ("Learning rate", "", _FROM_ZERO, (_Line("policy/lr", "rate", GREY),)),
    ("Critic loss", "", _FROM_ZERO, (_Line("critic/loss", "loss", VIOLET),)),
    (
        "Explained variance",
        "of the returns, by the critic",
        {},
        (_Line("critic/explained_variance", "share", VIOLET),),
    ),
)
_THROUGHPUT: tuple[_Spec, ...] = (
    ("Throughput", "tokens per second", {}, (_Line("time/tokens_per_s", "tokens/s", GREEN),)),
)
_TIMES = (("time/rollout", "rollout", BLUE), ("time/score", "score", ORANGE), ("time/learn", "learn", VIOLET))


def sections(
    rows: Rows,
    evals: Sequence[Evaluation],
    events: Sequence[Event],
    shadows: Sequence[Shadow] = (),
    config: Mapping[str, Any] | None = None,
    sets: Sequence[EvaluationSet] = (),
) -> list[Section]:
    """Every chart that the data allows, by section; sections without charts are absent."""
    config = config or {}
    result, margin = _result(rows, evals, events, config), _margin(rows, evals, events)
    shadow = [chart for each in shadows for chart in _shadow(rows, each, config)]
    has_reward = bool(series(rows, "reward/mean"))
    if not has_reward:
        result = [*margin, *_loss(rows, evals, "sft/loss", "Loss, nats per token"), *result]
    preferences = [*_loss(rows, evals, "preference/loss", "Preference loss"), *_plain(rows, _PREFERENCES)]
    built = [
        Section(title="Result", charts=[*result[:1], *shadow, *result[1:]], wide=True),
        Section(title="Evaluation sets", charts=[chart for each in sets for chart in _of_set(rows, each, config)]),
        Section(title="Parts of the reward", charts=_parts(rows, {each.name for each in shadows})),
        Section(title="Preferences", charts=[*(margin if has_reward else []), *preferences]),
        Section(title="Behaviour", charts=[*_plain(rows, _BEHAVIOUR), *_failures(rows)]),
        Section(title="Learner", charts=_plain(rows, _LEARNER)),
        Section(title="Speed", charts=[*_plain(rows, _THROUGHPUT), *_times(rows)]),
    ]
    return [section for section in built if section.charts]


def step_range(rows: Rows, evals: Sequence[Evaluation]) -> tuple[float, float]:
    """The x axis that all charts share: from 0 if something was evaluated before it, with a little air."""
    steps = [row["step"] for row in rows] + [evaluation.step for evaluation in evals]
    first, last = (min(steps), max(steps)) if steps else (0, 1)
    air = max(0.5, (last - first) * 0.015)
    return first - air, last + air


def reward_parts(rows: Rows) -> list[str]:
    """Names of the reward's parts, in the order in which they were first logged."""
    return list(dict.fromkeys(key.removeprefix(_PART) for row in rows for key in row if key.startswith(_PART)))


def is_whole_reward(rows: Rows, part: str) -> bool:
    """Whether a part equals the reward at every step, so that its curve says nothing new."""
    both = [row for row in rows if _PART + part in row and math.isfinite(row.get("reward/mean", math.nan))]
    return bool(both) and all(
        math.isclose(row[_PART + part], row["reward/mean"], rel_tol=1e-6, abs_tol=1e-9) for row in both
    )


def _result(rows: Rows, evals: Sequence[Evaluation], events: Sequence[Event], config: Mapping[str, Any]) -> list[Chart]:
    """Train reward and held-out mean, on one y axis where they measure the same."""
    reward = series(rows, "reward/mean")
    charts, parts = [], reward_parts(rows)
    whole = [part for part in parts if is_whole_reward(rows, part)]
    if reward:
        title = f"Train reward ({whole[0]})" if len(whole) == 1 and len(parts) == 1 else "Train reward"
        hint = f"{_sampled(config.get('sampling'), 1.0)}, {_tasks_of_step(config)}{_band_hint(reward, config)}"
        charts.append(_with_events(title, hint, course(reward, "train reward", BLUE, width=2), events))
    heldout = _accuracy(rows, evals, config)
    if heldout and reward and evals[-1].metric in whole:
        low, high = span([reward], [e.accuracy for e in evals])
        air = 0.04 * (high - low)
        for chart in (*charts, *heldout):
            chart.layout["yaxis"] = {"range": [low - air if low < 0 else 0, high + air]}
    return [*charts, *heldout]


def _sampled(settings: Any, default: float) -> str:
    """How the completions behind a number were sampled."""
    temperature = settings.get("temperature", default) if isinstance(settings, dict) else default
    return "greedy" if temperature == 0 else f"T = {temperature:g}"


def _tasks_of_step(config: Mapping[str, Any]) -> str:
    count = config.get("tasks_per_step")
    return f"{count} training tasks a step" if count else "training tasks"


def _band_hint(values: Series, config: Mapping[str, Any]) -> str:
    """What the band of a train curve speaks of."""
    if len(values.steps) > MANY:
        return "; means of bins of steps with 95 % bands, single steps faint"
    if not any(math.isfinite(low) for low, _ in values.bounds):
        return ""
    order = (config.get("environment") or {}).get("order", "shuffle")
    of = "clustered by task" if order == "shuffle" else f"for exactly the tasks of each step (order: {order})"
    return f"; 95 % band {of}"


def _shadow(rows: Rows, shadow: Shadow, config: Mapping[str, Any]) -> list[Chart]:
    """The mean of each training step, and the gap on held-out tasks."""
    charts = []
    if values := series(rows, _PART + shadow.name):
        hint = "mean of each step" + _band_hint(values, config)
        traces = course(values, shadow.name, VIOLET, width=2)
        charts.append(_with_events(f"{shadow.name}: shadow (not trained on)", hint, traces, ()))
    if known := [(e.step, each.gap.interval) for e, each in shadow.moved if each.gap.interval.n]:
        points = interval_points([step for step, _ in known], [gap for _, gap in known], "gap", VIOLET)
        charts.append(
            Chart(
                title=f"Held-out gap to {shadow.name}",
                hint=f"SDs that the trained reward rose more than the shadow since {shadow.start}; 95 % intervals",
                traces=[points],
                layout={"hovermode": "closest"},
            )
        )
    return charts


def _margin(rows: Rows, evals: Sequence[Evaluation], events: Sequence[Event]) -> list[Chart]:
    if not (values := series(rows, "preference/margin")):
        return []
    traces = [*course(values, "train", BLUE, width=2), *_heldout(evals, "margin")]
    return [_with_events("Margin", "by how much the policy sides with the labels", traces, events)]


def _loss(rows: Rows, evals: Sequence[Evaluation], metric: str, title: str) -> list[Chart]:
    if not (values := series(rows, metric)):
        return []
    traces = [*course(values, "train", BLUE), *_heldout(evals, "loss")]
    return [_with_events(title, "mean of each step", traces, ())]


def _heldout(evals: Sequence[Evaluation], number: str) -> list[Trace]:
    """The evaluations' `loss` or `margin` as a line, where they have any."""
    points = [(e.step, value) for e in evals if math.isfinite(value := getattr(e, number))]
    return [curve([x for x, _ in points], [y for _, y in points], "held out", ORANGE)] if points else []


def _with_events(title: str, hint: str, traces: list[Trace], events: Sequence[Event]) -> Chart:
    """A chart with the events along its lower edge, where there are any, and what belongs there otherwise."""
    layout: dict[str, Any] = {}
    if marks := [event for event in events if event.step is not None]:
        traces = [*traces, event_rail(marks)]
        hint += "; triangles: events"
    if any(trace.get("yaxis") == "y2" for trace in traces):
        layout["yaxis2"] = {"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True}
    return Chart(title=title, hint=hint, traces=traces, layout=layout)


def _accuracy(rows: Rows, evals: Sequence[Evaluation], config: Mapping[str, Any]) -> list[Chart]:
    known = [evaluation for evaluation in evals if math.isfinite(evaluation.accuracy.mean)]
    if not known:
        return []
    trained = [e for e in known if not e.is_before]
    last = max([evaluation.step for evaluation in known] + [row["step"] for row in rows])
    traces: list[Trace] = []
    for name, color, dash in (("base", GREY, "dot"), ("sft", ORANGE, "dash")):
        for evaluation in (e for e in known if e.name == name):
            mean = evaluation.accuracy.mean
            if last > 0:
                line = curve([0, last], [mean, mean], evaluation.label, color, dash=dash)
                traces.append({**line, "showlegend": False, "hoverinfo": "skip", "mode": "lines"})
            traces.append(interval_points([evaluation.step], [evaluation.accuracy], evaluation.label, color))
    if trained:
        if len(trained) < len(known):  # training starts where the policy before it ended
            ends = [known[len(known) - len(trained) - 1], trained[0]]
            start = curve([e.step for e in ends], [e.accuracy.mean for e in ends], "start", BLUE)
            traces.append({**start, "showlegend": False, "hoverinfo": "skip", "mode": "lines"})
        means = [e.accuracy for e in trained]
        traces.append(interval_points([e.step for e in trained], means, trained[-1].stage, BLUE))
    metric = known[-1].metric
    before = " and ".join(e.label for e in known if e not in trained)
    return [
        Chart(
            title=f"Held-out {word_for(known)}{f' ({metric})' if metric else ''}",
            hint=f"{_asked(known[-1], config)}; 95 % intervals" + (f"; lines: {before}" if before and last > 0 else ""),
            traces=traces,
            layout={"yaxis": {"rangemode": "tozero"}, "hovermode": "closest"},
        )
    ]


def _of_set(rows: Rows, measured: EvaluationSet, config: Mapping[str, Any]) -> list[Chart]:
    charts = _accuracy(rows, measured.evals, {**config, "evaluation": measured.settings})
    return [replace(chart, title=f"{measured.name}: {chart.title}") for chart in charts]


def _asked(evaluation: Evaluation, config: Mapping[str, Any]) -> str:
    """How an evaluation samples, and on what."""
    count = evaluation.accuracy.n
    if evaluation.stage != "RL":
        return f"{count} held-out prompts"
    return f"{_sampled(config.get('evaluation'), 0.0)}, {count} held-out tasks"


def _parts(rows: Rows, shadows: Collection[str]) -> list[Chart]:
    parts = [part for part in reward_parts(rows) if part not in shadows]
    if len(parts) == 1 and is_whole_reward(rows, parts[0]):
        return []
    colors = (BLUE, GREEN, VIOLET, ORANGE, RED, GREY)
    charts = []
    for index, part in enumerate(parts):
        if values := series(rows, _PART + part):
            traces = course(values, part, colors[index % len(colors)])
            charts.append(_with_events(part, "unweighted mean, 95 % band", traces, ()))
    return charts


def _plain(rows: Rows, specs: Sequence[_Spec]) -> list[Chart]:
    charts = []
    for title, hint, axis, lines in specs:
        traces = []
        for line in lines:
            if values := series(rows, line.metric):
                traces += course(values, line.name, line.color)
        if traces:
            chart = _with_events(title, hint, traces, ())
            chart.layout["yaxis"] = axis
            charts.append(chart)
    return charts


def _failures(rows: Rows) -> list[Chart]:
    traces, most = [], 0.0
    for metric, name, color in (("reward/failed", "failed", RED), ("reward/abstained", "abstained", GREY)):
        points = series(rows, metric).finite
        values = [value for _, value in points]
        if any(values):
            steps = [step for step, _ in points]
            traces.append({"type": "bar", "x": steps, "y": values, "name": name, "marker": {"color": color}})
            most += max(values)
    if not traces:
        return []
    axis = {"dtick": 1} if most <= 4 else {}  # no half samples
    layout = {"barmode": "stack", "yaxis": axis}
    return [Chart(title="Not scored", hint="samples per step", traces=traces, layout=layout)]


def _times(rows: Rows) -> list[Chart]:
    traces = []
    for metric, name, color in _TIMES:
        if points := series(rows, metric).finite:
            area = {"stackgroup": "time", "mode": "lines"}
            line = curve([step for step, _ in points], [value for _, value in points], name, color, width=0.5)
            traces.append({**line, **area})
    if not traces:
        return []
    return [Chart(title="Time per step", hint="seconds", traces=traces, layout={"yaxis": _FROM_ZERO})]
