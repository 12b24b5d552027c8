"""Regular expression: the whole reply has the form that a pattern describes."""

from __future__ import annotations

import re


def regex_match(completion: str, pattern: str, whole: bool = True, ignore_case: bool = False) -> float:
    """1 if the reply, without white space around it, matches the pattern, else 0.

    Args:
        pattern: of Python's `re`; from `args`, or a column of that name. `.` matches line breaks, too.
        whole: match all of the reply. With False the pattern may occur anywhere, and a reply that lists everything that
            could match is as good as the right one.

    A pattern says what is allowed, so allow little: `.*42.*` is met by "not 42". A pattern with nested repetition, as
    `(a+)+`, can take for ever on a reply that almost matches; the scoring process is killed then, and the sample fails.
    """
    flags = re.DOTALL | (re.IGNORECASE if ignore_case else 0)
    text = completion.strip()
    return float(bool(re.fullmatch(pattern, text, flags) if whole else re.search(pattern, text, flags)))
