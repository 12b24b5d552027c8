"""`rlft runs`: the runs of a folder and what each is doing, or the jobs of a cluster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli.listing import print_whole
from rlft.cli.submit import Address, follow
from rlft.curves.text import interval_text, visible
from rlft.run.records import CONFIG, Evaluation

if TYPE_CHECKING:
    from rlft.common.jobs import Job

_DEPTH = 3
"""Folders below the one that is named in which runs are looked for: those of a sweep lie in a folder of theirs."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(runs)


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder whose runs are listed.")] = Path("runs"),
    address: Address = "",
    to_follow: Annotated[str, typer.Option("--follow", metavar="JOB", help="Print what a job prints.")] = "",
    to_stop: Annotated[str, typer.Option("--stop", metavar="JOB", help="Ask a job to save what it has and end.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """List the runs of a folder with their state and newest result, or with --address the jobs of a cluster."""
    if (to_follow or to_stop) and not address:
        raise ValueError("--follow and --stop are for jobs of a cluster; which one? --address http://HOST:8265")
    if not address:
        _list_runs(folder, as_json=as_json)
        return
    from rlft.common.jobs import Jobs

    jobs = Jobs(address)
    if to_stop:
        was_running = jobs.stop(to_stop)
        print(visible(f"job {to_stop} is asked to stop" if was_running else f"job {to_stop} did not run any more"))
    if to_follow:
        follow(jobs, to_follow)
    elif not to_stop:
        _list_jobs(jobs.all(), as_json=as_json)


def _list_runs(folder: Path, *, as_json: bool) -> None:
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; name the one that has the runs, or a cluster with --address")
    rows = [_row(run, folder) for run in _runs_in(folder, _DEPTH)]
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    if not rows:
        print(visible(f"no runs in {folder}"))
        return
    table = Table(box=None, padding=(0, 2))
    for heading in ("run", "kind", "step", "held-out", "state"):
        table.add_column(heading, justify="right" if heading == "step" else "left")
    for row in rows:
        step = f"{row['step']} of {row['steps']}" if row["steps"] else str(row["step"])
        cells = (row["run"], row["kind"], step, row["held_out"], row["state"])
        table.add_row(*(Text(visible(str(cell))) for cell in cells))
    print_whole(table)


def _runs_in(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / CONFIG).is_file():
        yield folder
    elif depth:
        for each in sorted(folder.iterdir()):
            if each.is_dir() and not each.name.startswith("."):
                yield from _runs_in(each, depth - 1)


def _row(run: Path, folder: Path) -> dict[str, Any]:
    """A run in words; of one with a damaged file what is wrong with it."""
    from rlft.curves.reading import read_config, read_evals, read_metrics
    from rlft.curves.state import read_state

    name = run.relative_to(folder).as_posix() if run != folder else run.name
    row: dict[str, Any] = {"run": name, "kind": "", "step": 0, "steps": None, "held_out": "", "state": ""}
    try:
        config = read_config(run)
        evals, metrics = read_evals(run), read_metrics(run, [])
        row["kind"] = str(config.get("kind", "rl"))
        row["steps"] = config.get("steps")
        row["step"] = int(metrics[-1]["step"]) if metrics else 0
        row["held_out"] = _result(evals[-1]) if evals else ""
        row["state"] = read_state(run).sentence
    except (ValueError, OSError) as error:
        row["state"] = f"not readable: {error}"
    return row


def _result(newest: Evaluation) -> str:
    return f"{newest.metric} {interval_text(newest.accuracy)} ({newest.name})"


def _list_jobs(found: list[Job], *, as_json: bool) -> None:
    if as_json:
        rows = [
            {"job": job.name, "state": job.state, "started": _time(job), "run": job.run, "command": job.command}
            for job in found
        ]
        print(json.dumps(rows, indent=1))
        return
    if not found:
        print("no jobs")
        return
    table = Table(box=None, padding=(0, 2))
    for heading in ("job", "state", "started", "run directory there", "command"):
        table.add_column(heading)
    for job in found:
        table.add_row(*(Text(visible(cell)) for cell in (job.name, job.state, _time(job) or "", job.run, job.command)))
    print_whole(table)
    for job in found:
        if job.state == "failed":
            Console().print(Text(visible(f"{job.name}: {job.message}")), soft_wrap=True)


def _time(job: Job) -> str | None:
    return job.started.isoformat(timespec="seconds") if job.started else None
