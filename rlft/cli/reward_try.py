"""Scoring completions that a person gives, and showing what came of it: `rlft reward try`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from rlft.cli.key_values import as_in_a_config, as_in_a_row, key_values, nearly_json
from rlft.common import json_text
from rlft.common.by_path import did_you_mean
from rlft.common.rows import no_file, read_rows
from rlft.config import RunConfig
from rlft.curves.text import shortened, visible
from rlft.reward.behaviour import missing_returns, slow_judges
from rlft.reward.contract import Kind, prompt_text
from rlft.reward.probe import IMPORT_S, Answered, Probe, make_task
from rlft.reward.processes import SlowImportError
from rlft.reward.source import source_file
from rlft.reward.texts_or_messages import told, values_as_texts
from rlft.reward.transcript import Transcript, parted, read_turns, whole
from rlft.types import Abstain, Failed, Outcome, RewardSpec, Score, Task

_POLL_S = 0.3
_SHOWN = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """The options of the command."""

    target: str
    completions: tuple[str, ...]
    file: Path | None
    prompt: str
    answer: str | None
    columns: tuple[str, ...]
    args: tuple[str, ...]
    config: Path | None
    task: str
    deadline_s: float | None


def run(console: Console, asked: Asked, *, as_json: bool) -> bool:
    """Score the completions in fresh processes and show the outcomes.

    Returns:
        Whether all of them could be scored; one that a reward abstains from can.

    Raises:
        ValueError: the options do not fit together, or a reward cannot be loaded or called.
    """
    config = _config(asked)
    specs = rewards(asked.target, asked.args, config)
    samples = list(_samples(asked, config))
    if not samples:
        raise ValueError(f"{asked.file} has no completions: write one a line")
    deadline_s = asked.deadline_s or (config.scoring.deadline_s if config else 10.0)
    environment = config.scoring.environment if config else ()
    found: list[tuple[Task, str, Answered]] = []
    with _probe(specs, deadline_s, environment, most_killed=len(samples)) as probe:
        probe.printed()  # while it was imported
        compares = [label for label, plan in probe.plans.items() if plan.kind == "group"]
        asks = _asks(samples, together=bool(compares))
        if config and not as_json:
            _show_task(console, samples[0][0])
        for task, texts in asks:
            for text, answered in zip(texts, probe.score_together(task, texts), strict=True):
                found.append((task, text, answered))
                if not as_json:
                    show(console, specs, text, answered, of=len(texts))
        late = {name for *_, each in found for name, o in each.failed_parts.items() if o.kind == "timeout"}
        returning = [spec for spec in specs if spec.label not in late]
        remarks = [*missing_returns(returning), *slow_judges(specs, deadline_s)]
        notes = [f"reward {each.reward}: {each.detail}; {each.advice}" for each in remarks]
        notes += _notes(probe, asks, compares)
        notes += nearly_json(asked.columns)
        kinds = {label: plan.kind for label, plan in probe.plans.items()}
    for spec in specs:
        notes += _wants_texts(spec, kinds[spec.label], found, deadline_s, environment)
    if as_json:
        console.print_json(json.dumps([row(specs, *one) for one in found]))
    else:
        for note in notes:
            console.print(Text(visible(f"note: {note}"), style="yellow"), soft_wrap=True)
    return not any(isinstance(answered.outcome, Failed) or answered.failed_parts for _, _, answered in found)


def _probe(specs: Sequence[RewardSpec], deadline_s: float, environment: Sequence[str], *, most_killed: int) -> Probe:
    """Processes with the rewards; what their import takes too long for says how to give it more."""
    startup_s = max(IMPORT_S, deadline_s)
    try:
        return Probe(
            specs, deadline_s=deadline_s, environment=environment, most_killed=most_killed, startup_s=startup_s
        )
    except SlowImportError as error:
        raise ValueError(f"{error}. If it has to load much: --deadline-s {4 * startup_s:g}") from None


def _asks(samples: Sequence[tuple[Task, str]], *, together: bool) -> list[tuple[Task, list[str]]]:
    """The completions that are scored at once: each alone, or all of a task together where a reward compares them."""
    asks: list[tuple[Task, list[str]]] = []
    for task, text in samples:
        if together and asks and asks[-1][0] == task:
            asks[-1][1].append(text)
        else:
            asks.append((task, [text]))
    return asks


def _notes(probe: Probe, asks: Sequence[tuple[Task, Sequence[str]]], compares: Sequence[str]) -> list[str]:
    """What may be overlooked: an answer that was not given, a group of one."""
    notes = []
    takers = [label for label, plan in probe.plans.items() if "answer" in plan.required]
    if takers and any(task.answer is None for task, _ in asks):
        notes.append(f"{', '.join(takers)} takes `answer`, and the task has none: give it with --answer")
    if compares and any(len(texts) == 1 for _, texts in asks):
        notes.append(
            f"{', '.join(compares)} compares the samples of a task, and here is one alone: give several completions"
        )
    return notes


def _wants_texts(
    spec: RewardSpec,
    kind: Kind,
    found: Sequence[tuple[Task, str, Answered]],
    deadline_s: float,
    environment: Sequence[str],
) -> list[str]:
    """A note on a function that takes messages for texts, and so gives one value for everything."""
    given = {answered.outcome.parts.get(spec.label) for _, _, answered in found}
    if len(given) > 1 or None in given:
        return []
    asked = [(task, text) for task, text, _ in found]
    values = values_as_texts(spec, kind, asked, deadline_s=deadline_s, environment=environment)
    (value,) = given
    if value is None or all(each == value for each in values):
        return []
    detail, advice = told(spec, value, values)
    return [f"reward {spec.label}: {detail}; {advice}"]


def _show_task(console: Console, task: Task) -> None:
    """Print which task of a config it is."""
    said = shortened(" ".join(prompt_text(task).split()), _SHOWN)
    answer = "" if task.answer is None else f"  answer: {shortened(str(task.answer), _SHOWN)}"
    console.print(Text(visible(f"task {task.id}: {said}{answer}"), style="dim"), soft_wrap=True)


def watch(console: Console, asked: Asked, *, as_json: bool, sleep: Callable[[float], None] = time.sleep) -> None:
    """Score again whenever the file of a reward, the completions or the config changes, until Ctrl-C."""
    try:
        for files in changes(lambda: _files(asked), sleep):
            try:
                run(console, asked, as_json=as_json)
            except (ValueError, OSError) as error:  # half-saved files pass by
                console.print(Text(visible(f"error: {error}"), style="red"), soft_wrap=True)
            console.print(
                Text(visible(f"watching {', '.join(map(str, files))}; Ctrl-C ends"), style="dim"), soft_wrap=True
            )
    except KeyboardInterrupt:
        return


def changes(files: Callable[[], Sequence[Path]], sleep: Callable[[float], None]) -> Iterator[Sequence[Path]]:
    """The files, at once and whenever one of them has changed, come or gone."""
    seen: object = None
    while True:
        there = files()
        now = [(file, file.stat().st_mtime_ns if file.exists() else 0) for file in there]
        if now != seen:
            seen = now
            yield there
        else:
            sleep(_POLL_S)


def rewards(target: str, args: Sequence[str], config: RunConfig | None) -> list[RewardSpec]:
    """The reward that is named, with its arguments, or those of the config that are functions.

    Raises:
        ValueError: neither is given, or an argument is not key=value.
    """
    if target:
        given = [spec for spec in config.rewards if target in (spec.label, spec.path)] if config else []
        spec = given[0] if given else RewardSpec(path=target)
        return [
            replace(spec, weight=spec.weight or 1.0, args={**spec.args, **key_values(args, "--args", as_in_a_config)})
        ]
    if config is None:
        raise ValueError("name a reward, FILE.py:FUNCTION or package.module:function, or give --config")
    if args:
        raise ValueError("--args are for a reward that is named; those of a config stand in the config")
    called = [spec for spec in config.rewards if not spec.folder]
    if not any(spec.weight for spec in called):
        raise ValueError("the config has no reward function with a weight; reward models need the run's model")
    return called


def find_task(tasks: Sequence[Task], task_id: str) -> Task:
    """The task of this id, the first one for an empty id.

    Raises:
        ValueError: there is no such task.
    """
    by_id = {task.id: task for task in tasks}
    if not task_id:
        return tasks[0]
    if task_id not in by_id:
        some = ", ".join(list(by_id)[:3])
        raise ValueError(f"no task {task_id!r} among {len(by_id)}, as {some}.{did_you_mean(task_id, by_id)}")
    return by_id[task_id]


def _config(asked: Asked) -> RunConfig | None:
    if asked.config is None:
        if asked.task:
            raise ValueError("--task is a task of a config; give --config, too")
        return None
    from rlft.config_file import load

    return load(asked.config, [])


def _samples(asked: Asked, config: RunConfig | None) -> Iterator[tuple[Task, str]]:
    task = _task(asked, config)
    if not asked.completions and asked.file is None:
        raise ValueError("nothing to score: give --completion TEXT, or --completions FILE")
    for text in asked.completions:
        yield task, text
    if asked.file is None:
        return
    if asked.file.suffix == ".txt":
        if not asked.file.is_file():
            raise ValueError(no_file(asked.file, "--completions"))
        for line in asked.file.read_text(encoding="utf-8").splitlines():
            yield task, line
        return
    if asked.file.suffix != ".jsonl":
        raise ValueError(f"{asked.file}: completions are read from .txt (one a line) or .jsonl")
    for where, row in read_rows(str(asked.file), name="--completions"):
        if not isinstance(row.get("completion"), str):
            raise ValueError(f'{where}: expected {{"completion": "..."}}, found {dict(row)!r}')
        for key, kind in (("prompt", str), ("columns", Mapping)):
            if key in row and not isinstance(row[key], kind):
                expected = "text" if kind is str else "an object"
                raise ValueError(f"{where}: {key} must be {expected}, got {type(row[key]).__name__}")
        own = {"prompt", "answer", "columns"} & row.keys()
        turns = read_turns(row.get("turns", []), f"{where}: turns")
        yield _of_row(task, row) if own else task, whole(turns, row["completion"])


def _of_row(task: Task, row: Mapping[str, Any]) -> Task:
    if "prompt" in row:
        task = replace(task, messages=make_task(row["prompt"]).messages)
    columns = {**task.columns, **row.get("columns", {})}
    return replace(task, answer=row.get("answer", task.answer), columns=columns)


def _task(asked: Asked, config: RunConfig | None) -> Task:
    columns = key_values(asked.columns, "--column", as_in_a_row)
    if own := {"answer", "prompt"} & columns.keys():
        name = min(own)
        raise ValueError(f"--column {name}: the {name} is no column; give it with --{name}")
    if config is None:
        return make_task(asked.prompt, answer=_answer(asked.answer), columns=columns)
    from rlft.environment import loading

    environment = loading.load(config.environment)
    task = find_task([*environment.train, *environment.heldout], asked.task)
    if asked.prompt:
        task = replace(task, messages=make_task(asked.prompt).messages)
    answer = task.answer if asked.answer is None else _answer(asked.answer)
    return replace(task, answer=answer, columns={**task.columns, **columns})


def _answer(text: str | None) -> Any:
    if text is None or not text.startswith(("[", "{")):
        return text
    try:
        return json_text.parse(text)
    except ValueError:
        return text


def _files(asked: Asked) -> list[Path]:
    named = [asked.target] if asked.target else []
    if asked.config and not asked.target:
        try:
            config = _config(asked)
            named = [spec.path for spec in config.rewards if not spec.folder] if config else []
        except ValueError:  # half saved; running says so
            named = []
    files = [file for path in named if (file := source_file(path))]
    return [*dict.fromkeys([*files, *filter(None, [asked.file, asked.config])])]


def show(console: Console, specs: Sequence[RewardSpec], text: str, answered: Answered, *, of: int = 1) -> None:
    """Print what came of one completion, which was scored together with others where `of` is more than 1."""
    outcome = answered.outcome
    shown = repr(text) if isinstance(text, Transcript) else text
    console.print(Text(visible(shortened(shown, _SHOWN)) or "(an empty reply)", style="cyan"), soft_wrap=True)
    if isinstance(outcome, Score):
        console.print(Text(f"  reward {outcome.value:g}", style="bold green"))
    elif isinstance(outcome, Abstain):
        console.print(Text(visible(f"  abstained: {outcome.reason}"), style="yellow"), soft_wrap=True)
    else:
        show_failure(console, "failed", outcome)
    for label, line in _parts(specs, outcome):
        console.print(Text(visible(f"    {label}: {line}")), soft_wrap=True)
    for name, failure in answered.failed_parts.items():
        if not (isinstance(outcome, Failed) and failure.message in outcome.message):  # else it is said already
            show_failure(console, f"{name} failed", failure)
    for name, value in answered.logged.items():
        console.print(Text(visible(f"  log_metric {name}: {value:g}"), style="dim"), soft_wrap=True)
    for name, noted in answered.extras.items():
        said = shortened(noted if isinstance(noted, str) else json.dumps(noted, ensure_ascii=False), _SHOWN)
        console.print(Text(visible(f"  log_extra {name}: {said}"), style="dim"), soft_wrap=True)
    together = f" for the {of} together" if of > 1 else ""
    console.print(Text(f"  {1e3 * answered.seconds:.1f} ms{together}", style="dim"))
    if answered.printed:
        printed = visible(shortened(answered.printed.rstrip("\n"))).replace("\n", "\n    ")
        console.print(Text(f"  printed:\n    {printed}", style="dim"), soft_wrap=True)


def show_failure(console: Console, what: str, failure: Failed) -> None:
    """Print a failure: its kind, the line in the user's code where one is known, the message."""
    message = visible(failure.message).replace("\n", "\n    ")
    place = f" at {visible(failure.where)}" if failure.where else ""
    console.print(Text(f"  {what} ({failure.kind}){place}:\n    {message}", style="red"), soft_wrap=True)


def _parts(specs: Sequence[RewardSpec], outcome: Outcome) -> Iterator[tuple[str, str]]:
    """The parts, also those that rewards gave where another one failed or all with a weight abstain."""
    weights = {spec.label: spec.weight for spec in specs}
    for name, value in outcome.parts.items():
        of_reward = name in weights
        if of_reward and len(specs) == 1 and weights[name] == 1:
            continue  # it is the reward
        yield name, f"{value:g}" + (f"  x weight {weights[name]:g}" if of_reward else "")


def row(specs: Sequence[RewardSpec], task: Task, text: str, answered: Answered) -> dict[str, Any]:
    """What came of one completion as plain data."""
    outcome = answered.outcome
    turns, reply, _ = parted(text)
    found: dict[str, Any] = {
        "turns": list(turns),
        "completion": reply,
        "task": task.id,
        "seconds": answered.seconds,
        "printed": answered.printed,
    }
    if isinstance(outcome, Score):
        found |= {"outcome": "score", "reward": outcome.value}
    elif isinstance(outcome, Abstain):
        found |= {"outcome": "abstain", "reason": outcome.reason}
    else:
        found |= {"outcome": "failed", **_failure(outcome)}
    return found | {
        "parts": dict(outcome.parts),
        "log_metric": dict(answered.logged),
        "log_extra": dict(answered.extras),
        "weights": {spec.label: spec.weight for spec in specs},
        "failed_parts": {name: _failure(failure) for name, failure in answered.failed_parts.items()},
    }


def _failure(failure: Failed) -> dict[str, str]:
    named = ("kind", "fault", "where", "message", "reproduce")
    return {name: getattr(failure, name) for name in named}
