"""What a person sees while a run trains: a live panel in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Literal, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from rlft.curves.first_screen import add_rows, clock, drawn, numbers, shadow_rows, unscored
from rlft.curves.terminal_plot import sparkline
from rlft.curves.text import visible
from rlft.run.records import Evaluation
from rlft.types import Metrics


def training_console() -> Console:
    """Where a training shows itself: a live panel on the terminal that stderr is, or lines.

    Where stdout is no terminal, as in a pipe, it gets lines without any control sequence.
    """
    return Console(stderr=True) if sys.stdout.isatty() else Console(force_terminal=False, color_system=None)


LINE_EVERY = 60.0
"""Seconds after which a stage that lasts gets another line where there is no panel."""


class View:
    """Shows stages, steps and the reward's course. Everything that a model or user wrote goes through `Text`."""

    def __init__(
        self,
        title: str,
        *,
        steps: int,
        unit: Literal["step", "update"] = "step",
        console: Console | None = None,
        shadows: Sequence[str] = (),
    ) -> None:
        """Make the view of a run.

        Args:
            title: name of the run.
            steps: how many there are in all; may be set later.
            unit: what a step is.
            console: `training_console()` for a training; stderr if not given, as stdout may be for programs.
            shadows: names of the shadow rewards.
        """
        self._console = console or Console(stderr=True)
        self._title = title
        self.steps = steps
        self._unit = unit
        self._between = "rollouts" if unit == "step" else "training"
        self._course: list[float] = []
        self._durations: deque[float] = deque(maxlen=20)
        self._metrics: Metrics = {}
        self._evaluation: Evaluation | None = None
        self._alarms: Sequence[str] = ()
        self._shadows = list(shadows)
        self._first: dict[str, Metrics] = {}
        """By shadow: the numbers of the first step that has it."""
        self._step = 0
        self._begin("starting")
        self._stage = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
        )
        self._bar = self._stage.add_task("starting", total=None)
        self._live = Live(self, console=self._console, refresh_per_second=4, transient=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._console.is_terminal:
            self._stage.update(self._bar, visible=False)
            self._live.transient = not self._step  # its frame would be empty
            self._live.stop()

    def __rich__(self) -> Panel:
        """The panel."""
        table = Table.grid(padding=(0, 2))
        add_rows(
            table,
            self._metrics,
            evaluation=self._evaluation,
            alarms=self._alarms,
            missing=unscored([self._metrics]),
            shadows=self._shadow_lines(),
            course=sparkline(self._course),
        )
        if self._step:
            table.add_row(Text("left", style="dim"), Text(clock(self._seconds_left())))
        heading = f"{visible(self._title)}  {self._unit} {self._step}/{self.steps}"
        return Panel(Group(table, self._stage), title=Text(heading), title_align="left")

    def stage(self, name: str, total: int | None = None) -> None:
        """Begin a stage of the run."""
        self._stage.reset(self._bar, total=total, description=visible(name))
        self._begin(name)
        if not self._console.is_terminal:
            self._print(visible(f"{name} ..."))

    def progress(self, done: int, total: int) -> None:
        """How far the stage is."""
        self._stage.update(self._bar, completed=done, total=total)
        self._say_how_far(done, total)

    def rollout(self, done: int, total: int) -> None:
        """How far the step's rollouts are."""
        self._stage.update(self._bar, completed=done, total=total, description="rollouts")
        if self._doing != (doing := f"rollouts of {self._unit} {self._step + 1}"):
            self._begin(doing, done)
        self._say_how_far(done, total)

    def step(self, step: int, metrics: Metrics) -> None:
        """A step is done."""
        self._step, self._metrics = step, metrics
        self._durations.append(metrics["time/step"])
        for name in self._shadows:
            if f"reward/part/{name}" in metrics and "reward/mean" in metrics:
                self._first.setdefault(name, {**metrics, "step": float(step)})
        if name := drawn(metrics):
            self._course.append(metrics[name])
        self._stage.reset(self._bar, description=self._between, total=None)
        if not self._console.is_terminal:
            shown = "  ".join(f"{label} {told}" for label, told in numbers(metrics))
            shown += "".join(f"  shadow {name} {text}" for name, text in self._shadow_lines())
            line = visible(f"{self._unit} {step}/{self.steps}  {shown}  left {clock(self._seconds_left())}")
            self._print(" ".join(line.splitlines()))

    def evaluated(self, evaluation: Evaluation, told: str) -> None:
        """An evaluation was made: the panel shows the last one that decides, and `told` stays as a line."""
        if not evaluation.set_name:
            self._evaluation = evaluation
        self.note(told)

    def alarms(self, lines: Sequence[str]) -> None:
        """The alarms that are raised now, one line each."""
        self._alarms = lines

    def note(self, text: str) -> None:
        """A line that stays."""
        self._print(visible(text))

    def _begin(self, doing: str, done: int = 0) -> None:
        """Something begins now, or is seen for the first time when so much of it is done."""
        self._doing, self._done_before = doing, done
        self._began = self._last_line = time.monotonic()

    def _say_how_far(self, done: int, total: int) -> None:
        """Print how far something is that has been silent for long, where no panel shows it."""
        now, since = time.monotonic(), done - self._done_before
        if self._console.is_terminal or not since or done == total or now - self._last_line < LINE_EVERY:
            return
        self._last_line = now
        left = clock((now - self._began) / since * (total - done))
        self._print(visible(f"{self._doing} {done}/{total}  left {left}"))

    def _print(self, text: str) -> None:
        """Print lines that a file gets as they are, however long."""
        self._console.print(Text(text), soft_wrap=not self._console.is_terminal)

    def _shadow_lines(self) -> list[tuple[str, str]]:
        """What is told of each shadow; each has a first step of its own."""
        last = {**self._metrics, "step": float(self._step)}
        rows = {name: [*([self._first[name]] if name in self._first else []), last] for name in self._shadows}
        return [line for name in self._shadows for line in shadow_rows(rows[name], [name])]

    def _seconds_left(self) -> float:
        return (self.steps - self._step) * sum(self._durations) / max(1, len(self._durations))
