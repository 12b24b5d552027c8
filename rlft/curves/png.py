"""`reward.png`: the main curve of a run, drawn without a browser and without a display."""

from __future__ import annotations

import io
import itertools
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rlft.curves.charts import is_whole_reward, step_range
from rlft.curves.marks import COLORS
from rlft.curves.series import Series, alike, bins, series, span
from rlft.curves.text import counted, interval_text, visible
from rlft.run.records import Evaluation, word_for

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE_INCHES, DPI = (9.0, 6.0), 150
_COURSES = {"reward/mean": "reward", "preference/margin": "margin", "sft/loss": "loss"}
"""What is drawn of the training, the first that there is, and what it is called."""
BLUE, GREY, ORANGE, RED, VIOLET = (COLORS[name] for name in ("blue", "grey", "orange", "red", "violet"))
_DASHES = ("-", "--", ":")
_BESIDE_TITLE: dict[str, Any] = {"loc": "lower right", "bbox_to_anchor": (1.0, 1.0), "borderaxespad": 0.2}
"""Where no curve can run into a legend."""
_MARGINS_INCHES = 0.6
"""Of the figure's width, what a panel's title and legend cannot have."""
_REFERENCES = {"base": (GREY, ":"), "sft": (ORANGE, "--")}


def draw(
    title: str,
    rows: Sequence[Mapping[str, float]],
    evals: Sequence[Evaluation],
    shadows: Sequence[str] = (),
) -> bytes:
    """The picture as PNG bytes: reward (or margin, or loss) above, held-out accuracy below, over one axis of steps.

    Args:
        shadows: names of rewards that are not trained on, which stand in both.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    course = next((name for name in _COURSES if any(name in row for row in rows)), "reward/mean")
    rewards = series(rows, course)
    known = [evaluation for evaluation in evals if math.isfinite(evaluation.accuracy.mean)]
    courses = {name: series(rows, f"reward/part/{name}") for name in shadows}
    courses = {name: each for name, each in courses.items() if each and alike(span([rewards]), span([each]))}
    figure = Figure(
        figsize=SIZE_INCHES,
        dpi=DPI,
        layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.08),
        facecolor="white",
    )
    canvas = FigureCanvasAgg(figure)
    # parse_math=False: a name with dollar signs is a name, not a formula.
    figure.suptitle(visible(title), fontsize=14, fontweight="bold", x=0.012, ha="left", parse_math=False)
    remark = "bands and bars: 95 % intervals, clustered by task"
    figure.text(0.988, 0.975, remark, fontsize=8.5, color="#5b6472", ha="right", va="top")
    panels = figure.subplots(max(1, bool(rewards) + bool(known)), 1, sharex=True, squeeze=False)[:, 0]
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color("#c5cad3")
        axes.tick_params(colors="#5b6472", labelsize=9)
        axes.grid(axis="y", color="#e8ebf0", linewidth=0.8)
        axes.set_axisbelow(True)
    if rewards:
        _draw_course(panels[0], rewards, course)
        _draw_shadows(panels[0], courses)
    if known:
        _draw_accuracy(panels[-1], known, step_range(rows, evals), list(courses))
    if rewards and known and is_whole_reward(rows, known[-1].metric):  # both measure the same: one scale
        low, high = span([rewards, *courses.values()], [e.accuracy for e in known])
        air = 0.04 * (high - low)
        for axes in panels:
            axes.set_ylim(low - air if low < 0 else 0, high + air)
    if not rewards and not known:
        panels[0].text(0.5, 0.5, "nothing has been logged yet", ha="center", transform=panels[0].transAxes)
    panels[-1].set_xlabel("step", color="#5b6472")
    panels[-1].set_xlim(*step_range(rows, evals))
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box is drawn: good enough here
        canvas.print_png(buffer)
    return buffer.getvalue()


def _draw_course(axes: Axes, values: Series, metric: str) -> None:
    what = _COURSES[metric]
    mark = "." if len(values.steps) <= 40 else ""
    if means := bins(values):
        axes.plot(values.steps, values.values, color=BLUE, linewidth=0.7, alpha=0.3)
        axes.plot([e.step for e in means], [e.interval.mean for e in means], color=BLUE, linewidth=2)
        edges = [(e.step, e.interval.low, e.interval.high) for e in means if e.interval.bounded]
        how = f"means of {math.ceil(len(values.finite) / len(means))} steps, single steps faint"
    else:
        axes.plot(values.steps, values.values, color=BLUE, linewidth=1.8, marker=mark)
        known = zip(values.steps, values.bounds, strict=True)
        edges = [(step, low, high) for step, (low, high) in known if math.isfinite(low + high)]
        how = "mean of each step"
    if edges:
        steps, lows, highs = zip(*edges, strict=True)
        axes.fill_between(steps, lows, highs, color=BLUE, alpha=0.18, linewidth=0)
    for step in values.broken:
        axes.axvline(step, color=RED, linewidth=0.8, linestyle=":")
    broken = f"; dotted: not a number ({counted(len(values.broken), 'step')})" if values.broken else ""
    axes.set_title(f"Train {what}, {how}{broken}", fontsize=10.5, loc="left")


def _draw_shadows(axes: Axes, courses: Mapping[str, Series]) -> None:
    """The mean of each shadow reward, a step each."""
    for (name, course), dash in zip(courses.items(), itertools.cycle(_DASHES), strict=False):
        label = f"shadow {visible(name)[:24]}, not trained on"
        axes.plot(course.steps, course.values, color=VIOLET, linewidth=1.6, linestyle=dash, label=label)
    if courses:
        axes.legend(frameon=False, fontsize=8.5, ncols=2, **_BESIDE_TITLE)


def _draw_accuracy(
    axes: Axes, evals: Sequence[Evaluation], steps: tuple[float, float], shadows: Sequence[str] = ()
) -> None:
    start = "sft" if any(evaluation.name == "sft" for evaluation in evals) else "base"  # where RL begins
    course = [evaluation for evaluation in evals if evaluation.name == start or evaluation.name not in _REFERENCES]
    for name, dash in zip(shadows, itertools.cycle(_DASHES), strict=False):
        points = [(e.step, e.rewards[name]) for e in course if name in e.rewards]
        if points:
            label = f"{visible(name)[:24]} {interval_text(points[-1][1])}"
            means = [interval.mean for _, interval in points]
            axes.plot([step for step, _ in points], means, color=VIOLET, linestyle=dash, marker="s", label=label)
    trained = [evaluation for evaluation in evals if evaluation.name not in _REFERENCES]
    for evaluation in evals:
        if evaluation.name in _REFERENCES:
            color, dash = _REFERENCES[evaluation.name]
            label = f"{evaluation.label} {interval_text(evaluation.accuracy)}"
            axes.axhline(evaluation.accuracy.mean, color=color, linestyle=dash, linewidth=1.6, label=label)
            if evaluation.accuracy.bounded:
                axes.fill_between(
                    steps,
                    evaluation.accuracy.low,
                    evaluation.accuracy.high,
                    color=color,
                    alpha=0.12,
                    linewidth=0,
                )
    if trained:
        intervals = [evaluation.accuracy for evaluation in trained]
        errors = [
            [i.mean - i.low if i.bounded else 0 for i in intervals],
            [i.high - i.mean if i.bounded else 0 for i in intervals],
        ]
        axes.errorbar(
            [evaluation.step for evaluation in trained],
            [interval.mean for interval in intervals],
            yerr=errors,
            color=BLUE,
            marker="o",
            markersize=5,
            linewidth=1.6,
            elinewidth=1.3,
            capsize=3,
            label=f"{trained[-1].stage} {interval_text(intervals[-1])}",
        )
    metric = f" ({visible(evals[-1].metric)[:24]})" if evals[-1].metric else ""
    title = f"Held-out {word_for(evals)}{metric}"
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    legend = axes.legend(frameon=False, fontsize=8.5, ncols=4, columnspacing=1.4, **_BESIDE_TITLE)
    heading = axes.set_title(title, fontsize=10.5, loc="left", parse_math=False)
    taken = [text.get_window_extent() for text in (heading, legend)]
    if sum(box.width for box in taken) > (SIZE_INCHES[0] - _MARGINS_INCHES) * DPI:  # no room for both in a row
        pad = 6 + taken[1].height * 72 / DPI
        axes.set_title(title, fontsize=10.5, loc="left", parse_math=False, pad=pad)
