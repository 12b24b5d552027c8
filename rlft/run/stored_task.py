"""tasks.jsonl: what rewards are offered of the tasks, so that stored rollouts can be scored by another reward."""

from __future__ import annotations

import ast
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTask:
    """One line of tasks.jsonl: what rewards are offered of a task besides its prompt, written when it is first used
    and again when its answer or its columns have changed.

    Answer and columns are texts of JSON in the file, so that it is one table whatever the tasks hold. What JSON changes
    (tuples, bytes, keys that are no texts) stands in `literals` as Python writes it; what neither can hold, such as an
    image, is not kept and named in `lost`.
    """

    task_id: str
    """The task, as in the rollouts."""
    step: int
    """RL step, or steps behind the evaluation, that used it first as it is here."""
    answer: Any = None
    """The task's answer."""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """Its further columns, those of `lost` absent."""
    lost: Sequence[str] = ()
    """Names of what could not be kept: columns, or `answer`."""

    def line(self) -> str:
        """The line as JSON."""
        named = {"answer": self.answer, **{f"columns.{name}": value for name, value in self.columns.items()}}
        kept = {name: _written(value) for name, value in named.items()}
        columns = {name: value for name, value in self.columns.items() if kept[f"columns.{name}"] == "json"}
        row = {
            "task_id": self.task_id,
            "step": self.step,
            "answer": _text(self.answer if kept["answer"] == "json" else None),
            "columns": _text(columns),
            "literals": {name: repr(named[name]) for name, how in kept.items() if how == "literal"},
            "lost": [*self.lost, *(name.removeprefix("columns.") for name, how in kept.items() if how == "lost")],
        }
        return json.dumps({name: value for name, value in row.items() if value or name not in ("literals", "lost")})

    @property
    def digest(self) -> str:
        """Hash of all but the step: equal for the same task with the same answer and columns."""
        return hashlib.sha256(replace(self, step=0).line().encode()).hexdigest()

    @classmethod
    def from_dict(cls, row: Mapping[str, Any]) -> StoredTask:
        """The inverse of `line`. Raises ValueError on anything else."""
        try:
            answer, columns = json.loads(row["answer"]), json.loads(row["columns"])
            literals = {name: ast.literal_eval(text) for name, text in row.get("literals", {}).items()}
            answer = literals.pop("answer", answer)
            columns |= {name.removeprefix("columns."): value for name, value in literals.items()}
            lost = tuple(map(str, row.get("lost", ())))
            return cls(task_id=row["task_id"], step=int(row["step"]), answer=answer, columns=columns, lost=lost)
        except (KeyError, TypeError, AttributeError, SyntaxError) as error:
            raise ValueError(f"expected task_id, step, answer and columns, got {str(row)[:200]} ({error})") from error


def _text(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half a surrogate pair, which other readers of JSON refuse
        return json.dumps(value)
    return text


def _written(value: Any) -> Literal["json", "literal", "lost"]:
    """How a value is written so that it reads back as it was."""
    try:
        if json.loads(json.dumps(value, allow_nan=False)) == value:
            return "json"
    except Exception:  # whatever comparing a user's objects raises
        pass
    try:
        return "literal" if ast.literal_eval(repr(value)) == value else "lost"
    except Exception:
        return "lost"
