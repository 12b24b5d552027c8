"""`rlft head`: new layers on a pretrained trunk, measured beside a bag of words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rlft.cli.arguments import ConfigFile, Overrides, Restart
from rlft.curves.text import interval_text, visible
from rlft.run.records import SUMMARY, Interval

_NAMES = {
    "accuracy": "accuracy",
    "label_accuracy": "labels right",
    "all_labels_right": "all labels right",
    "f1_micro": "micro F1",
    "f1_macro": "macro F1",
    "brier": "Brier score",
    "ece": "calibration error",
    "squared_error": "squared error",
    "absolute_error": "absolute error",
    "r2": "R²",
    "spearman": "Spearman",
}
_MOST_LABELS = 30
_COLORS = {"better": "green", "worse": "red", "cannot_tell": "yellow"}


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("head")(head)


def head(config: ConfigFile, overrides: Overrides = None, restart: Restart = False) -> None:
    """Train new layers on a frozen or adapted model: classify, give several labels or a number, beside a bag of words.

    The features of a frozen model are computed once for each text and kept, so that further runs take seconds.
    """
    from rlft.cli.run_config import load_kind
    from rlft.train.head.config import HeadConfig

    loaded = load_kind(config, overrides, HeadConfig)
    from rlft.train.head import launch  # takes seconds, which a misspelt key should not cost

    show_head(loaded.run_dir, launch.train(loaded, restart=restart))


def report(run: Path, *, as_json: bool) -> None:
    """What `rlft report` says of a head: it has no curve of rewards, so its tables are printed again.

    Raises:
        ValueError: the run has not ended.
    """
    if not (run / SUMMARY).is_file():
        raise ValueError(f"{run} is a run of `rlft head` that has not ended; start it over with --restart")
    summary = json.loads((run / SUMMARY).read_text(encoding="utf-8"))
    if as_json:
        print(json.dumps({"run": str(run), **summary}, indent=1))
        return
    Console().print(Text(visible(f"{run} is a run of `rlft head`, which has no curve of rewards; its result:")))
    show_head(run, summary)


def show_head(run: Path, summary: Mapping[str, Any]) -> None:
    """Print a trained head: every measure beside those of the baselines, the verdict, and how to use it."""
    console, texts = Console(), summary["texts"]
    is_regression = summary["task"] == "regression"
    title = f"{texts['heldout']} held-out texts, 95 % intervals"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1))
    guess = {"classification": "most frequent", "multilabel": "frequencies"}.get(summary["task"], "mean")
    for heading in ("", guess, "bag of words", "head"):
        table.add_column(heading, justify="right" if heading else "left")
    predictors = summary["predictors"]
    for name in (name for name in predictors["bag_of_words"] if name in _NAMES):
        intervals = (predictors[key][name] for key in ("majority", "bag_of_words", "head"))
        table.add_row(_NAMES[name], *(interval_text(Interval.from_dict(each)) for each in intervals))
    console.print(table)
    console.print(
        f"Trained on {texts['train']} texts for {summary['epochs']} passes; {texts['validation']} validation texts "
        f"chose pass {summary['best_epoch']}. The bag of words was trained on the same texts."
    )
    if summary["per_label"]:
        console.print(_labels(summary["per_label"]))
    if not is_regression:
        console.print(_reliability(summary))
    console.print(Text(visible(summary["sentence"]), style=_COLORS[summary["verdict"]]), soft_wrap=True)
    if features := summary["features"]:
        counts = f"{features['computed']} texts computed, {features['kept']} from earlier runs"
        console.print(f"Features of the frozen trunk: {counts}.")
    folder = run / summary["head"]
    console.print(Text(visible(f"Written:\n  {folder}\n  {run / 'summary.json'}")), soft_wrap=True)
    chosen = f", label: {summary['labels'][-1]}" if summary["labels"] else ""
    says = f"As a reward: path: rewards.classifier:classifier, args: {{folder: {folder}{chosen}}}"
    console.print(Text(visible(says)), soft_wrap=True)


def _labels(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Labels", title_justify="left")
    for heading in ("label", "texts", "precision", "recall", "F1"):
        table.add_column(heading, justify="left" if heading == "label" else "right")
    for row in sorted(rows, key=lambda row: -row["texts"])[:_MOST_LABELS]:
        shares = ("-" if row[key] is None else f"{row[key]:.2f}" for key in ("precision", "recall"))
        f1 = interval_text(Interval.from_dict(row["f1"]))
        table.add_row(Text(visible(row["label"])), str(row["texts"]), *shares, f1)
    if len(rows) > _MOST_LABELS:
        table.caption = f"the {_MOST_LABELS} most frequent of {len(rows)}; all of them are in summary.json"
    return table


def _reliability(summary: Mapping[str, Any]) -> Table:
    """How often the head was right, by how sure it was."""
    head = summary["predictors"]["head"]
    plain = Interval.from_dict(head["ece_at_temperature_1"])
    title = (
        f"How sure the head was, and how often right (temperature {summary['temperature']:.2f}; "
        f"without it the calibration error is {interval_text(plain)})"
    )
    table = Table(title=title, title_justify="left", min_width=len(title))
    for heading in ("predicted", "right", "decisions"):
        table.add_column(heading, justify="right")
    for row in summary["reliability"]:
        table.add_row(f"{row['predicted']:.2f}", interval_text(Interval.from_dict(row)), str(row["n"]))
    return table
