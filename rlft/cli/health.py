"""`rlft health`: the alarms of a run, with an exit code for scripts."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli.arguments import RunFolder
from rlft.cli.cannot_tell import refusals
from rlft.curves.text import counted, number, visible

if TYPE_CHECKING:
    from rlft.curves.alarms import Alarm, Health  # needs numpy, which `rlft --help` does not

_STYLES = {"critical": "bold red", "warning": "yellow"}


def health(
    run: RunFolder,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Say what goes wrong in a run, ended or not: since which step, by which numbers and samples, and what to do.

    Exit code: 0 healthy, 1 an alarm, 2 cannot tell (too few steps, or a run that cannot be read).
    """
    from rlft.curves.alarms.watch import alarms_of
    from rlft.curves.reading import rolled_back_to

    with refusals(as_json=as_json, run=str(run)):
        found, back = alarms_of(run), rolled_back_to(run)
    if as_json:
        print(json.dumps({"run": str(run), **found.as_dict()}, indent=1))
    else:
        _show(Console(), found, back)
    raise typer.Exit(found.exit_code)


def _show(console: Console, found: Health, back: int | None) -> None:
    if found.alarms:
        console.print(_table(found))
        for alarm in found.alarms:
            _explain(console, alarm)
    console.print(Text(_sentence(found)), soft_wrap=True)
    later = [alarm.name for alarm in found.alarms if back is not None and alarm.onset > back]
    if later:
        text = f"The run's result is the adapter of step {back}, before the onset of {', '.join(later)}."
        console.print(Text(text), soft_wrap=True)
    for note in found.notes:
        console.print(Text(visible(f"note: {note}"), style="yellow"), soft_wrap=True)
    for each in found.unable:
        console.print(Text(visible(f"  cannot tell {each.name}: {each.reason}"), style="dim"), soft_wrap=True)


def _sentence(found: Health) -> str:
    if found.state == "cant_tell" and found.steps >= 20:
        return "cannot tell: no alarm, but files that a shadow reward is read from are damaged and may hide one"
    if found.state == "cant_tell":
        few = f"{counted(found.steps, 'step')} {'is' if found.steps == 1 else 'are'}"
        return f"cannot tell: {few} too few to call a run healthy, 20 are needed"
    looked = counted(found.steps, "step")
    if found.state == "healthy":
        return f"healthy: no alarm in {looked}"
    count = len(found.alarms)
    return f"{count} alarm{'s' if count > 1 else ''} in {looked}"


def _table(found: Health) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("alarm", "severity", "since step", "evidence"):
        table.add_column(heading, justify="right" if heading == "since step" else "left", no_wrap=heading == "alarm")
    for alarm in found.alarms:
        style = _STYLES[alarm.severity]
        table.add_row(
            Text(alarm.name), Text(alarm.severity, style=style), str(alarm.onset), Text(visible(alarm.evidence))
        )
    return table


def _explain(console: Console, alarm: Alarm) -> None:
    console.print()
    console.print(Text(f"{alarm.name}: ", style=_STYLES[alarm.severity]).append(alarm.meaning, style="default"))
    console.print(Text(f"  do: {alarm.advice}"))
    for sample in alarm.samples:
        reward = f"reward {number(sample.reward)}" if math.isfinite(sample.reward) else "not scored"
        text = " ".join(sample.excerpt.split())
        console.print(Text(visible(f"  {sample.id}  {reward}, {sample.tokens} tokens: {text}"), style="dim"))
    console.print()
