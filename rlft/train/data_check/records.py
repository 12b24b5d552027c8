"""Rows of a file, or the data of a config, as the checks look at them: texts with their places."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from rlft.common.by_path import did_you_mean
from rlft.common.rows import canonical_text, is_heldout, prompt_and_answer, read_rows, taken
from rlft.environment.contract import Environment
from rlft.train.head.config import HeadDataConfig
from rlft.train.head.data import digest_of, row_column, sample, text_of
from rlft.train.preference import rows as preference_rows
from rlft.train.supervised import rows as supervised_rows
from rlft.types import Message, Task


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What is trained or measured on because of one row."""

    where: str
    """`file:line`, or `source, row number`, or the task's id where no row is known."""
    is_heldout: bool
    """Whether it is measured on, not trained on."""
    prompt: str
    """The text that the model is asked: of messages, all contents."""
    identity: str = ""
    """What tells it from other rows, where the prompt does not: episodes may all open alike."""
    messages: tuple[Message, ...] = ()
    """The prompt as messages; empty where it is plain text."""
    replies: tuple[Any, ...] = ()
    """Texts or lists of messages that answer it: demonstrations, completions."""
    label: Any = None
    """What rewards compare with, or the label; None where there is none."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """JSON schemas of tools that the prompt shows."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """The row."""
    is_task: bool = True
    """Whether an answer is expected; else it is a demonstration only."""

    @property
    def texts(self) -> list[tuple[str, str]]:
        """(What it is, text) of all that the model reads or learns: the prompt, then the replies."""
        found = [("prompt", str(m["content"])) for m in self.messages] or [("prompt", self.prompt)]
        for reply in self.replies:
            parts = [reply] if isinstance(reply, str) else [str(m["content"]) for m in reply if not m.get("tool_calls")]
            found += [("reply", part) for part in parts]
        if isinstance(self.label, str):
            found.append(("answer", self.label))
        return found


ANSWERED = ("tasks", "labelled")
"""Kinds whose rows have a prompt and an answer or label to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Records:
    """All of a source."""

    source: str
    """What was read."""
    rows: list[Record]
    """In the order of the source."""
    problems: list[tuple[str, str]]
    """(Place, what is wrong) of rows that no run could use."""
    kind: str
    """`tasks`, `labelled`, `pairs`, `rated` or `demonstrations`."""
    notes: list[str]
    """What a reader should know, such as which columns were taken."""


def of_file(source: str, *, is_heldout: bool = False, prompt: str = "", answer: str = "") -> Records:
    """Read a table and tell by its columns what it is for: preferences, conversations, or tasks.

    Args:
        prompt: the column that asks; the first of `rows.PROMPTS` when empty.
        answer: the column that answers; the first of `rows.ANSWERS` when empty.

    Raises:
        ValueError: it is not readable, says where; or it has no such column.
    """
    read = list(read_rows(source, name="FILE"))
    if not read:
        raise ValueError(f"{source} has no rows")
    names = {str(name) for _, row in read for name in row}
    if not prompt and ({"chosen", "rejected"} <= names or {"prompt", "completion", "label"} <= names):
        return of_preferences(source, read, paired="chosen" in names, is_heldout=lambda row: is_heldout)
    for given in filter(None, (prompt, answer)):
        if given not in names:
            raise ValueError(
                f"{source} has no column {given!r}; it has {', '.join(sorted(names))}.{did_you_mean(given, names)}"
            )
    asked, replied = prompt_and_answer(names, prompt, answer)
    if not asked:
        raise ValueError(
            f"{source}: no column looks like a prompt among {', '.join(sorted(names))}; name it with --prompt"
        )
    rows, problems = [], []
    for where, row in read:
        try:
            rows.append(_of_row(where, row, asked, replied, is_heldout))
        except ValueError as error:
            problems.append((where, str(error)))
    return Records(source=source, rows=rows, problems=problems, kind="tasks", notes=[taken(asked, replied)])


def _of_row(where: str, row: Mapping[str, Any], asked: str, replied: str, is_heldout: bool) -> Record:
    value = row.get(asked)
    label = row.get(replied) if replied else None
    if isinstance(value, list):
        messages = [_message(asked, each) for each in value]
        replies: tuple[Any, ...] = ()
        if messages and messages[-1]["role"] == "assistant":
            replies, messages = ([messages[-1]],), messages[:-1]
        return Record(
            where=where,
            is_heldout=is_heldout,
            prompt=_joined(messages),
            messages=tuple(messages),
            replies=replies,
            label=label,
            columns=row,
        )
    if value is not None and not isinstance(value, str):
        raise ValueError(f"column {asked!r} holds {type(value).__name__}; a prompt is text or a list of messages")
    messages = [Message(role="user", content=value or "")]
    return Record(
        where=where, is_heldout=is_heldout, prompt=value or "", messages=tuple(messages), label=label, columns=row
    )


def _message(column: str, value: Any) -> Message:
    if not (isinstance(value, Mapping) and isinstance(value.get("role"), str)):
        raise ValueError(f"column {column!r}: a message must have a role and a content, found {str(value)[:80]}")
    kept = {key: part for key, part in value.items() if part is not None}
    return {**kept, "content": str(value.get("content") or "")}  # type: ignore[typeddict-item]


def of_preferences(
    source: str,
    read: Iterable[tuple[str, Mapping[str, Any]]],
    *,
    paired: bool,
    is_heldout: Callable[[preference_rows.Row], bool],
) -> Records:
    """Preferences by the reader that `rlft dpo` and `rlft reward-model` use.

    Args:
        read: rows with their places.
        paired: whether single completions are of no use.
        is_heldout: whether a parsed row is measured on.
    """
    rows, problems = [], []
    for where, columns in read:
        try:
            row = preference_rows.parse(columns, paired=paired)
            held_out = is_heldout(row)
        except ValueError as error:
            problems.append((where, str(error)))
            continue
        messages = () if isinstance(row.prompt, str) else tuple(row.prompt)
        text = row.prompt if isinstance(row.prompt, str) else _joined(row.prompt)
        rows.append(
            Record(
                where=where,
                is_heldout=held_out,
                prompt=text,
                messages=messages,
                replies=row.completions,
                label=None if len(row.completions) == 2 else bool(row.labels[0]),
                tools=row.tools,
                columns=columns,
            )
        )
    kind = "pairs" if paired else "rated"
    return Records(source=source, rows=rows, problems=problems, kind=kind, notes=[])


def of_labelled(source: str, read: Iterable[tuple[str, Mapping[str, Any]]], data: HeadDataConfig) -> Records:
    """Labelled texts by the rules of the reader that `rlft head` uses, as far as `data.limit` takes them."""
    found: list[tuple[str, Record]] = []
    problems = []
    for where, row in read:
        try:
            content, label = row_column(where, row, "text", data.text), row_column(where, row, "label", data.label)
            text = text_of(where, data.text, content)
        except ValueError as error:
            problems.append((where, str(error).removeprefix(f"{where}: ")))
            continue
        digest = digest_of(text)
        messages = () if isinstance(content, str) else tuple(_message(data.text, each) for each in content)
        record = Record(
            where=where,
            is_heldout=is_heldout(digest, data.heldout),
            prompt=text,
            messages=messages,
            label=label,
            columns=row,
        )
        found.append((digest, record))
    used = set(sample({digest for digest, _ in found}, data.limit))
    rows = [record for digest, record in found if digest in used]
    left_out = len(found) - len(rows)
    notes = [f"data.limit leaves {left_out} of {len(found)} rows out, which were not checked"] if left_out else []
    return Records(source=source, rows=rows, problems=problems, kind="labelled", notes=notes)


def of_demonstrations(
    source: str,
    read: Iterable[tuple[str, Mapping[str, Any]]],
    *,
    names: Mapping[Any, str],
    held_out: Callable[[Sequence[str]], Collection[str]],
) -> Records:
    """Conversations and texts by the reader that `rlft sft` uses.

    Args:
        read: rows with their places.
        names: what the columns are called, as `data.columns` has it.
        held_out: which of the ids of all rows are measured on.
    """
    parsed, problems = [], []
    for where, columns in read:
        try:
            parsed.append((where, columns, supervised_rows.parse(columns, names)))
        except ValueError as error:
            problems.append((where, str(error)))
    out = held_out([row.id for _, _, row in parsed])
    rows = []
    for where, columns, row in parsed:
        messages = () if isinstance(row.prompt, str) else tuple(row.prompt)
        text = row.prompt if isinstance(row.prompt, str) else _joined(row.prompt)
        rows.append(
            Record(
                where=where,
                is_heldout=row.id in out,
                prompt=text or str(row.completion),
                messages=messages,
                replies=(row.completion,) if row.prompt else (),
                tools=row.tools,
                columns=columns,
                is_task=False,
            )
        )
    return Records(source=source, rows=rows, problems=problems, kind="demonstrations", notes=[])


def of_environment(environment: Environment, source: str, *, subset: str = "", split: str = "train") -> Records:
    """The tasks of an environment, with the rows of its table where its argument `source` names one.

    Rows of the table that are no task, such as repeated ones, are told in the notes.
    """
    places, rows_read = _places(source, subset, split) if source else ({}, 0)
    demonstrated = {_key(messages[:-1]): messages for messages in environment.demonstrations}
    rows = []
    for measured, tasks in ((False, environment.train), (True, environment.heldout)):
        for task in tasks:
            messages = None if measured else demonstrated.pop(_key(task.messages), None)
            record = _of_task(task, measured, places, messages)
            if environment.episode is not None:
                record = replace(record, identity=_key([record.prompt, task.answer, task.columns]))
            rows.append(record)
    for number, messages in enumerate(demonstrated.values()):
        rows.append(_of_demonstration(f"demonstration {number} of other prompts", messages))
    notes = list(environment.notes)
    used = {record.where for record in rows}
    unused = [where for found in places.values() for where in found if where not in used]
    if rows_read and unused and len(unused) < rows_read:
        notes.append(
            f"{len(unused)} rows of {source} are no task: {', '.join(unused[:5])}{' ...' if unused[5:] else ''}"
        )
    return Records(source=source or "tasks", rows=rows, problems=[], kind="tasks", notes=notes)


def _places(source: str, subset: str, split: str) -> tuple[dict[str, list[str]], int]:
    places: dict[str, list[str]] = {}
    count = 0
    for where, row in read_rows(source, subset=subset, split=split):
        places.setdefault(_key(row), []).append(where)
        count += 1
    return places, count


def _of_task(
    task: Task, is_heldout: bool, places: Mapping[str, Sequence[str]], demonstration: Sequence[Message] | None
) -> Record:
    found = places.get(_key(dict(task.columns)))
    side = "held-out" if is_heldout else "training"
    return Record(
        where=found[0] if found else f"{side} task {task.id}",
        is_heldout=is_heldout,
        prompt=_joined(task.messages),
        messages=task.messages,
        replies=([demonstration[-1]],) if demonstration else (),
        label=task.answer,
        columns=task.columns,
    )


def _of_demonstration(where: str, messages: Sequence[Message]) -> Record:
    return Record(
        where=where,
        is_heldout=False,
        prompt=_joined(messages[:-1]),
        messages=tuple(messages[:-1]),
        replies=([messages[-1]],),
        is_task=False,
    )


def _joined(messages: Sequence[Message]) -> str:
    return "\n".join(str(message["content"]) for message in messages)


def _key(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def same_text(text: str) -> str:
    """The text without what two readers would not call a difference: case, punctuation, and white space."""
    kept = "".join(char if char.isalnum() or char in "+-*/=<>^%.," else " " for char in canonical_text(text).casefold())
    return " ".join(word.strip(".,") for word in kept.split() if word.strip(".,"))
