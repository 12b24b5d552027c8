"""`rlft reward`: a new reward as files, and completions scored as a person asks."""

from __future__ import annotations

import io
import json
import os
import re
import shlex
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

from rlft.cli import main, reward_try
from rlft.cli.key_values import as_in_a_row, key_values
from rlft.common.rows import read_rows
from rlft.reward.cases import broken_cases, read_cases
from rlft.reward.probe import Probe
from rlft.reward.source import definition
from rlft.types import RewardSpec

ODD = """
def odd(completion, answer, level=1):
    print("looks at", completion)
    return {"a": 1 / len(completion), "level": level}

def unsaid(completion):
    value = 1.0
    def inner():
        return value

def longest(group, log_metric, log_extra):
    sizes = [len(each.text) for each in group.trajectories]
    log_metric("most", max(sizes))
    log_extra("size", sizes)
    return [float(size == max(sizes)) for size in sizes]

def dies(completion):
    print("farewell")
    __import__("os")._exit(3)
    return 1.0
"""


@pytest.fixture
def odd(tmp_path: Path) -> Path:
    file = tmp_path / "odd.py"
    file.write_text(ODD)
    return file


def reward(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main.app, ["reward", *map(str, arguments)], env={"COLUMNS": "200", "TERM": "dumb"})


def test_a_new_reward_holds_its_own_cases_and_is_never_written_over(tmp_path: Path) -> None:
    written = reward("init", "brevity", "--folder", tmp_path)
    assert written.exit_code == 0, written.output
    file = tmp_path / "brevity.py"
    cases = read_cases(tmp_path / "brevity.cases.jsonl")
    with Probe([RewardSpec(path=f"{file}:brevity")]) as probe:
        outcomes = [outcomes[0] for outcomes in probe.score_groups([(c.task, [c.completion]) for c in cases])]
    assert broken_cases(cases, outcomes) == {}
    file.write_text("mine")
    again = reward("init", "brevity", "--folder", tmp_path)
    assert "exists already" in str(again.exception)
    assert file.read_text() == "mine"
    assert "cannot name a function" in str(reward("init", "my-reward", "--folder", tmp_path).exception)


def test_completions_are_tried(odd: Path) -> None:
    told = reward("try", f"{odd}:odd", "--completion", "ab", "--completion", "", "--answer", "42", "--args", "level=2")
    assert told.exit_code == 1
    assert "reward 2.5" in told.output
    assert "odd/a: 0.5" in told.output
    assert "looks at ab" in told.output
    assert f'File "{odd}", line 4, in odd' in told.output
    assert "ZeroDivisionError: division by zero" in told.output


def test_a_file_of_completions_is_tried_as_json(odd: Path) -> None:
    replies = odd.with_name("replies.jsonl")
    replies.write_text('{"completion": "ab"}\n{"completion": "abcd", "answer": [1]}\n')
    told = reward("try", f"{odd}:odd", "--completions", replies, "--answer", "42", "--json")
    assert told.exit_code == 0, told.output
    assert [row["reward"] for row in json.loads(told.output)] == [1.5, 1.25]
    replies.write_text('{"completion": "ab"}\n{"text": "abcd"}\n')
    told = reward("try", f"{odd}:odd", "--completions", replies)
    assert f"{replies}:2: expected" in str(told.exception)
    for own, said in (('"columns": 3', "columns must be an object, got int"), ('"prompt": 3', "prompt must be text")):
        replies.write_text(f'{{"completion": "ab"}}\n{{"completion": "a", {own}}}\n')
        assert f"{replies}:2: {said}" in str(reward("try", f"{odd}:odd", "--completions", replies).exception)
    assert "nothing to score" in str(reward("try", f"{odd}:odd").exception)


def test_what_cannot_be_asked_is_refused(odd: Path, tmp_path: Path) -> None:
    for name in ("empty.jsonl", "empty.txt"):
        (tmp_path / name).write_text("")
        told = reward("try", f"{odd}:odd", "--completions", tmp_path / name)
        assert str(told.exception) == f"{tmp_path / name} has no completions: write one a line"
    told = reward("check", f"{odd}:odd", "--within-s", "inf")
    assert str(told.exception) == "inf is no number of seconds; give one such as 5"
    told = reward("try", f"{odd}:odd", "--completions", tmp_path / "emptyy.txt")
    assert str(told.exception) == f"--completions: no file {tmp_path / 'emptyy.txt'}. Did you mean 'empty.txt'?"


def test_completions_of_a_task_are_compared_and_what_is_noted_is_shown(odd: Path) -> None:
    told = reward("try", f"{odd}:longest", "--completion", "ab", "--completion", "abc").output
    assert re.findall(r"reward (\d)|(size: \d|most: \d)|(\d together)", told) == [
        ("0", "", ""),
        ("", "size: 2", ""),
        ("", "", "2 together"),
        ("1", "", ""),
        ("", "most: 3", ""),
        ("", "size: 3", ""),
        ("", "", "2 together"),
    ]
    assert "note:" not in told
    alone = reward("try", f"{odd}:longest", "--completion", "ab")
    assert "longest compares the samples of a task, and here is one alone" in alone.output
    (row,) = json.loads(reward("try", f"{odd}:longest", "--completion", "ab", "--json").output)
    assert (row["log_metric"], row["log_extra"]) == ({"longest/most": 2.0}, {"longest/size": 2})


def test_what_is_easily_overlooked_is_said(odd: Path) -> None:
    told = reward("try", f"{odd}:unsaid", "--completion", "ab")
    assert "abstained: unsaid: returned None" in told.output
    assert f"{odd}:6: the function returns nothing, so the reward always abstains" in told.output
    told = reward("try", f"{odd}:odd", "--completion", "ab")
    assert "odd takes `answer`, and the task has none: give it with --answer" in told.output
    told = reward("try", f"{odd}:dies", "--completion", "ab")
    assert "ended with exit code 3\n" in told.output  # not where its log lies: that is gone when the command ends
    assert "farewell" in told.output


def test_parts_are_shown_where_the_sum_abstains(odd: Path, tmp_path: Path) -> None:
    config = tmp_path / "two.yaml"
    text = Path("configs/debug/env_countdown.yaml").read_text().partition("rewards:")
    rest = text[2].partition("\nsampling:")
    own = f"rewards: [{{path: '{odd}:unsaid'}}, {{path: '{odd}:odd', weight: 0}}]"
    config.write_text(f"{text[0]}{own}\nsampling:{rest[2]}")
    told = reward("try", "--config", config, "--completion", "ab")
    assert told.output.startswith("task ")
    assert told.output.index("abstained") < told.output.index("odd: 1.5  x weight 0") < told.output.index("odd/a: 0.5")
    (row,) = json.loads(reward("try", "--config", config, "--completion", "ab", "--json").output)
    assert (row["outcome"], row["parts"]) == ("abstain", {"odd": 1.5, "odd/a": 0.5, "odd/level": 1.0})


def test_a_config_gives_the_rewards_and_the_task() -> None:
    config = "configs/debug/env_countdown.yaml"
    told = reward("try", "--config", config, "--completion", "<answer>1 + 1</answer>", "--json")
    assert told.exit_code == 0, told.output
    (row,) = json.loads(told.output)
    assert row["outcome"] == "score"
    assert row["task"] != "made-up"
    assert "no task 'nowhere'" in str(reward("try", "--config", config, "--task", "nowhere").exception)


def test_columns_are_read_as_in_a_file_of_rows(tmp_path: Path) -> None:
    file, rows = tmp_path / "shown.py", tmp_path / "rows.jsonl"
    file.write_text("def shown(completion, x, log_extra):\n    log_extra('x', repr(x))\n    return 1.0\n")

    for value in ("42", "1e3", "true", "null", '"42"', '[1, "a"]', '{"a": [1.5]}'):
        rows.write_text(f'{{"x": {value}}}\n')
        ((_, row),) = read_rows(str(rows))
        assert repr(key_values([f"x={value}"], "--column", as_in_a_row)) == repr(dict(row))
    for text in ("no", "2026-11-26", "007", "1_000", "NaN", "*x", "a: b", "[0, 1)", ""):
        assert key_values([f"x={text}"], "--column", as_in_a_row) == {"x": text}
    told = reward("try", f"{file}:shown", "--completion", "a", "--column", "x=[a, b]").output
    assert "note: column x is the text [a, b], which is no JSON: texts in a list need double quotes" in told
    wrong = reward("try", f"{file}:shown", "--completion", "a", "--args", "x=*a")
    assert "--args 'x=*a': the value is no YAML" in str(wrong.exception)


def test_what_is_found_stands_whole_on_lines_of_any_terminal(tmp_path: Path) -> None:
    file = tmp_path / "a_folder_with_a_long_name" / "lenient.py"
    file.parent.mkdir()
    file.write_text("def lenient(completion, answer):\n    return float(str(answer) in completion)\n")
    cases = file.with_name("lenient.cases.jsonl")
    cases.write_text('{"prompt": "q", "completion": "It is not 42", "answer": "42", "expect": 0}\n')
    narrow = {"COLUMNS": "40", "TERM": "dumb"}

    def lines(*arguments: str) -> list[str]:
        return CliRunner().invoke(main.app, ["reward", *arguments, f"{file}:lenient"], env=narrow).output.splitlines()

    checked = lines("check")
    assert f"{file}:lenient" in checked
    assert "error: cases" in checked
    assert f"  seen       {cases}:1: case 'line 1': the value is 1, not 0" in checked
    assert "  example    'It is not 42'" in checked
    assert "  do         mend the reward, or the case" in checked
    attacked = lines("attack", "--seconds", "2")
    assert "cases" in attacked
    assert "  reply      'It is not 42'" in attacked


def test_cases_that_are_not_for_these_arguments_are_named(odd: Path) -> None:
    odd.write_text("def at(completion, word='a', folder=''):\n    return float(word in completion)\n")
    cases = odd.with_name("at.cases.jsonl")
    cases.write_text('{"completion": "a", "expect": 1}\n')
    left = reward("check", f"{odd}:at", "--args", "word=b").output
    assert f"note: {cases} was left out: its cases are for no arguments; --cases {cases} takes them" in left
    for arguments in (("--args", "folder=x"), ("--args", "word=b", "--cases", cases)):
        taken = reward("check", f"{odd}:at", *arguments).output
        assert "left out" not in taken
        assert "cases" in taken


def test_what_changes_is_tried_again(odd: Path) -> None:
    asked = reward_try.Asked(
        target=f"{odd}:odd",
        completions=("ab",),
        file=None,
        prompt="",
        answer="42",
        columns=(),
        args=(),
        config=None,
        task="",
        deadline_s=None,
    )
    edits = ["def odd(completion): return 7", "def odd(", None]

    def edit(seconds: float) -> None:
        if (text := edits.pop(0)) is None:
            raise KeyboardInterrupt
        odd.write_text(text)
        os.utime(odd, ns=(0, len(edits)))

    shown = Console(file=io.StringIO(), width=200)
    reward_try.watch(shown, asked, as_json=False, sleep=edit)
    told = shown.file.getvalue()  # type: ignore[attr-defined]
    assert told.index("reward 1.5") < told.index("reward 7") < told.index("SyntaxError")


def test_a_source_is_read_without_running_it(odd: Path) -> None:
    found = definition(f"{odd}:odd")
    assert found is not None
    assert (found.where, found.returns, found.defaults) == (f"{odd}:2", True, {"level": 1})
    assert (unsaid := definition(f"{odd}:unsaid")) is not None
    assert not unsaid.returns  # the `return` is that of a function inside
    assert (shipped := definition("rewards.judge:helpfulness")) is not None
    assert shipped.defaults["deadline_s"] > 0
    assert definition("rlft.reward.judge:score") is not None


@pytest.mark.parametrize(
    ("last", "line"),
    [
        ("def f(completion):\n    return 1", 3),
        ("f = print(f)", None),
        ("from json import loads as f", None),
        ("class f: ...", None),
        ("if True:\n    def f(completion): return 1", None),
        ("def g():\n    f = 1", 1),
    ],
)
def test_the_last_that_a_file_says_of_a_name_counts(tmp_path: Path, last: str, line: int | None) -> None:
    (tmp_path / "mine.py").write_text(f"def f(completion):\n    completion\n{last}\n")
    found = definition(f"{tmp_path}/mine.py:f")
    assert (found and found.line) == line


def test_the_pages_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[1] / "docs" / "rewards.md").read_text()
    section = page[page.index("## The first ten minutes") :].partition("\n## ")[0]
    monkeypatch.chdir(tmp_path)
    (commands,) = re.findall(r"```bash\n(.*?)```", section, re.DOTALL)
    for line in commands.splitlines():
        command, *arguments = shlex.split(line)
        assert command == "rlft"
        done = CliRunner().invoke(main.app, arguments)
        assert done.exit_code == 0, done.output
    lines, episodes = re.findall(r"```json\n(.*?)```", section, re.DOTALL)
    (tmp_path / "page.cases.jsonl").write_text(lines)
    assert len(read_cases(tmp_path / "page.cases.jsonl")) == 5
    for line, reward in zip(episodes.splitlines(), ("tool_calls", "environment_reward"), strict=True):
        (tmp_path / "episode.cases.jsonl").write_text(line)
        path = f"rewards.{reward}:{reward}"
        done = CliRunner().invoke(main.app, ["reward", "check", path, "--cases", "episode.cases.jsonl", "--json"])
        assert {"all 1 hold"} <= {each["detail"] for each in json.loads(done.output)["findings"]}, done.output
