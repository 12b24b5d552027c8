"""`rlft sft`: supervised fine-tuning on a table, or only the warm start of an RL config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli.arguments import ConfigFile, Overrides, Restart
from rlft.cli.curves import show_sets, show_verdict
from rlft.curves.text import visible
from rlft.curves.verdict import verdict_of
from rlft.run.manifest import MANIFEST, root_hash
from rlft.run.records import Interval


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(sft)


def sft(config: ConfigFile, overrides: Overrides = None, restart: Restart = False) -> None:
    """Fine-tune on rows of text or chat (`data`) and measure held-out ones; of an RL config run only the SFT stage.

    Of an RL config, the adapter of the warm start is written in PEFT's layout.
    """
    from rlft import config_file
    from rlft.cli.run_config import load, load_kind
    from rlft.train.supervised.config import SupervisedConfig

    if "environment" in config_file.keys(config):
        of_rl = load(config, overrides)
        from rlft.train.rl import launch as launch_rl

        folder = launch_rl.sft(of_rl, restart=restart)
        Console().print(Text(visible(f"SFT adapter: {folder}")))
        return
    loaded = load_kind(config, overrides, SupervisedConfig)
    from rlft.train.supervised import launch

    show(loaded.run_dir, launch.train(loaded, restart=restart))


def show(run: Path, summary: Mapping[str, Any]) -> None:
    """Print a supervised run that has ended: held-out loss and accuracy before and after, verdict, what was written."""
    console = Console()
    table = Table(title="Held-out rows, nats per learnt token", title_justify="left")
    for heading in ("policy", "loss", "95 % interval", "perplexity", "rows"):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for label, key in (("base model", "base"), (f"after SFT, update {summary['result_step']}", "trained")):
        if measured := summary[f"accuracy_{key}"]:
            known = Interval.from_dict(measured)
            bounds = f"{0 - known.high:.3f} to {0 - known.low:.3f}" if known.bounded else "cannot be told"
            numbers = (f"{summary[f'loss_{key}']:.3f}", bounds, f"{summary[f'perplexity_{key}']:.2f}", str(known.n))
            table.add_row(label, *numbers)
    if table.row_count:
        console.print(table)
    else:
        console.print("Nothing was held out (data.heldout), so nothing was measured.")
    left_out = [
        f"{summary[f'{what}_rows']} {why}"
        for what, why in (("dropped", "too long"), ("duplicate", "the same as an earlier one"))
        if summary[f"{what}_rows"]
    ]
    if left_out:
        console.print(Text(f"Rows left out: {', '.join(left_out)}."))
    verdict = verdict_of(run)
    show_sets(verdict.sets)
    show_verdict(verdict)
    console.print("Written:")
    for name in ("report.html", "reward.png", "summary.json", summary["adapter"]):
        console.print(Text(visible(f"  {run / name}")))
    start = f"adapter: {{start: {run / summary['adapter']}}}"
    console.print(Text(visible(f"To go on from it, by RL or otherwise: {start}")), soft_wrap=True)
    if root := root_hash(run):
        console.print(
            Text(visible(f"Root hash (sha256 of {run / MANIFEST}, which you may sign): {root}")), soft_wrap=True
        )
