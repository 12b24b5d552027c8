"""`rlft gate`: whether a candidate may replace a baseline, for a script to act on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from rlft.cli.cannot_tell import refusals
from rlft.cli.compare import AsJson, ById, Metric
from rlft.common.files import write_file
from rlft.curves.text import visible


def gate(
    baseline: Annotated[str, typer.Argument(help="Run directory, or a quoted glob of seeds.", show_default=False)],
    candidate: Annotated[str, typer.Argument(help="The same, of what is to replace it.", show_default=False)],
    min_effect: Annotated[float, typer.Option(help="Smallest loss that matters.", show_default=False)],
    metric: Metric = "",
    by_id: ById = False,
    junit: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the decision as JUnit XML.")] = None,
    as_json: AsJson = False,
) -> None:
    """Exit with 0 if the candidate did not lose --min-effect or more, 1 if it got worse, 2 if that cannot be told.

    What cannot be read exits with 2 as well. Error rates: docs/compare.md.
    """
    from rlft.curves.compare import compare
    from rlft.curves.gate import doubts_of
    from rlft.curves.gate import gate as decide
    from rlft.curves.gate import junit as as_junit
    from rlft.curves.scored_run import read_groups

    def refused(error: str) -> None:
        if junit is not None and junit.parent.is_dir():
            name = f"{Path(candidate).name} against {Path(baseline).name}"
            write_file(junit, as_junit("cant_tell", error, [], name=name))

    with refusals(as_json=as_json, also=refused):
        before, after, remarks = read_groups([baseline, candidate], metric, by_id=by_id)
        compared = compare(before, after, min_effect=min_effect, remarks=remarks)
        result = decide(compared, min_effect, doubts_of(after))
        if junit is not None:
            write_file(junit, result.junit())
    if as_json:
        print(json.dumps(result.as_dict(), indent=1))
    else:
        style = {"pass": "bold green", "regression": "bold red"}.get(result.decision, "bold yellow")
        Console().print(Text(visible(result.sentence), style=style), soft_wrap=True)
        for remark in result.comparison.remarks:
            Console().print(Text(visible(f"note: {remark}")), soft_wrap=True)
    raise typer.Exit(result.exit_code)
