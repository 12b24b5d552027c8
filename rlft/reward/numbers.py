"""Numbers as people write them: their exact values, and the last one of a reply."""

from __future__ import annotations

import re
from fractions import Fraction

from rlft.reward.denial import is_denied

LONGEST_NUMBER = 400
"""Characters of a number at the most, and its largest power of ten: a policy can write more than a computer holds."""

_THIN = "\u00a0\u2009\u202f"
"""Spaces that stand within a number, never between two."""
_SPACED = rf"[1-9]\d{{0,2}}(?:[{_THIN} ]\d{{3}})+(?![\d/])"
# A group of a list is no start of its own: each would read the list to its end again, in quadratic time.
_COMMAS = r"(?<!\d\d\d,)\d{1,3}(?:,\d{3})+(?!,?\d)"
_PLAIN = rf"(?:(?:{_SPACED}|{_COMMAS}|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+\u2212]?\d+)?"
_SIGNED = rf"[-+\u2212]?\s?{_PLAIN}"
_WHOLE = re.compile(
    rf"(?:(?P<whole>{_SIGNED})\s+(?=\d+/))?(?P<top>{_SIGNED})(?:\s?/\s?(?P<bottom>{_SIGNED}))?\s?(?P<percent>\\?%)?"
)
# A word, whose digits are part of its name ("x2", "0x42", "cm^2"), or a number. A sign is the number's unless a word or
# a bracket ends before it: "x = -5" ends with -5, "(10)-5" with 5.
_TOKEN = re.compile(
    r"(?P<word>(?:\d+(?=[^\W\d]+\d)(?![eE][-+\u2212]?\d+(?!\w)))?[^\W\d]\w*(?:\^\{?[-+]?\w+\}?)?)"
    rf"|(?P<number>(?:(?<![\w)])[-+\u2212])?{_PLAIN}(?:\s?\d+/\d+(?!\w)|/{_PLAIN})?(?:\s?\\?%)?)"
    r"(?P<power>\^[({]?[-+]?\w*|\*\*[-+({]?\d+|[\u2070-\u2079\u00b2\u00b3\u00b9]+)?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s?\{\s?(-?\d{1,50})\s?\}\s?\{\s?(\d{1,50})\s?\}")
_REMARK = re.compile(r"(?<=\s)\([^()=]*\)")
_INSIDE = re.compile(r"(?:sqrt|\u221a|log|ln|sin|cos|tan|exp)[\s({\\]{0,4}$", re.IGNORECASE)
_OR, _SENTENCE_ENDS = re.compile(r"\bor\b", re.IGNORECASE), re.compile(r"[.;!?\n]")
_RANGE = re.compile(
    r"[-\u2212\u2010-\u2015]|\s?(?:[\u2010-\u2015]|\.{2,3}|\u2026|to|till|through)\s?\$?", re.IGNORECASE
)
_RANGE_BEGINS = re.compile(r"\b(?:between|from)\s\$?$", re.IGNORECASE)
_RANGE_GOES_ON = re.compile(r"[^\n.;!?,]{0,20}\b(?:and|to)\b\s\$?", re.IGNORECASE)


def number(text: str) -> Fraction | None:
    """The exact value of a text that is one number: `42`, `-1,234.5`, `1 234`, `1e3`, `1/2`, `1 1/2`, `50%` (a half).

    None for everything else, and for a number of more than `LONGEST_NUMBER` digits.
    """
    text = text.strip().strip("$").replace("\u2212", "-")
    text = _FRACTION.sub(r"\1/\2", text) if len(text) <= LONGEST_NUMBER else ""
    read = _WHOLE.fullmatch(text.strip())
    if not read:
        return None
    whole, top, bottom = _plain(read["whole"] or "0"), _plain(read["top"]), _plain(read["bottom"] or "1")
    if whole is None or top is None or not bottom:
        return None
    part = top / bottom
    value = whole - part if read["whole"] and read["whole"].startswith("-") else whole + part
    return value / 100 if read["percent"] else value


def _plain(text: str) -> Fraction | None:
    digits, _, exponent = re.sub(r"[,\s]", "", text).lower().partition("e")
    if exponent and (len(exponent) > 5 or abs(int(exponent)) > LONGEST_NUMBER):
        return None
    return Fraction(f"{digits}e{exponent}" if exponent else digits)


def same_number(first: str, second: str) -> bool:
    """Whether two texts are the same number exactly; a percent sign may be missing in one: `50%` is `0.5` and `50`."""
    one, other = number(first), number(second)
    if one is None or other is None:
        return False
    percents = "%" in first, "%" in second
    if percents[0] == percents[1]:
        return one == other
    return one == other or one * 100 ** percents[0] == other * 100 ** percents[1]


def last_number(text: str) -> str | None:
    """The last number of a reply, as it is written; `number` gives its value.

    Not a number are digits within a word (`x2`, `0x42`) and what stands in brackets after a number, unless the bracket
    has an equals sign: "42 (see step 3)" ends with 42. None where the last number is denied ("it is not 42"), is one of
    several joined by "or", ends a range (`3-5`, "between 3 and 5"), or is part of what would have to be computed
    (`10^42`, `sqrt(42)`). Thin and no-break spaces group thousands; an ordinary space does where a group begins with 0
    (`1 042`), and gives None where it may as well part two numbers (`3 100`).
    """
    text = _FRACTION.sub(r"\1/\2", text)
    found: list[re.Match[str]] = []
    remarks = iter([*_REMARK.finditer(text), None])
    remark = next(remarks)
    for token in _TOKEN.finditer(text):
        while remark and remark.end() <= token.start():
            remark = next(remarks)
        if token["number"] and not (found and remark and remark.start() <= token.start()):
            found = [*found[-1:], token]
    if not found:
        return None
    last, before = found[-1], text[found[-2].end() : found[-1].start()] if len(found) > 1 else text[: found[-1].start()]
    if last["power"] or _INSIDE.search(before[-20:]) or is_denied(before, text[last.end() : last.end() + 40]):
        return None
    written = last["number"].strip()
    # An ordinary space before three digits groups thousands for certain where they are none of an own number.
    if re.search(r"\d \d{3}(?!\d|/)", written) and not re.search(r"[ \u00a0\u2009\u202f]0\d\d", written):
        return None
    if len(found) > 1 and not same_number(found[0]["number"], written):
        is_or = _OR.search(before) and not _SENTENCE_ENDS.search(before)
        if is_or or _is_range(text[: found[0].start()], before):
            return None
    return written


def _is_range(start: str, between: str) -> bool:
    """Whether two numbers are the ends of a range: "3-5", "3 to 5", "between 3 and 5", "from 3 km to 5 km"."""
    if _RANGE.fullmatch(between):
        return True
    return bool(_RANGE_BEGINS.search(start[-20:]) and _RANGE_GOES_ON.fullmatch(between))
