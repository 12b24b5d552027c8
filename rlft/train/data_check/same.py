"""Rows that ask the same: equal prompts, prompts that differ in nothing that matters, and prompts that nearly agree.

Near-duplicates are pairs whose words and pairs of words agree by `NEAR` of their union (Jaccard similarity) and that
hold the same numbers. What many rows share, as the words of a template do, says nothing about two of them and is left
out first: "What is 12 + 7?" and "What is 12 + 8?" are no duplicates. Pairs are looked for by MinHash with bands of
hashes (https://ekzhu.com/datasketch/lsh.html), so that a file of many rows takes no time that grows with its square,
and each is then compared exactly. A pair at the bound is missed with a probability of 1 in 6,500 (`miss_probability`).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise

from rlft.common.rows import canonical_text
from rlft.train.data_check.findings import Finding, found
from rlft.train.data_check.records import ANSWERED, Record, same_text
from rlft.train.data_check.texts import unable

NEAR = 0.7
"""Jaccard similarity from which on two prompts are near-duplicates."""
BANDS, ROWS = 32, 4
"""Of the MinHash: pairs that agree in all hashes of one band are compared."""
COMMON = 0.05
"""Share of the rows from which on a word is the template's."""
COMMON_ROWS = 5
"""Rows that a word may stand in however few rows there are."""
LEAST = 4
"""Words and pairs of words that must be left of a prompt for its likeness to say anything."""
MOST_CANDIDATES = 200
"""Candidates that one row is compared with: in a crowd of likes the others are found from other rows."""

Pair = tuple[Record, Record]


def repeated(records: Sequence[Record], *, kind: str) -> list[Finding]:
    """Equal prompts within the training rows or within the held-out ones, and what contradicts itself."""
    findings: list[Finding] = []
    twice: list[str] = []
    other: list[str] = []
    example = against = ""
    for group in _groups(records, lambda r: (r.is_heldout, _exact(r))):
        first = group[0]
        for record in group[1:]:
            if _says(record, kind) == _says(first, kind):
                twice.append(record.where)
                example = example or f"{record.where} is {first.where} again"
            elif kind in ANSWERED:
                other.append(record.where)
                against = against or f"{record.where} answers {record.label!r}, {first.where} {first.label!r}"
        if kind not in ANSWERED:
            for record, earlier in _contradictions(group, kind):
                other.append(record.where)
                against = against or f"{record.where} says the opposite of {earlier.where}"
    findings += found("contradiction", "error", other, against, "decide which is right and remove the other")
    findings += found(
        "duplicate", "warning", twice, example, "remove it: it counts twice in training or in the measured mean"
    )
    return findings


def alike(records: Sequence[Record]) -> list[Finding]:
    """Prompts on both sides of the split, and near-duplicates on one side, beyond those that are equal."""
    trained = [r for r in records if not r.is_heldout]
    held_out = [r for r in records if r.is_heldout]
    equal = _across(trained, held_out, _exact)
    loose = [(one, two) for one, two in _across(trained, held_out, _loose) if _exact(one) != _exact(two)]
    todo = "take it out of the training rows or out of the held-out ones: what is measured there was trained on"
    findings = found("overlap", "error", [two.where for _, two in equal], _told(equal, "asks what {} asks"), todo)
    findings += found(
        "overlap but for case",
        "error",
        [two.where for _, two in loose],
        _told(loose, "differs from {} by case, punctuation or spaces only"),
        todo,
    )
    spelt = [
        (group[0], record)
        for group in _groups(records, lambda r: (r.is_heldout, _loose(r)))
        for record in group[1:]
        if _exact(record) != _exact(group[0])
    ]
    findings += found(
        "duplicate but for case",
        "warning",
        [two.where for _, two in spelt],
        _told(spelt, "differs from {} by case, punctuation or spaces only"),
        "keep one of them, unless that difference is what is asked",
    )
    try:
        near = near_pairs(records)
    except ImportError:
        return [*findings, unable("near-duplicates", "datasketch")]
    across = [(one, two) for one, two in near if one.is_heldout != two.is_heldout]
    within = [(one, two) for one, two in near if one.is_heldout == two.is_heldout]
    leaked = [two if two.is_heldout else one for one, two in across]
    findings += found(
        "overlap, nearly",
        "warning",
        [record.where for record in leaked],
        _told(across, "nearly asks what {} asks"),
        "read both: if they are one question, keep it on one side (split by problem, not by row)",
    )
    findings += found(
        "near-duplicate",
        "warning",
        [two.where for _, two in within],
        _told(within, "is nearly {}"),
        "read both, and keep one if they teach the same",
    )
    return findings


def near_pairs(records: Sequence[Record]) -> list[Pair]:
    """Pairs of rows whose prompts nearly agree and are not the same text, each row with the first one it is like.

    Raises:
        ImportError: datasketch is not installed.
    """
    from datasketch import MinHash, MinHashLSH

    kept: dict[str, Record] = {}
    for record in records:
        kept.setdefault(_loose(record), record)
    rows = list(kept.items())
    shingles = _distinctive([text for text, _ in rows])
    index = MinHashLSH(num_perm=BANDS * ROWS, params=(BANDS, ROWS))
    pairs: list[Pair] = []
    usable = [(at, parts) for at, parts in enumerate(shingles) if len(parts) >= LEAST]
    sketches = MinHash.generator(
        [[part.encode(errors="surrogatepass") for part in sorted(parts)] for _, parts in usable],
        num_perm=BANDS * ROWS,
        hashfunc=_hash,
        seed=1,
    )
    for (at, parts), sketch in zip(usable, sketches, strict=True):
        for other in sorted(index.query(sketch))[:MOST_CANDIDATES]:
            is_near = similarity(parts, shingles[other]) >= NEAR
            if is_near and _numbers(rows[at][0]) == _numbers(rows[other][0]):
                pairs.append((rows[other][1], rows[at][1]))
                break
        index.insert(at, sketch)
    return pairs


def similarity(one: set[str], two: set[str]) -> float:
    """Jaccard similarity of two sets, 0 where both are empty."""
    union = len(one | two)
    return len(one & two) / union if union else 0.0


def miss_probability(similar: float) -> float:
    """Probability that a pair of this similarity is not even compared."""
    return float((1 - similar**ROWS) ** BANDS)


def _distinctive(texts: Sequence[str]) -> list[set[str]]:
    """Words and pairs of neighbouring words of each text, without those that many texts share."""
    parts = [_shingles(text) for text in texts]
    counts = Counter(part for each in parts for part in each)
    most = max(COMMON_ROWS, COMMON * len(texts))
    return [{part for part in each if counts[part] <= most} for each in parts]


def _shingles(text: str) -> set[str]:
    words = text.split()
    if len(words) < 3 and len(text) > 20:  # a script without spaces
        words = list(text)
    return {*words, *(f"{one} {two}" for one, two in pairwise(words))}


def _numbers(text: str) -> list[str]:
    return sorted(re.findall(r"\d+", text))


def _hash(part: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(part, digest_size=4).digest(), "little")


def _exact(record: Record) -> str:
    return canonical_text(record.identity or record.prompt)


def _loose(record: Record) -> str:
    return same_text(record.identity or record.prompt) or _exact(record)


def _says(record: Record, kind: str) -> str:
    answered = record.label if kind in ANSWERED else [record.replies, record.label]
    return json.dumps(answered, sort_keys=True, default=str)


def _contradictions(group: Sequence[Record], kind: str) -> Iterable[Pair]:
    """Pairs the other way round, and one completion that is good in one row and bad in another."""
    seen: dict[str, Record] = {}
    for record in group:
        replies = [json.dumps(reply, sort_keys=True, default=str) for reply in record.replies]
        opposite = str(replies[::-1]) if kind == "pairs" else str([*replies, not record.label])
        if opposite in seen:
            yield record, seen[opposite]
        seen.setdefault(str(replies) if kind == "pairs" else str([*replies, bool(record.label)]), record)


def _groups(records: Sequence[Record], key: object) -> list[list[Record]]:
    found_: dict[object, list[Record]] = defaultdict(list)
    for record in records:
        found_[key(record)].append(record)  # type: ignore[operator]
    return [group for group in found_.values() if len(group) > 1]


def _across(trained: Sequence[Record], held_out: Sequence[Record], key: object) -> list[Pair]:
    first: dict[object, Record] = {}
    for record in trained:
        first.setdefault(key(record), record)  # type: ignore[operator]
    return [(first[k], record) for record in held_out if (k := key(record)) in first]  # type: ignore[operator]


def _told(pairs: Sequence[Pair], how: str) -> str:
    if not pairs:
        return ""
    one, two = pairs[0]
    return f"{two.where} {how.format(one.where)}: {_short(one.prompt)!r}, {_short(two.prompt)!r}"


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 70 else flat[:67] + "..."
