"""Reading runs to compare them: which folders are meant, what they scored on each task, and whether the tasks agree."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from glob import glob
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

from rlft.common.by_path import did_you_mean
from rlft.curves import reading
from rlft.curves.contents import EPISODE, contents_of, merged, repeated, told
from rlft.run.earlier_configs import modernise
from rlft.run.provenance import decides_nothing
from rlft.run.records import BEFORE_TRAINING, CONFIG, EVALS, SUMMARY, Evaluation

VERSUS = "vs"
"""Word between the two groups on the command line."""
_MOVED_ASIDE = re.compile(r"\.\d{8}-\d{6}(-\d+)?$")
_ONLY_JUDGE = ("evaluation.metric", "evaluation.min_effect", "evaluations")


@dataclass(frozen=True, slots=True, kw_only=True)
class ScoredRun:
    """One evaluation of a run, and the training behind it."""

    folder: Path
    """Run directory."""
    seed: int | None
    """`seed` of its config; None where it has none."""
    evaluation: str
    """Name of the evaluation, such as `step-000010`."""
    is_chosen: bool = False
    """Whether the evaluation was asked for, and is not just the last one."""
    metric: str
    """Reward or part that `values` are of."""
    values: Mapping[str, Sequence[float]]
    """Scored samples of each task, by task id, or by content once runs are paired; empty where none was scored."""
    word: str = "mean"
    """`accuracy` where all values are 0 or 1."""
    missing: int = 0
    """Samples that have no value because a reward failed."""
    parts: Mapping[str, Mapping[str, Sequence[float]]]
    """The same for every other reward and part, by name."""
    contents: Mapping[str, str]
    """Hash of prompt and answer by task id; empty where the samples are not stored."""
    prompts: Mapping[str, str]
    """The prompt's last message by task."""
    curve: Sequence[tuple[int, float]]
    """(step, mean train reward)."""
    config: Mapping[str, Any]
    """Settings that decide its numbers, by dotted key, without the seed."""

    @property
    def name(self) -> str:
        """Name of its folder, with the evaluation where that is not the last one."""
        return self.folder.name + (f"@{self.evaluation}" if self.is_chosen else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """Runs that differ by their seed only."""

    label: str
    """What to call them."""
    runs: Sequence[ScoredRun]
    """At least one."""


def read_groups(words: Sequence[str], metric: str = "", *, by_id: bool = False) -> tuple[Group, Group, list[str]]:
    """The two groups of runs that a command line names, paired by task, and remarks about them.

    Each word is a run directory, a glob, or either with `@base`, `@sft` or `@step-000010` behind it for another
    evaluation than the last one of training. Two words are two groups; more need a `vs` between the groups.

    Args:
        words: the command line.
        metric: reward or part to compare; empty is what the runs' configs name as headline.
        by_id: pair tasks by id although their prompts or answers differ.

    Raises:
        ValueError: a word matches no run, a run has nothing to compare, the runs of a group differ by more than their
            seed or are the same, or tasks differ under one id.
    """
    sides = [[run for word in side for run in _find(word, metric)] for side in _split(words)]
    for side in sides:
        check_seeds_only(side)
    _check_metric([run for side in sides for run in side])
    folders = [(run.folder.resolve(), run.evaluation) for side in sides for run in side]
    if twice := next((folder for folder in folders if folders.count(folder) > 1), None):
        raise ValueError(f"{twice[0]} is named twice; a run cannot be compared with itself")
    labels = [_label(side) for side in sides]
    if labels[0] == labels[1]:
        labels = [f"{label} ({side[0].folder.parent})" for label, side in zip(labels, sides, strict=True)]
    groups = [Group(label=label, runs=side) for label, side in zip(labels, sides, strict=True)]
    return paired_groups(groups[0], groups[1], by_id=by_id)


def read_run(folder: Path, evaluation: str = "", metric: str = "") -> ScoredRun:
    """One evaluation of a run; the last one of training unless `evaluation` names another.

    Raises ValueError if this is no run directory, it lacks the evaluation or the metric, or a file is damaged.
    """
    config = reading.read_config(folder)
    modernise(config)  # so that runs of two versions of rlft differ by what they did, not by keys that one did not know
    chosen = _choose(folder, reading.read_evals(folder), evaluation)
    columns = ("task_id", "messages", "prompt", "answer", "parts")
    table = reading.read_eval_samples(folder, chosen.name, columns, optional=(EPISODE,))
    contents, prompts, parts = _samples(folder, chosen, table)
    measured = {chosen.metric: chosen.by_task, **{name: v for name, v in parts.items() if name != chosen.metric}}
    wanted = metric or chosen.metric
    if wanted not in measured:
        names = sorted(measured)
        raise ValueError(
            f"{folder}: evaluation {chosen.name} has no {wanted!r}.{did_you_mean(wanted, names)} It has: "
            f"{', '.join(names)}"
        )
    values = {task: list(measured[wanted].get(task, ())) for task in chosen.by_task}
    failed = chosen.failed if wanted == chosen.metric else chosen.failed_parts.get(wanted.partition("/")[0], 0)
    flat = flattened(config)
    seed = flat.pop("seed", None)
    return ScoredRun(
        folder=folder,
        seed=seed if isinstance(seed, int) else None,
        evaluation=chosen.name,
        is_chosen=bool(evaluation),
        metric=wanted,
        values=values,
        word="accuracy" if all(v in (0, 1) for each in values.values() for v in each) else "mean",
        missing=failed,
        parts={name: each for name, each in measured.items() if name != wanted},
        contents=contents,
        prompts=prompts,
        curve=[
            (int(row["step"]), row["reward/mean"])
            for row in reading.read_metrics(folder)
            if math.isfinite(row.get("reward/mean", math.nan))
        ],
        config={key: value for key, value in flat.items() if not decides_nothing(key) or key in _ONLY_JUDGE},
    )


def paired_groups(before: Group, after: Group, *, by_id: bool = False) -> tuple[Group, Group, list[str]]:
    """The groups with their tasks named by content, so that the same task has the same name in all runs.

    Raises:
        ValueError: a task id stands for different prompts or answers in two runs and `by_id` is not set, or the runs
            have no task in common.
    """
    runs, remarks = [*before.runs, *after.runs], []
    stored = [run for run in runs if run.contents]
    differing = {id_ for a, b in combinations(stored, 2) for id_ in _conflicts(a, b)}
    if differing and not by_id:
        a, b = next((a, b) for a, b in combinations(stored, 2) if _conflicts(a, b))
        id_ = _conflicts(a, b)[0]
        what = "prompt or answer"
        raise ValueError(
            f"task {id_!r} has another {what} in {a.folder} than in {b.folder}, so their scores are not of the same "
            f"task ({len(_conflicts(a, b))} of {len(set(a.contents) & set(b.contents))} common ids differ). Evaluate "
            "both on the same held-out tasks; where prompts differ on purpose and the ids mean the same, add --by-id"
        )
    if differing:
        remarks.append(f"paired by id as asked: {len(differing)} tasks have another prompt or answer")
    if len(stored) < len(runs):
        bare = next(run for run in runs if not run.contents)
        remarks.append(f"{bare.folder} stores no evaluation samples, so tasks are paired by id and not by content")
    elif not differing:
        if count := max(repeated(run.values, run.contents) for run in runs):
            remarks.append(told(count))
        before, after = (replace(group, runs=[_by_content(run) for run in group.runs]) for group in (before, after))
    sides = [*before.runs, *after.runs]
    common = set(sides[0].values).intersection(*(run.values for run in sides[1:]))
    if not common:
        raise ValueError(
            f"{before.label} and {after.label} were evaluated on different tasks, none is in both; evaluate both on "
            "the same held-out tasks: the same environment, data and evaluation.tasks"
        )
    most = max(len(run.values) for run in sides)
    if len(common) < most:
        remarks.append(f"only the {len(common)} of {most} tasks that all runs were evaluated on are compared")
    return before, after, remarks


def find_runs(pattern: str) -> list[Path]:
    """The run directories that a path or a glob means; runs that `--restart` moved aside are none of a glob's.

    Raises ValueError if there is none.
    """
    if Path(pattern).exists() or not any(char in pattern for char in "*?["):
        folders = [Path(pattern)]
    else:
        folders = [Path(found) for found in sorted(glob(pattern), key=_natural) if _is_run(Path(found))]
    if not folders:
        raise ValueError(
            f"{pattern!r} matches no run directory here ({Path.cwd()}); a run directory is a folder with a {CONFIG}"
        )
    return folders


def first_evaluation(folder: Path) -> str:
    """Name of the evaluation that training started from: `sft`, else `base`; empty if there is neither."""
    names = {evaluation.name for evaluation in reading.read_evals(folder)}
    return next((name for name in reversed(BEFORE_TRAINING) if name in names), "")


def flattened(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key; lists are values."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        is_tree = isinstance(value, Mapping) and value
        flat |= flattened(value, f"{prefix}{key}.") if is_tree else {f"{prefix}{key}": value}
    return flat


def config_changes(before: ScoredRun, after: ScoredRun) -> list[tuple[str, Any, Any]]:
    """(key, value before, value after) of the settings that differ and decide numbers."""
    keys = [key for key in dict.fromkeys([*before.config, *after.config]) if key not in _ONLY_JUDGE]
    return [(k, before.config.get(k), after.config.get(k)) for k in keys if before.config.get(k) != after.config.get(k)]


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    example = "rlft compare 'runs/base-*' vs 'runs/new-*'"
    if VERSUS not in words:
        if len(words) == 2:
            return [words[0]], [words[1]]
        given = " ".join(words[:6]) + (" ..." if len(words) > 6 else "")
        raise ValueError(
            f"{len(words)} names without `{VERSUS}`: which are compared with which? Write it between the two groups, "
            f"such as {example}; got: {given}"
        )
    at = list(words).index(VERSUS)
    sides = list(words[:at]), list(words[at + 1 :])
    if VERSUS in sides[1] or not all(sides):
        raise ValueError(f"`{VERSUS}` stands once, between two groups of runs, such as {example}")
    return sides


def _find(word: str, metric: str) -> list[ScoredRun]:
    pattern, _, evaluation = word.rpartition("@") if "@" in word and not Path(word).exists() else (word, "", "")
    return [read_run(folder, evaluation, metric) for folder in find_runs(pattern)]


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and not _MOVED_ASIDE.search(folder.name)


def _natural(text: str) -> list[Any]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _choose(folder: Path, evals: Sequence[Evaluation], name: str) -> Evaluation:
    there = ", ".join(e.name for e in evals) or "none"
    if name:
        if chosen := next((e for e in evals if e.name == name), None):
            return chosen
        raise ValueError(f"{folder} has no evaluation {name!r}; it has: {there}")
    if trained := [e for e in reading.evals_of_result(folder) if not e.is_before]:
        return trained[-1]
    if not evals and (folder / SUMMARY).is_file():
        raise ValueError(
            f"{folder} has ended without an evaluation in {EVALS}/, as runs of heads and reward models do; what it "
            f"measured is in {folder / SUMMARY}"
        )
    raise ValueError(
        f"{folder} has no evaluation after training in {EVALS}/ (there is: {there}): finish it with `rlft resume "
        f"{folder}`, or leave it out{f', or name another one: {folder}@{evals[-1].name}' if evals else ''}"
    )


def _samples(
    folder: Path, evaluation: Evaluation, table: Any
) -> tuple[dict[str, str], dict[str, str], dict[str, dict[str, list[float]]]]:
    """Contents and prompts by task id, and values by name and task id; all empty without stored samples."""
    try:
        contents = contents_of(table)
    except ValueError as error:
        raise ValueError(f"{folder / EVALS / evaluation.name}.parquet: {error}") from None
    prompts: dict[str, str] = {}
    parts: dict[str, dict[str, list[float]]] = {}
    for row in table.to_pylist() if table is not None else ():
        task = row["task_id"]
        prompts[task] = row["prompt"] or ""
        for name, value in json.loads(row["parts"] or "{}").items():
            if isinstance(value, int | float):
                parts.setdefault(name, {}).setdefault(task, []).append(float(value))
    return contents, prompts, parts


def _by_content(run: ScoredRun) -> ScoredRun:
    return replace(
        run,
        values=merged(run.values, run.contents),
        parts={name: merged(values, run.contents) for name, values in run.parts.items()},
        prompts={run.contents.get(task, task): prompt for task, prompt in run.prompts.items()},
    )


def _conflicts(a: ScoredRun, b: ScoredRun) -> list[str]:
    return [task for task, content in a.contents.items() if b.contents.get(task, content) != content]


def check_seeds_only(side: Sequence[ScoredRun]) -> None:
    """Raise ValueError if runs of one group differ by more than their seed, or two have the same one."""
    for first, other in pairwise(side):
        if changes := config_changes(first, other):
            key, one, two = changes[0]
            more = f", and {len(changes) - 1} more settings" if len(changes) > 1 else ""
            raise ValueError(
                f"{first.folder} and {other.folder} are in one group, but differ by more than their seed: {key} is "
                f"{one!r} in the first and {two!r} in the second{more}. A group holds runs of one config; compare "
                "others with `vs` between them"
            )
    for a, b in combinations(side, 2):
        if a.seed is not None and a.seed == b.seed:
            raise ValueError(
                f"{a.folder} and {b.folder} both have seed {a.seed}: they are the same run twice and count once. Leave "
                "one of them out, or train with another seed=N"
            )


def _check_metric(runs: Sequence[ScoredRun]) -> None:
    if other := next((run for run in runs if run.metric != runs[0].metric), None):
        raise ValueError(
            f"{runs[0].folder} is judged by {runs[0].metric} and {other.folder} by {other.metric}; say which both are "
            "compared by: --metric NAME"
        )


def _label(side: Sequence[ScoredRun]) -> str:
    names = [run.name for run in side]
    if len(names) == 1:
        return names[0]
    same = next((i for i, chars in enumerate(zip(*names, strict=False)) if len(set(chars)) > 1), min(map(len, names)))
    return re.sub(r"[-_.@]?(s|seed)?[-_.=]?\d*$", "", names[0][:same]) or f"{names[0]} ... {names[-1]}"
