"""Faults that a text shows by itself: nothing in it, an end that is cut off, characters that were broken."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

from rlft.train.data_check.findings import Finding, found
from rlft.train.data_check.records import Record

LONG = 100
"""Characters from which on the end of a text says whether it was cut."""
AT_LIMIT = 3
"""Rows that share the greatest length, from which on it looks like a limit that cut them."""
WHOLE = 0.8
"""Share of the long replies that end as sentences do, from which on one that does not is told."""

_ENDS = re.compile(r"""[.!?。!?…:;)\]}>"'`|*$”\u2019»\d]\s*$""")
_MARKED = re.compile(r"(\[\s*(?:truncated|cut|continued)\s*\]|\(truncated\)|…|\.\.\.)\s*$", re.IGNORECASE)
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]")


def empty(records: Sequence[Record]) -> list[Finding]:
    """Prompts and answers that hold nothing, or nothing that can be seen."""
    prompts = [r.where for r in records if _is_blank(r.prompt)]
    answers = [r.where for r in records if isinstance(r.label, str) and _is_blank(r.label)]
    lacking = [r.where for r in records if r.label is None and r.is_task]
    replies = [r.where for r in records for kind, text in r.texts if kind == "reply" and _is_blank(text)]
    mixed = lacking if any(r.label is not None for r in records) else []
    return [
        *found("empty prompt", "error", prompts, "there is nothing to answer", "fill it in, or remove the row"),
        *found("empty reply", "error", replies, "there is nothing to learn from", "fill it in, or remove the row"),
        *found(
            "empty answer",
            "warning",
            [*answers, *mixed],
            "others have an answer to compare with; this has none",
            "fill it in, or remove the row, unless the reward expects that",
        ),
    ]


def _is_blank(text: str) -> bool:
    """Whether all characters are white space, or take no place at all."""
    return all(char.isspace() or unicodedata.category(char) in ("Cf", "Cc") for char in text)


def truncated(records: Sequence[Record]) -> list[Finding]:
    """Texts whose end looks cut off: many of the same greatest length, a reply without an end, a block left open."""
    findings: list[Finding] = []
    for kind in ("prompt", "reply"):
        texts = [(r.where, text.rstrip()) for r in records for each, text in r.texts if each == kind]
        longest = max((len(text) for _, text in texts), default=0)
        limited = [(where, text) for where, text in texts if len(text) == longest]
        # A template's texts may all have one length; those that were cut end within a sentence.
        cut = [where for where, text in limited if not _ENDS.search(text)]
        if longest >= LONG and AT_LIMIT <= len(limited) <= len(texts) / 2 and len(cut) * 2 > len(limited):
            findings += found(
                f"cut {kind}",
                "warning",
                [where for where, _ in limited],
                f"they have exactly {longest} characters, the most of all, and most stop within a sentence",
                "they were cut by whatever wrote the file: write them again without a limit",
            )
    replies = [(r.where, text.rstrip()) for r in records for kind, text in r.texts if kind == "reply"]
    long = [(where, text) for where, text in replies if len(text) >= LONG]
    unended = [(where, text) for where, text in long if not _ENDS.search(text)]
    if len(long) - len(unended) >= WHOLE * len(long):
        findings += found(
            "reply stops",
            "warning",
            [where for where, _ in unended],
            f"it stops within a sentence, where others do not: ...{unended[0][1][-40:]!r}" if unended else "",
            "the policy would learn to stop there: end it, or remove the row",
        )
    marked = [
        (r.where, match[0])
        for r in records
        for _, text in r.texts
        if (match := _MARKED.search(text))
        if len(text) >= LONG
    ]
    findings += found(
        "cut by mark",
        "warning",
        [where for where, _ in marked],
        f"a long text ends with {marked[0][1]!r}" if marked else "",
        "if it was shortened for a reader, take the whole text",
    )
    fences = [r.where for r in records for kind, text in r.texts if kind == "reply" and text.count("```") % 2]
    findings += found(
        "open block", "warning", fences, "a block of code (```) is not closed", "close it: the end is missing"
    )
    return findings


def broken(records: Sequence[Record]) -> list[Finding]:
    """Characters that no author wrote: halves of surrogate pairs, marks of failed decoding, control characters."""
    halves = _with(records, lambda text: any("\ud800" <= char <= "\udfff" for char in text))
    marks = _with(records, lambda text: "\N{REPLACEMENT CHARACTER}" in text)
    controls = _with(records, lambda text: bool(_CONTROLS.search(text)))
    names = Counter(f"U+{ord(char):04X}" for r in records for _, text in r.texts for char in _CONTROLS.findall(text))
    return [
        *found(
            "half a character",
            "error",
            halves,
            "it holds half of a surrogate pair, which is no text: no tokenizer takes it",
            r"write it whole: both halves in JSON (\ud83d\ude00), or as UTF-8",
        ),
        *found(
            "lost characters",
            "warning",
            marks,
            "it holds U+FFFD, which stands where decoding failed: what was there is lost",
            "read the original again, in the encoding that it has",
        ),
        *found(
            "control characters",
            "warning",
            controls,
            f"it holds {', '.join(name for name, _ in names.most_common(3))}, which the model reads as odd tokens",
            "remove them",
        ),
    ]


def mojibake(records: Sequence[Record]) -> list[Finding]:
    """Texts that were decoded in another encoding than they were written in, by ftfy
    (https://ftfy.readthedocs.io/), which the extra `data` has."""
    try:
        import ftfy
    except ImportError:
        return [unable("mojibake", "ftfy")]
    wrong = []
    for record in records:
        for _, text in record.texts:
            if not text.isascii() and ftfy.is_bad(text) and (mended := ftfy.fix_encoding(text)) != text:
                wrong.append((record.where, _first_difference(text, mended)))
                break
    what = "text was decoded in the wrong encoding"
    if wrong:
        what += ": {!r} should be {!r}".format(*wrong[0][1])
    return found(
        "mojibake",
        "warning",
        [where for where, _ in wrong],
        what,
        "read the original in its own encoding (mostly UTF-8), or mend it with ftfy.fix_encoding",
    )


def unable(name: str, package: str) -> Finding:
    """What could not be looked at, for want of a package."""
    return Finding(
        name=name,
        severity="not checked",
        what=f"the package {package} is not installed",
        todo="pip install 'rlft[data]'",
    )


def _first_difference(text: str, mended: str) -> tuple[str, str]:
    pairs = enumerate(zip(text, mended, strict=False))
    at = next((index for index, (one, other) in pairs if one != other), 0)
    start = max(at - 10, 0)
    return text[start : at + 10], mended[start : at + 10]


def _with(records: Sequence[Record], has: Callable[[str], bool]) -> list[str]:
    return [record.where for record in records if any(has(text) for _, text in record.texts)]
