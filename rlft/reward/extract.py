"""What a reply gives as its answer: a number, tags, a box, a code block, JSON, a letter, or the answer that it states.

Each function takes the reply and returns what it found, or None. `strict` says what several answers mean: where they
agree they are one; where they differ, strict gives None (a reply that lists all answers has given none), and lenient
the last. All take time linear in the length of the reply, whatever is in it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NoReturn

from rlft.common import json_text
from rlft.reward.denial import is_denied
from rlft.reward.numbers import last_number, number, same_number

__all__ = [
    "boxed",
    "choice",
    "code_block",
    "conclusion",
    "is_denied",
    "json_object",
    "json_value",
    "last_number",
    "number",
    "same_number",
    "stated_answer",
    "tagged",
]


def conclusion(text: str, tag: str = "think") -> str:
    """What follows the reasoning between `<think>` tags; all of a reply without such tags.

    Reasoning that never ends leaves nothing: "".
    """
    _, closed, after = text.rpartition(f"</{tag}>")
    return "" if f"<{tag}>" in after else after if closed else text


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
    json_text.refuse_deep(text)
    return json.loads(text, parse_constant=_refuse, object_pairs_hook=_without_twins)


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
_MARKS = r"[\s*_$]"
# At a line's end, where no sentence goes on: a capital letter other than the pronoun, or one in brackets.
_LINE_ENDS = r"(?=(?-i:(?!I[ \t]*$)[A-Z][)\]]?|[(\[][A-Za-z][)\]])[*_$]{0,4}[.!]?[ \t]*$)"
_IS = r"(?:is|was|must be|should be|would be|has to be)"
_TAKES = (
    r"(?:['\u2019](?:d|ll|m|ve)|\s(?:would|will|shall|must|am|have))?(?:\s(?:\w+ly|then|therefore|thus))?"
    r"\s(?:choose|chose|chosen|choosing|pick|picked|picking|select|selected|selecting|vote for|settle on|opt for"
    rf"|(?:go|going|went)\s(?:with|for))\s(?:letter\s)?{_MARKS}{{0,4}}"
)
# What a chosen letter follows, and whether it is strong: a strong one states the answer, and takes back all weak ones
# before it, which reasoning about the task's objects has as well ("we choose A", "statement A").
_CUES = tuple(
    (re.compile(pattern, re.IGNORECASE | re.MULTILINE), is_strong)
    for pattern, is_strong in (
        (
            rf"\b(?:answer|option|choice)(?:\s{_IS}(?:\s\w+ly)?(?:\s?[:=]|\s[-\u2013])?"
            rf"|(?:\s\w+ly)?(?:\s?[:=]|\s[-\u2013]))(?:(?<=[:=])|{_MARKS}{{1,4}}){_MARKS}{{0,4}}",
            True,
        ),
        (
            r"\b(?:pick|selection|selected|(?:correct|right) letter)(?:\s(?:is|would be)|\s?[:=])"
            rf"{_MARKS}{{1,4}}",
            True,
        ),
        (rf"\bI{_TAKES}", True),
        (rf"####\s?{_MARKS}{{0,4}}{_LINE_ENDS}", True),
        (rf"\b(?:answer|option|choice){_MARKS}{{1,4}}", False),
        (rf"\b(?:guess|vote|conclusion|response)(?:\s(?:is|would be)|\s?[:=]){_MARKS}{{1,4}}", False),
        (rf"\bwe{_TAKES}", False),
        (rf"\b(?:I|we)(?:['\u2019]d|\s(?:would|will|must))?\ssay\s{_MARKS}{{0,4}}", False),
        (rf"\b(?:so|hence|thus|therefore)(?:,|:)?\s{_MARKS}{{0,4}}{_LINE_ENDS}", False),
        (rf"\bit(?:\sis|['\u2019]s)\s{_MARKS}{{0,4}}{_LINE_ENDS}", False),
    )
)
# What a sentence may go on with behind the letter that it chooses: a reason or a circumstance. Else the letter is the
# name of something ("we choose A = 3", "A and b", "the answer is C(5, 2)").
_REASON = (
    r"(?:according|after|among|as|at|because|based|but|by|due|for|from|given|here|if|in|instead|on|out|over|rather"
    r"|since|so(?!\sthat)|then|though|unless|when|which|while|with|without|even|of\scourse|I\b(?!')"
    r"|not\s[(*]{0,3}[A-Z]\b|and\s(?:the\s|all\s)?(?:others?|rest)\b"
    r"|and\s[(*]{0,3}[A-Z][)*]{0,3}\sis\s(?:wrong|incorrect|false|not)\b)(?![\w-])"
)
_GOES_ON = re.compile(
    rf"[)\]*_$\"'}}]{{0,4}}(?:[({{]|[ \t]?(?:[=<>+^~\u00b1\u00d7\u2200-\u22ff]|\\[a-z])"
    rf"|[ \t](?:[A-HJ-Z](?![\w'\u2019])|(?!{_REASON})[a-z]))"
)
_SUPPOSED = re.compile(
    r"\b(?:if|whether|unless|suppose|supposing|assume|assuming|when|until|thought|should|could|would|can|may|might|did)"
    r"\s(?:that\s)?(?:the\s)?(?:(?:correct|right|best|final)\s)?$",
    re.IGNORECASE,
)
_SOMEBODY_SAYS = re.compile(
    r"\b(?:if|whether|unless|suppos\w+|assum\w+|thought|when|should|could|can|may|might|appears?|seems?|tempting|you|they"
    r"|some|somebody|someone|many|most|people|students?|every\w*|nobody|no one|none|only|who\w*|says?)\b[^.!?\n]*\Z",
    re.IGNORECASE,
)
_ARTICLE = re.compile(r"[a-z][ \t]\w|A[ \t][A-Z]\w")  # "a bird", "A Tale of Two Cities"
# Before "X is correct" stands nothing or one of these, and no noun whose name X is ("point A", "statement A").
_CLAUSE_BEGINS = re.compile(
    r"(?:^|[.,;:!\n>*-]|\b(?:answer|option|choice|letter|that|so|hence|thus|therefore|then|think|believe|say|know|see|find"
    r"|conclude|sure|means|here|now|and|but|\w+ly))\s*$",
    re.IGNORECASE,
)
_IS_CORRECT = (
    r"\sis\s(?:the\s(?:correct|right)(?:\s(?:answer|option|choice|one|letter|response))?|correct|right"
    r"|my\s(?:final\s)?(?:answer|choice|pick))"
    r"(?!,?\s(?:if|unless|when|only|(?:and\s)?(?:so|as)\s(?:is|are|was))\b)"
    rf"(?=[)*_$\"']{{0,4}}(?:[.,;:!\n]|\s*$|\s[-(\u2013\u2014]|\s{_REASON}))"
)
_STYLE = re.compile(r"\\(?:text|textbf|textit|textrm|texttt|mathrm|mathbf|mathsf|mathit|bf|rm)\s?\{([^{}]{0,100})\}")


def choice(text: str, letters: str = "ABCD", *, strict: bool = True) -> str | None:
    """The letter of a multiple-choice answer, in upper case.

    It is the letter in the reply's box or tags, the whole reply (`B`, `(b)`, `**B.**`, `B. Paris`), a line of its own,
    or what follows "the answer is", "Answer:", "I choose", "My pick:". Where none of these is behind it, it is also
    what follows "option", "we choose", "I'd say", or what "is correct". A letter that is denied, asked for, supposed,
    names something ("A = 3", "point A") or goes on as a list ("A, B or C") is no answer.
    """
    text = _STYLE.sub(r"\1", re.sub(r"\\[()]", "", conclusion(text)))
    for marked in (boxed(text, strict=strict), tagged(text, strict=strict)):
        if marked is not None:
            return _letter(marked, letters)
    if "\\boxed" in text or "<answer>" in text:
        return None
    if "\n" not in text.strip() and (whole := _letter(text.strip(), letters)):
        return whole
    strong = _chosen(text, letters, is_strong=True)
    last = max((place for place, _ in strong), default=-1)
    weak = [*_chosen(text, letters, is_strong=False), *_called_correct(text, letters)]
    said = sorted([*strong, *(each for each in weak if each[0] > last), *_alone(text, letters)])
    if any(not letter for _, letter in said) or not (chosen := _only([letter for _, letter in said], strict)):
        return None
    taken_back = (
        rf"(?:\bnot|n['\u2019]t)\s(?:option\s)?[(\[*_$]{{0,4}}{re.escape(chosen)}(?![\w'\u2019]|\s(?!{_REASON})[a-z])"
    )
    return None if re.search(taken_back, text[said[-1][0] :]) else chosen


_SIGN, _WORD = r"[,;/&|+\u2013-]", r"\b(?:or|and|to|through)\b"
_CLOSED = r"[)\]\"'*_$.]{0,4}[ \t]?"


def _chosen(text: str, letters: str, *, is_strong: bool) -> list[tuple[int, str]]:
    """(place, letter) of what follows the strong or the weak cues; "" is the letter of a list."""
    upper, any_case = _class(letters.upper()), _class(letters.upper() + letters.lower())
    one = re.compile(rf"[(\[\"']?({any_case})(?![\w'\u2019])")
    marked_one = rf"(?:[(\[*_$]{{0,4}}{upper}\b|[(\[*_$]{{0,4}}{any_case}(?![\w'\u2019])(?!\s\w))"
    more = re.compile(
        rf"{_CLOSED}(?:(?:{_SIGN}|{_WORD})\s?(?:or\s|and\s)?{marked_one}"
        rf"|[ \t](?:{upper}[ \t])*{upper}(?=[ \t.!*]*(?:\n|$)))"
    )
    found = []
    for cue in (cue for pattern, strength in _CUES if strength == is_strong for cue in pattern.finditer(text)):
        letter = one.match(text, cue.end())
        if not letter or _ARTICLE.match(text, letter.start(1)):
            continue
        before, after = text[max(0, cue.start() - 60) : cue.start()], text[letter.end() : letter.end() + 40]
        is_asked = re.match(r"[)\]*_\"']{0,4}\s?\?|\s(?:if|unless)\b", after)
        if more.match(text, letter.end()):
            found.append((letter.start(1), ""))
        elif not (_GOES_ON.match(after) or is_asked or _SUPPOSED.search(before) or is_denied(before, after)):
            found.append((letter.start(1), letter[1].upper()))
    return found


def _called_correct(text: str, letters: str) -> list[tuple[int, str]]:
    """(place, letter) of what "is correct"; "" is the letter of a list, and of what has a name that is a letter."""
    upper = _class(letters.upper())
    behind_one = re.compile(rf"{upper}{_CLOSED}(?:{_SIGN}|{_WORD}|\bnor\b){{1,2}}\s?$")
    correct = re.compile(rf"(?<![\w'\u2019])[(\[*_$]{{0,4}}({upper})[)\]*_$.]{{0,4}}{_IS_CORRECT}")
    found = []
    for stated in correct.finditer(text):
        before = text[max(0, stated.start() - 60) : stated.start()]
        if behind_one.search(before):
            found.append((stated.start(1), ""))
        elif not (_SOMEBODY_SAYS.search(before) or is_denied(before)):
            # A name stands at place 0: every strong cue takes it back, also one before it.
            found.append((stated.start(1), stated[1]) if _CLAUSE_BEGINS.search(before) else (0, ""))
    return found


def _class(letters: str) -> str:
    """A pattern of one of the letters, in the cases that they are given in."""
    return f"[{re.escape(letters)}]"


def _alone(text: str, letters: str) -> list[tuple[int, str]]:
    """(place, letter) of the first or last line of a reply that is one, but not beside lines that list the options."""
    rows = [row for row in text.splitlines() if row.strip()]
    listed = re.compile(rf"\s*[-*(\[]{{0,3}}\s?{_class(letters)}\s*(?:[).:\]*]|$)", re.IGNORECASE)
    found = []
    for place, row, neighbour in ((0, rows[0], rows[1]), (len(text), rows[-1], rows[-2])) if len(rows) > 1 else ():
        if len(row) < 20 and not listed.match(neighbour) and (letter := _letter(row.strip(), letters)):
            found.append((place, letter))
    return found


def _letter(text: str, letters: str) -> str | None:
    one = _class(letters)
    others = rf"(?!(?:or|and)\b|[(\[*_$]{{0,4}}{one}(?:[).:,;*_$\]]|\s?[-\u2013]|\s*$))"
    read = re.fullmatch(
        rf"[\s(\[*_$\"']{{0,9}}({one})(?:[\s)\]*_$\"'.:]*|(?:[*_]{{0,4}}[).:]|\s[-\u2013])\s{others}(.{{1,200}}))",
        text,
        re.IGNORECASE,
    )
    if not read or (read[2] and re.search(rf"\s[(\[]?{_class(letters.upper())}[).:\]]\s", read[2])):
        return None  # with other letters behind it, as of a list of options
    return read[1].upper()


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
