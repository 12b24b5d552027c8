"""`rlft runs`: the runs of a folder and what each is doing, or the jobs of a cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli.listing import print_runs, print_whole
from rlft.cli.submit import Address, follow
from rlft.curves.text import visible

if TYPE_CHECKING:
    from rlft.common.jobs import Job


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(runs)


def runs(
    folder: Annotated[Path, typer.Argument(help="Folder whose runs are listed.")] = Path("runs"),
    address: Address = "",
    to_follow: Annotated[str, typer.Option("--follow", metavar="JOB", help="Print what a job prints.")] = "",
    to_stop: Annotated[str, typer.Option("--stop", metavar="JOB", help="Ask a job to save what it has and end.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the list as JSON.")] = False,
) -> None:
    """List the runs of a folder: which go on, how far they are, why they stopped. With --address: jobs of a cluster."""
    if (to_follow or to_stop) and not address:
        raise ValueError("--follow and --stop are for jobs of a cluster; which one? --address http://HOST:8265")
    if not address:
        print_runs(folder, as_json=as_json)
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
