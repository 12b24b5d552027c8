"""`rlft submit`: a run on a cluster that is already there, from the files of this folder."""

from __future__ import annotations

import os
import re
import secrets
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from rlft.cli.arguments import ConfigFile, Overrides
from rlft.common.interrupts import Interrupted
from rlft.curves.text import visible

if TYPE_CHECKING:
    from rlft.common.jobs import Jobs
    from rlft.config import BaseRunConfig

_FILE = re.compile(r"(?:^|:)([^:]+\.py):")
"""The file in `file.py:function`, which may stand behind the prefix of another system."""

Address = Annotated[
    str,
    typer.Option(
        metavar="URL",
        envvar="RAY_API_SERVER_ADDRESS",
        help="Job server of the cluster's head, such as http://127.0.0.1:8265.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(submit)


def submit(
    config: ConfigFile,
    overrides: Overrides = None,
    address: Address = "",
    output_dir: Annotated[
        str, typer.Option(metavar="FOLDER", help="Where the run goes on the cluster's side, absolute or below ~.")
    ] = "~/runs",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run of that name there.")] = False,
    with_rlft: Annotated[
        bool, typer.Option("--with-rlft", help="Send this rlft, too, instead of using the cluster's.")
    ] = False,
    requirements: Annotated[
        Path | None, typer.Option("--pip", metavar="FILE", help="Requirements that pip installs there.")
    ] = None,
    env: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Variable of this environment that the run gets, too.")
    ] = None,
    cpus: Annotated[float, typer.Option(min=0, help="CPUs to reserve for the driver, which learns.")] = 0,
    gpus: Annotated[float, typer.Option(min=0, help="GPUs to reserve for the driver, which learns.")] = 0,
    detach: Annotated[bool, typer.Option("--detach", help="Do not follow what it prints.")] = False,
) -> None:
    """Run a config on a Ray cluster, with the files of this folder, and follow what it prints.

    What git ignores stays here. Ctrl-C only stops following: the run goes on, and `rlft runs` finds it again.
    """
    from rlft.cli.run_config import load_any
    from rlft.common.jobs import Jobs
    from rlft.common.travelling import copy_files, travelling

    if not address:
        raise ValueError("which cluster? --address http://HOST:8265, or the variable RAY_API_SERVER_ADDRESS")
    if not output_dir.startswith(("/", "~/")):
        raise ValueError(
            f"--output-dir {output_dir}: the copy of this folder is deleted after the run; write ~/FOLDER or /FOLDER"
        )
    loaded = load_any(config, overrides)
    here = Path.cwd()
    files = travelling(here)
    _check_there(config, loaded, here, files)
    variables = _variables(env or ())
    jobs = Jobs(address)
    console = Console(stderr=True)
    if not jobs.is_protected:
        told = f"sent without a token: if {jobs.address} takes it, it takes code from everybody who reaches it"
        console.print(Text(visible(told), style="yellow"), soft_wrap=True)
    run = f"{output_dir.rstrip('/')}/{loaded.name}"
    name = f"{loaded.name}-{secrets.token_hex(3)}"
    with tempfile.TemporaryDirectory(prefix="rlft-") as copy:
        copy_files(here, files, Path(copy))
        jobs.submit(
            _command(config, loaded, overrides or (), output_dir, here, resume=resume),
            name=name,
            run=run,
            folder=Path(copy),
            modules=_own_packages() if with_rlft else (),
            packages=_requirements(requirements) if requirements else (),
            variables=variables,
            cpus=cpus,
            gpus=gpus,
        )
    console.print(Text(visible(f"job {name}, {len(files)} files; its run directory there: {run}")), soft_wrap=True)
    if detach:
        console.print(Text(visible(_how(jobs, name))), soft_wrap=True)
        return
    follow(jobs, name)


def follow(jobs: Jobs, name: str) -> None:
    """Print what a job prints until it has ended. Exit code 1 if it failed or was stopped; Ctrl-C leaves it running."""

    def write(text: str) -> None:
        print(visible(text), end="", flush=True)

    try:
        job = jobs.find(name)
        job = jobs.follow(name, write)
    except Interrupted:
        print(visible(f"\ndetached, and the job goes on. {_how(jobs, name)}"), file=sys.stderr)
        raise
    told = f"job {name} {job.state}" + (f": {job.message}" if job.state == "failed" else "")
    Console(stderr=True).print(Text(visible(told)), soft_wrap=True)
    if job.state != "succeeded":
        raise typer.Exit(1)


def _how(jobs: Jobs, name: str) -> str:
    head = f"rlft runs --address {jobs.address}"
    return f"Follow it: {head} --follow {name}; stop it: {head} --stop {name}"


def _command(
    config: Path, loaded: BaseRunConfig, overrides: Sequence[str], output_dir: str, here: Path, *, resume: bool
) -> str:
    """The shell's command line on the cluster, in the copy of this folder."""
    place = shlex.quote(output_dir)
    if output_dir.startswith("~/"):
        place = f'"$HOME"/{shlex.quote(output_dir[2:])}'
    if resume:
        # The run lies where its name and folder say, and cannot be another one.
        changes = [each for each in overrides if each.partition("=")[0] not in ("name", "output_dir")]
        return " ".join([f"python -m rlft resume {place}/{shlex.quote(loaded.name)}", *map(shlex.quote, changes)])
    command = str(getattr(loaded, "kind", "train"))
    words = [command, config.resolve().relative_to(here).as_posix(), *overrides]
    in_processes = getattr(loaded, "backend", "") == "ray" or getattr(getattr(loaded, "learner", None), "processes", 0)
    if hasattr(loaded, "ray_address") and not loaded.ray_address and in_processes:
        words.append("ray_address=auto")
    return f"python -m rlft {shlex.join(words)} output_dir={place}"


def _check_there(config: Path, loaded: BaseRunConfig, here: Path, files: Sequence[Path]) -> None:
    """Refuse a config that names files of its author's which do not travel."""
    from rlft import config_file

    texts = list(_texts(loaded.model_dump(mode="json", exclude={"name", "output_dir"})))
    functions = [Path(found[1]).expanduser() for text in texts if (found := _FILE.search(text))]
    others = [Path(text).expanduser() for text in texts if _is_path(text)]
    there = {*files, *(folder for file in files for folder in file.parents)}
    for file in [*config_file.files(config), *functions, *others]:
        whole = file.resolve()
        if not whole.is_relative_to(here):
            raise ValueError(f"{file} is not in {here}, which is what travels; run rlft submit in a folder around it")
        if whole.relative_to(here) not in there:
            raise ValueError(f"{file} would not travel: .gitignore or .rayignore names it")


def _texts(value: Any) -> Iterator[str]:
    """All texts of a config, wherever they stand in it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)


def _is_path(text: str) -> bool:
    """Whether a text of a config that looks like a path is one of this machine: data, a corpus, an adapter, a model."""
    if not ("/" in text or "." in text) or len(text) > 1000 or "\n" in text or "\0" in text:
        return False
    return Path(text).expanduser().exists()


def _variables(names: Sequence[str]) -> dict[str, str]:
    if missing := [name for name in names if name not in os.environ]:
        raise ValueError(f"--env {missing[0]}: there is no such variable in this environment")
    return {name: os.environ[name] for name in names}


def _requirements(file: Path) -> list[str]:
    lines = [line.partition(" #")[0].strip() for line in file.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def _own_packages() -> list[Path]:
    root = Path(__file__).parents[2]
    return [root / name for name in ("rlft", "rewards", "environments")]
