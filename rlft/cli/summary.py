"""What commands that train print at their end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli.curves import show_sets, show_verdict
from rlft.curves.passes import passes
from rlft.curves.reading import evals_of_result
from rlft.curves.text import interval_text, visible
from rlft.curves.verdict import verdict_of
from rlft.run.manifest import MANIFEST, root_hash
from rlft.run.records import Interval


def show_summary(run: Path, summary: Mapping[str, Any]) -> None:
    """Print a run that has ended: its numbers on held-out tasks, the verdict, and what was written."""
    table = Table(title=Text(visible(f"Held-out {summary['metric']}")), title_justify="left")
    stages = [("base model", "base"), ("after SFT", "sft"), ("after RL", "rl")]
    stages.append((f"after {summary.get('stage')}", "trained"))  # a preference run names its loss
    failed = {key: summary.get(f"failed_{key}") or 0 for _, key in stages}
    for heading in (
        "policy",
        str(summary.get("word", "accuracy")),
        "95 % interval",
        "tasks",
        *(["samples failed"] if any(failed.values()) else []),
    ):
        table.add_column(heading, justify="left" if heading == "policy" else "right")
    for label, key in stages:
        if accuracy := summary.get(f"accuracy_{key}"):
            row = (label, f"{accuracy['mean']:.3f}", _interval(accuracy), str(accuracy["n"]), str(failed[key]))
            table.add_row(*row[: len(table.columns)])
    console = Console()
    if table.row_count:
        console.print(table)
    if rewards := _rewards_table(summary, stages):
        console.print(rewards)
    verdict = verdict_of(run)
    show_sets(verdict.sets)
    for sentence in _passes(run):
        console.print(Text(sentence))
    for name, shadow in summary.get("shadow", {}).items():
        console.print(Text(visible(f"shadow {name} (not trained on): {shadow['sentence']}")))
    show_verdict(verdict)
    console.print("Written:")
    for name in ("report.html", "reward.png", "summary.json", summary["adapter"]):
        console.print(Text(visible(f"  {run / name}")))
    if root := root_hash(run):
        console.print(
            Text(visible(f"Root hash (sha256 of {run / MANIFEST}, which you may sign): {root}")), soft_wrap=True
        )


def _passes(run: Path) -> list[str]:
    """pass@k and pass^k of the last evaluation, where it has several samples of each task."""
    return [f"{e.label}: {each.sentence}" for e in evals_of_result(run)[-1:] for each in passes(e.by_task, e.same)]


def _rewards_table(summary: Mapping[str, Any], stages: Sequence[tuple[str, str]]) -> Table | None:
    """Every held-out reward and part under each policy; None where there is only the headline."""
    known = [(label, rewards) for label, key in stages if (rewards := summary.get(f"rewards_{key}"))]
    names = dict.fromkeys(name for _, rewards in known for name in rewards)
    if len(names) < 2:
        return None
    title = "All rewards and parts on held-out tasks, 95 % intervals"
    table = Table(title=title, title_justify="left", min_width=len(title))
    table.add_column("mean")
    for label, _ in known:
        table.add_column(label, justify="right")
    for name in names:
        means = (interval_text(Interval.from_dict(each[name])) if name in each else "" for _, each in known)
        table.add_row(Text(visible(name)), *means)
    return table


def show_reward_model(run: Path, summary: Mapping[str, Any]) -> None:
    """Print a trained reward model: its accuracy, and how to use it as a reward."""
    table = Table(title="Held-out pairs in the right order", title_justify="left")
    for heading in ("training", "accuracy", "95 % interval", "pairs"):
        table.add_column(heading, justify="left" if heading == "training" else "right")
    for label in ("before", "after"):
        accuracy = summary[f"accuracy_{label}"]
        table.add_row(label, f"{accuracy['mean']:.3f}", _interval(accuracy), str(summary["n"]))
    console = Console()
    console.print(table)
    folder = run / summary["reward_model"]
    console.print(Text(visible(f"Written:\n  {folder}\n  {run / 'summary.json'}")))
    console.print(Text(visible(f"As a reward, on the model of the run: path: adapter:{folder}")), soft_wrap=True)
    console.print(
        Text(visible(f"As a reward of its own: path: rewards.reward_model:reward_model, args: {{folder: {folder}}}")),
        soft_wrap=True,
    )


def _interval(accuracy: dict[str, Any]) -> str:
    return "" if accuracy["low"] is None else f"{accuracy['low']:.3f} to {accuracy['high']:.3f}"
