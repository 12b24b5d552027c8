"""`rlft bisect`: what is asked, and the table of what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli.arguments import Overrides, RunFolder
from rlft.cli.cannot_tell import CANNOT_TELL, refusals
from rlft.curves.text import interval_text, visible


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(bisect)


def bisect(
    run: RunFolder,
    overrides: Overrides = None,
    metric: Annotated[
        str,
        typer.Option(help="A reward or NAME/PART, or reward, length, truncated or entropy.", show_default=False),
    ] = "",
    above: Annotated[float | None, typer.Option(help="Where its mean crosses this bound.", show_default=False)] = None,
    below: Annotated[float | None, typer.Option(help="The same, downwards.", show_default=False)] = None,
    by: Annotated[
        float | None, typer.Option(min=0.0, help="Where it has moved by so much since the start.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print all that was measured as JSON.")] = False,
) -> None:
    """Find the step at which a behaviour changed: stored adapters are measured on held-out tasks, by binary search.

    Without a bound: where it had moved half of the way from the first to the last. Exit code 2: no step can be named.
    """
    with refusals(as_json=as_json, run=str(run)):
        found = _found(run, overrides, metric, {"above": above, "below": below, "by": by})
    if as_json:
        print(json.dumps(found.as_dict(), indent=1, allow_nan=False))
    else:
        show(Console(), found)
    if found.after is None:
        raise typer.Exit(CANNOT_TELL)


def _found(run: Path, overrides: list[str] | None, metric: str, bounds: Mapping[str, float | None]) -> Any:
    from rlft.cli.run_config import load_run
    from rlft.curves.reading import read_config
    from rlft.train.rl.bisect.metrics import metric_name, stored_parts

    if (kind := str(read_config(run).get("kind", "rl"))) != "rl":
        raise ValueError(f"{run} is a run of kind {kind}, whose policies answer no tasks; give one of `rlft train`")
    asked = [(name, bound) for name, bound in bounds.items() if bound is not None]
    if len(asked) > 1:
        raise ValueError(f"--{asked[0][0]} and --{asked[1][0]} ask for two things; give one of them")
    config = load_run(run, overrides)
    metric = metric or config.evaluation.metric or config.rewards[0].label
    metric_name([reward.label for reward in config.rewards], stored_parts(run), metric)
    from rlft.train.rl.bisect.bisect import bisect as find  # takes seconds, which a misspelt metric should not cost
    from rlft.train.rl.bisect.search import Question

    name, bound = asked[0] if asked else ("halfway", 0.0)
    return find(run, config, metric, Question(kind=name, bound=bound))  # type: ignore[arg-type]


def show(console: Console, found: Any) -> None:
    """Print a search."""
    title = f"{found.metric} on held-out tasks: {found.question.words}?"
    table = Table(title=Text(visible(title)), title_justify="left", min_width=len(title))
    for heading in ("step", "mean, 95 %", "beyond what is asked", "side", "values"):
        table.add_column(heading, justify="right" if heading == "step" else "left")
    colors = {"before": "", "after": "cyan", "unclear": "yellow"}
    for each in found.measurements:
        side = Text(each.side, style=colors[each.side])
        table.add_row(str(each.step), interval_text(each.mean), interval_text(each.margin, "+"), side, each.source)
    console.print(table)
    console.print(Text(visible(found.sentence), style="yellow" if found.after is None else "green"), soft_wrap=True)
    console.print(Text("All of these sides together are right in at least 95 % of such searches."), soft_wrap=True)
