"""What `rlft reward check` looks at: a reward or a config, with tasks and cases; and printing what it found."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from rlft.cli.blocks import show_block
from rlft.cli.reward_try import rewards
from rlft.common.rows import FORMATS, read_rows
from rlft.config import EnvironmentConfig
from rlft.curves.text import counted, visible
from rlft.environment import loading
from rlft.environment.contract import Environment
from rlft.reward.cases import SUFFIX, Case, read_cases
from rlft.reward.check import HANGS_S, MADE_UP, MOST_TASKS, Checked
from rlft.reward.findings import ALL, Report
from rlft.reward.probe import make_task
from rlft.reward.source import source_file
from rlft.types import RewardSpec, Task

_COLOURS = {"error": "red", "warning": "yellow", "info": "dim"}
_ROWS = 200
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
        ValueError: something of it does not exist or cannot be read.
    """
    config = None
    if target.endswith((".yaml", ".yml")):
        from rlft.config_file import load

        config = load(Path(target), [])
    specs = rewards("" if config else target, args, config)
    tasks, demonstrations = _tasks(data, config.environment if config else None)
    known = read_cases(cases) if cases else _cases_beside(specs)
    if known and not tasks:
        tasks = spread([case.task for case in known])
    return Checked(
        specs=specs,
        tasks=tasks or MADE_UP,
        demonstrations=demonstrations,
        cases=known,
        deadline_s=deadline_s or (config.scoring.deadline_s if config else 10.0),
        hangs_s=deadline_s or HANGS_S,
        environment=config.scoring.environment if config else (),
        within_s=within_s,
        cases_file=str(cases or ""),
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


def _tasks(data: str, own: EnvironmentConfig | None) -> tuple[list[Task], list[tuple[Task, str]]]:
    if data.endswith(FORMATS):
        return _rows(data), []
    if data.endswith((".yaml", ".yml")):
        from rlft.config_file import load

        own = load(Path(data), []).environment
    elif data:
        own = EnvironmentConfig(path=data if ":" in data else f"environments.{data}:load")
    return _of_environment(loading.load(own)) if own else ([], [])


def _of_environment(environment: Environment) -> tuple[list[Task], list[tuple[Task, str]]]:
    every = max(1, len(environment.train) // MOST_TASKS)
    tasks = list(environment.train[::every][:MOST_TASKS])
    return tasks, demonstrated(environment)


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


def _rows(file: str) -> list[Task]:
    """Tasks of a file with `prompt` (text or messages) and `answer`; the other columns keep their names."""
    rows = []
    for number, (where, row) in enumerate(read_rows(file, name="--data"), start=1):
        if number > _ROWS:
            break
        rows.append(_task(where, row))
    every = max(1, len(rows) // MOST_TASKS)
    return rows[::every][:MOST_TASKS]


def spread(tasks: Sequence[Task]) -> list[Task]:
    """Tasks that differ, first those with an answer."""
    different = {json.dumps([_key(t.messages), t.answer, dict(t.columns)], default=str): t for t in tasks}
    return sorted(different.values(), key=lambda task: task.answer is None)[:MOST_TASKS]


def _task(where: str, row: Mapping[str, Any]) -> Task:
    columns = {name: value for name, value in row.items() if name not in ("prompt", "answer", "id")}
    prompt = row.get("prompt", row.get("question"))
    if isinstance(prompt, str):
        return make_task(prompt, answer=row.get("answer"), columns=columns, id=where)
    if isinstance(prompt, list) and prompt and all(isinstance(m, Mapping) and "content" in m for m in prompt):
        return Task(id=where, messages=tuple(dict(m) for m in prompt), answer=row.get("answer"), columns=columns)  # type: ignore[misc]
    raise ValueError(f"{where}: expected a column `prompt` with text or chat messages; there is {', '.join(row)}")
