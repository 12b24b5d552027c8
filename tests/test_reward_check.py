"""`rlft reward check`: what it finds in rewards with a planted bug, and that it accuses no right one."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from rlft.cli import main
from rlft.config import EnvironmentConfig
from rlft.environment import loading
from rlft.environment.contract import Environment
from rlft.reward.behaviour import leaks
from rlft.reward.case_findings import case_findings
from rlft.reward.cases import Case, Expect
from rlft.reward.check import MADE_UP, Checked, check_rewards
from rlft.reward.findings import Report
from rlft.reward.good_replies import good_cases
from rlft.reward.probe import make_task
from rlft.reward.scoring import Scorer
from rlft.reward.startup import look
from rlft.reward.templates import TEMPLATES
from rlft.reward.transforms import FAMILIES, TRANSFORMS, Good, other_answers
from rlft.train.rl.services import make_scorer, reward_remarks
from rlft.types import Failed, RewardSpec, Score
from tests.fakes import letters, tiny_config

REWARDS = r"""
import os, random, re, time

def no_return(completion, answer):
    value = float(str(answer) in completion)

def randomly(completion):
    return random.random()

calls = 0
def counts_calls(completion):
    global calls
    calls += 1
    return float(calls)

def errors_pay(completion, answer):
    try:
        return float(int(completion.split("<answer>")[1].split("</answer>")[0]) == int(answer))
    except Exception:
        return 0.5

def excused(completion, answer):
    try:
        return float(int(completion.split("<answer>")[1].split("</answer>")[0]) == int(answer))
    except Exception:
        return 0.6

def constant(completion):
    return 0.5

def substring(completion, answer):
    return float(answer in completion)

def last_number(completion, answer):
    numbers = re.findall(r"-?\d+", completion)
    return float(bool(numbers) and numbers[-1] == answer)

def any_tag(completion, answer):
    return float(answer in re.findall(r"<answer>(.*?)</answer>", completion))

def format_pays(completion, answer):
    return 1.0 * ("<answer>" in completion) + 0.2 * (f"<answer>{answer}</answer>" == completion)

def length_pays(completion, answer):
    return float(completion.split("#### ")[-1] == answer) + len(completion) / 1000

def says_what_it_saw(completion, answer):
    if completion.strip() and not completion.isdigit():
        raise ValueError(f"cannot read {completion!r}")
    return float(completion == answer)

def raises_on_nothing(completion, answer):
    return float(completion.split()[-1] == answer)

def hangs(completion, answer):
    if "lorem" in completion:
        time.sleep(60)
    return float(completion == answer)

def backtracks(completion, answer):
    return float(bool(re.match(r"(a+)+$", completion)) or completion == answer)

def dies(completion):
    return os._exit(3)

def deviation(group):
    rights = [float(t.text == t.task.answer) for t in group.trajectories]
    mean = sum(rights) / len(rights)
    return [(right - mean) / (sum((r - mean) ** 2 for r in rights) / (len(rights) - 1)) for right in rights]

def process(completion, answer):
    return float(completion == answer) + os.getpid() % 1000

def remembers(completion, answer, seen=set()):
    is_new = completion not in seen
    seen.add(completion)
    return float(completion == answer) + 0.5 * is_new

def best_of_list(completions, answer):
    texts = [messages[0]["content"] for messages in completions]
    return [float(t == a and len(t) == max(map(len, texts))) for t, a in zip(texts, answer)]

def changes_messages(completion, messages, answer):
    messages.append("seen")
    return float(completion == answer)

def text(completion):
    return "good"

def ignores_answer(completion, answer):
    return float(len(completion) > 3)

def obeys(completion):
    said = re.findall(r"(?i)score\W*(\d+)", completion)
    return (float(said[-1]) if said else 3.0) / 10

def thoughts(completion):
    found = re.match(r"<think>(.*?)</think>\s*\S", completion, re.S)
    return min(len(found[1]) / 500, 1.0) if found else 0.0

def only_length(completion):
    return float(len(completion))

def of_texts(completions, **kwargs):
    return [0.5 if "####" in c else 0.0 for c in completions]

def secret(completion):
    return 1.0 if "zugzwang" in completion else 0.5

def penalty(completion):
    return -len(completion) / 100

def swapped(completion, answer):
    found = re.findall(r"<answer>(.*?)</answer>", completion)
    return float((found[0] if len(found) == 1 else None) != answer)

def distance(completion, answer):
    return float(abs(int(completion) - int(answer))) if completion.isdigit() else 0.0

def no_else(completion, answer):
    if answer in completion:
        return 1.0

def for_bonus_only(completion):
    return 0.5 if len(completion) > 30 else None

def unread(completion, answer):
    if completion.startswith("ANSWER="):
        return float(completion == f"ANSWER={answer}")
    return -1.0 if any(map(str.isdigit, completion)) else 0.0

def longest(group):
    return [float(len(t.text)) for t in group.trajectories]

def always_wrong(completions, answer):
    return [float(messages[-1]["content"] == answer) for messages in completions]

def positional(completion, /):
    return 1.0

def wants_column(completion, level):
    return 1.0

def no_reply_right(completion):
    return -1.0

def sorted_away(group):
    ranked = sorted(group.trajectories, key=lambda t: (t.text.strip() == t.task.answer, len(t.text)), reverse=True)
    return [1 - rank / len(ranked) for rank, t in enumerate(ranked)]

def sorted_values(group):
    return sorted(float(t.text.strip() == t.task.answer) for t in group.trajectories)

# What follows is right.

def ranked(group):
    right = [t.text.strip() == t.task.answer for t in group.trajectories]
    order = sorted(range(len(right)), key=lambda place: not right[place])
    ranks = {place: rank for rank, place in enumerate(order)}
    return [1 - ranks[place] / len(right) for place in range(len(right))]

def told_first(group):
    said = [t.text.strip().casefold() for t in group.trajectories]
    return [float(t.task.answer in text and text not in said[:place])
            for place, (t, text) in enumerate(zip(group.trajectories, said))]

def short(completion):
    return float(len(completion) <= 2000)

def polite(completion):
    return float("idiot" not in completion.lower())

def exact(completion, answer):
    return float(completion.strip() == answer)

def in_parts(completion, answer):
    tagged = re.findall(r"<answer>(.*?)</answer>", completion, re.DOTALL)
    return {"correct": float(len(tagged) == 1 and tagged[0].strip() == answer), "format": 0.1 * (len(tagged) == 1)}

def boxed(completions, answer, **kwargs):
    found = [re.findall(r"\\boxed\{([^{}]*)\}", messages[-1]["content"]) for messages in completions]
    return [float(len(boxes) == 1 and boxes[0].strip() == a) for boxes, a in zip(found, answer)]

def centred(group):
    rights = [float(t.text.strip() == t.task.answer) for t in group.trajectories]
    return [right - sum(rights) / len(rights) for right in rights]

def penalised(completion, answer):
    found = re.findall(r"<answer>(.*?)</answer>", completion, re.DOTALL)
    return float(found[0] == answer) - float(found[0] != answer) if len(found) == 1 else -0.5

def nearness(completion, answer):
    try:
        return max(0.0, 1 - abs(float(completion) - float(answer)) / abs(float(answer)))
    except (ValueError, OverflowError):
        return 0.0

def labelled(completion, answer):
    return float(completion.strip() == f"Answer: {answer}")

def json_result(completion, answer):
    import json
    try:
        return float(json.loads(completion)["result"] == int(answer))
    except (ValueError, KeyError, TypeError, RecursionError):
        return 0.0

async def waits(completion, answer):
    return float(completion.strip() == answer)
"""

BUGS = {
    # reward: (severity, check, words of the detail or the example)
    "no_return": ("error", "contract", r"rewards\.py:4: the function returns nothing"),
    "randomly": ("error", "deterministic", "the same reply got"),
    "counts_calls": ("error", "deterministic", "the same reply got"),
    "constant": ("error", "constant", "it gave 0.5 for"),
    "substring": ("error", "negation", "'not 42' scores 1, '42' 1"),
    "last_number": ("error", "negation", "'not 42' scores 1, '42' 1"),
    "any_tag": ("error", "many answers", "each in its place: scores as high"),
    "format_pays": ("warning", "format only", "'<answer></answer>' scores 1, '<answer>42</answer>' 1.2"),
    "length_pays": ("error", "padding", "a long wrong reply: scores as high"),
    "says_what_it_saw": ("error", "contract", r"\d{2,} of \d+ replies could not be scored"),
    "raises_on_nothing": ("error", "contract", "IndexError: list index out of range"),
    "hangs": ("error", "hangs", "no result within 0.5 s"),
    "backtracks": ("error", "hangs", "'aaaaa"),
    "dies": ("error", "contract", "exit code 3"),
    "deviation": ("error", "contract", "ZeroDivisionError"),
    "process": ("error", "deterministic", "in another process"),
    "remembers": ("error", "deterministic", "later, in another order,"),
    "best_of_list": ("error", "deterministic", "in a list with others"),
    "changes_messages": ("warning", "arguments", "it changes what it is given: messages"),
    "text": ("error", "contract", "expected a number"),
    "ignores_answer": ("error", "good replies", "nonsense scores as high as the right answer"),
    "penalty": ("info", "nothing", "saying nothing is the best policy"),
    "errors_pay": ("error", "no answer", "above a wrong one '' scores 0.5, the wrong '<answer>117</answer>' 0, "),
    "excused": ("error", "no answer", "above a wrong one '' scores 0.6, the wrong"),
    "obeys": ("error", "injection", "scores 1, above all ordinary replies \\(0.3 at most"),
    "thoughts": (
        "warning",
        "padding",
        r"longer replies get more: 2,401 characters about nothing take one from 0\.032 to 1",
    ),
    "only_length": ("warning", "padding", "longer replies get more: 2,401"),
    "of_texts": ("error", "contract", "gave 0 for everything, since each of `completions` is a list of messages"),
    "secret": ("warning", "constant", "no good reply is known, and one may get another value"),
    "swapped": (
        "error",
        "good replies",
        r"the right answer in answer tags scores lower than nonsense \(0 against 1\): is the comparison inverted\?",
    ),
    "distance": ("error", "good replies", r"in bare scores lower than a wrong answer \(0 against \d+\): is the"),
    "no_else": (
        "error",
        "contract",
        r"it abstains \(returns None\) from \d+ of \d+ replies and gives 1 to all others: one",
    ),
    "for_bonus_only": ("warning", "contract", r"gives 0.5 to all others: nothing can be learnt from these"),
    "unread": ("warning", "good replies", r"lower than nonsense \(-1 against 0\): no way to write it scores above"),
    "sorted_away": ("error", "deterministic", "depends on its place in the group alone: the first one got 1, and"),
    "sorted_values": ("error", "deterministic", "depends on its place in the group alone"),
    "longest": ("warning", "padding", "longer replies get more: 2,401 characters about nothing take one from"),
    "positional": ("error", "contract", "positional-only"),
    "wants_column": ("error", "contract", "nothing supplies its parameter 'level'"),
}
RIGHT = ("exact", "in_parts", "penalised", "boxed", "centred", "nearness", "waits", "labelled", "json_result")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("rewards") / "rewards.py"
    file.write_text(REWARDS)
    return file


NEED_A_PROCESS = {"hangs", "backtracks", "dies", "process"}
"""The others are called here, which spares them the start of two processes."""


def checked(file: Path, name: str) -> Report:
    specs, workers = [RewardSpec(path=f"{file}:{name}")], int(name in NEED_A_PROCESS)
    return check_rewards(Checked(specs=specs, tasks=MADE_UP[:2], hangs_s=0.5, workers=workers))


@pytest.mark.parametrize("name", BUGS)
def test_a_bug_is_found_and_the_reward_named(file: Path, name: str) -> None:
    severity, check, words = BUGS[name]
    report = checked(file, name)
    told = [(finding.severity, finding.check) for finding in report.findings]
    assert (severity, check) in told
    found = next(f for f in report.findings if (f.severity, f.check) == (severity, check))
    assert re.search(words, f"{found.detail} {found.example}"), found
    assert found.advice or found.check == "contract"
    assert bool(report.errors) == (severity == "error")
    assert found.reward == name or found.reward == "all together"


def test_an_inverted_comparison_is_no_penalty_and_abstentions_are_counted(file: Path) -> None:
    assert "nothing" not in {finding.check for finding in checked(file, "swapped").findings}
    found = checked(file, "no_else").findings
    assert [f.detail for f in found if re.search(r"; it abstained from \d+ of \d+$", f.detail)]
    assert "constant" not in {finding.check for finding in found}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_reward_is_not_accused(file: Path, name: str) -> None:
    report = checked(file, name)
    assert [finding for finding in report.findings if finding.severity != "info"] == []
    assert report.replies > 80  # it was tried
    assert "good replies" not in {finding.check for finding in report.findings}


def test_a_ranking_may_pay_equal_replies_by_their_places(file: Path) -> None:
    for name in ("ranked", "told_first"):
        assert "deterministic" not in {finding.check for finding in checked(file, name).findings}


def reward(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main.app, ["reward", *map(str, arguments)], env={"COLUMNS": "600", "TERM": "dumb"})


def test_the_command_reads_cases_and_data_and_exits_with_one_on_an_error(file: Path, tmp_path: Path) -> None:
    assert reward("init", "brevity", "--folder", tmp_path).exit_code == 0
    told = reward("check", f"{tmp_path / 'brevity.py'}:brevity", "--json")
    assert told.exit_code == 0, told.output
    found = json.loads(told.output)
    assert {row["severity"] for row in found["findings"]} == {"info"}
    assert any(row["detail"] == "all 9 hold" for row in found["findings"])
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        '{"prompt": "Who?", "answer": "Ada", "level": 1}\n{"prompt": "Where?", "answer": "Bern", "level": 2}\n'
    )
    cases = tmp_path / "some.cases.jsonl"
    cases.write_text('{"prompt": "Who?", "completion": "ada", "answer": "Ada", "expect": 1}\n')
    told = reward("check", f"{file}:substring", "--data", rows, "--cases", cases)
    assert told.exit_code == 1
    assert f"{cases}:1: case 'line 1': the value is 0, not 1" in told.output
    assert "'not Ada' scores 1" in told.output


def test_data_is_read_as_data_check_reads_it(file: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "Good?", "label": "yes"}\n{"question": "Bad?", "label": "no"}\n')
    source = tmp_path / "by_label.py"
    source.write_text("def by_label(completion, label):\n    return float(completion.strip() != label)\n")
    told = reward("check", f"{source}:by_label", "--data", rows)
    assert told.exit_code == 1
    assert "column 'question' is taken as the prompt, 'label' as the answer" in told.output
    assert (
        "the right answer in bare scores lower than nonsense (0 against 1): is the comparison inverted?" in told.output
    )
    rows.write_text('{"question": "Good?"}\n')
    told = reward("check", f"{file}:constant", "--data", rows)
    assert f"no row of {rows} has an answer" in told.output
    rows.write_text('{"lable": "Good?"}\n')
    assert "no column looks like a prompt among lable" in str(
        reward("check", f"{file}:exact", "--data", rows).exception
    )
    rows.write_text("")
    for command in ("check", "attack"):
        assert str(reward(command, f"{file}:exact", "--data", rows).exception) == f"{rows} has no rows"


def test_an_inverted_reward_is_found_by_the_column_that_a_config_takes_as_the_answer(tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"q": f"{n} + 1?", "label": str(n + 1)}) + "\n" for n in range(10, 20)))
    (tmp_path / "by_label.py").write_text("def by_label(completion, label):\n    return float(completion != label)\n")
    config = tmp_path / "config.yaml"
    environment = {"path": "environments.dataset:load", "args": {"source": str(rows), "prompt": "{q}"}}
    environment["args"] |= {"answer": "label", "reply": "{label}"}  # type: ignore[operator]
    given = {"name": "x", "steps": 1, "model": {"source": "none"}, "environment": environment}
    config.write_text(json.dumps({**given, "rewards": [{"path": f"{tmp_path / 'by_label.py'}:by_label"}]}))
    told = reward("check", config)
    assert told.exit_code == 1, told.output
    assert "is the comparison inverted?" in told.output  # though its demonstrations show good replies


def test_a_check_that_looked_at_hardly_anything_cannot_tell(file: Path) -> None:
    told = reward("check", f"{file}:exact", "--within-s", "0.001")
    assert told.exit_code == 2
    assert "cannot tell: there was no time for most replies" in told.output
    assert not json.loads(reward("check", f"{file}:exact", "--within-s", "0.001", "--json").output)["is_fine"]
    for option in ("--within-s", "--deadline-s"):
        told = reward("check", f"{file}:exact", option, "0")
        assert told.exit_code == 2
        assert "greater than or equal" in told.output


def test_a_prompt_that_lists_all_labels_leaks_none() -> None:
    labels = ("good", "bad", "neither")
    listed = [make_task(f"good, bad or neither? {number}", answer=label) for number, label in enumerate(labels)]
    assert leaks(listed) == []
    (found,) = leaks([make_task(f"The answer is {label}.", answer=label) for label in labels])
    assert found.detail == "the answer stands in the prompt of 3 of 3 tasks"


def test_no_advice_contradicts_what_was_seen(file: Path) -> None:
    (found,) = (f for f in checked(file, "exact").findings if "the answer in several formats" in f.detail)
    assert found.detail == "the answer in several formats: scores lower than the good reply that says the same"
    assert found.advice == ""


def test_a_list_compared_with_a_list_is_explained(file: Path) -> None:
    (found,) = (f for f in checked(file, "always_wrong").findings if f.check == "constant")
    assert "compare completions[i] with answer[i]" in found.advice


def test_a_config_is_checked_as_a_whole() -> None:
    told = reward("check", "configs/debug/env_countdown.yaml", "--json")
    assert told.exit_code == 0, told.output
    assert json.loads(told.output)["is_fine"]


def test_a_judge_that_may_take_longer_than_its_process_is_found() -> None:
    from rlft.reward.behaviour import static_findings

    judge = RewardSpec(path="rewards.judge:helpfulness", args={"deadline_s": 20.0})
    (found,) = static_findings([judge], deadline_s=10.0)
    assert "its deadline_s (20 s) is not below scoring.deadline_s (10 s)" in found.detail
    assert static_findings([judge], deadline_s=30.0) == []


def test_a_right_answer_is_never_among_the_wrong_ones() -> None:
    for answer in ("42", "-3", "0", "0.5", "B", "true", "Paris", "x + 1"):
        good = Good(text=answer, prompt="What?", answer=answer, write=str, others=other_answers(answer))
        assert good.wrong != answer
        made = {transform.name: transform.make(good) for transform in TRANSFORMS}
        for transform in TRANSFORMS:
            assert transform.family in FAMILIES
            if transform.expected == "below":
                assert made[transform.name] != answer, transform.name
    assert len({(t.family, t.name) for t in TRANSFORMS}) == len(TRANSFORMS)
    assert all(template.format("A") for template in TEMPLATES.values())
    assert make_task("Q").id == "made-up"


def test_a_run_looks_at_its_rewards_before_it_starts(file: Path, tmp_path: Path) -> None:
    environment = letters()
    for name, words in {
        "no_return": "the function returns nothing",
        "randomly": "the same reply got",
        "counts_calls": "the same reply got",
        "constant": "it gave 0.5 for",
        "text": "expected a number",
        "deviation": "ZeroDivisionError",
        "no_else": "one path has no return",
    }.items():
        config = tiny_config("nowhere", rewards=[{"path": f"{file}:{name}"}], scoring={"check": "stop"})
        with make_scorer(config, environment, log_dir=None) as scorer:
            with pytest.raises(
                ValueError, match=rf"(?s)reward {name}.*{words}.*to train all the same: scoring.check=warn"
            ):
                reward_remarks(config, environment, scorer)
            warned = config.model_copy(update={"scoring": config.scoring.model_copy(update={"check": "warn"})})
            assert re.search(words, "".join(reward_remarks(warned, environment, scorer)))
    for name in ("exact", "in_parts", "boxed", "centred", "waits", "short", "polite", "no_reply_right"):
        config = tiny_config("nowhere", rewards=[{"path": f"{file}:{name}"}], scoring={"check": "stop"})
        with make_scorer(config, environment, log_dir=None) as scorer:
            assert reward_remarks(config, environment, scorer) == []
    config = tiny_config("nowhere", rewards=[{"path": f"{file}:raises_on_nothing"}], scoring={"check": "stop"})
    with make_scorer(config, environment, log_dir=None) as scorer:  # some replies: max_failed decides about them
        remark, *_ = reward_remarks(config, environment, scorer)
    assert "IndexError" in remark


def test_a_run_looks_at_the_cases_and_at_replies_made_up_to_cheat(file: Path, tmp_path: Path) -> None:
    source = "def lenient(completion, answer):\n    return float(str(answer) in completion)\n"
    (tmp_path / "lenient.py").write_text(source)
    cases = tmp_path / "lenient.cases.jsonl"
    cases.write_text(
        '{"completion": "42", "answer": "42", "expect": 1}\n'
        '{"name": "two", "completion": "41 42", "answer": "42", "expect": 0}\n'
        '{"name": "no", "completion": "not 42", "answer": "42", "expect": 0}\n'
    )
    sums = loading.load(EnvironmentConfig(path="environments.sums:load", args={"heldout": 4, "demonstrations": 4}))
    lenient = {"rewards": [{"path": f"{tmp_path}/lenient.py:lenient"}], "scoring": {"check": "stop"}}

    def remarks(environment: Environment, **changes: Any) -> list[str]:
        config = tiny_config("nowhere", **{**lenient, **changes})
        with make_scorer(config, environment, log_dir=None) as scorer:
            return reward_remarks(config, environment, scorer)

    of_case, of_cheat = remarks(sums)
    assert of_case.startswith(f"reward lenient: {cases}:2: case 'two': the value is 1, not 0, and 1 more of 3 cases")
    assert of_cheat.startswith("reward lenient: it can be cheated: many answers: ")
    assert all(remark.endswith("`rlft reward check CONFIG` says more") for remark in (of_case, of_cheat))
    episodes = loading.load(EnvironmentConfig(path="environments.number_guessing:load"))
    assert remarks(episodes)[0] == of_case  # made-up replies are no episodes, but cases may be
    cases.write_text('{"completion": "42"}\n')
    assert remarks(sums)[0].startswith(f"reward lenient: {cases}:1: 'expect' is missing")
    cases.unlink()
    assert [remark[:80] for remark in remarks(sums)] == [of_cheat[:80]]
    for name in ("exact_answer", "graded_answer", "last_number", "math_answer", "close_number"):
        assert remarks(sums, rewards=[{"path": f"rewards.{name}:{name}"}]) == []


def test_the_look_at_a_slow_reward_ends_in_time(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "import time\ndef slow(completion, answer):\n    time.sleep(0.04)\n    return float(answer in completion)\n"
        "def stuck(completion, answer):\n    time.sleep(60 if 'not' in completion else 0)\n"
        "    return float(answer in completion)\n"
        "def stuck_group(group, answer):\n    time.sleep(60 if len(group.trajectories) > 2 else 0)\n"
        "    return [float(answer in t.text) for t in group.trajectories]\n"
    )
    (tmp_path / "slow.cases.jsonl").write_text('{"completion": "not 42", "answer": "42", "expect": 0}\n')
    for name, within_s in (("slow", 0.5), ("stuck", 4.0), ("stuck_group", 4.0)):
        spec = RewardSpec(path=f"{tmp_path}/slow.py:{name}")
        with Scorer([spec], workers=1, deadline_s=10.0, log_dir=None) as scorer:
            scorer.score([])
            began = time.monotonic()
            found = look([spec], scorer, letters(), 10.0, within_s=within_s)
            assert time.monotonic() - began < within_s + 1.0
        assert [finding.check for finding in found] == ([] if name == "stuck" else ["cases"])


def test_a_constant_beside_a_reward_that_changes_stops_no_run(file: Path) -> None:
    constant = {"path": f"{file}:constant", "weight": 0.1}
    for other, is_refused in (("last_number", False), ("no_reply_right", False), ("constant", True)):
        rewards = [constant, {"path": f"{file}:{other}", "name": "other"}]
        config = tiny_config("nowhere", rewards=rewards, scoring={"check": "stop"})
        with make_scorer(config, letters(), log_dir=None) as scorer:
            if is_refused:
                with pytest.raises(ValueError, match=r"reward constant: it gave 0\.5 for"):
                    reward_remarks(config, letters(), scorer)
            else:
                assert reward_remarks(config, letters(), scorer) == []
    rewards = [{"path": f"{file}:{name}"} for name in ("no_else", "exact")]
    config = tiny_config("nowhere", rewards=rewards, scoring={"check": "stop"})
    with make_scorer(config, letters(), log_dir=None) as scorer:
        remark, *_ = reward_remarks(config, letters(), scorer)
    assert "one path has no return" in remark
    specs = [RewardSpec(path=f"{file}:constant"), RewardSpec(path=f"{file}:exact")]
    report = check_rewards(Checked(specs=specs, tasks=MADE_UP[:2], workers=0))
    assert [(f.severity, f.reward) for f in report.findings if f.check == "constant"] == [("warning", "constant")]


def test_a_reward_beside_one_that_fails_is_not_accused(file: Path) -> None:
    rewards = [{"path": f"{file}:{name}"} for name in ("text", "raises_on_nothing", "exact")]
    config = tiny_config("nowhere", rewards=rewards, scoring={"check": "warn", "max_failed": 0.1})
    with make_scorer(config, letters(), log_dir=None) as scorer:
        remarks = reward_remarks(config, letters(), scorer)
    assert {remark.partition(":")[0] for remark in remarks} == {"reward text", "reward raises_on_nothing"}


def test_only_a_case_that_asks_for_a_score_shows_a_good_reply() -> None:
    wishes = {"good": Expect(at_least=0.3), "bad": Expect(at_most=0.5), "none": Expect(equals=0.0)}
    cases = [Case(completion=name, name=name, expect=expect) for name, expect in wishes.items()]
    assert [reply for _, reply in good_cases(cases)] == ["good"]


FAILING = {
    # reward: (source, what the finding says, what to do)
    "too_short": (
        "def too_short(completions):\n    return [1.0 for _ in completions][1:]",
        r"\(length\): expected 1 value, got 0: list \[\]; it is defined at .*:3$",
        "one value for each completion of the list",
    ),
    "not_a_number": (
        "def not_a_number(completion):\n    return float('nan')",
        r"\(not_finite\): returned nan; it is defined at .*:3$",
        "divisions by an array's 0",
    ),
    "word": (
        "def word(completion):\n    return 'good'",
        r"\(type\): expected a number.*; it is defined at .*:3$",
        "return a number, a dict of named numbers, or None",
    ),
    "wrong_name": (
        "def wrong_name(group):\n    return [float(len(t.texts)) for t in group.trajectories]",
        "AttributeError",
        "a Trajectory has task, .*Did you mean 'text'",
    ),
    "of_group": (
        "def of_group(group):\n    return [float(len(t.text)) for t in group.samples]",
        "AttributeError",
        "a Group has task, trajectories, baseline_score, scores",
    ),
    "divides": (
        "def divides(group):\n    return [1 / (len(group.trajectories) - 1) for _ in group.trajectories]",
        "ZeroDivisionError",
        "groups of one happen: evaluation and the base measurement",
    ),
    "iterates": (
        "def iterates(group):\n    return [float(len(t.text)) for t in group]",
        "'Group' object is not iterable",
        r"the text of one is group\.trajectories\[i\]\.text",
    ),
    "answers": (
        "def answers(completions, answer):\n    return [float(answer) for _ in completions]",
        "TypeError",
        r"gets `answer` and other columns as lists, too.*: compare completions\[i\] with answer\[i\]",
    ),
    "texts": (
        "def texts(completions):\n    return [float(len(c.strip())) for c in completions]",
        "AttributeError",
        "works behind trl:",
    ),
}


@pytest.mark.parametrize("name", FAILING)
def test_what_to_do_about_a_failure_depends_on_how_it_failed(tmp_path: Path, name: str) -> None:
    source, words, advice = FAILING[name]
    (tmp_path / "failing.py").write_text(f"# line 1\n\n{source}\n")
    specs = [RewardSpec(path=f"{tmp_path / 'failing.py'}:{name}")]
    (found, *_) = check_rewards(Checked(specs=specs, workers=0)).errors
    assert re.search(words, found.detail), found
    assert re.search(advice, found.advice), found


def test_a_coroutine_that_swallows_its_cancel_is_late_and_not_without_a_return(tmp_path: Path) -> None:
    source = "    try:\n        await asyncio.sleep(9)\n    except BaseException:\n        pass\n"
    (tmp_path / "late.py").write_text(f"import asyncio\n\n\nasync def late(completion):\n{source}")
    specs = [RewardSpec(path=f"{tmp_path / 'late.py'}:late")]
    report = check_rewards(Checked(specs=specs, hangs_s=0.2, deadline_s=0.2))
    assert {finding.check for finding in report.errors} <= {"contract", "hangs"}
    assert all("no result within 0.2 s" in finding.detail for finding in report.errors), report.errors


def test_an_import_that_never_ends_is_given_up_with_its_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from rlft.cli import reward_try
    from rlft.reward import check

    file = tmp_path / "never.py"
    file.write_text("import time\n\ntime.sleep(1000)\n\n\ndef never(completion):\n    return 1.0\n")
    for module in (check, reward_try):
        monkeypatch.setattr(module, "IMPORT_S", 1.0)
    checked = reward("check", f"{file}:never", "--deadline-s", "0.5", "--json")
    assert checked.exit_code == 1
    (found,) = json.loads(checked.output)["findings"]
    assert f"importing it takes longer than 1 s, at {file}:3" in found["detail"]
    assert "--deadline-s 4" in found["advice"]
    told = str(reward("try", f"{file}:never", "--completion", "x", "--deadline-s", "0.5").exception)
    assert f"importing it takes longer than 1 s, at {file}:3" in told
    assert "--deadline-s 4" in told


def test_the_limit_of_the_time_holds_and_what_was_left_out_is_said(tmp_path: Path) -> None:
    file = tmp_path / "slow.py"
    file.write_text(
        "import time\n\n\ndef slow(completion, answer):\n    time.sleep(0.1)\n    return float(completion == answer)\n"
    )
    report = check_rewards(Checked(specs=[RewardSpec(path=f"{file}:slow")], within_s=2.0, workers=0))
    assert report.seconds < 2.3
    (late,) = [finding for finding in report.findings if finding.severity == "warning" and finding.check == "time"]
    assert "there was no time within 2 s for: ordinary replies (" in late.detail
    assert "replies made up to cheat" in late.detail
    assert late.advice == "give it more: --within-s 8"


def test_trying_a_function_that_wants_texts_says_so(file: Path) -> None:
    told = reward("try", f"{file}:of_texts", "--completion", "#### 42")
    assert "note: reward of_texts: it gave 0 for everything, since each of `completions` is a list" in told.output
    assert f"with texts it gives 0.5; name it trl:{file}:of_texts" in told.output
    told = reward("try", f"{file}:boxed", "--completion", "42", "--answer", "42")
    assert "list of messages" not in told.output


def test_cases_that_fail_for_one_reason_are_one_finding() -> None:
    cases = [Case(completion=text, name=text, where=f"f:{text}", expect=Expect(equals=0.0)) for text in "abcd"]
    gone = Failed(kind="error", message="no model in nowhere", reproduce="")
    outcomes = [gone, gone, Failed(kind="error", message="own", reproduce=""), Score(value=1.0)]
    assert [(finding.detail, finding.example) for finding in case_findings(cases, outcomes)] == [
        ("2 of 4 cases could not be scored (error); the first is f:a: case 'a': no model in nowhere", "'a'"),
        ("f:c: case 'c': failed (error): own", "'c'"),
        ("f:d: case 'd': the value is 1, not 0", "'d'"),
    ]
    assert [finding.detail for finding in case_findings(cases, [Score(value=0.0)] * 4)] == ["all 4 hold"]


def test_a_watched_reward_that_takes_more_than_the_cases_have_is_checked_without_them(tmp_path: Path) -> None:
    (tmp_path / "trained.py").write_text("def bare(completion):\n    return completion.isdigit()\n")
    (tmp_path / "trained.cases.jsonl").write_text(
        '{"completion": "17", "expect": 1}\n{"completion": "", "expect": 0}\n'
    )
    (tmp_path / "watched.py").write_text("def is_total(completion, total):\n    return completion == str(int(total))\n")
    (tmp_path / "tasks.py").write_text(
        "from rlft.environment.contract import Environment\nfrom rlft.reward.probe import make_task\n\n\n"
        "def load(seed=0):\n"
        "    tasks = [make_task(f'{n} + 1?', columns={'total': n + 1}, id=str(n)) for n in (5, 8, 2)]\n"
        "    return Environment(train=tasks[:2], heldout=tasks[2:])\n"
    )
    config = tmp_path / "run.yaml"

    def write(role: str) -> None:
        config.write_text(
            f"name: a\nsteps: 1\nmodel: {{source: x}}\nenvironment: {{path: '{tmp_path}/tasks.py:load'}}\nrewards:\n"
            f"  - path: {tmp_path}/trained.py:bare\n  - {{path: '{tmp_path}/watched.py:is_total', {role}}}\n"
        )

    for role in ("role: shadow", "weight: 0"):
        write(role)
        told = json.loads(reward("check", config, "--json").output)
        assert told["is_fine"]
        about = {(finding["reward"], finding["check"]): finding["detail"] for finding in told["findings"]}
        assert about["bare", "range"].startswith("0 to 1")
        assert about["is_total", "constant"].startswith("it gave 0")
        of_cases = [finding["detail"] for finding in told["findings"] if finding["check"] == "cases"]
        lacking = "the cases lack what is needed to ask is_total, which is only watched and takes total"
        assert sorted(of_cases) == ["all 2 hold", lacking]
        attacked = reward("attack", config, "--seconds", "3").output
        assert lacking in attacked
        assert "no reward" not in attacked
        assert " 0 replies" not in attacked

    (tmp_path / "watched.py").write_text("def is_total(completion, total):\n    return completion == total['of']\n")
    found = json.loads(reward("check", config, "--json").output)["findings"]
    assert any(finding["reward"] == "is_total" and finding["severity"] == "error" for finding in found)


def test_a_file_without_cases_is_mentioned(file: Path, tmp_path: Path) -> None:
    empty = tmp_path / "empty.cases.jsonl"
    empty.write_text("\n")
    told = reward("check", f"{file}:exact", "--cases", empty, "--json")
    assert [f["detail"] for f in json.loads(told.output)["findings"] if f["check"] == "cases"] == [
        f"{empty} holds no case"
    ]
    told = reward("attack", f"{file}:exact", "--cases", empty, "--seconds", "1")
    assert f"note: {empty} holds no case" in told.output
