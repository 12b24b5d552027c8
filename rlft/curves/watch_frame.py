"""What `rlft watch` shows of a run: one frame, from what was read of it."""

from __future__ import annotations

import math
from collections import deque
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rlft.curves import terminal_plot
from rlft.curves.first_screen import add_rows, clock, drawn, shadow_rows, unscored
from rlft.curves.follow import Followed
from rlft.curves.reading import reward_specs
from rlft.curves.shadow import shadow_names
from rlft.curves.text import interval_text, shortened, visible
from rlft.types import Metrics

if TYPE_CHECKING:
    from rlft.curves.verdict import Verdict

_LATEST = 20
"""Steps whose mean time says how long the rest takes."""
_WIDEST, _HEIGHT = 100, 8
_MOST = 400
"""Characters of a sample's prompt and of its completion."""
_VERDICTS = {"ship": "green", "dont": "red", "cant_tell": "yellow"}
_COLORS = {"running": "green", "ended": "green", "stopped": "yellow", "killed": "red", "unknown": "yellow"}


class Frame:
    """A frame, as wide as the terminal. Everything that a model or user wrote goes through `Text`."""

    def __init__(self, followed: Followed) -> None:
        """A frame of what was read by the last look."""
        self._run = followed

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The frame's panel."""
        run = self._run
        if run.state is None:
            yield Text(visible(f"{run.run}: no run yet; waiting for its config.yaml"))
            return
        steps = int(run.config.get("steps") or 0)
        done = int(run.rows[-1]["step"]) if run.rows else 0
        heading = Text(visible(str(run.config.get("name") or run.run.name)), style="bold")
        heading.append(f"  step {done}{f'/{steps}' if steps else ''}  ", style="not bold")
        heading.append(visible(run.state.sentence), style=_COLORS[run.state.kind])
        told: list[RenderableType] = [self._numbers(steps, done)]
        if curve := self._curve(steps or done, min(_WIDEST, options.max_width - 14)):
            told += [Text(), curve]
        told += [Text(), self._sample()] if run.sample else []
        told += [Text(visible(note), style="yellow") for note in run.notes]
        yield Panel(Group(*told), title=heading, title_align="left")

    def _numbers(self, steps: int, done: int) -> RenderableType:
        run = self._run
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        metrics: Metrics = {name: value for name, value in run.rows[-1].items() if name != "step"} if run.rows else {}
        if run.verdict is not None:
            table.add_row(Text("verdict", style="dim"), self._verdict(run.verdict))
        add_rows(
            table,
            metrics,
            evaluation=run.evals[-1] if run.evals else None,
            alarms=run.alarms,
            missing=unscored(run.rows),
            shadows=shadow_rows(run.rows, shadow_names(reward_specs(run.config))),
        )
        latest = deque((row["time/step"] for row in run.rows[-_LATEST:] if "time/step" in row), _LATEST)
        assert run.state is not None
        if run.state.times:
            left = f"; about {clock((steps - done) * math.fsum(latest) / len(latest))} left" if latest else ""
            is_going = run.state.kind in ("running", "unknown") and steps > done
            table.add_row(Text("time", style="dim"), Text(run.state.times + (left if is_going else "")))
        if run.events:
            event = run.events[-1]
            first = event.message.partition("\n")[0]
            told = visible(shortened(f"{event.kind}: {first}", _MOST))
            table.add_row(Text("last event", style="dim"), Text(told))
        if not run.rows:
            table.add_row(Text("no step yet", style="dim"), Text())
        return table

    def _verdict(self, found: Verdict) -> Text:
        told = Text(found.word, style=f"bold {_VERDICTS[found.kind]}")
        if (effect := found.effect) is None:
            return told.append(visible(f"  {found.sentence}"), style="not bold default")
        change = f"{interval_text(effect.change.interval, '+')} ({100 * effect.change.level:g} %)"
        between = f"from {effect.before.label} to {effect.after.label}"
        wanted = f"at least {effect.min_effect:g} is wanted"
        return told.append(visible(f"  {change} {between}; {wanted}"), style="not bold default")

    def _curve(self, steps: int, width: int) -> RenderableType | None:
        run = self._run
        name = next((found for row in reversed(run.rows) if (found := drawn(row))), "")
        line = [(row["step"], row[name]) for row in run.rows if name in row]
        is_same = name == "reward/mean"  # a margin or a loss is another quantity than what is evaluated
        marks = [(float(e.step), e.accuracy.mean) for e in run.evals if not e.is_before] if is_same else []
        before = [e.accuracy.mean for e in run.evals if e.is_before] if is_same else []
        if not line or width < 10:
            return None
        bounds = terminal_plot.axis([value for _, value in (*line, *marks)] + before)
        drawing = terminal_plot.plot(line, marks, steps=steps, bounds=bounds, width=width, height=_HEIGHT)
        told = f"{name}, each step" + (f"; {terminal_plot.MARK} held out" if marks else "")
        return Group(Text(told, style="dim"), *(Text(each, no_wrap=True) for each in drawing))

    def _sample(self) -> RenderableType:
        sample = self._run.sample
        assert sample is not None
        scored = sample["reward"] is not None
        result = f"reward {sample['reward']:.3f}" if scored else str(sample["failure_kind"] or sample["outcome"])
        heading = f"sample of step {sample['step']}, {sample['task_id']}: {result}"
        lines = [Text(visible(heading), style="dim")]
        for style, name in (("dim", "prompt"), ("", "completion")):
            lines.append(Text(visible(shortened(sample[name] or "", _MOST)), style=style))
        return Group(*lines)
