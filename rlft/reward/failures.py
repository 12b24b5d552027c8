"""Replies that a reward could not score: one finding for each way to fail, and what to do about it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import TypeGuard

from rlft import types
from rlft.common.by_path import did_you_mean
from rlft.reward.contract import Kind
from rlft.reward.findings import ALL, Finding, Sample, quoted
from rlft.reward.source import definition_of, source_file
from rlft.types import Failed, RewardSpec

SERVER_ADVICE = (
    "start the server that the reward asks, which has to speak OpenAI's chat API, and name it and its model: "
    "--args base_url=URL --args model=NAME, or `args` in the config"
)
LISTS = (
    "a function that takes `completions` gets `answer` and other columns as lists, too, with one value for each: "
    "compare completions[i] with answer[i]"
)
_GROUP = (
    "its samples are group.trajectories: the text of one is group.trajectories[i].text, the answer group.task.answer"
)
_EVERY_TEXT = "handle every text and every task, since a reply can be anything; None abstains"
_GROUPS_OF_ONE = (
    "groups of one happen: evaluation and the base measurement call it with one sample; so do groups whose samples are "
    "all alike: return 0 there, or None to abstain"
)
_ADVICE = {
    "timeout": "bound the work for a reply; a coroutine has to end when it is cancelled",
    "crash": "find out what ends its process",
    "not_finite": "look for log(0), inf - inf and divisions by an array's 0 before returning; None abstains",
    "too_large": "bound or scale the value; None abstains",
    "type": "return a number, a dict of named numbers, or None, which abstains; of several samples a list of these",
}
_NO_ATTRIBUTE = re.compile(r"^AttributeError: '(\w+)' object has no attribute '(\w+)'", re.MULTILINE)
_IN_GROUPS = re.compile(r"^(ZeroDivisionError: |statistics\.StatisticsError: |StatisticsError: )", re.MULTILINE)
_OF_LISTS = re.compile(
    r"^(AttributeError: 'list' object|TypeError: expected string or bytes-like"
    r"|TypeError: .*not (a )?'?list'?|TypeError: unhashable type: 'list')",
    re.MULTILINE,
)
_NO_SEQUENCE = re.compile(
    r"^TypeError: ('Group' object is not (iterable|subscriptable)|object of type 'Group' has no len)", re.MULTILINE
)


def failure_findings(
    samples: Sequence[Sample], specs: Sequence[RewardSpec] = (), kinds: Mapping[str, Kind] | None = None
) -> list[Finding]:
    """Replies that could not be scored: one finding for each way to fail, with the shortest reply.

    The same exception at one line of the user's code is one way, whatever it says; what has no such line is told apart
    by what it says. A reward that was not called, since others had failed, did nothing wrong.

    Args:
        specs: the rewards, to say where one is defined.
        kinds: how they are called, by their names.
    """
    groups: dict[tuple[str, str, str], list[tuple[Sample, Failed]]] = defaultdict(list)
    for sample in samples:
        for reward, failure in sample.trajectory.failed_parts.items():
            if failure.kind == "not_run":
                continue
            said = failure.message.rpartition("\n")[2]
            is_raised = failure.kind == "error" and failure.where
            way = f"{failure.where} {said.partition(':')[0]}" if is_raised else said
            groups[reward, failure.kind, way].append((sample, failure))
    if not groups:
        odd = [(s, s.trajectory.outcome) for s in samples if isinstance(s.trajectory.outcome, Failed)]
        return [_failed(ALL, odd, len(samples), None, "sample")] if odd else []
    by_label = {spec.label: spec for spec in specs}
    return [
        _failed(reward, found, len(samples), by_label.get(reward), (kinds or {}).get(reward, "sample"))
        for (reward, _, _), found in groups.items()
    ]


def of_server(outcome: object) -> TypeGuard[Failed]:
    """Whether it failed since a server that a reward asks cannot be reached or refuses."""
    return isinstance(outcome, Failed) and outcome.kind == "server"


def server_said(failure: Failed) -> str:
    """Why a server did not help, without the way there."""
    return failure.message.rpartition("\n")[2].rpartition("ServerError: ")[2]


def failure_advice(failure: Failed, kind: Kind) -> str:
    """What to do about a failure of a reward that is called in a way."""
    if failure.kind == "server":
        return SERVER_ADVICE
    if failure.kind == "length":
        if failure.message.startswith("turns:"):
            return "return a number for each action of the episode in `turns`"
        what = "trajectory of the group" if kind == "group" else "completion of the list"
        return f"return one value for each {what}, in their order; None for one that it abstains from"
    if failure.kind != "error":
        return _ADVICE.get(failure.kind, _EVERY_TEXT)
    if (found := _NO_ATTRIBUTE.search(failure.message)) and (named := _attributes(found[1])):
        return f"a {found[1]} has {', '.join(named)}.{did_you_mean(found[2], named)}"
    if _NO_SEQUENCE.search(failure.message):
        return _GROUP
    if kind != "sample" and _IN_GROUPS.search(failure.message):
        return _GROUPS_OF_ONE
    if kind == "batch" and _OF_LISTS.search(failure.message):
        return (
            'each of `completions` is a list of messages, whose text is completion[-1]["content"]; a function that '
            f"takes texts works behind trl:, as trl:FILE.py:FUNCTION; {LISTS}"
        )
    return _EVERY_TEXT


def _attributes(name: str) -> list[str]:
    """What an object of one of rlft's types that rewards get has; empty for another type."""
    found = getattr(types, name, None)
    if not is_dataclass(found):
        return []
    properties = [key for key, value in vars(found).items() if isinstance(value, property)]
    return [*(field.name for field in fields(found)), *properties]


def _failed(
    reward: str, found: Sequence[tuple[Sample, Failed]], of: int, spec: RewardSpec | None, kind: Kind
) -> Finding:
    sample, failure = min(found, key=lambda pair: len(pair[0].text))
    said = server_said(failure) if failure.kind == "server" else failure.message
    place = "" if failure.where or failure.kind in ("server", "error") or spec is None else _place(spec)
    return Finding(
        check="contract",
        severity="error",
        reward=reward,
        detail=f"{len(found)} of {of} replies could not be scored ({failure.kind}): {said}{place}",
        example=quoted(sample.text),
        advice=failure_advice(failure, kind),
    )


def _place(spec: RewardSpec) -> str:
    """Where a reward is defined, to follow what it did wrong: no line of it has raised anything."""
    if defined := definition_of(spec):
        return f"; it is defined at {defined.where}"
    try:
        file = source_file(spec.path)
    except ValueError:  # loading it said so
        return ""
    return f"; it is defined in {file}" if file else ""
