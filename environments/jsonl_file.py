"""Tasks from a JSON Lines file of your own: one object a line, a prompt template over its fields."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlft.environment.contract import Environment
from rlft.types import Message, Task


def load(
    path: str,
    prompt: str = "{question}",
    answer: str = "answer",
    system: str = "",
    reply: str = "",
    heldout: float = 0.1,
    seed: int = 0,
) -> Environment:
    """Read `path`; which rows are held out depends on their prompts and the seed, not on their order.

    Args:
        prompt: template of the user's message, such as "Question: {question}".
        answer: field that rewards compare with; "" when there is none. All fields are offered to rewards by name.
        system: system message; "" leaves it out.
        reply: template of a demonstration, such as "<answer>{answer}</answer>", made of the training rows; "" for none.
        heldout: share of the rows that is held out.

    Raises:
        ValueError: a line is not a JSON object, or a field that a template names is missing; names file and line.
    """
    train: list[Task] = []
    held_out: list[Task] = []
    demonstrations: list[tuple[Message, ...]] = []
    seen: set[str] = set()
    for where, row in _rows(Path(path)):
        text = _fill(prompt, row, where)
        if text in seen:
            continue  # the same prompt twice would stand on both sides of the split
        seen.add(text)
        if answer and answer not in row:
            raise ValueError(f"{where}: no field {answer!r}; it has {', '.join(row)}")
        messages: tuple[Message, ...] = ({"role": "user", "content": text},)
        if system:
            messages = ({"role": "system", "content": system}, *messages)
        digest = hashlib.sha256(f"{seed}\x1f{text}".encode()).hexdigest()
        task = Task(id=digest[:16], messages=messages, answer=row[answer] if answer else None, columns=row)
        if int(digest[:8], 16) < heldout * 16**8:
            held_out.append(task)
            continue
        train.append(task)
        if reply:
            demonstrations.append((*messages, {"role": "assistant", "content": _fill(reply, row, where)}))
    return Environment(train=train, heldout=held_out, demonstrations=demonstrations)


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    if not path.is_file():
        raise ValueError(f"no file {path}")
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ValueError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ValueError(f"{path}:{number}: expected an object, found {type(row).__name__}")
        yield f"{path}:{number}", row


def _fill(template: str, row: dict[str, Any], where: str) -> str:
    try:
        return template.format_map(row)
    except KeyError as error:
        raise ValueError(f"{where}: the template names {error}, but the row has {', '.join(row)}") from None
