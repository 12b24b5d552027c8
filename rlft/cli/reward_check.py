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
from rlft.reward.cases import SUFFIX, Case, read_cases
from rlft.reward.check import HANGS_S, MADE_UP, MOST_TASKS, Checked
from rlft.reward.findings import ALL, Finding, Report
from rlft.reward.probe import make_task
from rlft.reward.source import source_file
from rlft.types import RewardSpec, Task

_COLOURS = {"error": "red", "warning": "yellow", "info": "dim"}
_OWN = {"prompt", "messages", "completion", "answer", "id"}
"""Columns that are no columns of a task, since rewards get something else by these names."""
_ROWS = 200
"""Rows of a file that are looked at."""
OF_MODELS = {"base_url", "model", "api_key_env", "deadline_s", "folder", "label", "device", "threads"}
"""Arguments that say which judge or model is asked, and not what is right."""


def asked(
    target: str, *, args: Sequence[str], data: str, cases: Path | None, deadline_s: float | None, within_s: float
) -> Checked:
    """What is to be checked.

    Args:
        target: a reward, or a config file.
        data: a file of rows, an environment, or a config file whose environment is meant; empty for a config's own.

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
    known = read_cases(cases) if cases else _cases_beside(specs)
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
        answer_names=_answer_names(tasks),
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


def cases_file(specs: Sequence[RewardSpec]) -> Path | None:
    """Where the cases of the only reward with a weight lie, or would.

    They are for weight 1 and no arguments but `OF_MODELS`.
    """
    weighted = [spec for spec in specs if spec.weight]
    if len(weighted) != 1 or weighted[0].weight != 1 or weighted[0].args.keys() - OF_MODELS:
        return None
    return _beside(weighted[0])


def left_out(specs: Sequence[RewardSpec]) -> str:
    """A sentence about cases that lie beside the only reward and are not for its arguments; empty where none do."""
    file = _beside(specs[0]) if len(specs) == 1 and not cases_file(specs) else None
    if file is None or not file.is_file():
        return ""
    return f"{file} was left out: its cases are for no arguments; --cases {file} takes them all the same"


def _beside(spec: RewardSpec) -> Path | None:
    """Where the cases of a reward lie, or would; None where its own file is not known."""
    file, name = source_file(spec.path), spec.path.rpartition(":")[2]
    if file is None:
        return None
    places = (file.with_name(f"{name}{SUFFIX}"), file.with_suffix(SUFFIX))
    return next((path for path in places if path.is_file()), places[0])


def _cases_beside(specs: Sequence[RewardSpec]) -> list[Case]:
    file = cases_file(specs)
    return read_cases(file) if file and file.is_file() else []


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
    return _Given(tasks=tasks, demonstrations=demonstrated(environment))


def demonstrated(environment: Environment) -> list[tuple[Task, str]]:
    """Tasks with the replies that demonstrations give to them; a demonstration of no task is passed over."""
    by_prompt = {_key(task.messages): task for task in environment.train}
    found: list[tuple[Task, str]] = []
    for messages in environment.demonstrations:
        if len(found) == MOST_TASKS:
            break
        if task := by_prompt.get(_key(messages[:-1])):
            found.append((task, messages[-1]["content"]))
    return found


def _key(messages: Sequence[Any]) -> str:
    return json.dumps([dict(message) for message in messages], sort_keys=True)


def _answer_names(tasks: Sequence[Task]) -> list[str]:
    """Names by which a reward may take the answer: `answer`, and columns that hold it in all tasks."""
    answered = [task for task in tasks if task.answer is not None]
    columns = answered[0].columns if answered else {}
    return ["answer", *(name for name in columns if all(t.columns.get(name) == t.answer for t in answered))]


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
    different = {json.dumps([_key(t.messages), t.answer, dict(t.columns)], default=str): t for t in tasks}
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
