"""What a config can name, and tables that keep the names whole."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.curves.first_screen import held_out
from rlft.curves.text import visible


def what_there_is() -> dict[str, dict[str, str]]:
    """Of each kind of thing that a config can name: a line for each name."""
    from rlft.common import by_path
    from rlft.environment.systems import SYSTEMS
    from rlft.objectives.presets import PRESETS
    from rlft.reward.systems import SYSTEMS as REWARD_SYSTEMS
    from rlft.rollout.engines.traits import ENGINES

    return {
        "rewards": {
            **by_path.available("rewards"),
            **{found.syntax: f"of {system}; docs/systems.md" for system, found in REWARD_SYSTEMS.items()},
        },
        "environments": {
            **by_path.available("environments"),
            **{found.syntax: f"of {system}; docs/systems.md" for system, found in SYSTEMS.items()},
        },
        "presets": {name: preset_line(algorithm) for name, algorithm in PRESETS.items()},
        "engines": {name: traits.summary for name, traits in ENGINES.items()},
    }


def print_runs(folder: Path, *, as_json: bool = False) -> None:
    """Print the runs that lie in a folder, those of sweeps in it too: what each is doing, how far it is, its last
    evaluation.

    Args:
        as_json: as JSON instead of a table.

    Raises:
        ValueError: there is no run.
    """
    from rlft.curves.reading import evals_of_result, read_config, read_metrics
    from rlft.curves.state import read_state
    from rlft.run import damage
    from rlft.run.records import CONFIG

    direct = {path.parent for path in folder.glob(f"*/{CONFIG}")}
    runs = sorted(direct | {path.parent for path in folder.glob(f"*/*/{CONFIG}") if path.parent.parent not in direct})
    if not runs:
        raise ValueError(f"{folder} holds no run; name the folder that they lie in: rlft runs FOLDER")
    table = Table(box=None, padding=(0, 2))
    for heading in ("run", "state", "step", "last evaluation", "times"):
        table.add_column(heading, no_wrap=heading == "run")
    found: list[dict[str, Any]] = []
    for run in runs:
        with damage.left_out() as damaged:
            state, evals, rows = read_state(run), evals_of_result(run), read_metrics(run, [])
            planned = _planned(run, damaged, read_config)
        done = int(rows[-1]["step"]) if rows else 0
        last = evals[-1] if evals else None
        found.append(
            {
                "run": str(run),
                **state.as_dict(),
                "step": done,
                "steps": planned or None,
                "evaluation": last and {"name": last.name, "metric": last.metric, **last.accuracy.as_dict()},
                "damaged": damaged,
            }
        )
        told = [state.sentence, *([f"{len(damaged)} damaged"] if damaged else [])]
        cells = (
            run.relative_to(folder).as_posix(),
            ", ".join(told),
            f"{done}/{planned}" if planned else str(done),
            held_out(last) if last else "",
            state.times,
        )
        table.add_row(*(Text(visible(cell)) for cell in cells))
    if as_json:
        print(json.dumps(found, indent=1, allow_nan=False))
    else:
        print_whole(table)


def _planned(run: Path, damaged: list[str], read: Callable[[Path], Mapping[str, Any]]) -> int:
    try:
        return int(read(run).get("steps") or 0)
    except ValueError as error:  # of another run than the one that somebody looks for, perhaps
        damaged.append(str(error))
        return 0


def print_names(title: str, lines: Mapping[str, str]) -> None:
    """Print names with a line about each."""
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, line in lines.items():
        table.add_row(Text(visible(name), style="bold"), Text(visible(line)))
    print_whole(table)


def print_whole(table: Table) -> None:
    """Print a table: nothing in it is shortened, and outside of a terminal it is as wide as it needs to be."""
    console = Console()
    needed = console.measure(table, options=console.options.update(max_width=10**5))
    # In a terminal the columns of names, which do not wrap, get what they need even where others then get too little.
    console.width = max(console.width, needed.minimum) if console.is_terminal else needed.maximum
    console.print(table, crop=False)


def preset_line(algorithm: Any) -> str:
    """The choices of a preset that every row makes, then those that differ from the defaults and have an effect."""
    from rlft.objectives.algorithm import PolicyObjective
    from rlft.objectives.contradictions import unused_choices

    is_policy = isinstance(algorithm, PolicyObjective)
    always, unused = (set(), unused_choices(algorithm)) if is_policy else ({"loss", "beta"}, {})
    shown = [
        field.name
        for field in fields(algorithm)
        if field.name != "preset"
        and field.name not in unused
        and (field.default is MISSING or field.name in always or getattr(algorithm, field.name) != field.default)
    ]
    return ", ".join(f"{name}={getattr(algorithm, name)}" for name in shown)
