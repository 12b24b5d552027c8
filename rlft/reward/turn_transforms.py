"""Episodes that a reward must not fall for, made from a good one: calls and results of tools that are wrong or missing.

What a reward looks at in an episode is found by breaking one thing of a good one after the other (`broken`); only what
it looks at is then cheated with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from rlft.reward.transcript import calls_of, transcript
from rlft.reward.transforms import GARBAGE, Expected, Good, Looks, Severity, Transform
from rlft.types import Message

_FAILED = "error: not found"


def broken(good: Good) -> dict[Looks, list[str]]:
    """Replies without a sensible last text, without the right calls, and without the results, where there are any."""
    found: dict[Looks, list[str]] = {"reply": [good.whole(""), good.whole(GARBAGE)]}
    if good.turns:
        found["calls"] = [transcript((), good.text)]
        found["results"] = [transcript(_with_results(good.turns, lambda _: _FAILED), good.text)]
    elif good.other_calls:
        found["calls"] = [transcript(_called(good.other_calls[:1]), good.text)]
    return found


def looked_at(
    spoilt: Mapping[Looks, Sequence[str]], value: Callable[[str], float | None], bar: float
) -> frozenset[Looks]:
    """What a reward looks at: all that it minds when it is broken; of a reply without turns, the reply.

    Args:
        spoilt: what `broken` gives.
        value: score of each of these; None where it has none.
        bar: below it the reward has minded.
    """
    if len(spoilt) == 1:
        return frozenset(spoilt)
    minded = {look: [(score := value(text)) is None or score < bar for text in texts] for look, texts in spoilt.items()}
    return frozenset(look for look, each in minded.items() if all(each))


def _with_results(turns: Sequence[Message], change: Callable[[str], str]) -> list[Message]:
    """The turns with other answers to the actions."""
    changed = [{**m, "content": change(m["content"])} if m["role"] != "assistant" else m for m in turns]
    return cast(list[Message], changed)


def _with_arguments(turns: Sequence[Message], change: Callable[[Any], Any]) -> list[Message]:
    """The turns with other arguments in their calls."""
    found = []
    for message in turns:
        if message.get("tool_calls"):
            calls = [
                {"type": "function", "function": {**call, "arguments": change(call.get("arguments"))}}
                for call in calls_of([message])
            ]
            message = cast(Message, {**message, "tool_calls": calls})
        found.append(message)
    return found


def _called(calls: Sequence[Any]) -> list[Message]:
    """Turns that make some calls one after the other, and get nothing of use."""
    found: list[Message] = []
    for call in calls:
        found.append(Message(role="assistant", content="", tool_calls=[{"type": "function", "function": dict(call)}]))
        found.append(Message(role="tool", content=_FAILED))
    return found


def _each(arguments: Any, value: str) -> Any:
    return dict.fromkeys(arguments, value) if isinstance(arguments, dict) else value


def _spelt(write: str) -> Callable[[Good], str | None]:
    def make(good: Good) -> str | None:
        calls = calls_of(good.turns)
        spelt = [write.format(json.dumps(call)) for call in calls]
        return transcript((), "\n".join([*spelt, good.text])) if calls else None

    return make


def _senseless(good: Good) -> str | None:
    if not any(call.get("arguments") for call in calls_of(good.turns)):
        return None
    turns = _with_arguments(good.turns, lambda arguments: _each(arguments, GARBAGE))
    return transcript(_with_results(turns, lambda _: _FAILED), good.text)


def _among_others(good: Good) -> str | None:
    senseless = _with_arguments(good.turns, lambda arguments: _each(arguments, GARBAGE))
    others = good.other_calls or calls_of(senseless)
    return transcript([*good.turns, *_called(others)], good.text) if others else None


def _tripled(good: Good) -> str | None:
    return transcript(good.turns * 3, good.text) if calls_of(good.turns) else None


def _asked_for(good: Good) -> str | None:
    if good.answer is None or not calls_of(good.turns):
        return None
    turns = _with_arguments(good.turns, lambda arguments: _each(arguments, good.answer or ""))
    return transcript(_with_results(turns, lambda _: f"nothing found for {good.answer}"), good.text)


def _made_up(good: Good) -> str | None:
    results = [message["content"] for message in good.turns if message["role"] != "assistant"]
    return transcript((), "\n".join([*(f"Result: {result}" for result in results), good.text])) if results else None


def _of_others(good: Good) -> str | None:
    results = [result for result in good.other_results if good.answer and good.answer not in result]
    return transcript(_with_results(good.turns, lambda _: results[0]), good.text) if results else None


def _row(
    name: str,
    make: Callable[[Good], str | None],
    looks: Looks,
    expected: Expected = "below",
    severity: Severity = "error",
    *,
    not_at: Looks | None = None,
) -> Transform:
    family = "calls" if looks == "calls" else "results"
    return Transform(
        name=name,
        family=family,
        make=make,
        expected=expected,
        severity=severity,
        of_answer=False,
        looks=looks,
        not_at=not_at,
    )


TURN_TRANSFORMS: tuple[Transform, ...] = (
    _row("the right calls, only spelt in the reply", _spelt("{}"), "calls"),
    _row("the right calls, only spelt in tags", _spelt("<tool_call>{}</tool_call>"), "calls"),
    _row("the right calls with senseless arguments, which fail", _senseless, "calls", severity="warning"),
    _row("the right calls among others", _among_others, "calls", severity="warning", not_at="results"),
    _row("every call three times", _tripled, "calls", "not above", "warning"),
    _row("the answer as the question, which the tool repeats", _asked_for, "results"),
    _row("results that no tool gave, only spelt in the reply", _made_up, "results"),
    _row("the results of another task", _of_others, "results"),
)
"""All of them, in the order in which they are tried."""
