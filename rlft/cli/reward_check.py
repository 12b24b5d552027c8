"""What `rlft reward check` looks at: a reward or a config, with tasks and cases; and printing what it found."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from rlft.cli.blocks import show_block
from rlft.cli.reward_try import rewards
from rlft.common.rows import ANSWERS, FORMATS, PROMPTS, prompt_and_answer, read_rows, taken
from rlft.config import EnvironmentConfig
from rlft.curves.text import counted, visible
from rlft.environment import loading
from rlft.environment.contract import Environment
from rlft.reward.cases import cases_beside, read_cases
from rlft.reward.check import HANGS_S, MADE_UP, MOST_TASKS, Checked
from rlft.reward.findings import ALL, Finding, Report
from rlft.reward.good_replies import answer_names, demonstrated, messages_key
from rlft.reward.probe import make_task
from rlft.types import Task

_COLOURS = {"error": "red", "warning": "yellow", "info": "dim"}
_OWN = {"prompt", "messages", "completion", "answer", "id"}
"""Columns that are no columns of a task, since rewards get something else by these names."""
_ROWS = 200
"""Rows of a file that are looked at."""


def asked(
    target: str,
    *,
    args: Sequence[str],
    data: str,
    cases: Path | None,
    deadline_s: float | None,
    within_s: float,
    is_written: bool = False,
) -> Checked:
    """What is to be checked.

    Args:
        target: a reward, or a config file.
        data: a file of rows, an environment, or a config file whose environment is meant; empty for a config's own.
        is_written: whether the file of cases may be missing, since cases are to be written there.

    Raises:
        ValueError: something of it does not exist or cannot be read, or a time that is no number.
    """
    for seconds in (deadline_s or 1.0, within_s):
        if not math.isfinite(seconds):
            raise ValueError(f"{seconds} is no number of seconds; give one such as 5")
    config = None
    if target.endswith((".yaml", ".yml")):
        from rlft.config_file import load

        config = load(Path(target), [])
    specs = rewards("" if config else target, args, config)
    given = _tasks(data, config.environment if config else None)
    tasks = given.tasks
    if cases:
        known = [] if is_written and not cases.exists() else read_cases(cases)
    else:
        known = cases_beside(specs)
    if known and not tasks:
        tasks = spread([case.task for case in known])
    return Checked(
        specs=specs,
        tasks=tasks or MADE_UP,
        demonstrations=given.demonstrations,
        cases=known,
        deadline_s=deadline_s or (config.scoring.deadline_s if config else 10.0),
        hangs_s=deadline_s or HANGS_S,
        environment=config.scoring.environment if config else (),
        within_s=within_s,
        cases_file=str(cases or ""),
        answer_names=answer_names(tasks),
        remarks=given.remarks,
    )


def show(console: Console, title: str, report: Report, *, as_json: bool, note: str = "") -> None:
    """Print the findings, the worst first, and a note below them."""
    if as_json:
        console.print_json(json.dumps(report.as_dict()))
        return
    console.print(Text(visible(title), style="bold"), soft_wrap=True)
    console.print()
    is_one = len({finding.reward for finding in report.findings} - {ALL}) < 2
    for finding in report.findings:
        heading = f"{finding.severity}: {finding.check}"
        facts = {"seen": finding.detail, "example": finding.example, "do": finding.advice}
        show_block(
            console, heading, facts, style=_COLOURS[finding.severity], of="" if is_one else f"({finding.reward})"
        )
    counts = {kind: sum(finding.severity == kind for finding in report.findings) for kind in ("error", "warning")}
    told = ", ".join(counted(count, kind) for kind, count in counts.items())
    if report.cannot_tell:
        told = f"cannot tell: there was no time for most replies; {told}"
    console.print(Text(f"{told}; {counted(report.replies, 'reply', 'replies')} in {report.seconds:.1f} s"))
    if note:
        console.print(Text(visible(f"note: {note}"), style="yellow"), soft_wrap=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Given:
    """Where the tasks come from."""

    tasks: list[Task]
    demonstrations: list[tuple[Task, str]]
    remarks: Sequence[Finding] = ()


def _tasks(data: str, own: EnvironmentConfig | None) -> _Given:
    if data.endswith(FORMATS):
        return _rows(data)
    if data.endswith((".yaml", ".yml")):
        from rlft.config_file import load

        own = load(Path(data), []).environment
    elif data:
        own = EnvironmentConfig(path=data if ":" in data else f"environments.{data}:load")
    return _of_environment(loading.load(own)) if own else _Given(tasks=[], demonstrations=[])


def _of_environment(environment: Environment) -> _Given:
    every = max(1, len(environment.train) // MOST_TASKS)
    tasks = list(environment.train[::every][:MOST_TASKS])
    return _Given(tasks=tasks, demonstrations=demonstrated(environment.train, environment.demonstrations, MOST_TASKS))


def read_columns(file: str) -> tuple[list[tuple[str, Mapping[str, Any]]], str, str]:
    """The first rows of a file, each with its place, and the columns that ask and that answer.

    Returns:
        The answer's column is empty where there is none.

    Raises:
        ValueError: the file cannot be read, has no rows, or no column that looks like a prompt.
    """
    read = list(islice(read_rows(file, name="--data"), _ROWS))
    if not read:
        raise ValueError(f"{file} has no rows")
    names = {str(name) for _, row in read for name in row}
    asked, replied = prompt_and_answer(names)
    if not asked:
        raise ValueError(
            f"{file}: no column looks like a prompt among {', '.join(sorted(names))}; rewards are tried on one of "
            f"{', '.join(PROMPTS)}"
        )
    return read, asked, replied


def _rows(file: str) -> _Given:
    """Tasks of a file: the columns are taken as `rlft data check` takes them, and keep their names beside."""
    read, asked, replied = read_columns(file)
    rows = [_task(where, row, asked, replied) for where, row in read]
    every = max(1, len(rows) // MOST_TASKS)
    remarks = [Finding(check="data", severity="info", reward=ALL, detail=taken(asked, replied))]
    if all(task.answer is None for task in rows):
        detail = f"no row of {file} has an answer, so that no right reply is known"
        advice = f"name a column {' or '.join(ANSWERS[:2])}, or add cases with good replies (FILE.cases.jsonl, --cases)"
        remarks.append(Finding(check="data", severity="warning", reward=ALL, detail=detail, advice=advice))
    return _Given(
        tasks=rows[::every][:MOST_TASKS],
        demonstrations=[],
        remarks=remarks,
    )


def spread(tasks: Sequence[Task]) -> list[Task]:
    """Tasks that differ, first those with an answer."""
    different = {json.dumps([messages_key(t.messages), t.answer, dict(t.columns)], default=str): t for t in tasks}
    return sorted(different.values(), key=lambda task: task.answer is None)[:MOST_TASKS]


def _task(where: str, row: Mapping[str, Any], asked: str, replied: str) -> Task:
    columns = {name: value for name, value in row.items() if name not in _OWN}
    prompt, answer = row.get(asked), row.get(replied) if replied else None
    if (
        isinstance(prompt, list)
        and prompt
        and isinstance(prompt[-1], Mapping)
        and prompt[-1].get("role") == "assistant"
    ):
        prompt = prompt[:-1]
    if isinstance(prompt, str):
        return make_task(prompt, answer=answer, columns=columns, id=where)
    if isinstance(prompt, list) and prompt and all(isinstance(m, Mapping) and "content" in m for m in prompt):
        return Task(id=where, messages=tuple(dict(m) for m in prompt), answer=answer, columns=columns)  # type: ignore[misc]
    raise ValueError(
        f"{where}: column {asked!r}: expected text or chat messages, found {type(prompt).__name__}; there is "
        f"{', '.join(row)}"
    )
