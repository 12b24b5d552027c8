"""Made-up completions and the cases of a reward: what is scored, what is judged, and what a wrong file is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlft.reward.cases import Case, Expect, beside, broken_cases, read_cases, write_cases
from rlft.reward.probe import GaveUpError, Probe, make_task
from rlft.types import Abstain, Outcome, RewardSpec, Score

REWARDS = """
import time

def length(completion):
    print("saw", completion)
    if completion == "hang":
        time.sleep(60)
    return len(completion)

def tokens(completions, completion_ids, prompts):
    return [len(ids) + 100 * len(prompts[0]) for ids in completion_ids]

def rank(group):
    return [float(index) for index, _ in enumerate(group.trajectories)]
"""


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("rewards") / "rewards.py"
    file.write_text(REWARDS)
    return str(file)


@pytest.fixture(scope="module")
def probe(rewards: str) -> Iterator[Probe]:
    specs = [
        RewardSpec(path=f"{rewards}:length"),
        RewardSpec(path=f"{rewards}:tokens", weight=0),
        RewardSpec(path=f"{rewards}:rank", weight=0),
    ]
    with Probe(specs, deadline_s=0.3, most_killed=2) as probe:
        yield probe


def test_made_up_completions_are_scored_alone_or_as_a_group(probe: Probe) -> None:
    task = make_task("Q", answer="42")
    alone = probe.score(task, ["a", "bb", "ccc"])
    assert [outcome.value for outcome in alone if isinstance(outcome, Score)] == [1, 2, 3]
    ((first, second),) = probe.score_groups([(task, ["é", "bb"])])
    assert isinstance(first, Score)
    assert isinstance(second, Score)
    # "é" is two bytes, and a byte is a token; there is one message in the prompt.
    assert first.parts == {"length": 1.0, "tokens": 102.0, "rank": 0.0}
    assert second.parts["rank"] == 1.0
    many = probe.score_groups([(task, [str(n)] * (1 + n % 3)) for n in range(200)])
    assert [len(outcomes) for outcomes in many] == [1 + n % 3 for n in range(200)]


def test_one_completion_comes_with_its_seconds_and_what_was_printed(probe: Probe) -> None:
    probe.printed()
    found = probe.score_one(make_task("Q"), "ab")
    assert found.printed == "saw ab\n"
    assert 0 < found.seconds < 10
    assert found.failed_parts == {}


def test_a_reward_that_hangs_is_given_up(probe: Probe) -> None:
    with pytest.raises(GaveUpError, match=r"within 0\.3 s") as caught:
        probe.score(make_task("Q"), ["a", *["hang"] * 50])
    assert caught.value.text == "hang"


def test_cases_survive_writing_and_reading(tmp_path: Path) -> None:
    cases = [
        Case(name="bare", completion="42", prompt="17 + 25?", answer=42, expect=Expect(equals=1.0)),
        Case(name="worse", completion="", columns={"level": 3}, expect=Expect(at_least=0.0, at_most=0.5)),
        Case(name="line 3", completion="x", expect=Expect(part="format", above="worse")),
        Case(name="none", completion="y", expect=Expect(abstain=True)),
    ]
    path = tmp_path / "r.cases.jsonl"
    write_cases(path, cases)
    read = read_cases(path)
    assert [case.where for case in read] == [f"{path}:{line}" for line in range(1, 5)]
    assert [(c.name, c.completion, c.prompt, c.answer, dict(c.columns), c.expect) for c in read] == [
        (c.name, c.completion, c.prompt, c.answer, dict(c.columns), c.expect) for c in cases
    ]
    assert beside("folder/r.py:reward") == Path("folder/r.cases.jsonl")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ('{"completion": "a"}', "'expect' is missing"),
        ('{"completion": "a", "expects": 1}', "unknown key 'expects'. Did you mean 'expect'?"),
        ('{"completion": 3, "expect": 1}', "completion must be text, got int"),
        ('{"completion": "a", "expect": "high"}', "expect must be a number"),
        ('{"completion": "a", "expect": {"atleast": 1}}', "expect: unknown key 'atleast'. Did you mean 'at_least'?"),
        ('{"completion": "a", "expect": {"at_most": true}}', "expect.at_most must be a finite number, got True"),
        ('{"completion": "a", "expect": NaN}', "expect must be a finite number, got nan"),
        ('{"completion": "a", "expect": {"at_least": NaN}}', "expect.at_least must be a finite number, got nan"),
        ('{"completion": "a", "expect": Infinity}', "expect must be a finite number, got inf"),
        ('{"completion": "a", "expect": {"at_least": 0.9, "at_most": 0.1}}', "at_least 0.9 is above at_most 0.1"),
        ('{"completion": "a", "expect": {"equals": 2, "at_most": 1}}', "equals 2 is above at_most 1"),
        ('{"name": "b", "completion": "a", "expect": {"above": "b"}}', "'b' is this case"),
        ('{"completion": "a", "expect": {"part": "format"}}', "says nothing to hold"),
        ('{"completion": "a", "expect": {"above": "gone"}}', "no case 'gone'"),
        ('{"name": "good", "completion": "a", "expect": 1}', "the name 'good' stands twice"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "r.cases.jsonl"
    path.write_text('{"name": "good", "completion": "a", "expect": 1}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"r\.cases\.jsonl:2: ") as caught:
        read_cases(path)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("expect", "outcome", "problem"),
    [
        (Expect(equals=1.0), Score(value=1.0000001), ""),
        (Expect(equals=1.0), Score(value=0.9), "the value is 0.9, not 1"),
        (Expect(at_least=0.5, at_most=0.6), Score(value=0.5), ""),
        (Expect(at_least=0.5), Score(value=0.4), "the value is 0.4, below 0.5"),
        (Expect(at_most=0.5), Score(value=0.6), "the value is 0.6, above 0.5"),
        (Expect(above="other"), Score(value=0.3), "not above 0.5, that of case 'other'"),
        (Expect(above="other"), Score(value=0.6), ""),
        (Expect(part="format", equals=1), Score(value=0, parts={"r": 0, "r/format": 1}), ""),
        (Expect(part="formt", equals=1), Score(value=0, parts={"r": 0}), "there is no part 'formt'; there is r"),
        (Expect(equals=1), Abstain(reason="returned None"), "abstained: returned None"),
        (Expect(abstain=True), Abstain(reason="returned None"), ""),
        (Expect(abstain=True), Score(value=0), "scored 0 instead of abstaining"),
    ],
)
def test_an_outcome_is_judged(expect: Expect, outcome: Outcome, problem: str) -> None:
    case = Case(name="case", completion="a", expect=expect)
    other = Case(name="other", completion="b", expect=Expect(at_least=0.0))
    found = broken_cases([case, other], [outcome, Score(value=0.5)])
    assert problem in found.get("case", "")
    assert bool(found) == bool(problem)
