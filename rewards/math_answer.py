r"""Mathematics: the reply's stated answer has the value of the expected one, in plain text or LaTeX (extra `math`).

`1/2`, `\frac{2}{4}` and `0.5` are one answer. math-verify compares, without time limits of its own: a scoring process
is killed at its deadline.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from rlft.reward.extract import number, same_number, stated_answer

try:
    from math_verify import LatexExtractionConfig, parse, verify
except ImportError as error:
    raise ImportError("rewards.math_answer needs math-verify: pip install 'rlft[math]'") from error

LONGEST = 200
"""Characters of an answer at the most: longer ones take long to simplify."""
_FOR_EVER = re.compile(  # to compute: towers of powers, huge exponents, factorials of more than two digits
    r"(?:\^|\*\*)[\s({]*-?[\d.]{4,}|(?:\^|\*\*)\s*[({][^{}()]*(?:\^|\*\*|!|\d{4})|\d{3}\s*!"
    r"|[!)}\w]\s*!\s*!|[)}A-Za-z]\s*!|\\(?:int|sum|prod)(?![A-Za-z])"
)
_WORD = re.compile(r"(?<!\\)\b(?!(?:sqrt|sin|cos|tan|log|exp|pi)\b)(?:[A-Za-z]{3,}|or)\b")
_UNIT = re.compile(r"([^A-Za-z\\]*\d)[\s\\]*(?:\\?(?:text|mathrm)\s*\{)?\s*([A-Za-z][A-Za-z /]*(?:\^\{?\d\}?)?)\s*\}?")
logging.getLogger("math_verify").setLevel(logging.ERROR)  # each call would warn that it has no time limit


def math_answer(completion: str, answer: Any) -> float | None:
    r"""1 if the reply states the answer, else 0; abstains when the task has no answer.

    Read is what stands in `\boxed{...}` or `<answer>` tags, else what follows the last "the answer is", "Answer:" or
    `####`, else the only bold text, else a reply of one short line. Reasoning in `<think>` tags is not read.

    Listing candidates, boxing several or denying the answer earns nothing. What a policy could still do is to write the
    question as its answer (`6 \times 7` has the value 42): integrals, sums and huge powers are refused, but for plain
    arithmetic use `rewards.last_number` or `rewards.exact_answer`.
    """
    expected = _bare(str(answer)) if answer is not None else ""
    if not expected:
        return None
    found = _bare((stated_answer(completion) or "")[: 2 * LONGEST])
    return float(0 < len(found) <= LONGEST and _equal(found, expected))


def _equal(found: str, expected: str) -> bool:
    if _words(found) == _words(expected):
        return True
    if (unit := _UNIT.fullmatch(found)) and number(unit[1]) is not None:
        theirs = _UNIT.fullmatch(expected)
        if (theirs and theirs[2].strip() != unit[2].strip()) or (unit[2] == "x" and not theirs):
            return False
        found, expected = unit[1], theirs[1] if theirs else expected
    said = {value for part in found.split("=") if (value := number(part)) is not None}
    if len(said) > 1 or _FOR_EVER.search(found) or _WORD.search(found) or not re.search(r"[\d\\^_]", found + expected):
        return False
    value, wanted = number(found), number(expected)
    if value is not None and wanted is not None:
        return same_number(found, expected) or abs(value - wanted) <= abs(wanted) / 10**9
    ours, theirs_ = (parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None) for text in (found, expected))
    return bool(verify(theirs_, ours, timeout_seconds=None))


def _bare(text: str) -> str:
    r"""An answer without what only surrounds it: `\boxed{}`, `\text{}`, dollars, bold, a final point."""
    text = text.replace("\u2212", "-").replace("\u03c0", r"\pi ").replace(r"\%", "%").strip()
    while (
        bare := re.sub(r"^\\(?:boxed|text|mathrm|mathbf)\s*\{(.*)\}$", r"\1", text).strip("$* \n").removesuffix(".")
    ) != text:
        text = bare
    return text


def _words(text: str) -> str:
    """A text without case, article, and brackets around all of it."""
    text = re.sub(r"^(?:the|an?)\s+", "", " ".join(text.lower().split()))
    return text[1:-1].strip() if re.fullmatch(r"\([^(),]*\)", text) else text
