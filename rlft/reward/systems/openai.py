"""Graders of OpenAI as rewards: `openai:GRADER.json`, the file as it was sent to the API.

`string_check`, `text_similarity`, `python` (in the sandbox), `score_model` and `label_model` (asked of the chat server
that `args.base_url` names), and `multi`, whose formula is computed over the others. `{{ item... }}` is the task's row:
its columns, and `answer`. `{{ sample... }}` is the reply: `output_text`, `output_json`, `output_tools`, `choices`.

A name that the row lacks is an error. One that the reply lacks, as a field of a JSON that it is not, scores 0.

A grader with a model in it is an `async def` reward, so that many samples are asked about at the same time.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from rlft.common.by_path import did_you_mean
from rlft.reward import sandbox
from rlft.reward.contract import RewardFunction, prompt_and_reply
from rlft.reward.judge import ask_judge
from rlft.reward.systems.common import describe, row_of
from rlft.reward.systems.formula import Formula
from rlft.reward.systems.text_similarity import METRICS
from rlft.types import Abstain, Message, Trajectory

Grade: TypeAlias = Callable[[Mapping[str, Any]], Coroutine[Any, Any, Any]]
"""Of `item` and `sample`, and of `log_metric` and `log_extra`: what a reward returns."""

_TEMPLATE = re.compile(r"\{\{\s*(.*?)\s*\}\}", re.DOTALL)
_STEP = re.compile(r"\.?([A-Za-z_]\w*)|\[(\d+)\]|\[(['\"])(.+?)\3\]")
_SCORE = re.compile(r"(?:\bscore\b|\"result\")\W{0,10}?(-?\d+(?:\.\d+)?)", re.IGNORECASE)
_LABEL = re.compile(r"\blabel\b\s*[:=]\s*[\"'*]*([^\"'*\n]+)", re.IGNORECASE)
_JUDGE_ARGS = ("base_url", "api_key_env", "deadline_s", "attempts", "retries")
_ARGS = ("model", "seconds", "memory_mb", *_JUDGE_ARGS)
_NOTES = ("log_metric", "log_extra")


class _AbsentError(Exception):
    """The reply has nothing under that name."""


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
        columns = sorted({path[1] for path in _paths(written) if path[0] == "item" and len(path) > 1})
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


def _string_check(written: Mapping[str, Any], args: Mapping[str, Any]) -> Grade:
    operation, first, second = written["operation"], written["input"], written["reference"]
    operations: dict[str, Callable[[str, str], bool]] = {
        "eq": lambda text, reference: text == reference,
        "ne": lambda text, reference: text != reference,
        "like": lambda text, reference: reference in text,
        "ilike": lambda text, reference: reference.lower() in text.lower(),
    }
    if operation not in operations:
        raise ValueError(f"string_check: operation is one of {', '.join(operations)}, got {operation!r}")

    async def grade(spaces: Mapping[str, Any]) -> float:
        return float(operations[operation](_fill(first, spaces), _fill(second, spaces)))

    return _or_zero(grade)


def _text_similarity(written: Mapping[str, Any], args: Mapping[str, Any]) -> Grade:
    metric, first, second = written["evaluation_metric"], written["input"], written["reference"]
    if metric not in METRICS:
        why = {"cosine": ": it needs OpenAI's embeddings", "meteor": ": it needs WordNet"}.get(metric, "")
        raise ValueError(f"text_similarity cannot compute {metric!r}{why}. It has {', '.join(METRICS)}")
    compare = METRICS[metric]

    async def grade(spaces: Mapping[str, Any]) -> float:
        return compare(_fill(first, spaces), _fill(second, spaces))

    return _with_threshold(written, grade)


def _python(written: Mapping[str, Any], args: Mapping[str, Any]) -> Grade:
    source, name = written["source"], written.get("name", "")
    try:
        defined = {node.name for node in ast.parse(source).body if isinstance(node, ast.FunctionDef)}
    except SyntaxError as error:
        raise ValueError(f"python grader {name!r}: line {error.lineno} of its source: {error.msg}") from None
    if "grade" not in defined:
        raise ValueError(f"python grader {name!r}: its source defines no grade(sample, item)")
    sandbox.require()
    chosen = {key: args[key] for key in ("seconds", "memory_mb") if key in args}

    async def grade(spaces: Mapping[str, Any]) -> Any:
        called = sandbox.call(source, "grade", [[spaces["sample"], spaces["item"]]], sandbox.Limits(**chosen))[0]
        if called.error:
            raise RuntimeError(f"python grader {name!r}: {called.error}")
        return called.value

    return grade


def _score_model(written: Mapping[str, Any], args: Mapping[str, Any]) -> Grade:
    low, high = written.get("range") or (0, 1)

    def parse(reply: str) -> float | None:
        found = _SCORE.findall(reply)
        value = float(found[-1]) if found else None
        return value if value is not None and low <= value <= high else None

    form = f"End with a line `Score: N`, where N is a number from {low:g} to {high:g}."
    return _with_threshold(written, _asker(written, args, form, parse))


def _label_model(written: Mapping[str, Any], args: Mapping[str, Any]) -> Grade:
    labels, passing = written["labels"], set(written["passing_labels"])

    def parse(reply: str) -> float | None:
        found = [label.strip() for label in _LABEL.findall(reply)]
        return float(found[-1] in passing) if found and found[-1] in labels else None

    form = f"End with a line `Label: L`, where L is one of: {', '.join(labels)}."
    return _or_zero(_asker(written, args, form, parse))


def _asker(
    written: Mapping[str, Any], args: Mapping[str, Any], form: str, parse: Callable[[str], float | None]
) -> Grade:
    """A grade that asks the served model, with a sentence more on how to end; it abstains where that is not kept."""
    if not args.get("base_url"):
        raise ValueError(f"{written['type']} asks a model: give args.base_url, the address of a chat server with it")
    sampling = dict(written.get("sampling_params") or {})
    settings: dict[str, Any] = {key: args[key] for key in _JUDGE_ARGS if key in args}
    settings["model"] = args.get("model") or written["model"]
    settings["temperature"] = sampling.pop("temperature", None) or 0.0
    if limit := sampling.pop("max_completions_tokens", None):
        settings["max_tokens"] = limit
    extra = {key: value for key, value in sampling.items() if value is not None}
    messages = [_message(each) for each in written["input"]]

    async def ask(spaces: Mapping[str, Any]) -> float | Abstain:
        filled = [Message(role=each["role"], content=_fill(each["content"], spaces)) for each in messages]
        filled[-1] = Message(role=filled[-1]["role"], content=f"{filled[-1]['content']}\n\n{form}")
        verdict = await ask_judge(filled, parse, extra=extra, **settings)
        verdict.note(spaces["log_metric"], spaces["log_extra"])
        return verdict.abstention if verdict.value is None else verdict.value

    return ask


def _message(written: Mapping[str, Any]) -> Message:
    content = written["content"]
    pieces = content if isinstance(content, list) else [content]
    texts = [piece if isinstance(piece, str) else piece.get("text") for piece in pieces]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a model grader's messages can only hold text here, no images or audio")
    role = written.get("role", "user")
    return Message(role="system" if role == "developer" else role, content="\n".join(map(str, texts)))


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
    "string_check": _string_check,
    "text_similarity": _text_similarity,
    "python": _python,
    "score_model": _score_model,
    "label_model": _label_model,
    "multi": _multi,
}


def _or_zero(grade: Grade) -> Grade:
    """0 where the reply lacks what the grader reads of it."""

    async def safe(spaces: Mapping[str, Any]) -> Any:
        try:
            return await grade(spaces)
        except _AbsentError:
            return 0.0

    return safe


def _with_threshold(written: Mapping[str, Any], grade: Grade) -> Grade:
    """The value, and whether it passes where the grader has a threshold."""
    threshold, safe = written.get("pass_threshold"), _or_zero(grade)

    async def graded(spaces: Mapping[str, Any]) -> Any:
        value = await safe(spaces)
        is_value = not isinstance(value, Abstain)
        return {"score": value, "passed": value >= threshold} if is_value and threshold is not None else value

    return graded


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


def _steps(path: str) -> list[str | int]:
    steps: list[str | int] = []
    end = 0
    for step in _STEP.finditer(path):
        if step.start() != end:
            break
        steps.append(step[1] or step[4] or int(step[2] or 0))
        end = step.end()
    if end != len(path) or not steps or steps[0] not in ("item", "sample"):
        raise ValueError(f"the template {{{{ {path} }}}} is not understood: write item.NAME or sample.NAME")
    return steps


def _paths(written: Any) -> Iterator[list[Any]]:
    """The paths of all templates in a grader; the source of a python grader has none."""
    if isinstance(written, str):
        yield from (_steps(path) for path in _TEMPLATE.findall(written))
    elif isinstance(written, Mapping):
        yield from (path for key, each in written.items() if key != "source" for path in _paths(each))
    elif isinstance(written, list):
        yield from (path for each in written for path in _paths(each))


def _fill(template: str, spaces: Mapping[str, Any]) -> str:
    """The template with its variables: texts as they are, other values as JSON."""

    def variable(found: re.Match[str]) -> str:
        value: Any = spaces
        for step in (steps := _steps(found[1])):
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                value = None
                break
        if value is None and steps[0] == "sample":
            raise _AbsentError(found[1])
        if value is None:
            raise ValueError(f"the task has no {found[1]}")
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    return _TEMPLATE.sub(variable, template)
