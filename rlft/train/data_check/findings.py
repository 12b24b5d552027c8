"""What a check of data finds, and how severe it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Severity = Literal["error", "warning", "not checked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One kind of fault and the rows that have it."""

    name: str
    """What kind of fault, in a word or two."""
    severity: Severity
    """`error`: a run refuses it or its numbers would be wrong; `not checked`: why nothing can be said."""
    what: str
    """What is wrong, with an example."""
    todo: str
    """What to do."""
    places: tuple[str, ...] = ()
    """`file:line` of every row that has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """What is known of some data after a check."""

    source: str
    """What was checked."""
    rows: int
    """Rows that were read."""
    heldout: int
    """Of these, rows that are measured on."""
    findings: list[Finding] = field(default_factory=list)
    """Errors first."""
    facts: dict[str, str] = field(default_factory=dict)
    """What is no fault, and worth knowing: lengths, balance."""
    tokens: list[tuple[str, bool]] = field(default_factory=list)
    """Of the first row as the chat template writes it: each token's text, and whether it is learnt."""
    shown: str = ""
    """Where that row stands."""

    @property
    def exit_code(self) -> int:
        """1 where there is an error."""
        return int(any(finding.severity == "error" for finding in self.findings))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def found(name: str, severity: Severity, places: Sequence[str], what: str, todo: str) -> list[Finding]:
    """A finding if any row has it, else none."""
    if not places:
        return []
    unique = tuple(dict.fromkeys(places))
    return [Finding(name=name, severity=severity, places=unique, what=what, todo=todo)]
