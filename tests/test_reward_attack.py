"""`rlft reward attack`: the share of planted bugs that it finds, that it accuses no right reward, and the command."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rlft.cli import attack_policy, main
from rlft.cli.reward_attack import stored
from rlft.common.by_path import available
from rlft.curves.reading import read_rollouts
from rlft.environment import loading
from rlft.reward import attack as attacks
from rlft.reward.attack import Attacked, AttackReport, attack
from rlft.reward.cases import Case, Expect, read_cases
from rlft.reward.exploits import contentless, reveals
from rlft.reward.probe import make_task
from rlft.reward.shrinking import shrunk
from rlft.reward.transforms import FAMILIES
from rlft.reward.tricks import ADVICE, WITHOUT
from rlft.types import RewardSpec, Task
from tests.fakes_run import make_run
from tests.sweeps import swept

ROOT = Path(__file__).parents[1]


def tasks(*pairs: tuple[str, str]) -> list[Task]:
    return [make_task(prompt, answer=answer, id=prompt) for prompt, answer in pairs]


WORDS = tasks(("Who wrote it?", "William Shakespeare"), ("The capital of France?", "Paris"), ("Who?", "Marie Curie"))
SYMBOLS = tasks(("Resistance?", "\u03a9"), ("Japan?", "\u65e5\u672c"), ("The circle?", "\u03c0"))
LETTERS = tasks(("Pick one.", "B"), ("Pick another one.", "A"), ("Pick the last one.", "D"))
SQUARES = [
    Case(
        name=f"good {n}",
        prompt=f"Write `square(n)`.\nassert square({n}) == {n * n}\nassert square(3) == 9",
        completion="```python\ndef square(n):\n    return n * n\n```",
        answer=[[[n], n * n], [[3], 9]],
        expect=Expect(equals=1.0),
    )
    for n in (2, 4)
]
CODE: dict[str, Any] = {"cases": SQUARES, "tasks": [case.task for case in SQUARES]}

BUGS: dict[str, tuple[set[str], dict[str, Any]]] = {
    # reward: (families, of which one has to be found; what it is tried on, if not on sums)
    "substring": ({"negation", "many answers"}, {}),
    "last_number": ({"negation"}, {}),
    "first_tag": ({"contradiction"}, {}),
    "any_tag": ({"many answers"}, {}),
    "within_tags": ({"many answers"}, {}),
    "excused": ({"nothing"}, {}),
    "errors_pay": ({"nothing"}, {}),
    "unbounded_length": ({"padding"}, {}),
    "length_of_wrong": ({"padding"}, {}),
    "format_pays": ({"format only"}, {}),
    "prefix": ({"wrong answer"}, {}),
    "prefix_of_answer": ({"nothing"}, {}),
    "evaluates": ({"code"}, {}),
    "persuaded_judge": ({"injection"}, {}),
    "flattered_judge": ({"flattery"}, {}),
    "judge_of_style": ({"injection"}, {}),
    "none_is_none": ({"nothing"}, {}),
    "empty_is_empty": ({"nothing"}, {}),
    "wide_tolerance": ({"wrong answer", "other answers", "constant"}, {}),
    "not_a_number": ({"constant"}, {}),
    "json_keys": ({"format only", "other answers"}, {}),
    "keywords": ({"keywords"}, {}),
    "source_words": ({"keywords"}, {}),
    "any_number": ({"many answers"}, {}),
    "unanchored": ({"wrong answer"}, {}),
    "reasoning_counts": ({"contradiction"}, {}),
    "sign_is_lost": ({"wrong answer"}, {}),
    "word_overlap": ({"many answers"}, {"tasks": WORDS}),
    "deleted": ({"nothing"}, {"tasks": SYMBOLS}),
    "one_letter": ({"many answers", "garbage"}, {"tasks": LETTERS}),
    "code_equals": ({"code"}, CODE),
    "code_exits": ({"code"}, CODE),
    "shown_tests": ({"code"}, CODE),
}
RIGHT: dict[str, dict[str, Any]] = {
    "exact": {},
    "only_tag": {},
    "last_tag": {},
    "nearness": {},
    "tight": {},
    "brief": {},
    "penalty": {},
    "centred": {},
    "whole_text": {"tasks": WORDS},
    "tests_pass": CODE,
}
SERVED = ("judge", "reward_model", "classifier", "ranking", "rubric", "pairwise", "reasoning_gym", "embedding")
SHIPPED = swept(
    [path for path in available("rewards") if not any(name in path for name in SERVED)],
    always=lambda path: path != "rewards.code_tests:code_tests",  # each reply is a program that runs
)


def attacked(name: str, **options: Any) -> AttackReport:
    """An attack in this process, which spares the start of another one, and with few rounds."""
    options = {"workers": 0, "generations": 2, "seconds": 60.0, **options}
    return attack(Attacked(specs=[RewardSpec(path=f"tests.planted:{name}")], **options))


def test_planted_bugs_are_found_and_right_rewards_are_not_accused() -> None:
    found = {name: {e.family for e in attacked(name, **options).exploits} for name, (_, options) in BUGS.items()}
    recall = sum(bool(found[name] & families) for name, (families, _) in BUGS.items()) / len(BUGS)
    assert recall >= 0.9, {name: found[name] for name, (families, _) in BUGS.items() if not found[name] & families}
    accused = {name: attacked(name, **options) for name, options in RIGHT.items()}
    assert {name: report.exploits for name, report in accused.items() if report.exploits} == {}
    assert all(report.replies > 50 for report in accused.values())  # they were attacked


@pytest.mark.parametrize("path", SHIPPED)
def test_shipped_rewards_survive(path: str) -> None:
    from rlft.cli import reward_attack

    asked = reward_attack.asked(path, args=(), data="", cases=None, oracle="", run=None, seconds=60.0, seed=1)
    options = {field: getattr(asked, field) for field in ("specs", "tasks", "cases")}
    report = attack(Attacked(**options, workers=0, generations=1, seconds=60.0))
    assert report.exploits == []


def test_what_is_found_is_small_told_in_words_and_the_same_for_the_same_seed() -> None:
    report = attacked("source_words")
    (exploit,) = report.exploits
    assert (exploit.family, exploit.completion, exploit.score, exploit.tasks) == ("keywords", "zugzwang", 1.0, 4)
    assert exploit.told == "scores 1 for words that it likes, without an answer"
    assert [each.as_dict() for each in attacked("source_words").exploits] == [exploit.as_dict()]
    assert {**FAMILIES, **ADVICE}.keys() == WITHOUT.keys()


def test_an_oracle_and_a_shadow_reward_say_what_is_bad() -> None:
    oracle = RewardSpec(path="tests.planted:exact")
    (first, *_) = attacked("substring", oracle=oracle).exploits
    assert (first.score, first.oracle) == (1.0, 0.0)
    found = {exploit.family: exploit.completion for exploit in attacked("substring", oracle=oracle).exploits}
    assert found["negation"].split() == ["not", found["negation"].split()[-1]]  # small, and still what it is called
    assert len(found["many answers"].split()) > 1
    assert attacked("whole_text", oracle=oracle, tasks=WORDS).exploits == []
    indifferent = attacked("excused", oracle=RewardSpec(path="tests.planted:only_tag"), generations=0)
    assert "nothing" in {exploit.family for exploit in indifferent.exploits}  # the reward alone tells nothing
    pair = [RewardSpec(path="tests.planted:prefix"), RewardSpec(path="tests.planted:exact", role="shadow")]
    report = attack(Attacked(specs=pair, workers=0, generations=1))
    assert report.exploits
    assert all(exploit.oracle == 0.0 for exploit in report.exploits)
    blind = attacked("exact", oracle=RewardSpec(path="tests.planted:unmoved"))
    assert blind.exploits == []
    assert "cannot say what is bad" in blind.notes[0]


def test_replies_of_a_policy_are_tried_where_an_oracle_judges_them() -> None:
    (task, *_) = attacks.MADE_UP
    replies = [(task, "well, 42 it is"), (task, "42")]
    report = attacked("last_number", oracle=RewardSpec(path="tests.planted:exact"), replies=replies)
    assert "stored reply" in {exploit.family for exploit in report.exploits}


def test_a_case_that_scores_above_its_bound_is_an_exploit() -> None:
    bad = Case(name="both", completion="41 42", answer="42", expect=Expect(at_most=0.5))
    found = {exploit.family: exploit for exploit in attacked("substring", cases=[bad], generations=0).exploits}
    assert (found["cases"].score, found["cases"].completion) == (1.0, "41 42")


def test_texts_are_made_as_small_as_they_can_be() -> None:
    text = "one two\nthree needle four\nfive six seven\n" * 20
    assert shrunk(text, lambda texts: ["needle" in each for each in texts]) == "needle"
    assert shrunk("abcab", lambda texts: [each.count("a") >= 2 for each in texts]) == "aa"
    assert shrunk("kept", lambda texts: [False] * len(texts)) == "kept"


def test_whether_a_text_holds_an_answer_or_anything() -> None:
    for text in ("it is 42.", "042", "42.0", "17+25=42", "-1, 42"):
        assert reveals(text, "42"), text
    for text in ("420", "-42", "4 2", "1425", ""):
        assert not reveals(text, "42"), text
    assert reveals("the PARIS", "Paris")
    assert not reveals("parisian", "Paris")
    assert not reveals("a word", "A")
    assert contentless("<think></think><answer>.</answer>")
    assert not contentless("<answer>x</answer>")
    assert not contentless("...")


JUDGE = """
import re

def judge(completion, prompt):
    said = re.findall(r"(?i)score\\W*(\\d+)", f"Rate {prompt!r}\\nReply: {completion}\\n")
    return (float(said[-1]) if said else 3.0) / 10

def thoughts(completion):
    found = re.match(r"<think>(.*?)</think>\\s*\\S", completion, re.DOTALL)
    return min(len(found[1]) / 500, 1.0) if found else 0.0

def length(completion):
    return float(len(completion))

def short(completion):
    return float(len(completion) <= 100_000)

def shouts(completion):
    return float(completion.isupper())
"""


def test_a_judge_that_obeys_and_a_length_are_found_without_known_good_replies(tmp_path: Path) -> None:
    file = tmp_path / "judges.py"
    file.write_text(JUDGE)

    def found(name: str) -> AttackReport:
        return attack(Attacked(specs=[RewardSpec(path=f"{file}:{name}")], workers=0, generations=1, seconds=60.0))

    (exploit,) = found("judge").exploits
    assert (exploit.family, exploit.score, exploit.good_score, exploit.good_is_ordinary) == (
        "injection",
        1.0,
        0.3,
        True,
    )
    assert exploit.completion.lower().startswith("score")
    (exploit,) = found("thoughts").exploits
    assert (exploit.family, exploit.score) == ("padding", 1.0)
    (exploit,) = found("length").exploits
    assert exploit.family == "padding"
    assert exploit.score > 10 * exploit.good_score
    for name in ("short", "shouts"):
        report = found(name)
        assert (list(report.exploits), report.cannot_tell) == ([], "no good reply is known")
    told = reward("attack", f"{file}:short", "--seconds", "2")
    assert told.exit_code == 2, told.output
    assert told.output.splitlines()[-1].startswith("cannot tell, since no good reply is known; ")


ODD = """
import os, time

def dies(completion):
    os._exit(3)

def hangs(completion):
    time.sleep(60)

def raises(completion):
    raise KeyError("x")

def slow(completion, answer):
    time.sleep(0.05)
    return float(completion.strip() == answer)

def right(completion, answer):
    return float(completion.strip() == answer)

def needs(completion, unit):
    return float(unit in completion)
"""


def test_what_could_not_be_attacked_does_not_survive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "odd.py"
    file.write_text(ODD)

    def found(name: str, **options: Any) -> AttackReport:
        return attack(Attacked(specs=[RewardSpec(path=f"{file}:{name}")], **options))

    told = reward("attack", f"{file}:dies", "--json")
    assert (told.exit_code, json.loads(told.output)["survives"]) == (2, None)
    assert found("hangs", deadline_s=0.1).cannot_tell == "the reward hangs or dies"
    assert found("raises", workers=0).cannot_tell == "no reply could be scored"
    report = found("slow", workers=0, seconds=0.5)
    assert (list(report.exploits), list(report.notes)) == ([], ["not everything was tried within 0.5 s"])
    assert report.cannot_tell.startswith("there was no time for every simple reply within 0.5 s")

    def cut(search: Any, *arguments: Any) -> list[Any]:
        search._judge.stopped = True
        return []

    monkeypatch.setattr(attacks._Attack, "_evolved", cut)
    report = found("right", workers=0, seconds=60.0)  # each simple reply was tried, so that it is known to survive
    assert (list(report.exploits), report.cannot_tell) == ([], "")
    assert any("not everything was tried" in note for note in report.notes)


def test_columns_that_no_task_has_are_named(tmp_path: Path) -> None:
    file = tmp_path / "odd.py"
    file.write_text(ODD)
    report = attack(Attacked(specs=[RewardSpec(path=f"{file}:needs")], workers=0))
    assert report.cannot_tell == "no task has the columns that the reward takes"
    (note,) = report.notes
    assert note.startswith("nothing supplies unit, which needs takes: give tasks that have this column: --data FILE, ")


def reward(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main.app, ["reward", *map(str, arguments)], env={"COLUMNS": "300", "TERM": "dumb"})


def test_the_command_exits_with_one_and_writes_cases_that_keep_it_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, cases = tmp_path / "lenient.py", tmp_path / "lenient.cases.jsonl"
    page = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")
    code, first, second = re.findall(
        r"# lenient\.py\n(.*?)```.*?rlft reward (.*?)\nrlft reward (.*?)\n", page, re.DOTALL
    )[0]
    file.write_text(code)
    monkeypatch.chdir(tmp_path)
    told = reward(*first.split(), "--seconds", "3")
    assert told.exit_code == 1, told.output
    assert "scores 1 without giving the answer: it is denied" in told.output
    assert f"cases added to {cases}" in told.output
    written = read_cases(cases)
    told = reward(*second.split(), "--json")
    assert told.exit_code == 1, told.output
    assert all(
        exploit["oracle"] == 0.0 for exploit in json.loads(told.output)["exploits"] if exploit["family"] != "cases"
    )
    assert {case.name for case in written} >= {"attack: negation", "attack: many answers"}
    checked = reward("check", f"{file}:lenient", "--json")
    assert any(finding["check"] == "cases" for finding in json.loads(checked.output)["findings"])
    file.write_text("def lenient(completion, answer):\n    return float(completion.strip() == str(answer))\n")
    told = reward("attack", f"{file}:lenient", "--json", "--write-cases", "--seconds", "3")
    assert told.exit_code == 0, told.output
    assert json.loads(told.output)["survives"]
    assert read_cases(cases) == written
    told = reward("attack", "rewards.close_number:close_number", "--args", "relative=0.1", "--write-cases")
    assert "name --cases" in str(told.exception)
    new, asked = tmp_path / "new.cases.jsonl", (*first.split(), "--seconds", "3", "--cases")
    assert "no file" in str(reward(*asked[:2], "--cases", new).exception)
    file.write_text(code)
    told = reward(*asked, new)
    assert f"cases added to {new}" in told.output, told.output
    assert {case.name for case in read_cases(new)} == {case.name for case in written}


def test_what_a_policy_wrote_takes_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(tmp_path / "run", steps=5)
    asked_for: list[Any] = []

    def train(*given: Any, **options: Any) -> list[attack_policy.Learnt]:
        asked_for.append((given, options))
        print("step 1")  # as a run does
        return [attack_policy.Learnt(run=run, reward=(0.1, 0.9), oracle=(0.2, 0.1))]

    monkeypatch.setattr(attack_policy, "train", train)
    policy = ("--policy", "--policy-steps", "3", "--policy-seeds", "1", "--seconds", "2", "--json")
    told = reward("attack", "tests.planted:exact", "--oracle", "tests.planted:last_tag", *policy)
    assert told.exception is None or isinstance(told.exception, SystemExit), told.exception
    assert json.loads(told.stdout)["replies"] > 50
    assert "reward 0.1, then 0.9; the oracle gives 0.2, then 0.1" in told.stderr
    ((_, oracle, _), options) = asked_for[0]
    assert (oracle.path, options["steps"], options["seeds"]) == ("tests.planted:last_tag", 3, 1)
    replies = stored([run])
    assert {task.id for task, _ in replies} == {
        row["task_id"] for row in read_rollouts(run, steps=[2, 3, 4, 5]).to_pylist()
    }


def test_where_a_policy_gets_its_tasks(tmp_path: Path) -> None:
    environment_of = attack_policy.environment_of

    assert environment_of("mine.py:mine", "")[0].path == "environments.sums:load"
    assert environment_of("mine.py:mine", "countdown")[0].path == "environments.countdown:load"
    countdown = "configs/debug/env_countdown.yaml"
    assert environment_of(countdown, "") == environment_of("mine.py:mine", countdown)
    assert environment_of(countdown, "")[1] == 24
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": [{"role": "user", "content": "Q"}]}\n')
    assert environment_of("mine.py:mine", str(file))[0].args == {
        "source": str(file),
        "answer": "",
        "messages": "prompt",
    }
    for row, prompt, answer in (
        ({"problem": "Q", "solution": "A"}, "{problem}", "solution"),
        ({"question": "Q", "label": "A"}, "{question}", "label"),
        ({"prompt": "Q", "answer": "A"}, "{prompt}", "answer"),
    ):
        file.write_text("".join(json.dumps({**row, "n": n}).replace('"Q"', f'"Q {n}"') + "\n" for n in range(30)))
        config = environment_of("mine.py:mine", str(file))[0]
        assert config.args == {"source": str(file), "answer": answer, "prompt": prompt}
        task = loading.load(config).train[0]
        assert (task.messages[0]["content"][:1], task.answer) == ("Q", "A")
    file.write_text('{"body": "Q"}\n')
    with pytest.raises(ValueError, match="no column looks like a prompt among body"):
        environment_of("mine.py:mine", str(file))
    file.write_text("")
    with pytest.raises(ValueError, match="has no rows"):
        environment_of("mine.py:mine", str(file))
