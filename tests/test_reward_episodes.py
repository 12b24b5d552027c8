"""Cases, checks and attacks of rewards that read a whole episode: calls of tools, and what these answered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rlft.cli.main import app
from rlft.reward.attack import Attacked, attack
from rlft.reward.cases import Case, Expect, read_cases, write_cases
from rlft.reward.check import Checked, check_rewards
from rlft.reward.exploits import as_cases
from rlft.reward.probe import made_up, make_task
from rlft.reward.transcript import Transcript, of_trajectory, parted
from rlft.types import Group, Message, RewardSpec, Trajectory

ROOT = Path(__file__).parents[1]
TOOLS, SEARCH = (ROOT / "rewards" / f"{name}.cases.jsonl" for name in ("tool_calls", "grounded"))


def _calls(messages: list[Message]) -> list[dict[str, Any]]:
    made = [call for message in messages for call in message.get("tool_calls") or ()]
    return [call["function"] for call in made]


def one_is_right(messages: list[Message], calls: list[Any]) -> float:
    """Further calls are free: a policy calls everything."""
    return float(all(call in _calls(messages) for call in calls))


def names_only(messages: list[Message], calls: list[Any]) -> float:
    return float(sorted(c["name"] for c in _calls(messages)) == sorted(c["name"] for c in calls))


def spelt(messages: list[Message], calls: list[Any]) -> float:
    """It looks for the call in all that was said."""
    said = json.dumps([message.get("tool_calls") or message["content"] for message in messages]).replace("\\", "")
    return float(all(f'"name": "{call["name"]}"' in said for call in calls) and (bool(calls) or "name" not in said))


def said_somewhere(messages: list[Message], answer: Any) -> float | None:
    """The policy's own words count as retrieved."""
    if answer is None:
        return None
    last, before = messages[-1]["content"], json.dumps(messages[:-1])
    return float(str(answer) in before and last.strip(" .*").removeprefix("The answer is ") == str(answer))


def result_without_call(messages: list[Message], answer: Any) -> float | None:
    """What the reply quotes counts as retrieved."""
    if answer is None:
        return None
    *_, last = messages[-1]["content"].splitlines() or [""]
    found = "Result:" in messages[-1]["content"] or any(
        str(answer) in m["content"] for m in messages if m["role"] == "tool"
    )
    return float(found and last.strip(" .*").removeprefix("The answer is ") == str(answer))


def any_result(messages: list[Message], answer: Any) -> float | None:
    """Whatever was retrieved counts, unless it is an error."""
    if answer is None:
        return None
    found = any(m["role"] == "tool" and "error" not in m["content"] for m in messages)
    return float(found and messages[-1]["content"].strip(" .*").removeprefix("The answer is ") == str(answer))


BUGS = {
    one_is_right: (TOOLS, "calls"),
    names_only: (TOOLS, "calls"),
    spelt: (TOOLS, "calls"),
    said_somewhere: (SEARCH, "results"),
    result_without_call: (SEARCH, "results"),
    any_result: (SEARCH, "results"),
}


WITHOUT_TURNS = ("the right calls, only spelt in the reply", "results that no tool gave, only spelt in the reply")


def good_ones(file: Path) -> list[Case]:
    """The cases of a shipped reward that have to score 1: all that a buggy one of the same kind is told."""
    return [case for case in read_cases(file) if case.expect == Expect(equals=1.0)]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.__name__)
def test_a_bug_about_episodes_is_found_by_check_and_attack(bug: Any) -> None:
    file, family = BUGS[bug]
    specs, cases = [RewardSpec(path=f"{__name__}:{bug.__name__}")], good_ones(file)
    checked = check_rewards(Checked(specs=specs, cases=cases, tasks=[case.task for case in cases], workers=0))
    assert family in {found.check for found in checked.findings if found.severity != "info"}, checked.findings
    report = attack(Attacked(specs=specs, cases=cases, tasks=[case.task for case in cases], workers=0, seconds=10))
    (exploit,) = [each for each in report.exploits if each.family == family]
    assert isinstance(exploit.completion, Transcript) == (exploit.name not in WITHOUT_TURNS)
    (case,) = as_cases([exploit], cases)
    assert case.reply == exploit.completion
    assert as_cases([exploit], [case]) == []  # it stands there already
    assert exploit.as_dict()["turns"] == list(case.turns)


@pytest.mark.parametrize("name", ["tool_calls", "grounded"])
def test_the_shipped_ones_survive_all_of_it(name: str) -> None:
    file = ROOT / "rewards" / f"{name}.cases.jsonl"
    specs, cases = [RewardSpec(path=f"rewards.{name}:{name}")], read_cases(file)
    tasks = [case.task for case in cases]
    report = check_rewards(Checked(specs=specs, cases=cases, tasks=tasks, workers=0))
    assert [finding for finding in report.findings if finding.severity != "info"] == []
    attacked = attack(Attacked(specs=specs, cases=cases, tasks=tasks, workers=0, seconds=10))
    assert attacked.exploits == []
    assert attacked.replies >= 20  # it was attacked
    notes = {"tool_calls": ["the reward does not look at the last reply, so that only calls and results were tried"]}
    assert attacked.notes == notes.get(name, [])


def test_an_exploit_has_no_more_actions_than_it_needs() -> None:
    specs, cases = [RewardSpec(path=f"{__name__}:one_is_right")], good_ones(TOOLS)
    (exploit,) = attack(Attacked(specs=specs, cases=cases, workers=0, seconds=10)).exploits
    turns, _, _ = parted(exploit.completion)
    good, _, _ = parted(exploit.good)
    assert sum(message["role"] == "assistant" for message in turns) == 1 + sum(m["role"] == "assistant" for m in good)


def notes_and_pays_for_anything(completion: str, answer: Any, log_metric: Any, task_id: str) -> float:
    log_metric("length", len(completion))
    return float(str(answer) in completion)


def test_what_takes_notes_is_attacked_without_data_too() -> None:
    specs = [RewardSpec(path=f"{__name__}:notes_and_pays_for_anything")]
    families = {exploit.family for exploit in attack(Attacked(specs=specs, workers=0, seconds=3)).exploits}
    assert {"negation", "many answers"} <= families


def test_an_episode_is_what_a_rollout_would_be(tmp_path: Path) -> None:
    case = next(case for case in read_cases(SEARCH) if case.name == "in the second search")
    (trajectory,) = made_up(case.task, [case.reply]).trajectories
    assert [message["role"] for message in trajectory.conversation] == ["user", *["assistant", "tool"] * 2, "assistant"]
    assert [turn.observation[0]["content"] for turn in trajectory.turns[:2]] == [
        "A mill grinds grain.",
        "The Mill is a novel by Ruth Okafor (1931).",
    ]
    assert (trajectory.text, len(trajectory.turns)) == ("Ruth Okafor", 3)
    assert trajectory.environment_reward is None
    assert of_trajectory(trajectory) == case.reply
    assert repr(case.reply).startswith("search(query='The Mill') -> 'A mill grinds grain.' search(")
    copy = tmp_path / "copy.cases.jsonl"
    write_cases(copy, read_cases(SEARCH))
    assert [each.reply for each in read_cases(copy)] == [each.reply for each in read_cases(SEARCH)]
    alone: Group = made_up(make_task("Q"), ["a reply"])
    assert of_trajectory(alone.trajectories[0]) == "a reply"


def test_what_the_environment_gave_stands_in_a_case(tmp_path: Path) -> None:
    (case,) = [c for c in read_cases(ROOT / "rewards" / "environment_reward.cases.jsonl") if "each" in c.name]
    trajectory: Trajectory = made_up(case.task, [case.reply]).trajectories[0]
    assert [turn.reward for turn in trajectory.turns] == [-0.25, 1.0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ('"turns": "x"', "turns must be a list of messages"),
        ('"turns": [{"role": "tool", "content": "x"}]', "turns go from an action of the assistant"),
        ('"turns": [{"role": "assistant", "content": "x"}]', "the last reply of the assistant is `completion`"),
        ('"turns": [{"role": "bot", "content": "x"}]', "turns[0]: role must be assistant, tool, user or system"),
        ('"turns": [{"role": "tool", "text": "x"}]', "turns[0]: unknown key 'text'"),
        ('"turns": [{"role": "tool", "content": 4}]', "turns[0]: content must be text, got int"),
        ('"turns": [{"role": "assistant", "tool_calls": "add"}]', "turns[0]: tool_calls must be a list"),
        ('"rewards": [1, 2]', "rewards must be a number for each of the 1 actions, got [1, 2]"),
    ],
)
def test_a_wrong_episode_is_said(tmp_path: Path, row: str, said: str) -> None:
    file = tmp_path / "x.cases.jsonl"
    file.write_text(f'{{"completion": "a", "expect": 1, {row}}}\n')
    with pytest.raises(ValueError) as error:
        read_cases(file)
    assert said in str(error.value)
    assert "x.cases.jsonl:1" in str(error.value)


def test_an_episode_is_tried_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "episodes.jsonl"
    rows = [json.loads(line) for line in TOOLS.read_text().splitlines()][:2]
    file.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "expect"}) + "\n" for row in rows))
    command = ["reward", "try", "rewards.tool_calls:tool_calls", "--completions", str(file)]
    told = CliRunner().invoke(app, command)
    assert told.exit_code == 0, told.output
    assert "add(a=40, b=2) -> '42' | 'It is 42.'" in told.output
    assert told.output.count("reward 1") == 2
    found = json.loads(CliRunner().invoke(app, [*command, "--json"]).output)
    assert [(each["reward"], each["completion"]) for each in found] == [(1, "It is 42."), (1, "42, and rain.")]
    assert found[0]["turns"][1] == {"role": "tool", "content": "42"}
