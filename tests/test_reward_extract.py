"""What is read as a reply's answer, of well-meant replies and of hostile ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest

from rlft.reward import extract


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        (" -1,234.5 ", Fraction(-2469, 2)),
        ("1/2", Fraction(1, 2)),
        ("-1 1/2", Fraction(-3, 2)),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"50\%", Fraction(1, 2)),
        ("1e-3", Fraction(1, 1000)),
        ("5/0", None),
        ("1e999999999", None),
        ("9" * 5000, None),
        ("12,34", None),
        ("4 2", None),
        ("", None),
        ("nan", None),
    ],
)
def test_number_is_exact_and_bounded(text: str, value: Fraction | int | None) -> None:
    assert extract.number(text) == value


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("so <answer> 42\n</answer>.", "42", "42"),
        ("<answer>41</answer><answer>42</answer>", None, "42"),
        ("<answer>42</answer> yes, <answer>42</answer>", "42", "42"),
        ("<answer>41<answer>42</answer>", None, "42"),
        ("<answer>42", None, None),
        ("</answer>42<answer>", None, None),
        ("<answer></answer>", "", ""),
    ],
)
def test_tagged(text: str, strict: str | None, lenient: str | None) -> None:
    assert extract.tagged(text) == strict
    assert extract.tagged(text, strict=False) == lenient


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        (r"\boxed{\frac{1}{\sqrt{2}}} ", r"\frac{1}{\sqrt{2}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{41} \boxed{42}", None, "42"),
        (r"\boxed{42}, so \boxed{42}", "42", "42"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}", r"\{1, 2\}"),
        (r"\boxed{\boxed{42}}", r"\boxed{42}", r"\boxed{42}"),
        (r"\boxed{never closed \boxed{42}", "42", "42"),
        ("42", None, None),
    ],
)
def test_boxed(text: str, strict: str | None, lenient: str | None) -> None:
    assert extract.boxed(text) == strict
    assert extract.boxed(text, strict=False) == lenient


SOLUTION = "def f(x):\n    return x"


@pytest.mark.parametrize(
    "text",
    [
        f"```python\n{SOLUTION}\n```",
        f"```Python\n{SOLUTION}\n```",
        f"```python3\n{SOLUTION}\n```",
        f"```py\n{SOLUTION}\n```",
        f"Sure: ```\n{SOLUTION}```",
        f"```python\n{SOLUTION}",
        f"```python\n{SOLUTION}\n```\nFor example:\n```python\nprint(f(1))\n```\nprints\n```\n1\n```",
        f"```python\ndef f(x):\n    return 0\n```\nno:\n````py\n{SOLUTION}\n````",
        f"```bash\nf = 1\n```\n```python\n{SOLUTION}\n```\n```bash\nf = 2\n```",
    ],
)
def test_code_block_is_the_last_that_defines_the_function(text: str) -> None:
    assert (extract.code_block(text, defines="f") or "").strip() == SOLUTION


def test_code_block_by_language() -> None:
    text = f"```python\n{SOLUTION}\n```\n```\noutput\n```\n```json\n{{}}\n```"
    assert extract.code_block(text) == SOLUTION
    assert extract.code_block(text, "json") == "{}"
    assert extract.code_block(text, "rust") == "output"  # no block says rust: the one that says nothing
    assert extract.code_block(SOLUTION) is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": {"b": "}"}}', {"a": {"b": "}"}}),
        ('It\'s "it": ```json\n{"a": 1}\n``` done', {"a": 1}),
        ('{"a": 1} or {"a": 2}', None),
        ('{"a": 1}, that is {"a":1}', {"a": 1}),
        ('{"a": 1, "a": 2}', None),
        ('{"a": NaN}', None),
        ("{x} then " + '{"a": 1}', {"a": 1}),
        ("[1]", None),
        ('{"a":' * 5000 + "1" + "}" * 5000, None),
    ],
)
def test_json_object(text: str, value: object) -> None:
    assert extract.json_object(text) == value


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("B", "B"),
        ("(b)", "B"),
        ("**B.**", "B"),
        ("B. Paris", "B"),
        ("The answer is B.", "B"),
        ("The answer is **(b)**, since A is too small.", "B"),
        (r"A or C? \boxed{B}", "B"),
        ("<think>Answer: A</think>Answer: B", "B"),
        ("The answer is A, B, C, or D.", None),
        ("The answer is A or B", None),
        ("Answer: A. Answer: B.", None),
        ("The answer is not B.", None),
        ("The answer is a bird.", None),
        ("A bird", None),
        ("E", None),
        ("", None),
    ],
)
def test_choice(text: str, letter: str | None) -> None:
    assert extract.choice(text) == letter


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("42", "42"),
        ("The answer is 42.", "42"),
        ("Final Answer: **3.14** metres", "3.14 metres"),
        ("#### 42", "42"),
        ("The product is **42**.", "42"),
        (r"The answer is 41. No: \boxed{42}", "42"),
        (r"\boxed{41} \boxed{42}", None),
        (r"\boxed{}", None),
        ("<think>The answer is 42.</think>\n\nThe answer is 43.", "43"),
        ("<think>The answer is 42.", None),
        ("The answer is definitely not 42.", None),
        ("It is certainly not 42.", None),
        ("Answer:", None),
        ("Answer:\n42", "42"),
        ("# Solution\n\nIt is **42**.", "42"),
        ("First 1.\nThen 2.", None),
    ],
)
def test_stated_answer(text: str, answer: str | None) -> None:
    assert extract.stated_answer(text) == answer


HOSTILE = {
    "one word": "a" * 100_000,
    "digits": "1" * 100_000,
    "signs": "-" * 100_000,
    "brackets": " (" * 50_000,
    "commas": "1," * 50_000,
    "mixed words": "1a" * 50_000,
    "braces": "{" * 100_000,
    "quotes": '{"' + '\\"' * 50_000,
    "boxes": "\\boxed{" * 14_000 + "}" * 14_000,
    "tags": "<answer>" * 12_000,
    "fences": "```a " * 20_000,
    "lines": "```\n" * 25_000,
    "cues": "the answer is A " * 6_000,
    "denials": "not " * 25_000,
    "spaces": "answer" + " " * 100_000,
}
FUNCTIONS: list[Callable[[str], Any]] = [
    *(extract.last_number, extract.number, extract.tagged, extract.boxed, extract.code_block),
    *(extract.json_object, extract.choice, extract.stated_answer, extract.conclusion),
]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text_takes_no_longer_than_its_length(name: str) -> None:
    # Quadratic code takes a minute for one of these.
    started = time.process_time()
    for function in FUNCTIONS:
        function(HOSTILE[name])
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "text",
    [
        "42? No.",
        "The wrong answer is 42",
        "Wrong: 42",
        "Incorrect answer: 42",
        "I doubt it's 42",
        "It's false that the answer is 42",
        "It would be a mistake to answer 42",
    ],
)
def test_an_answer_that_is_called_wrong_is_none(text: str) -> None:
    assert extract.last_number(text) is None
    assert extract.stated_answer(text) != "42"


def test_no_doubt_is_no_denial() -> None:
    assert extract.last_number("No doubt it is 42") == "42"


def test_tags_in_another_case_are_another_answer() -> None:
    assert extract.tagged("<ANSWER>43</ANSWER><answer>42</answer>") is None
    assert extract.tagged("<answer>42</answer>") == "42"
