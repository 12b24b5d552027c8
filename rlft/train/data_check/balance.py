"""How labels are spread, and what one gets who always gives the same one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rlft.train.data_check.findings import Finding, found
from rlft.train.data_check.records import Record
from rlft.types import Message

CLASSES = 20
"""Different answers up to which they are classes, not texts."""
ROWS = 20
"""Rows from which on a share is looked at."""
UNEVEN = 0.8
"""Share of one class from which on a constant answer looks good."""


def labels(records: Sequence[Record], *, kind: str) -> tuple[list[Finding], dict[str, str]]:
    """How often each label is given, where there are few; of pairs how often the chosen one is the longer one."""
    if kind == "pairs":
        longer = sum(_length(r.replies[0]) > _length(r.replies[1]) for r in records)
        share = f"the longer one in {longer} of {len(records)} pairs"
        return [], {"chosen": share} if records else {}
    given = [(r.where, str(r.label)) for r in records if r.label is not None]
    counts = Counter(label for _, label in given)
    if not counts:
        return [], {}
    top, most = counts.most_common(1)[0]
    fact = f"{len(counts)} different ones; the most frequent is {_short(top)!r}, {100 * most / len(given):.0f} %"
    if len(counts) > CLASSES or len(given) < max(ROWS, 2 * len(counts)):
        return [], {"answers": fact}
    fact = ", ".join(f"{_short(label)!r} {100 * count / len(given):.0f} %" for label, count in counts.most_common())
    if len(counts) == 1:
        what = f"all have the answer {_short(top)!r}: there is nothing to tell apart"
    else:
        what = (
            f"{_short(top)!r} is right in {100 * most / len(given):.0f} % of the rows: who always says that looks good"
        )
    is_uneven = most >= UNEVEN * len(given)
    findings = found(
        "uneven labels",
        "warning",
        [where for where, label in given if label == top][: 1 if is_uneven else 0],
        what,
        "add rows of the others, or compare what is measured with that share",
    )
    return findings, {"answers": fact}


def _length(reply: str | Sequence[Message]) -> int:
    return len(reply) if isinstance(reply, str) else sum(len(str(message["content"])) for message in reply)


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 30 else flat[:27] + "..."
