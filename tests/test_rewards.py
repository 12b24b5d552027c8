"""The shipped rewards on the replies that graders usually get wrong."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from rewards.exact_answer import exact_answer
from rewards.graded_answer import graded_answer
from rewards.last_number import last_number

FILES = sorted(path for path in (Path(__file__).parents[1] / "rewards").glob("*.py"))


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("<answer>42</answer>", "42", 1.0),
        ("  <answer>42</answer>\n", "42", 1.0),
        ("<answer>42</answer>", 42, 1.0),
        ("", "42", 0.0),
        ("", "", 0.0),
        ("42", "42", 0.0),
        ("<answer>41</answer>", "42", 0.0),
        ("<answer> 42 </answer>", "42", 0.0),
        ("I think <answer>42</answer>", "42", 0.0),
        ("<answer>41</answer><answer>42</answer>", "42", 0.0),
        ("<answer>42</answer>", None, None),
    ],
)
def test_exact_answer_is_the_whole_reply(completion: str, answer: object, expected: float | None) -> None:
    assert exact_answer(completion, answer) == expected


def test_exact_answer_in_another_tag() -> None:
    assert exact_answer("<result>42</result>", "42", tag="result") == 1.0
    assert exact_answer("<answer>42</answer>", "42", tag="result") == 0.0


@pytest.mark.parametrize(
    ("completion", "answer", "expected"),
    [
        ("17 + 25 = 42", "42", 1.0),
        ("42 = 17 + 25", "42", 0.0),  # the last one counts
        ("the result is 42.", 42, 1.0),
        ("$1,234.50", "1234.5", 1.0),
        ("1,234,567", 1234567, 1.0),
        ("1234", "1,234", 1.0),
        ("choose 1,2,3", 3, 1.0),  # a list, not a thousands separator
        ("1,2345", 2345, 1.0),
        ("it is \u22125", "-5", 1.0),  # U+2212, the typographic minus
        ("it is -5", "\u22125", 1.0),
        ("10-5", 5, 0.0),  # an operator, not a sign
        ("(2)-5", 5, 1.0),
        ("x=-.5", -0.5, 1.0),
        ("0.10", 0.1, 1.0),
        ("1e3", 1000, 1.0),
        ("1e309", "1e309", 1.0),  # both would be inf as floats,
        ("1e309", "1e310", 0.0),  # and so would these
        ("1e99999999999999999999", 1, 0.0),
        ("\uff14\uff12", 42, 1.0),  # full-width digits
        ("", 42, 0.0),
        ("no idea", 42, 0.0),
        ("inf", 42, 0.0),
        ("nan", 42, 0.0),
        ("It is not 42", 42, 0.0),
        ("It isn't 42", 42, 0.0),
        ("42 is wrong", 42, 0.0),
        ("It is not 41 but 42", 42, 1.0),
        ("0x42", 42, 0.0),
        ("10^42", 42, 0.0),
        ("10^42", 10, 0.0),
        ("1/42", 42, 0.0),
        ("\\frac{1}{42}", 42, 0.0),
        ("41 or 42", 42, 0.0),
        ("42 (see step 3)", 42, 1.0),
        ("42 cm^2", 42, 1.0),
        ("a half, 0.5", "1/2", 1.0),
        ("2/4", "1/2", 1.0),
        ("\\frac{1}{2}", 0.5, 1.0),
        ("50%", "50%", 1.0),
        ("0.5", "50%", 1.0),
        ("50", "50%", 1.0),
        ("5", "50%", 0.0),
        ("42", None, None),
        ("42", "forty-two", None),
        ("42", "", None),
        ("1", True, None),
        ("nan", float("nan"), None),
        ("5", "1e99999999999999999999", None),
    ],
)
def test_last_number_compares_numerically(completion: str, answer: object, expected: float | None) -> None:
    assert last_number(completion, answer) == expected


@pytest.mark.parametrize(
    ("completion", "correct", "tagged"),
    [
        ("17 + 25 is <answer>42</answer>", 1.0, 0.1),
        ("<answer>\n42 </answer>", 1.0, 0.1),
        ("<answer>41</answer>", 0.0, 0.1),
        ("42", 0.0, 0.0),
        ("", 0.0, 0.0),
        ("<answer>42", 0.0, 0.0),
        ("<answer>41</answer> or <answer>42</answer>", 0.0, 0.0),  # no credit for trying several
        ("<answer><answer>42</answer>", 0.0, 0.0),
        ("<answer>42</answer> No, it is 43.", 0.0, 0.0),
    ],
)
def test_graded_answer_parts(completion: str, correct: float, tagged: float) -> None:
    assert graded_answer(completion, 42) == {"correct": correct, "format": tagged, "length": 0.0}


def test_graded_answer_charges_words_beyond_the_limit() -> None:
    lengths = [graded_answer("word " * words, 42, max_words=10) for words in (10, 15, 20, 1000)]
    # 0.1 * (15 - 10) / 10 = 0.05; 0.1 * (20 - 10) / 10 = 0.1; more costs no more
    assert [parts and parts["length"] for parts in lengths] == pytest.approx([0.0, -0.05, -0.1, -0.1])
    assert graded_answer("a" * 100_000, 42) == {"correct": 0.0, "format": 0.0, "length": -0.1}
    assert graded_answer("<answer>42</answer>", None) is None


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_examples_stay_worth_copying(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80


@pytest.mark.parametrize("path", [path for path in FILES if path.name != "__init__.py"], ids=lambda path: path.name)
def test_the_first_line_says_what_a_reward_does(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    assert docstring.splitlines()[0].endswith("."), path


def test_cases_that_another_checker_ships_are_graded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("math_verify")
    from benchmarks.reward_checkers import graded

    def shipped(*cases: tuple[str, str, str, bool]) -> Path:
        """An interpreter of an environment in which a package has these cases."""
        python = tmp_path / "python"
        python.write_text(f"#!/bin/sh\ncat <<'END'\n{json.dumps(cases)}\nEND\n")
        python.chmod(0o755)
        return python

    right = [(f"right {n}", f"The answer is {n}", f"{n}", True) for n in range(50)]
    assert graded(shipped(*right, ("wrong", "The answer is 5", "4", False)))
    assert "false positives: 0 of 1, 0.0%\nfalse negatives: 0 of 50, 0.0%\n" in capsys.readouterr().out
    assert graded(shipped(*right[1:], ("missed", "I cannot say", "4", True), ("wrong", "5", "4", False)))
    assert not graded(shipped(*right, ("paid", "The answer is 4", "4", False)))
    assert "false positives: 1 of 1, 100.0% paid" in capsys.readouterr().out
    assert not graded(
        shipped(
            *right[2:],
            *[(f"missed {n}", "I cannot say", "4", True) for n in "ab"],
            right[0],
            ("wrong", "5", "4", False),
        )
    )
