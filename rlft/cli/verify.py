"""`rlft verify`: the tables of a verification."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli.arguments import RunFolder
from rlft.cli.cannot_tell import refusals
from rlft.curves.text import visible


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(verify)


def verify(
    run: RunFolder,
    share: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="Share of the samples that are generated and scored again.")
    ] = 0.05,
    seed: Annotated[
        int | None, typer.Option(min=0, help="Chooses them; a fresh one when left out, so that nobody knows it before.")
    ] = None,
    root: Annotated[str, typer.Option(metavar="SHA256", help="Root hash of the manifest, as somebody signed it.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print all that was found as JSON.")] = False,
) -> None:
    """Check a run that somebody made: hashes, arithmetic, and a random share of scores and samples made again.

    Exit code 0: all agrees; 1: something differs; 2: something could not be checked.
    """
    console = Console()
    with refusals(as_json=as_json, run=str(run)):
        found = _verified(run, share, secrets.randbelow(2**32) if seed is None else seed, root.strip().lower())
    if as_json:
        print(json.dumps(found.as_dict(), indent=1, allow_nan=False))
    else:
        show(console, found)
    raise typer.Exit(found.exit_code)


def _verified(run: Path, share: float, seed: int, root: str) -> Any:
    from rlft.cli.run_config import load_run
    from rlft.curves.reading import read_config

    if (kind := str(read_config(run).get("kind", "rl"))) not in ("rl", "sft"):
        raise ValueError(
            f"{run} is a run of kind {kind}, which has no rollouts to check; give one of `rlft train` or `rlft sft`"
        )
    if root and (len(root) != 64 or set(root) - set("0123456789abcdef")):
        raise ValueError(
            f"--root {root!r} is no sha256: write the 64 digits that `sha256sum {run}/manifest.json` prints"
        )
    if kind == "sft":
        from rlft.run.directory import read_config as read_settings
        from rlft.train.supervised.config import SupervisedConfig
        from rlft.train.supervised.verify import verify as check_supervised

        return check_supervised(run, read_settings(run, SupervisedConfig), root=root)
    config = load_run(run, [])
    from rlft.train.rl.verify.verify import verify as check

    return check(run, config, share=share, seed=seed, root=root, workers=config.scoring.workers)


def show(console: Console, found: Any) -> None:
    """Print a verification."""
    table = Table(title=Text(visible(f"{found.run}: share {found.share:g}, seed {found.seed}")), title_justify="left")
    for heading in ("what", "checked", "agree", "differ", "not checked"):
        table.add_column(heading, justify="left" if heading in ("what",) else "right")
    for check in found.checks:
        agree = check.checked - check.different
        differ = Text(str(check.different), style="red" if check.different else "")
        unchecked = str(sum(check.unchecked.values()) or ("" if not check.unchecked else "all"))
        table.add_row(Text(check.what), f"{check.checked} {check.unit}", str(agree), differ, unchecked)
    console.print(table)
    for check in found.checks:
        for difference in check.differences:
            console.print(Text(visible(f"differs: {difference}"), style="red"), soft_wrap=True)
        if (more := check.different - len(check.differences)) > 0:
            console.print(Text(f"         and {more} more of these {check.unit}", style="red"))
    for check in found.checks:
        for reason, count in check.unchecked.items():
            counted = f"{count} " if count else ""
            console.print(Text(visible(f"not checked, {check.what}: {counted}{reason}")), soft_wrap=True)
        for remark in check.remarks:
            console.print(Text(visible(f"note, {check.what}: {remark}")), soft_wrap=True)
    if found.odds:
        console.print(_odds_table(found))
    for note in found.notes:
        console.print(Text(visible(note)), soft_wrap=True)
    style = {"agrees": "green", "differs": "red", "could not check": "yellow"}[found.verdict]
    console.print(Text(_sentence(found), style=style), soft_wrap=True)


def _sentence(found: Any) -> str:
    if found.verdict == "agrees":
        how = "to the bit" if found.is_exact else "within bounds"
        signed = ", and its records are those that were signed" if found.is_signed else ""
        return f"AGREES: what was checked is what the run says, {how}{signed}."
    if found.verdict == "differs":
        return f"DIFFERS: {sum(check.different for check in found.checks)} things are not what the run says."
    missing = ", ".join(check.what for check in found.checks if check.is_missing)
    return f"COULD NOT CHECK: {missing}. Nothing of what was checked differs."


def _odds_table(found: Any) -> Table:
    title = "Probability that one change, anywhere in the run, would have been found"
    table = Table(title=title, title_justify="left")
    signed = ["signed root"] if found.is_signed else []
    for heading in ("change", "changed alone", "with all that follows changed to fit", *signed):
        table.add_column(heading, justify="left" if heading == "change" else "right")
    for odds in found.odds:
        table.add_row(Text(odds.change), _percent(odds.alone), _percent(odds.fitted), *(["100 %"] if signed else []))
    return table


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.3g} %"
