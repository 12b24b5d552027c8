"""What is read as a reply's answer, of well-meant replies and of hostile ones."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
        ("Answer: b\nIt rains", "B"),
        ("A bird", None),
        ("E", None),
        ("", None),
    ],
)
def test_choice(text: str, letter: str | None) -> None:
    assert extract.choice(text) == letter


CHOOSES_B = (
    "I choose B",
    "I choose B.",
    "I'd go with (B).",
    "I pick B because A is too small.",
    r"\boxed{\text{B}}",
    r"\boxed{\textbf{(B) } 5}",
    r"$\boxed{\mathrm{B}}$",
    "My pick: (B)",
    "My guess is B",
    "Therefore, B is correct.",
    "B is the correct answer.",
    "(B) is right.",
    "Option B is correct.",
    "The correct option is B",
    "The correct choice would be (b)",
    "Answer:B",
    "Answer - B",
    "The answer is definitely B",
    "It rains.\n\nB",
    "B\n\nIt rains.",
    "It rains.\n**B**",
    "so B.",
    "Rain falls, therefore (B)",
    r"Answer: $\text{B}$",
    "The answer is B) Paris",
    "So it's B",
    "Answer: **B**\nA is too small",
    "The correct letter is B.",
    "Final answer: B",
    "I would select **B**.",
    "The answer is: B",
    "Answer = B",
    "I am going with B",
    "If x = 2, then the answer is B.",
    "B. Vitamin C",
    "I'll go with option B.",
    "I think B is correct",
    "A. Paris\nB. Rome\n\nAnswer: B",
    "B: Rome",
    "I choose B, since A and C are wrong",
    "Selected: B",
    "I chose B",
    "**Answer:** B",
    "The best answer is **B: Rome**",
    "It's (B)",
    "I believe it is B.",
    "B is my answer.",
    "I'd say B",
    r"Final answer: \(B\)",
    "**B**: Paris",
    "B - Paris",
    "#### B",
    "Conclusion: B",
    "I am choosing B",
    "Correct answer: **B) Paris**",
    "We choose B.",
    "I pick B over A.",
    "The answer is B (Paris).",
    "The answer is B \u2705",
    "The answer is B, and I am sure.",
    "B is correct because A is too small.",
    "B is correct and A is wrong.",
    "Hence B is the right option for us.",
    "Therefore, (b)",
    "I choose B, not A.",
)
# What reasoning says of the task's objects. It chooses nothing, and a stated answer is read beside it.
REMARKS = (
    "We choose A = 3 and B = 4.",
    "We pick A = {1, 2}.",
    "We pick A \u2208 S.",
    "We choose A, B such that A + B = 3.",
    "I choose A to be the origin.",
    "I choose A = 3.",
    "I'd say A is close.",
    "Conclusion: A and B differ.",
    "Statement A is correct. Statement B is incorrect.",
    "A is the right angle.",
    "A is the right triangle.",
    "A is right-angled.",
    "Angle A is right.",
    "Point A is right of point B.",
    "Option A is too small.",
    "Option A or B remains.",
)
CHOOSES_NONE = (
    "I choose A or B",
    "I would not choose B",
    "I wouldn't choose B.",
    "If I choose B, then",
    "Should I choose B?",
    "Is the answer B?",
    "I never pick B",
    "My pick: A, B",
    "(a) or (b)",
    "The answer is (a) or (b)",
    "Answer: A B C D",
    "A. B. C. D.",
    "A) B) C) D)",
    "A or B is correct",
    "neither A nor B is correct",
    "I doubt B is correct",
    "You might think B is correct",
    "B is not correct",
    "A\nB\nC\nD",
    "A. Paris\nB. Rome\nC. Oslo\nD",
    "If B is correct",
    "Whether B is correct I know not",
    "A is correct. B is correct.",
    "I choose a bird",
    "A bird",
    "I choose between A and B",
    "Answer: A/B/C/D",
    "Answer: A-D",
    "The answer is A through D",
    r"\boxed{A, B}",
    r"\boxed{\text{A or B}}",
    "**A**, **B**",
    "Answer: **A**, **B**",
    "The answer is A|B",
    "I choose A. I choose B.",
    "My pick: not B",
    "Nobody says B is correct",
    "A and B are correct",
    "A, B is correct",
    "I choose B if it rains",
    "I pick A; B",
    "The vitamin is C",
    "B?",
    "I'm not going with B",
    "I don't pick B",
    "Suppose the answer is B.",
    "A\nIt rains.\nB",
    "I can't say so B",
    "the answer is a, b",
    "I thought the answer is B",
    "It is false that B is correct",
    "The answer is A dog.",
    "It is A or B.",
    "If it is B.",
    "It's A bird.",
    "I doubt it's B.",
    "#### A big title",
    "A - B",
    "A - C - D",
    "**A**: **B**",
    "I would say A bird flew",
    "B is the best of the wrong ones",
    *REMARKS,
    "So, a",
    "A is correct, and so is B.",
    "A is correct, if it rains.",
    "In my view A is correct. B is correct.",
    "The answer is A Tale of Two Cities",
    "The answer is A = 3.",
    "The answer is A^2.",
    "The answer is C(5, 2).",
    r"The answer is $A \cup B$.",
    "The answer is B. Actually, C is correct.",
    "Therefore: A\nIt rains.\nB",
    "I choose A. The answer is B.",
    "We pick A. The answer is not A.",
    "I choose B. No, it isn't B, because it rains.",
)


@pytest.mark.parametrize("text", CHOOSES_B)
def test_choice_is_found_however_it_is_said(text: str) -> None:
    assert extract.choice(text) == "B"
    # The same with the letters that the options have here, whatever letters these are.
    moved = re.sub(r"\b[ABCD]\b", lambda letter: "PQRS"["ABCD".index(letter[0])], text).replace("(b)", "(q)")
    assert extract.choice(moved, "PQRS") == "Q"


@pytest.mark.parametrize("text", CHOOSES_NONE)
def test_choice_is_none_where_none_is_made(text: str) -> None:
    assert extract.choice(text) is None


@pytest.mark.parametrize("remark", REMARKS)
@pytest.mark.parametrize("stated", ["The answer is C.", "So the answer is (C).", "I'm sure. Answer: C"])
def test_a_stated_answer_is_read_beside_remarks(remark: str, stated: str) -> None:
    assert extract.choice(f"{remark} {stated}") == "C"
    assert extract.choice(f"{remark}\n\n{stated}") == "C"


def test_the_answer_takes_back_what_was_weighed_before_it() -> None:
    assert extract.choice("We pick A. So it is\nB is correct. The answer is C.") == "C"
    assert extract.choice("The answer is C. Statement A is right.") == "C"
    assert extract.choice("I'd say A is close, but the answer is C.") == "C"


@pytest.mark.parametrize("text", ["So, I", "Thus I", "It is I", "so I"])
def test_the_pronoun_is_no_letter(text: str) -> None:
    assert extract.choice(text, "ABCDEFGHIJ") is None
    assert extract.choice("So (I)", "ABCDEFGHIJ") == "I"


@settings(deadline=None)
@given(texts=st.lists(st.sampled_from(CHOOSES_B), min_size=1, max_size=3), other=st.sampled_from("ACD"))
def test_another_choice_behind_takes_a_choice_back(texts: list[str], other: str) -> None:
    chosen = extract.choice("\n".join([*texts, f"I choose {other}."]))
    assert chosen != "B" or any("boxed" in text for text in texts)  # what a box holds counts alone


@settings(deadline=None)
@given(
    value=st.integers(1, 10**9),
    space=st.sampled_from("\u00a0\u2009\u202f "),
    after=st.sampled_from(("", ".", ".5", " km", " (see 7)")),
)
def test_spaces_between_thousands_are_read_as_commas_are_or_not_at_all(value: int, space: str, after: str) -> None:
    with_commas = f"{value:,}"
    written = with_commas.replace(",", space)
    found = extract.last_number(f"It is {written}{after}")
    expected = extract.last_number(f"It is {with_commas}{after}")
    assert expected is not None
    is_clear = space != " " or " 0" in written or "," not in with_commas
    if is_clear:
        assert found is not None
        assert extract.number(found) == extract.number(expected)
    else:
        assert found is None
    assert extract.number(written) == value


@settings(deadline=None)
@given(
    low=st.integers(0, 999),
    high=st.integers(0, 999),
    form=st.sampled_from(("{}-{}", "{} to {}", "between {} and {}", "from {} km to {} km", "{}\u2013{}", "${} to ${}")),
)
def test_a_range_is_no_single_number(low: int, high: int, form: str) -> None:
    found = extract.last_number(f"It is {form.format(low, high)}.")
    assert found == (str(high) if low == high else None)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It is 1 042", "1 042"),
        ("3 100", None),  # 3100, or 3 and 100
        ("100 200 300", None),
        ("1 04", "04"),
        ("1 1/2", "1 1/2"),
        ("3 100/200", "3 100/200"),
        ("2019 100", "100"),
        ("It is 1,000, I think.", "1,000"),
        ("12,345,", "12,345"),
        ("5,10,000", "10,000"),
        ("1,000,5", "5"),
        ("I add 3 to get 5", "5"),
        ("add 3 and 5", "5"),
        ("10-5=5", "5"),
        ("from 3 to 5, so 2", "2"),
        ("x = -5", "-5"),
        ("Total: 10\n- 42", "42"),
    ],
)
def test_last_number_beside_others(text: str, found: str | None) -> None:
    assert extract.last_number(text) == found


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
    "thousands": "111 " * 25_000,
    "letters": "answer: " + "A " * 50_000,
    "choices": "I choose A, " * 8_000,
    "right ones": "A is correct " * 8_000,
    "right angles": "We choose A = 3, so A is the right angle. " * 2_500,
    "groups": "1" + ",000" * 20_000 + ",",
    "groups that end wrong": "1" + ",000" * 20_000 + ",5",
    "lists of groups": ("1" + ",000" * 100 + ",00,") * 200,
    "thin groups": "1" + "\u2009000" * 20_000 + ",",
    "thin groups that end wrong": "1" + "\u202f000" * 20_000 + "/",
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
