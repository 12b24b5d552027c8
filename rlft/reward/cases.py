"""The cases of a reward: what it has to say to some completions, one a line, beside its file.

    brevity.cases.jsonl
    {"name": "bare", "prompt": "What is 17 + 25?", "completion": "42", "answer": "42", "expect": 1.0}
    {"name": "long", "completion": "It is, all things considered, 42", "answer": "42", "expect": {"at_most": 0.9}}
    {"completion": "43", "answer": "42", "expect": {"part": "correct", "equals": 0}}
    {"completion": "The answer is 42", "answer": "42", "expect": {"above": "long"}}
    {"completion": "", "expect": "abstain"}

`expect` is a number, bounds (`equals`, `at_least`, `at_most`), the name of a case that must score lower (`above`), or
"abstain". `part` makes bounds and order be about a part instead of the value: `NAME` of the reward's own, or
`REWARD/NAME`.

Of an episode, `turns` are the messages between the prompt and the last reply, and `rewards` what the environment gave
for each action, the reply's included:

    {"prompt": "Where was Ada born?", "turns": [
        {"role": "assistant", "tool_calls": [{"name": "search", "arguments": {"query": "Ada"}}]},
        {"role": "tool", "content": "Ada was born in Kelham."}],
     "completion": "In Kelham.", "answer": "Kelham", "expect": 1.0}
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlft.common.by_path import did_you_mean
from rlft.common.files import write_file
from rlft.common.rows import read_rows
from rlft.reward import systems
from rlft.reward.probe import Probe, make_task
from rlft.reward.source import source_file
from rlft.reward.transcript import read_turns, whole
from rlft.types import Abstain, Failed, Message, Outcome, RewardSpec, Score, Task

SUFFIX = ".cases.jsonl"
TOLERANCE = 1e-6
"""How far a value may be from the one that is expected, relative to it where it is above 1."""

OF_MODELS = {"base_url", "model", "api_key_env", "deadline_s", "folder", "label", "device", "threads"}
"""Arguments that say which judge or model is asked, and not what is right."""

_KEYS = ("name", "prompt", "turns", "completion", "rewards", "answer", "columns", "expect")
_EXPECT_KEYS = ("part", "equals", "at_least", "at_most", "above")


@dataclass(frozen=True, slots=True, kw_only=True)
class Expect:
    """What must hold for the outcome of a case."""

    abstain: bool = False
    """Whether the reward has to abstain; then nothing else is asked."""
    part: str = ""
    """Name of the part that is meant; empty means the value."""
    equals: float | None = None
    at_least: float | None = None
    at_most: float | None = None
    above: str = ""
    """Name of the case that must score lower."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A completion, and what a reward has to say to it."""

    completion: str
    expect: Expect
    name: str
    """Unique within its file; `line N` where the file gives none."""
    where: str = ""
    """`file:line`."""
    prompt: str = ""
    answer: Any = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    turns: tuple[Message, ...] = ()
    """What was said between the prompt and the completion."""
    rewards: tuple[float, ...] = ()
    """What the environment gave for each action; empty where it gave nothing."""

    @property
    def reply(self) -> str:
        """What is scored: the completion, with all that came before it."""
        return whole(self.turns, self.completion, self.rewards)

    @property
    def task(self) -> Task:
        """The task that the completion answers."""
        return make_task(self.prompt, answer=self.answer, columns=self.columns, id=self.name)


def beside(reward: str) -> Path:
    """Where the cases of a reward lie that is named by its file, `FILE.py:FUNCTION`."""
    _, name = systems.split(reward)
    return Path(name.rpartition(":")[0] or name).with_suffix(SUFFIX)


def cases_file(specs: Sequence[RewardSpec]) -> Path | None:
    """Where the cases of the only reward with a weight lie, or would.

    They are for weight 1 and no arguments but `OF_MODELS`.
    """
    weighted = [spec for spec in specs if spec.weight]
    if len(weighted) != 1 or weighted[0].weight != 1 or weighted[0].args.keys() - OF_MODELS:
        return None
    return _beside(weighted[0])


def cases_beside(specs: Sequence[RewardSpec]) -> list[Case]:
    """The cases of `cases_file`, none where there is no such file.

    Raises:
        ValueError: see `read_cases`.
    """
    file = cases_file(specs)
    return read_cases(file) if file and file.is_file() else []


def left_out(specs: Sequence[RewardSpec]) -> str:
    """A sentence about cases that lie beside the only reward and are not for its arguments; empty where none do."""
    file = _beside(specs[0]) if len(specs) == 1 and not cases_file(specs) else None
    if file is None or not file.is_file():
        return ""
    return f"{file} was left out: its cases are for no arguments; --cases {file} takes them all the same"


def read_cases(path: Path) -> list[Case]:
    """Read a file of cases.

    Raises:
        ValueError: the file or a line of it is no good: says where, and what to write instead.
    """
    cases: dict[str, Case] = {}
    for where, row in read_rows(str(path), name="cases"):
        case = _case(where, row)
        if case.name in cases:
            raise ValueError(f"{where}: the name {case.name!r} stands twice, first at {cases[case.name].where}")
        cases[case.name] = case
    for case in cases.values():
        if case.expect.above and case.expect.above not in cases:
            near = did_you_mean(case.expect.above, cases)
            raise ValueError(f"{case.where}: expect.above: no case {case.expect.above!r}.{near}")
        if case.expect.above == case.name:
            raise ValueError(f"{case.where}: expect.above: {case.name!r} is this case, which cannot score below itself")
    return list(cases.values())


def write_cases(path: Path, cases: Iterable[Case]) -> None:
    """Write a file of cases, whole or not at all; what a case has not is left out."""
    write_file(path, "".join(json.dumps(_row(case), ensure_ascii=False) + "\n" for case in cases))


def case_outcomes(probe: Probe, cases: Sequence[Case]) -> list[Outcome]:
    """What the rewards of a probe say to the cases, in their order.

    Each case is a group of its own; for a reward that compares, the cases of one task are one group.
    """
    found = outcomes_by_name(probe, cases)
    return [found[case.name] for case in cases]


def uncalled(probe: Probe, specs: Sequence[RewardSpec], cases: Sequence[Case]) -> dict[str, list[str]]:
    """Rewards that are only watched and cannot be called on all of the cases -> the parameters that those lack.

    Cases lie beside the trained reward and have its columns; the tasks of a run have those of all rewards.
    """
    if not cases:
        return {}
    columns = set.intersection(*({*case.columns} for case in cases))
    watched = {spec.label for spec in specs if not spec.weight}
    return {label: names for label, names in probe.unsupplied(columns).items() if label in watched}


def not_asked(uncalled: Mapping[str, Sequence[str]]) -> str:
    """A sentence about the rewards that `uncalled` found."""
    lacking = [f"{label}, which is only watched and takes {', '.join(names)}" for label, names in uncalled.items()]
    return f"the cases lack what is needed to ask {'; '.join(lacking)}"


def outcomes_by_name(probe: Probe, cases: Sequence[Case], ends: float = math.inf) -> dict[str, Outcome]:
    """Like `case_outcomes`, by the cases' names; those for which no time is left by `ends` are missing."""
    comparative = any(plan.kind == "group" for plan in probe.plans.values())
    together: dict[str, list[Case]] = {}
    for case in cases:
        task = json.dumps([case.prompt, case.answer, dict(case.columns)], sort_keys=True, default=str)
        together.setdefault(task if comparative else case.name, []).append(case)
    groups = list(together.values())
    scored = probe.score_groups([(group[0].task, [case.reply for case in group]) for group in groups], ends=ends)
    return {
        case.name: outcome
        for group, outcomes in zip(groups, scored, strict=False)
        for case, outcome in zip(group, outcomes, strict=True)
    }


def broken_cases(cases: Sequence[Case], outcomes: Sequence[Outcome]) -> dict[str, str]:
    """What is wrong, by the names of the cases that do not hold.

    Args:
        outcomes: of the cases, in their order.
    """
    found = dict(zip((case.name for case in cases), outcomes, strict=True))
    problems = {case.name: _problem(case.expect, found[case.name], found) for case in cases}
    return {name: problem for name, problem in problems.items() if problem}


def value_of(outcome: Outcome, part: str = "") -> float | None:
    """The value of an outcome or of a part, None if there is none.

    Args:
        part: `REWARD/NAME`, or `NAME` where one reward has such a part; a reward's name is its value.
    """
    if not isinstance(outcome, Score):
        return None
    if not part:
        return outcome.value
    if part in outcome.parts:
        return outcome.parts[part]
    of_a_reward = [value for name, value in outcome.parts.items() if name.partition("/")[2] == part]
    return of_a_reward[0] if len(of_a_reward) == 1 else None


def _beside(spec: RewardSpec) -> Path | None:
    """Where the cases of a reward lie, or would; None where its own file is not known."""
    file, name = source_file(spec.path), spec.path.rpartition(":")[2]
    if file is None:
        return None
    places = (file.with_name(f"{name}{SUFFIX}"), file.with_suffix(SUFFIX))
    return next((path for path in places if path.is_file()), places[0])


def _problem(expect: Expect, outcome: Outcome, others: Mapping[str, Outcome]) -> str:
    """What is wrong with an outcome, given those of the other cases by name; empty if nothing."""
    if isinstance(outcome, Failed):
        return f"failed ({outcome.kind}): {outcome.message}"
    if isinstance(outcome, Abstain):
        return "" if expect.abstain else f"abstained: {outcome.reason}"
    if expect.abstain:
        return f"scored {outcome.value:g} instead of abstaining"
    value, what = value_of(outcome, expect.part), f"part {expect.part!r}" if expect.part else "the value"
    if value is None:
        return f"there is no part {expect.part!r}; there is {', '.join(sorted(outcome.parts))}"
    slack = TOLERANCE * max(1.0, abs(value))
    if expect.equals is not None and abs(value - expect.equals) > slack:
        return f"{what} is {value:g}, not {expect.equals:g}"
    if expect.at_least is not None and value < expect.at_least - slack:
        return f"{what} is {value:g}, below {expect.at_least:g}"
    if expect.at_most is not None and value > expect.at_most + slack:
        return f"{what} is {value:g}, above {expect.at_most:g}"
    if expect.above:
        other = value_of(others[expect.above], expect.part)
        if other is None:
            return f"case {expect.above!r}, which must score lower, has no value"
        if not value > other:
            return f"{what} is {value:g}, not above {other:g}, that of case {expect.above!r}"
    return ""


def _case(where: str, row: Mapping[str, Any]) -> Case:
    for key in row:
        if key not in _KEYS:
            raise ValueError(f"{where}: unknown key {key!r}.{did_you_mean(key, _KEYS)} A case has {', '.join(_KEYS)}.")
    for key in ("completion", "expect"):
        if key not in row:
            raise ValueError(f'{where}: {key!r} is missing; write {{"completion": "...", "expect": 1.0}}')
    for key, kind in (("completion", str), ("prompt", str), ("name", str), ("columns", Mapping)):
        if key in row and not isinstance(row[key], kind):
            expected = "text" if kind is str else "an object"
            raise ValueError(f"{where}: {key} must be {expected}, got {type(row[key]).__name__}")
    turns, rewards = read_turns(row.get("turns", []), f"{where}: turns"), row.get("rewards", [])
    actions = 1 + sum(message["role"] == "assistant" for message in turns)
    if not isinstance(rewards, list) or not all(map(_is_number, rewards)) or len(rewards) not in (0, actions):
        raise ValueError(f"{where}: rewards must be a number for each of the {actions} actions, got {rewards!r}")
    line = where.rpartition(":")[2].rpartition(" ")[2]
    return Case(
        completion=row["completion"],
        expect=_expect(f"{where}: expect", row["expect"]),
        name=row.get("name") or f"line {line}",
        where=where,
        prompt=row.get("prompt", ""),
        answer=row.get("answer"),
        columns=row.get("columns", {}),
        turns=turns,
        rewards=tuple(map(float, rewards)),
    )


def _expect(where: str, given: Any) -> Expect:
    if given == "abstain":
        return Expect(abstain=True)
    if _is_number(given):
        return Expect(equals=float(given))
    if isinstance(given, float):  # nan or an infinity
        raise ValueError(f"{where} must be a finite number, got {given!r}: no score can be compared with it")
    if not isinstance(given, Mapping):
        raise ValueError(f'{where} must be a number, an object such as {{"at_most": 0.5}}, or "abstain", got {given!r}')
    for key, value in given.items():
        if key not in _EXPECT_KEYS:
            raise ValueError(f"{where}: unknown key {key!r}.{did_you_mean(key, _EXPECT_KEYS)}")
        if key in ("part", "above"):
            if not isinstance(value, str):
                raise ValueError(f"{where}.{key} must be a name, got {value!r}")
        elif not _is_number(value):
            raise ValueError(f"{where}.{key} must be a finite number, got {value!r}")
    if not given.keys() - {"part"}:
        raise ValueError(f"{where} says nothing to hold: add one of {', '.join(_EXPECT_KEYS[1:])}")
    expect = Expect(**given)
    if problem := _contradiction(expect):
        raise ValueError(f"{where} cannot hold: {problem}")
    return expect


def _contradiction(expect: Expect) -> str:
    """Why no value can be as a case expects; empty where one can."""
    low, high, value = expect.at_least, expect.at_most, expect.equals
    if low is not None and high is not None and low > high:
        return f"at_least {low:g} is above at_most {high:g}"
    if value is not None and low is not None and value < low - TOLERANCE:
        return f"equals {value:g} is below at_least {low:g}"
    if value is not None and high is not None and value > high + TOLERANCE:
        return f"equals {value:g} is above at_most {high:g}"
    return ""


def _is_number(value: Any) -> bool:
    """Whether a value is a number that a score can be compared with: nothing is above, below or equal to nan."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _row(case: Case) -> dict[str, Any]:
    expect = case.expect
    asked = {key: value for key in _EXPECT_KEYS if (value := getattr(expect, key)) not in (None, "")}
    row = {
        "name": "" if case.name.startswith("line ") else case.name,
        "prompt": case.prompt,
        "turns": list(case.turns),
        "completion": case.completion,
        "rewards": list(case.rewards),
        "answer": case.answer,
        "columns": dict(case.columns),
        "expect": "abstain" if expect.abstain else asked.get("equals") if asked.keys() == {"equals"} else asked,
    }
    return {
        key: value for key, value in row.items() if key in ("completion", "expect") or value not in ("", None, {}, [])
    }
