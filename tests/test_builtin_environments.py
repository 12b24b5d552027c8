"""The shipped environments: well-formed, solvable, scored as they say, and trainable from their debug configs."""

from __future__ import annotations

import asyncio
import inspect
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from environments import (
    arithmetic,
    calculator,
    countdown,
    instructions,
    number_guessing,
    programs,
    retrieval,
)
from rewards.constraints import CHECKS
from rewards.countdown import countdown as countdown_reward
from rewards.instructions import instructions as instructions_reward
from rewards.last_number import last_number
from rlft.cli.env_check import check_environment
from rlft.common.arithmetic import evaluate, show
from rlft.config import EnvironmentConfig
from rlft.config_file import load
from rlft.environment.contract import Environment
from rlft.reward import sandbox
from rlft.rollout.chunk import Chunk
from rlft.rollout.engines.scripted import ScriptedEngine, byte_tokenizer
from rlft.rollout.generate import run_chunk
from rlft.train.rl import launch
from rlft.types import SamplingParams, Task, Trajectory
from tests.fakes import read_metrics, save_tiny_model

SHIPPED = ["arithmetic", "calculator", "countdown", "instructions", "number_guessing", "programs", "retrieval"]
SHIPPED += ["strict_json", "sums"]


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_environment_keeps_what_it_promises(name: str) -> None:
    findings = check_environment(EnvironmentConfig(path=f"environments.{name}:load"), tasks=4, samples=3)
    assert [f for f in findings if not f.is_fine] == []
    assert len(findings) >= 7


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in ("strict_json", "sums")])
def test_the_seed_decides(name: str) -> None:
    module: Any = globals()[name]
    assert [t.id for t in module.load(seed=1).train] == [t.id for t in module.load(seed=1).train]
    assert [t.id for t in module.load(seed=1).train] != [t.id for t in module.load(seed=2).train]


def solved(environment: Environment, say: Callable[[Task, str], str], count: int = 8) -> list[Trajectory]:
    """The first tasks' episodes, played by `say(task, prompt)`."""
    tokenizer = byte_tokenizer()
    tasks = tuple(environment.train[:count])

    def reply(prompt: str, index: int, seed: int) -> str:
        asked = next(task for task in tasks if task.messages[-1]["content"] in prompt)
        return say(asked, prompt)

    params = SamplingParams(temperature=1.0, top_p=1.0, max_new_tokens=400)
    work = Chunk(tasks=tasks, samples_per_task=1, params=params, run_seed=0, stream="t", step=1, version=0)
    return [
        group.trajectories[0] for group in run_chunk(ScriptedEngine(tokenizer, reply), tokenizer, work, environment)
    ]


# Arithmetic


@pytest.mark.parametrize(
    ("written", "value", "numbers"),
    [
        ("2 + 3 * 4", "14", [2, 3, 4]),
        ("(2 + 3) * -4", "-20", [2, 3, 4]),
        ("0.1 + 0.2", "0.3", []),
        ("1 / 3", "1/3", [1, 3]),
        ("7 \u00d7 8 \u2212 6 \u00f7 2", "53", [7, 8, 6, 2]),
        (" 1e2 / 8", "12.5", []),
    ],
)
def test_expressions_are_computed_exactly(written: str, value: str, numbers: list[int]) -> None:
    computed, used = evaluate(written)
    assert show(computed) == value
    assert not numbers or used == numbers


@pytest.mark.parametrize(
    "written",
    ["", "2 +", "1 / 0", "2 ** 9", "abs(2)", "x", "'a'", "True", "(" * 150, "1" * 300, "[1]", "1j", "1 if 1 else 2"],
)
def test_other_expressions_are_refused(written: str) -> None:
    with pytest.raises(ValueError, match=r"expression|only numbers|division"):
        evaluate(written)


@pytest.mark.parametrize(
    "written",
    ["1e999999999", "1e-999999999", "1e" + "9" * 150, "0e999999999", "1/1e300*1e-10", "*".join(["9e99"] * 38)],
)
def test_numbers_that_no_computer_holds_are_refused_at_once(written: str) -> None:
    with pytest.raises(ValueError, match="more than 300 digits"):
        evaluate(written)
    assert countdown_reward(f"<answer>{written}</answer>", [1], 1) == {"right": 0.0, "legal": 0.0}


def test_the_largest_and_smallest_values_are_shown() -> None:
    assert show(evaluate("1e299")[0]) == "1" + "0" * 299
    assert show(evaluate("1e299 + 0.5")[0]) == "1e+299"
    assert show(evaluate("1e-299")[0]) == "1e-299"


def test_arithmetic_has_right_answers() -> None:
    environment = arithmetic.load(terms=3, operators="+-*", low=0, high=12, tasks=200)
    assert len(environment.train) == 140
    for task in environment.train:
        assert str(eval(task.id)) == task.answer
        assert last_number(f"It is {task.answer}.", task.answer) == 1
    with pytest.raises(ValueError, match="there are 9 problems, too few to hold out 60"):
        arithmetic.load(operators="+", high=3)
    with pytest.raises(ValueError, match=r"operators are some of \+ - \*"):
        arithmetic.load(operators="/")


def test_calculator_is_solved_with_its_tool() -> None:
    def say(task: Task, prompt: str) -> str:
        answers = re.findall(r"<tool_response>\n(.*?)\n", prompt)
        if answers:
            return f"The answer is {answers[-1]}"
        return f'<tool_call>{{"name": "calculate", "arguments": {{"expression": "{task.id}"}}}}</tool_call>'

    environment = calculator.load()
    played = solved(environment, say)
    assert [(t.environment_reward, t.stop_reason, len(t.turns)) for t in played] == [(1.0, "done", 2)] * 8
    # Calling for ever is a 0, not an abstention; and a list of numbers is no answer.
    endless = solved(environment, lambda task, prompt: '<tool_call>{"name": "calculate"}</tool_call>', count=1)[0]
    assert (endless.environment_reward, endless.stop_reason) == (0.0, "turns")
    assert solved(environment, lambda task, prompt: f"1 2 {task.answer}", count=1)[0].environment_reward == 0
    assert len(environment.demonstrations) == 200
    assert {m[-1]["role"] for m in environment.demonstrations} == {"assistant"}


# Countdown


def test_every_countdown_can_be_won() -> None:
    environment = countdown.load(numbers=4, tasks=300, heldout=50, demonstrations=200)
    games = {task.id: task for task in (*environment.train, *environment.heldout)}
    assert len(games) == 100
    for shown in environment.demonstrations:
        drawn, target = re.search(r"numbers ([\d, ]+), each.*make (\d+)\.", shown[0]["content"]).groups()  # type: ignore[union-attr]
        numbers = [int(n) for n in drawn.split(",")]
        assert countdown_reward(shown[-1]["content"], numbers, int(target)) == {"right": 0.9, "legal": 0.1}
    with pytest.raises(ValueError, match=r"found only \d+ games of 2 numbers up to 3"):
        countdown.load(numbers=2, high=3)


@pytest.mark.parametrize(
    ("reply", "right", "legal"),
    [
        ("<answer>3 * 5 + 2</answer>", 0.9, 0.1),
        ("<answer>5 + 12</answer>", 0.0, 0.0),  # a number that was not given
        ("<answer>3 + 5</answer>", 0.0, 0.1),
        ("<answer>3 * 3 + 5 + 3</answer>", 0.0, 0.0),  # a number too often
        ("<answer>17</answer>", 0.0, 0.0),
        ("<answer>3 * 5 + 2 = 17</answer>", 0.0, 0.0),
        ("<answer>3 * 5 + 2</answer> or <answer>5 * 3 + 2</answer>", 0.0, 0.0),
        ("3 * 5 + 2", 0.0, 0.0),
        ("<answer></answer>", 0.0, 0.0),
    ],
)
def test_countdown_is_scored_by_its_rules(reply: str, right: float, legal: float) -> None:
    assert countdown_reward(reply, [3, 5, 2], 17) == {"right": right, "legal": legal}


# Instructions


KEPT = [
    ("at_most_words", {"count": 3}, "one two three", "one two three four"),
    ("at_least_words", {"count": 3}, "one two three", "one two"),
    ("starts_with", {"phrase": "Well,"}, "Well, yes.", "Yes. Well,"),
    ("starts_with", {"phrase": "Well,"}, "Well, it is.", "Well,"),
    ("ends_with", {"phrase": "The end."}, "It was. The end.", "The end. It was."),
    ("without_word", {"word": "the"}, "a theory", "at The end"),
    ("in_quotes", {}, '"All of it."', '"All" of it "here"'),
    ("items", {"count": 2}, "- a\n- b", "- a\n- b\n- c"),
    ("items", {"count": 2}, "- a\n\n  - b", "Sure:\n- a\n- b"),
    ("json_object", {"keys": ["a", "b"]}, '```json\n{"b": 1, "a": [2]}\n```', '{"a": 1}'),
    ("json_object", {"keys": ["a"]}, '{"a": 1}', "{a: 1}"),
    ("lower_case", {}, "all small.", "Not small."),
    ("upper_case", {}, "ALL LARGE.", "Not ALL."),
    ("at_most_sentences", {"count": 2}, "One. Two!", "One. Two! Three?"),
    ("at_least_sentences", {"count": 2}, "One. Two!", "One of 3.14."),
    ("paragraphs", {"count": 2}, "One\nline.\n\nTwo.", "One.\nTwo."),
    ("paragraph_starts", {"number": 2, "word": "often"}, "It is.\n\nOften not.", "Often.\n\nNot often."),
    ("paragraph_starts", {"number": 3, "word": "often"}, "One\n\ntwo\n\noften", "often\n\noften"),
    ("title", {}, "<<The sea>>\nIt is deep.", "<<>> It is deep."),
    ("title", {}, "<<The sea>> It is.", "<<The sea>>"),
    ("postscript", {"marker": "P.S."}, "It is deep.\nP.S. And cold.", "P.S. It is deep."),
    ("uses_word", {"word": "sea", "count": 2}, "Sea after sea.", "The seas and the sea."),
    ("uses_letter", {"letter": "b", "count": 2}, "A big Boat.", "A boat."),
    ("without_commas", {}, "No pause.", "Well, no."),
    ("capital_words", {"count": 1}, "It is VERY deep.", "It is A very deep sea."),
    ("two_replies", {}, "Deep. ****** Cold.", "Deep. ****** Deep."),
    ("one_of", {"options": ["yes", "no"]}, "yes", "yes, no"),
    ("placeholders", {"count": 2}, "[name] of [place]", "[name] of []"),
    ("highlights", {"count": 2}, "*one* and **two**", "*one* and ** **"),
    ("sections", {"word": "Part", "count": 2}, "Part 1\nA.\nPart 2\nB.", "Part 1\nA.\nPart 3\nB."),
]


@pytest.mark.parametrize(("kind", "arguments", "good", "bad"), KEPT)
def test_instructions_are_checked(kind: str, arguments: dict[str, Any], good: str, bad: str) -> None:
    constraints = [{"kind": kind, **arguments}]
    assert instructions_reward(f" {good}\n", constraints) == {"score": 1.0, kind: 1.0}
    assert instructions_reward(bad, constraints) == {"score": 0.0, kind: 0.0}
    assert instructions_reward("  ", constraints) == {"score": 0.0, kind: 0.0}


def test_instructions_count_each_constraint() -> None:
    assert {kind for kind, *_ in KEPT} == set(CHECKS) == {*instructions.KINDS, "one_of"}
    assert len(CHECKS) == 25
    both = [{"kind": "lower_case"}, {"kind": "at_most_words", "count": 1}]
    assert instructions_reward("two words", both) == {"score": 0.5, "lower_case": 1.0, "at_most_words": 0.0}
    twice = [{"kind": "without_word", "word": word} for word in ("bee", "sea")]
    assert instructions_reward("the sea", twice) == {"score": 0.5, "without_word": 1.0, "without_word_2": 0.0}
    assert instructions_reward("the sea", []) is None
    environment = instructions.load(kinds="all", constraints=3)
    for task in environment.train:
        assert len({c["kind"] for c in task.columns["constraints"]}) == 3
        instructions_reward("reply", task.columns["constraints"])
    with pytest.raises(ValueError, match="no kind 'rhymes'"):
        instructions.load(kinds="rhymes")
    with pytest.raises(ValueError, match="constraints is 5, and there are 4 kinds"):
        instructions.load(constraints=5)


# Number guessing


def test_guessing_by_halves_wins() -> None:
    def say(task: Task, prompt: str) -> str:
        low, high = task.columns["low"], task.columns["high"]
        for direction, guess in re.findall(r"number is (higher|lower) than (\d+)", prompt):
            low, high = (max(low, int(guess) + 1), high) if direction == "higher" else (low, min(high, int(guess) - 1))
        return f"I say {(low + high) // 2}."

    played = solved(number_guessing.load(high=9), say)
    assert {t.stop_reason for t in played} == {"done"}
    assert [t.environment_reward for t in played] == pytest.approx([1 - 0.1 * (len(t.turns) - 1) for t in played])
    mute = solved(number_guessing.load(), lambda task, prompt: "hm", count=1)[0]
    assert (mute.environment_reward, mute.stop_reason) == (pytest.approx(-0.4), "turns")
    assert mute.messages[2]["content"] == "Say a number."


# Retrieval


def search(environment: Environment, query: str) -> str:
    assert environment.episode is not None
    episode = environment.episode()
    episode.start(environment.train[0], 0)
    call = json.dumps({"name": "search", "arguments": {"query": query}})
    step = episode.step({"role": "assistant", "content": f"<tool_call>{call}</tool_call>"})
    assert inspect.iscoroutine(step)
    return asyncio.run(step).messages[0]["content"]


def test_every_question_can_be_answered_by_searching() -> None:
    environment = retrieval.load(people=40, demonstrations=30)
    for task in (*environment.train, *environment.heldout):
        name = re.search(r"[A-Z]\w+ [A-Z]\w+", task.id)[0]  # type: ignore[index]
        assert str(task.answer) in search(environment, f"{name} {'trade' if 'trade' in task.id else 'born'}")
    for shown in environment.demonstrations[1::2]:
        assert shown[-1]["content"] in shown[-2]["content"]
    # A person is either trained on or held out.
    people = [{re.search(r"[A-Z]\w+ [A-Z]\w+", t.id)[0] for t in ts} for ts in (environment.train, environment.heldout)]  # type: ignore[index]
    assert not people[0] & people[1]
    assert search(environment, "zzz") == "Nothing was found."
    assert search(environment, "the of") == "Nothing was found."


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Kelham", 1.0),
        ("She was born in kelham.", 1.0),
        ("Kelhamton", 0.0),
        ("Kelham, or Lorwick, or Marsten, or Norbury, or Ostrand, or Pellham, or Quenby", 0.0),
        ("", 0.0),
    ],
)
def test_short_answers_are_scored_by_their_words(reply: str, score: float) -> None:
    assert retrieval._answered(Task(id="q", messages=(), answer="Kelham"), reply) == score


def test_a_corpus_of_your_own(tmp_path: Path) -> None:
    corpus, questions = tmp_path / "corpus.jsonl", tmp_path / "questions.csv"
    corpus.write_text('{"text": "Otters hold hands while they sleep."}\n{"text": "Bees dance."}\n')
    questions.write_text("question,answer\nWhat do otters hold?,hands\nWhat do bees do?,dance\nWho sleeps?,otters\n")
    environment = retrieval.load(corpus=str(corpus), questions=str(questions), heldout=0.34)
    assert (len(environment.train), len(environment.heldout)) == (1, 2)
    assert search(environment, "otters") == "Otters hold hands while they sleep."
    with pytest.raises(ValueError, match="give both `corpus` and `questions`"):
        retrieval.load(corpus=str(corpus))
    questions.write_text("question,reply\nWhat?,x\n")
    with pytest.raises(ValueError, match=r"questions\.csv, row 1: no column 'answer'; it has question, reply"):
        retrieval.load(corpus=str(corpus), questions=str(questions))


# Programs


@pytest.mark.skipif(bool(sandbox._problem()), reason=f"no sandbox: {sandbox._problem()}")
def test_the_shown_programs_are_right() -> None:
    from rewards.code_tests import code_tests

    environment = programs.load(demonstrations=10, heldout=0.1)
    tasks = {t.messages[0]["content"]: t for t in programs.load(heldout=0).train}
    for shown in environment.demonstrations:
        task = tasks[shown[0]["content"]]
        assert code_tests(shown[-1]["content"], task.answer, task.columns["function"]) == {"score": 1.0, "share": 1.0}
    task = environment.train[0]
    # Beyond all floats, which is wrong and no failure of the reward.
    assert code_tests("def f():\n    return 10**400", [[[], 1.5]], "f") == {"score": 0.0, "share": 0.0}
    assert code_tests("```python\ndef f(values):\n    return None\n```", task.answer, "f") == {
        "score": 0.0,
        "share": 0.0,
    }


def test_programs_of_your_own(tmp_path: Path) -> None:
    file = tmp_path / "problems.jsonl"
    row = {"prompt": "Add.", "function": "add", "cases": [[[1, 2], 3]]}
    file.write_text("".join(json.dumps({**row, "prompt": f"Add {i}."}) + "\n" for i in range(5)))
    environment = programs.load(source=str(file))
    assert (len(environment.train), len(environment.heldout)) == (4, 1)
    assert environment.train[0].columns["function"] == "add"
    for wrong, message in [
        ({**row, "cases": [[1, 2]]}, r"problems\.jsonl:1: `cases` must be a list like"),
        ({"prompt": "p", "cases": []}, r"problems\.jsonl:1: the columns `prompt` and `function`"),
    ]:
        file.write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=message):
            programs.load(source=str(file))


def sides(environment: Environment) -> dict[str, bool]:
    """Each question, and whether it is held out."""
    named = [(True, task) for task in environment.heldout] + [(False, task) for task in environment.train]
    return {task.messages[0]["content"]: is_heldout for is_heldout, task in named}


@pytest.mark.parametrize("name", ["programs", "retrieval"])
def test_further_rows_move_no_others_between_training_and_held_out(tmp_path: Path, name: str) -> None:
    rows, corpus = tmp_path / "rows.jsonl", tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "Bees dance."}\n')

    def load(numbers: list[int], seed: int = 0) -> dict[str, bool]:
        shared = {"function": "add", "cases": [[[1, 2], 3]], "answer": "3"}
        texts = [f"Add {i}." for i in numbers]
        rows.write_text("".join(json.dumps({"prompt": t, "question": t, **shared}) + "\n" for t in texts))
        if name == "programs":
            return sides(programs.load(source=str(rows), heldout=0.3, seed=seed))
        return sides(retrieval.load(corpus=str(corpus), questions=str(rows), heldout=0.3, seed=seed))

    few, more = load(list(range(40))), load([99, *reversed(range(40)), 100])
    assert 6 <= sum(few.values()) <= 18
    assert few.items() <= more.items()
    assert load(list(range(40)), seed=1) != few


# Runs

DEBUG = Path(__file__).parents[1] / "configs" / "debug"


@pytest.fixture(scope="module")
def roomy_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context that holds tools in bytes."""
    return save_tiny_model(tmp_path_factory.mktemp("roomy") / "model", context=4096)


def test_every_environment_has_a_debug_config() -> None:
    others = {"strict_json", "sums"}  # configs/strict_json.yaml and configs/quickstart.yaml
    assert {path.stem.removeprefix("env_") for path in DEBUG.glob("env_*.yaml")} == {*SHIPPED} - others


@pytest.mark.parametrize("name", [name for name in SHIPPED if name not in ("strict_json", "sums")])
def test_every_debug_config_runs(tmp_path: Path, roomy_model: Path, name: str) -> None:
    if name == "programs" and sandbox._problem():
        pytest.skip(f"no sandbox: {sandbox._problem()}")
    config = load(
        DEBUG / f"env_{name}.yaml",
        [
            *(f"output_dir={tmp_path}", f"model={{source: {roomy_model}, dtype: float32}}", "learner.threads=1"),
            *("rollout.threads=1", "evaluation.tasks=2", "sampling.max_new_tokens=12", "scoring.workers=0"),
        ],
    )
    launch.train(config)
    metrics = read_metrics(config.run_dir)
    assert len(metrics) == 2
    assert all(row["reward/failed"] == 0 and row["reward/abstained"] == 0 for row in metrics)


@pytest.mark.timeout(600)  # starts actors
def test_episodes_do_not_depend_on_the_backend(tmp_path: Path, roomy_model: Path, ray_cluster: None) -> None:
    from tests.fakes import read_result
    from tests.fakes_pool import LentPool

    results = []
    for backend in ("inline", "ray"):
        config = load(
            DEBUG / "env_number_guessing.yaml",
            [
                *(f"output_dir={tmp_path / backend}", f"model={{source: {roomy_model}, dtype: float32}}"),
                *("learner.threads=1", "rollout.threads=1", "rollout.workers=2", "rollout.tasks_per_chunk=1"),
                *("evaluation.tasks=4", "sampling.max_new_tokens=12", "scoring.workers=0", f"backend={backend}"),
                *("environment.args={max_turns: 3}", "sampling.stop=[a, b, c, d, e, f, g, h]"),
            ],
        )
        launch.train(config, pools=LentPool if backend == "ray" else None)
        results.append(read_result(config.run_dir))
    assert results[0]["rollouts/step-000001.parquet"] == results[1]["rollouts/step-000001.parquet"]
    assert results[0] == results[1]
    assert max(row["turns"] for row in results[0]["rollouts/step-000001.parquet"]) > 1
