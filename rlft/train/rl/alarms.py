"""Alarms while a run goes on: an event at the onset, a line in the live panel, and what `guards.alarms` asks for."""

from __future__ import annotations

import shlex

from rlft.curves.alarms.health import Alarm
from rlft.curves.alarms.watch import alarms_from, is_looked_at, lasting, with_not_finite
from rlft.curves.live_panel import View
from rlft.curves.reading import ALARM, ROLLED_BACK, read_events, read_metrics
from rlft.curves.shadow import shadow_names
from rlft.model.adapter import make_adapter, read_folder
from rlft.run.checkpoint import steps_kept
from rlft.run.directory import Run
from rlft.run.records import ADAPTERS, CHECKPOINTS, adapter_folder, numbered
from rlft.types import Adapter


class RollBackError(Exception):
    """An alarm ends the run with an adapter from before its onset as the result."""

    def __init__(self, alarm: Alarm, *, told: int, step: int) -> None:
        """Args: told: step at which the alarm was raised; step: that of the adapter."""
        super().__init__(f"step {told}: {alarm.line}; rolled back to the adapter of step {step}")
        self.alarm, self.told, self.step = alarm, told, step


class AlarmWatch:
    """Looks at a run's metrics every few steps."""

    def __init__(self, run: Run, view: View) -> None:
        """Go on with what the run directory holds."""
        self._run, self._view = run, view
        self._before: tuple[Alarm, ...] = ()
        """What the last look has found."""

    def look(self, step: int) -> None:
        """Tell what is wrong after this step, each alarm once in a run, and do what the config asks for.

        An alarm counts if the look before has found it, too: chance rarely lasts.

        Raises:
            RuntimeError: the run is to pause or to stop.
            RollBackError: it is to end with an adapter from before the onset.
        """
        run = self._run
        if not is_looked_at(step) and step != run.config.steps:
            return
        rows = [row for row in read_metrics(run.path) if row["step"] <= step]
        found = alarms_from(with_not_finite(rows, read_events(run.path)), shadows=shadow_names(run.config.rewards))
        told = {message.partition(" ")[0] for message in run.told(ALARM)}
        raised = lasting(found.alarms, {*told, *(alarm.name for alarm in self._before)})
        self._before = found.alarms
        self._view.alarms([alarm.line for alarm in raised])
        new = {alarm.name for alarm in raised} - told
        for alarm in raised:
            if alarm.name in new:
                run.event(ALARM, f"{alarm.line} (told after step {step})", step=alarm.onset)
                self._view.note(f"alarm after step {step}: {alarm.line}. {alarm.meaning} {alarm.advice}")
        if step < run.config.steps:  # nothing is left to be stopped after the last one
            for alarm in raised:
                self._act(alarm, step, is_new=alarm.name in new)

    def _act(self, alarm: Alarm, step: int, *, is_new: bool) -> None:
        action = self._run.config.guards.alarms.get(alarm.name)  # type: ignore[call-overload]
        resume = f"rlft resume {shlex.quote(str(self._run.path))}"
        if action == "pause" and is_new:
            raise RuntimeError(
                f"step {step}: paused, as guards.alarms asks for: {alarm.line}. {alarm.advice} "
                f"To go on as it is: {resume}"
            )
        if action in (None, "pause"):
            return
        healthy = healthy_step(self._run, alarm.onset)
        if action == "roll_back" and healthy is not None:
            raise RollBackError(alarm, told=step, step=healthy)
        raise RuntimeError(
            f"step {step}: stopped, as guards.alarms asks for: {alarm.line}. {way_back(self._run, healthy)} "
            f"To let it go on as it is: {resume} 'guards.alarms={{}}'"
        )


def healthy_step(run: Run, onset: int) -> int | None:
    """The last step before an onset whose adapter is kept; one whose checkpoint is kept, too, if there is any."""
    adapters = [step for step, _ in numbered(run.path / ADAPTERS) if step < onset]
    whole = [step for step in steps_kept(run.path / CHECKPOINTS) if step in adapters]
    return max(whole or adapters, default=None)


def way_back(run: Run, healthy: int | None) -> str:
    """How to go on from before an onset, in words."""
    if healthy is None:
        return "No adapter from before was saved."
    folder, config = run.path / adapter_folder(healthy), run.config
    calmer = f"learner.lr={config.learner.lr / 10:g}"
    told = f"The last healthy adapter is {folder}."
    if healthy in steps_kept(run.path / CHECKPOINTS):
        again = f"rlft resume {shlex.quote(str(run.path))} --fork NAME --step {healthy} {calmer}"
        return f"{told} To go on from there with its optimizer: {again}"
    return f"{told} Its optimizer is not kept; a new run starts from it with adapter.start={folder} {calmer}"


def rolled_back_adapter(run: Run, view: View, back: RollBackError) -> Adapter:
    """Enter what was rolled back into the run's events, and read the adapter that is its result."""
    message = f"{back}. {way_back(run, back.step)}"
    run.event(ROLLED_BACK, message, step=back.step)
    view.note(message)
    return make_adapter(back.step, read_folder(run.path / adapter_folder(back.step)))
