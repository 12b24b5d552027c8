"""What a reply gives as its answer: a number, tags, a box, a code block, JSON, a letter, or the answer that it states.

Each function takes the reply and returns what it found, or None. `strict` says what several answers mean: where they
agree they are one; where they differ, strict gives None (a reply that lists all answers has given none), and lenient
the last. All take time linear in the length of the reply, whatever is in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any, NoReturn

LONGEST_NUMBER = 400
"""Characters of a number at the most, and its largest power of ten: a policy can write more than a computer holds."""

_PLAIN = r"(?:(?:\d{1,3}(?:,\d{3})+(?![\d,])|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+\u2212]?\d+)?"
_SIGNED = rf"[-+\u2212]?\s?{_PLAIN}"
_WHOLE = re.compile(
    rf"(?:(?P<whole>{_SIGNED})\s+(?=\d+/))?(?P<top>{_SIGNED})(?:\s?/\s?(?P<bottom>{_SIGNED}))?\s?(?P<percent>\\?%)?"
)
# A word, whose digits are part of its name ("x2", "0x42", "cm^2"), or a number. A sign is the number's unless a word or
# a bracket ends before it: "10-5" ends with 5, "x = -5" with -5.
_TOKEN = re.compile(
    r"(?P<word>(?:\d+(?=[^\W\d]+\d)(?![eE][-+\u2212]?\d+(?!\w)))?[^\W\d]\w*(?:\^\{?[-+]?\w+\}?)?)"
    rf"|(?P<number>(?:(?<![\w)])[-+\u2212])?{_PLAIN}(?:\s?\d+/\d+(?!\w)|/{_PLAIN})?(?:\s?\\?%)?)"
    r"(?P<power>\^[({]?[-+]?\w*|\*\*[-+({]?\d+|[\u2070-\u2079\u00b2\u00b3\u00b9]+)?"
)
_FRACTION = re.compile(r"\\[dt]?frac\s?\{\s?(-?\d{1,50})\s?\}\s?\{\s?(\d{1,50})\s?\}")
_REMARK = re.compile(r"(?<=\s)\([^()=]*\)")
_INSIDE = re.compile(r"(?:sqrt|\u221a|log|ln|sin|cos|tan|exp)[\s({\\]{0,4}$", re.IGNORECASE)
_NOT = r"\bnot\b|n['\u2019]t\b|\bnever\b|\bneither\b|\bnor\b|\bcannot\b|\brul(?:e|es|ed|ing) out\b|\u2260|!=|\\neq?\b"
_WRONG = r"\b(?:wrong|incorrect|false|mistaken?|(?<!no )doubt(?:s|ful)?|unlikely|far from)\b"
_DENIED_BEFORE = re.compile(rf"(?:{_NOT}|{_WRONG})[^,;:.!?\n]*$|{_WRONG}(?:\s+\w+){{0,2}}\s*:\s*$", re.IGNORECASE)
_RESUMED = re.compile(r"\b(?:but|so|hence|thus|therefore|then|only)\b", re.IGNORECASE)
_DENIED_AFTER = re.compile(
    r"[\s*$)\]}\"']{0,4}(?:\?\s*no\b|(?:is|was|are|would be|seems|can|could)\s+(?:not|wrong|incorrect|false|never)\b"
    r"|(?:is|was|could|ca)n['\u2019]t\b|cannot\b)",
    re.IGNORECASE,
)
_OR, _SENTENCE_ENDS = re.compile(r"\bor\b", re.IGNORECASE), re.compile(r"[.;!?\n]")


def conclusion(text: str, tag: str = "think") -> str:
    """What follows the reasoning between `<think>` tags; all of a reply without such tags.

    Reasoning that never ends leaves nothing: "".
    """
    _, closed, after = text.rpartition(f"</{tag}>")
    return "" if f"<{tag}>" in after else after if closed else text


def number(text: str) -> Fraction | None:
    """The exact value of a text that is one number: `42`, `-1,234.5`, `1e3`, `1/2`, `1 1/2`, `50%` (a half).

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
    digits, _, exponent = text.replace(",", "").replace(" ", "").lower().partition("e")
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
    several joined by "or", or is part of what would have to be computed (`10^42`, `sqrt(42)`).
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
    is_or = len(found) > 1 and _OR.search(before) and not _SENTENCE_ENDS.search(before)
    if is_or and not same_number(found[0]["number"], last["number"]):
        return None
    return last["number"].strip()


def is_denied(before: str, after: str = "") -> bool:
    """Whether what stands around an answer denies it: "it is not 42", "42 is wrong". English only."""
    denial = _DENIED_BEFORE.search(before[-200:])
    return bool(denial and not _RESUMED.search(denial[0])) or bool(_DENIED_AFTER.match(after))


def tagged(text: str, tag: str = "answer", *, strict: bool = True) -> str | None:
    """What stands between `<answer>` and `</answer>`, without the white space around it.

    Strict: tags that are nested, lack their other half, or are written in other case give None, as answers that differ
    do.
    """
    marks = list(re.finditer(rf"<(/?)({re.escape(tag)})>", text, re.IGNORECASE if strict else 0))
    pairs = [(one.end(), two.start()) for one, two in pairwise(marks) if not one[1] and two[1]]
    if strict and (2 * len(pairs) != len(marks) or any(mark[2] != tag for mark in marks)):
        return None
    return _only([text[start:end].strip() for start, end in pairs], strict)


def boxed(text: str, *, strict: bool = True) -> str | None:
    r"""What stands in `\boxed{...}`, braces inside included; of nested boxes the outer one."""
    opened: list[tuple[bool, int]] = []
    spans: list[tuple[int, int]] = []
    for mark in re.finditer(r"\\(?:boxed|fbox)\s?\{|\\.|[{}]", text, re.DOTALL):
        if mark[0] != "}" and mark[0][-1] == "{" and mark[0] != "\\{":
            opened.append((len(mark[0]) > 1, mark.end()))
        elif mark[0] == "}" and opened:
            is_box, start = opened.pop()
            if is_box:
                while spans and spans[-1][0] >= start:
                    spans.pop()
                spans.append((start, mark.start()))
    return _only([text[start:end].strip() for start, end in spans], strict)


def _only(answers: Sequence[str], strict: bool) -> str | None:
    """The last answer; strict: None unless all are equal."""
    if not answers or (strict and len(set(answers)) > 1):
        return None
    return answers[-1]


_PYTHON = {"python", "python3", "py", "py3", "python2"}
_FENCE = re.compile(r"(`{3,}|~{3,})[ \t]*([\w+#.-]*)")


def code_block(text: str, language: str = "python", *, defines: str = "") -> str | None:
    """The code between triple backticks that counts, without the fences; None if there is no such block.

    Blocks count that name the language in whatever case (`Python`, `python3` and `py` are one) or none. Of these it is
    the last one that defines the function `defines`, so that an example that follows does not hide the solution; where
    none does, the last one that names the language, else the last one.
    """
    names = _PYTHON if language.lower() in _PYTHON else {language.lower()}
    blocks = [(info, code) for info, code in _blocks(text) if not info or info in names]
    if defines:
        word = re.escape(defines)
        definition = re.compile(
            rf"^(?:(?:async[ \t]+)?(?:def|class|function)[ \t]+{word}\b|{word}[ \t]*=)", re.MULTILINE
        )
        blocks = [block for block in blocks if definition.search(block[1])] or blocks
        return blocks[-1][1] if blocks else None
    named = [block for block in blocks if block[0]] or blocks
    return named[-1][1] if named else None


def _blocks(text: str) -> list[tuple[str, str]]:
    """(language in lower case, code) of every fenced block; one that is never closed goes to the end."""
    found: list[tuple[str, str]] = []
    fence, info, lines = "", "", list[str]()
    for line in text.splitlines():
        bare = line.strip()
        if not fence:
            # No backtick may follow it on its line; a pattern that says so tries each place again, in quadratic time.
            last_ticks = len(line[: line.rfind("`") + 1].rstrip("`"))
            if opening := _FENCE.search(line, last_ticks):
                fence, info, lines = opening[1], opening[2].lower(), []
        elif bare.startswith(fence) or bare.endswith(fence):
            lines += [line[: line.rindex(fence)]] if not bare.startswith(fence) else []
            found.append((info, "\n".join(lines)))
            fence = ""
        else:
            lines.append(line)
    return [*found, (info, "\n".join(lines))] if fence else found


def json_object(text: str, *, strict: bool = True) -> dict[str, Any] | None:
    """A JSON object: the whole reply, or the only one in it, between triple backticks or not.

    Refused as no JSON: `NaN`, `Infinity`, and a key that occurs twice.
    """
    found = [_object(text[start:end]) for start, end in _braces(text)]
    objects = [each for each in found if each is not None]
    if not objects or (strict and any(each != objects[0] for each in objects)):
        return None
    return objects[-1]


def _braces(text: str) -> list[tuple[int, int]]:
    """Where outermost braces open and close; those within strings do not count."""
    spans: list[tuple[int, int]] = []
    depth, start, in_string = 0, 0, False
    for mark in re.finditer(r'\\.|["{}]', text, re.DOTALL):
        if mark[0] == '"':
            in_string = depth > 0 and not in_string
        elif in_string:
            continue
        elif mark[0] == "{":
            start = start if depth else mark.start()
            depth += 1
        elif mark[0] == "}" and depth:
            depth -= 1
            if not depth:
                spans.append((start, mark.end()))
    return spans


def json_value(text: str) -> Any:
    """The value of a text that is JSON and nothing else.

    Raises:
        ValueError: it is not, holds `NaN` or an infinity, repeats a key, or is nested too deeply to be read.
    """
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_without_twins)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _object(text: str) -> dict[str, Any] | None:
    try:
        value = json_value(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _without_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(made := dict(pairs)) < len(pairs):
        raise ValueError("a key occurs twice")
    return made


_STATED = re.compile(
    r"(?:\b(?:answer|result|solution)(?:\s?[:=]|\s(?:is|was|must be|would be|should be)\b\s?:?)|####)[\s*_$]{0,4}",
    re.IGNORECASE,
)
_CHOSEN = re.compile(r"\b(?:answer|option|choice)(?:\s(?:is|was|must be|should be))?\s?:?[\s*_$]{1,4}", re.IGNORECASE)


def choice(text: str, letters: str = "ABCD", *, strict: bool = True) -> str | None:
    """The letter of a multiple-choice answer, in upper case.

    It is the letter in the reply's box or tags, the whole reply (`B`, `(b)`, `**B.**`, `B. Paris`), or what follows
    "the answer is", "option" or "Answer:". A letter that is denied or goes on as a list ("A, B or C") is no answer.
    """
    text = conclusion(text)
    for marked in (boxed(text, strict=strict), tagged(text, strict=strict)):
        if marked is not None:
            return _letter(marked, letters)
    if "\\boxed" in text or "<answer>" in text:
        return None
    if "\n" not in text.strip() and (whole := _letter(text.strip(), letters)):
        return whole
    one = re.compile(rf"[(\[\"']?([{re.escape(letters)}])(?![\w'\u2019])", re.IGNORECASE)
    more = re.compile(rf"[)\]\"'*.]{{0,3}}\s?(?:,|/|&|\bor\b|\band\b)\s?(?:or\s|and\s)?[(\[]?[{re.escape(letters)}]\b")
    answers = []
    for cue in _CHOSEN.finditer(text):
        if not (letter := one.match(text, cue.end())):
            continue
        if letter[1].islower() and re.match(r"\s\w", text[letter.end() :][:2]):
            continue  # the article, as in "the answer is a bird"
        if more.match(text, letter.end()):
            return None
        if not is_denied(text[max(0, cue.start() - 60) : cue.start()], text[letter.end() : letter.end() + 40]):
            answers.append(letter[1].upper())
    return _only(answers, strict)


def _letter(text: str, letters: str) -> str | None:
    read = re.fullmatch(
        rf"[\s(\[*_$\"']{{0,9}}([{re.escape(letters)}])(?:[\s)\]*_$\"'.:]*|[).:]\s.{{1,200}})", text, re.I
    )
    return read[1].upper() if read else None


def stated_answer(text: str) -> str | None:
    r"""The one answer that a reply commits to, as text, for questions with a short answer.

    It looks behind the reasoning (`conclusion`), first for `\boxed{...}`, then for `<answer>` tags, then for what
    follows the last "the answer is", "Answer:" or `####` in its sentence, then for the only **bold** text; last it
    takes a reply that is one short line as a whole. Boxes or tags that differ, and an answer that is denied, give None.
    """
    text = conclusion(text)
    if "\\boxed" in text or "\\fbox" in text:
        return boxed(text) or None
    if "<answer>" in text:
        return tagged(text) or None
    cues = list(_STATED.finditer(text))
    if cues:
        start = cues[-1].end()
        said = re.split(r"(?<![A-Za-z]\.[A-Za-z])[.!?;](?=\s|$|\*)|\n", text[start : start + 1000], maxsplit=1)[0]
        said = said.replace("**", "").strip("*_: \t")
        if is_denied(text[max(0, cues[-1].start() - 60) : cues[-1].start()]) or is_denied(said + " "):
            return None
        return said or None
    bold = [found.strip(" .:") for found in re.findall(r"\*\*([^*\n]{1,200})\*\*", text)]
    if bold:
        return _only(bold, strict=True) or None
    line = text.strip()
    if not line or len(line) > 100 or "\n" in line or is_denied(line.rstrip(".! ")):
        return None
    return line
