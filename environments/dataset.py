"""Single-turn tasks from a table of your own: a file, a hub id or a function gives rows, templates make prompts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from string import Formatter
from typing import Any, Literal

from rlft.common.rows import canonical_text, is_heldout, read_rows, refuse_negative, row_hash
from rlft.environment.contract import Environment
from rlft.types import Message, Task


def load(
    source: str,
    prompt: str = "{question}",
    answer: str = "answer",
    system: str = "",
    reply: str = "",
    messages: str = "",
    shots: int = 0,
    heldout: float = 0.1,
    limit: int = 0,
    subset: str = "",
    split: str = "train",
    seed: int = 0,
    conflicts: Literal["error", "first"] = "error",
) -> Environment:
    """Tasks from jsonl, json, csv, parquet, a hub id, or a function that returns rows.

    Which rows are held out depends on their prompts and the seed, not on their order. Every column is offered to
    rewards by name, and `difficulty` orders the tasks for `environment.order: easy_first`.

    Args:
        source: `tasks.jsonl`, `owner/name`, or `my_rows.py:rows`.
        prompt: template of the user's message, such as "Question: {question}".
        answer: column that rewards compare with; "" when there is none.
        system: system message; "" leaves it out.
        reply: template of a demonstration, such as "<answer>{answer}</answer>", made of the training rows; "" for none.
        messages: column with the prompt as a list of chat messages, instead of `prompt` and `system`.
        shots: so many of the first training rows are shown with their `reply` before every question, and are no tasks.
        heldout: share of the rows that is held out.
        limit: rows that are read; 0 reads all.
        subset: of a hub id.
        split: of a hub id.
        conflicts: what to do with a row whose prompt stood before with another answer: refuse it, or keep the first.

    Raises:
        ValueError: a row that cannot be used, with its place: file and line, or file and row.
    """
    refuse_negative(shots=shots, limit=limit)
    if shots and not reply:
        raise ValueError("shots need a `reply` template, which says how the shown examples are answered")
    tasks: list[tuple[Task, tuple[Message, ...]]] = []
    held_out: list[Task] = []
    seen: dict[str, tuple[str, Any]] = {}  # where a prompt stood first, and its answer
    repeated = conflicting = 0
    for number, (where, row) in enumerate(read_rows(source, subset=subset, split=split)):
        if limit and number == limit:
            break
        asked = _messages(row, messages, where) if messages else _prompt(row, prompt, system, where)
        read = [{**message, "content": canonical_text(message["content"])} for message in asked]
        key = json.dumps(read, sort_keys=True) if messages else str(read[-1]["content"])
        if answer and answer not in row:
            raise ValueError(f"{where}: no column {answer!r}; it has {', '.join(map(str, row))}")
        expected = row[answer] if answer else None
        if key in seen:  # the same prompt twice would count twice, or stand on both sides of the split
            first, earlier = seen[key]
            if expected != earlier and conflicts == "error":
                raise ValueError(
                    f"{where}: the prompt of {first} again with another answer, {expected!r} instead of {earlier!r}; "
                    "mend the data, or keep the first answer with conflicts: first"
                )
            repeated, conflicting = repeated + 1, conflicting + (expected != earlier)
            continue
        seen[key] = (where, expected)
        digest = row_hash(key, seed)
        task = Task(id=digest[:16], messages=asked, answer=expected, columns=dict(row))
        if is_heldout(digest, heldout):
            held_out.append(task)
        else:
            shown: tuple[Message, ...] = ()
            if reply:
                shown = (Message(role="assistant", content=_fill(reply, row, where)),)
            tasks.append((task, shown))
    if shots and shots >= len(tasks):
        raise ValueError(f"shots is {shots}, but there are {len(tasks)} training rows")
    examples = [message for task, shown in tasks[:shots] for message in (task.messages[-1], *shown)]
    train = [(_after(examples, task), shown) for task, shown in tasks[shots:]]
    note = f"{source}: left out {repeated} rows with the prompt of an earlier row, {conflicting} with another answer"
    return Environment(
        train=[task for task, _ in train],
        heldout=[_after(examples, task) for task in held_out],
        demonstrations=[(*task.messages, *shown) for task, shown in train if shown],
        notes=(note,) if repeated else (),
    )


def _prompt(row: Mapping[str, Any], prompt: str, system: str, where: str) -> tuple[Message, ...]:
    asked = Message(role="user", content=_fill(prompt, row, where))
    return (Message(role="system", content=system), asked) if system else (asked,)


def _messages(row: Mapping[str, Any], column: str, where: str) -> tuple[Message, ...]:
    value = row.get(column)
    if not isinstance(value, list) or not all(isinstance(m, dict) and {"role", "content"} <= m.keys() for m in value):
        raise ValueError(f"{where}: column {column!r} must hold a list of messages with a role and a content")
    for number, message in enumerate(value, start=1):
        if not isinstance(message["content"], str):
            raise ValueError(
                f"{where}: column {column!r}: the content of message {number} must be text, found "
                f"{type(message['content']).__name__}; write parts as one text, and calls of tools into the content"
            )
    return tuple({key: part for key, part in message.items() if part is not None} for message in value)  # type: ignore[misc]


def _after(examples: Sequence[Message], task: Task) -> Task:
    """The task with the examples before its last message."""
    if not examples:
        return task
    asked = (*task.messages[:-1], *examples, task.messages[-1])
    return Task(id=task.id, messages=asked, answer=task.answer, columns=task.columns)


def _fill(template: str, row: Mapping[str, Any], where: str) -> str:
    empty = sorted({name for _, name, _, _ in _parsed(template) if name and row.get(name, "") is None})
    if empty:
        raise ValueError(
            f"{where}: the template {template!r} names {empty[0]!r}, which is null there; give it text, or leave out "
            "the row"
        )
    try:
        return template.format_map(row)
    except KeyError as error:
        raise ValueError(f"{where}: the template names {error}, but the row has {', '.join(map(str, row))}") from None
    except (ValueError, IndexError) as error:
        raise ValueError(
            f"the template {template!r} is not usable: {error}; write {{{{ and }}}} for braces that are text"
        ) from None


def _parsed(template: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(Formatter().parse(template))
    except ValueError:  # told with the row, when it is filled in
        return []
