"""Graders of OpenAI as rewards: `openai:GRADER.json`, the file as it was sent to the API.

`string_check`, `text_similarity`, `python` (in the sandbox), `score_model` and `label_model` (asked of the chat server
that `args.base_url` names), and `multi`, whose formula is computed over the others. `{{ item... }}` is the task's row:
its columns, and `answer`. `{{ sample... }}` is the reply: `output_text`, `output_json`, `output_tools`, `choices`.

A name that the row lacks is an error. One that the reply lacks, as a field of a JSON that it is not, scores 0.

A grader with a model in it is an `async def` reward, so that many samples are asked about at the same time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from rlft.common.by_path import did_you_mean
from rlft.reward.contract import RewardFunction, prompt_and_reply
from rlft.reward.systems.common import describe, row_of
from rlft.reward.systems.openai.formula import Formula
from rlft.reward.systems.openai.grade import Grade
from rlft.reward.systems.openai.models import JUDGE_ARGS, label_model, score_model
from rlft.reward.systems.openai.rules import python, string_check, text_similarity
from rlft.reward.systems.openai.templates import paths
from rlft.types import Abstain, Trajectory

_ARGS = ("model", "seconds", "memory_mb", *JUDGE_ARGS)
_NOTES = ("log_metric", "log_extra")


def load(name: str, args: Mapping[str, Any]) -> RewardFunction:
    """The grader in the file `name`.

    Raises:
        ValueError: the file cannot be read, a grader in it is not understood, or `args` have another name.
    """
    where, file = f"reward openai:{name}", Path(name).expanduser().absolute()
    for key in args:
        if key not in _ARGS:
            raise ValueError(
                f"{where}: there is no args.{key}.{did_you_mean(key, _ARGS)} There are {', '.join(_ARGS)}."
            )
    try:
        written = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{where}: {file} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{where}: {file} is no JSON: {error}") from None
    try:
        grade = _grader(written, args)
        columns = sorted({path[1] for path in paths(written) if path[0] == "item" and len(path) > 1})
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None

    def graded(trajectory: Trajectory, **notes: Any) -> Coroutine[Any, Any, Any]:
        return grade({"item": row_of(trajectory), "sample": _sample(trajectory), **notes})

    def reward(**offered: Any) -> Any:
        return _at_once(graded(offered["trajectory"]))

    async def asking_reward(**offered: Any) -> Any:
        notes = {name: offered[name] for name in _NOTES}
        return await graded(offered["trajectory"], **notes)

    if _asks(written):
        return describe(asking_reward, None, takes=("trajectory", *_NOTES, *columns), file=str(file))
    return describe(reward, None, takes=("trajectory", *columns), file=str(file))


def _asks(written: Any) -> bool:
    """Whether there is a model in a grader."""
    own = written.get("graders", {}) if written["type"] == "multi" else {}
    return written["type"] in ("score_model", "label_model") or any(map(_asks, own.values()))


def _at_once(grading: Coroutine[Any, Any, Any]) -> Any:
    """What a grader gives that waits for nothing, without an event loop."""
    try:
        grading.send(None)
    except StopIteration as end:
        return end.value
    raise RuntimeError("a grader without a model waits for something")


def _grader(written: Any, args: Mapping[str, Any]) -> Grade:
    kind = str(written.get("type")) if isinstance(written, Mapping) else type(written).__name__
    if kind not in _KINDS:
        raise ValueError(f"a grader's type is one of {', '.join(_KINDS)}, got {kind!r}")
    try:
        return _KINDS[kind](written, args)
    except KeyError as error:
        raise ValueError(f"the {kind} grader {written.get('name', '')!r} lacks {error}") from None


def _multi(written: Mapping[str, Any], args: Mapping[str, Any]) -> Grade:
    graders = {name: _grader(each, args) for name, each in written["graders"].items()}
    formula = Formula(written["calculate_output"], graders)

    async def grade(spaces: Mapping[str, Any]) -> Any:
        values: dict[str, float] = {}
        for name, one in graders.items():
            value = await one(_named(spaces, name))
            value = value["score"] if isinstance(value, Mapping) else value
            if value is None or isinstance(value, Abstain):
                return value
            values[name] = float(value)
        return {**values, "score": formula.value(values)}

    return grade


def _named(spaces: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The same for one of several graders: what it notes begins with its name."""

    def under(note: Callable[[str, Any], None]) -> Callable[[str, Any], None]:
        return lambda key, value: note(f"{name}/{key}", value)

    return {**spaces, **{key: under(spaces[key]) for key in _NOTES if key in spaces}}


_KINDS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, Any]], Grade]] = {
    "string_check": string_check,
    "text_similarity": text_similarity,
    "python": python,
    "score_model": score_model,
    "label_model": label_model,
    "multi": _multi,
}


def _sample(trajectory: Trajectory) -> dict[str, Any]:
    """The reply as OpenAI's graders get it."""
    from rlft.environment.systems.tool_text import read_tool_calls

    _, reply = prompt_and_reply(trajectory)
    calls = [
        {"id": f"call_{index}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for index, (name, arguments) in enumerate(read_tool_calls(trajectory.text)[1])
    ]
    message = {"role": "assistant", "content": trajectory.text, "tool_calls": calls}
    return {
        "output_text": trajectory.text,
        "output_json": _json(trajectory.text),
        "output_tools": calls,
        "choices": [{"index": 0, "message": message, "finish_reason": trajectory.finish_reason}],
        "messages": [dict(each) for each in reply],
    }


def _json(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise ValueError(constant)

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
