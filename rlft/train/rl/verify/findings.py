"""What a verification finds: for each kind of record how much was checked, what differs, what could not be checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

SHOWN = 5
"""Differences of a check that are kept with their words; all are counted."""

Verdict: TypeAlias = Literal["agrees", "differs", "could not check"]


@dataclass(slots=True, kw_only=True)
class Check:
    """One kind of record, as the check goes on."""

    what: str
    """What was done with what, in a few words."""
    unit: str
    """What is counted, such as `samples`."""
    is_needed: bool = True
    """Whether a run counts as checked only if some of this was; of what a run has nothing of, nothing is needed."""
    checked: int = 0
    """Units that were compared, the different ones among them."""
    different: int = 0
    """Units that differ."""
    differences: list[str] = field(default_factory=list)
    """The first `SHOWN` of them: file, step, sample, and both values."""
    unchecked: dict[str, int] = field(default_factory=dict)
    """Why units could not be checked, and how many; 0 where they are not counted."""
    remarks: list[str] = field(default_factory=list)
    """What is to be known of how it was checked."""

    def agree(self, count: int = 1) -> None:
        """Count units that are as they should be."""
        self.checked += count

    def differ(self, where: str, what: str, count: int = 1) -> None:
        """Count a unit that differs: in which file and sample, and how."""
        self.checked += count
        self.different += count
        if len(self.differences) < SHOWN:
            self.differences.append(f"{where}: {what}")

    def compare(self, where: str, what: str, stored: object, again: object) -> bool:
        """Count a unit whose two values have to be equal; whether they are."""
        if stored == again:
            self.agree()
            return True
        self.differ(where, f"{what} is {_shown(stored)}, computed again {_shown(again)}")
        return False

    def skip(self, reason: str, count: int = 1) -> None:
        """Count units that cannot be checked."""
        self.unchecked[reason] = self.unchecked.get(reason, 0) + count

    def remark(self, text: str) -> None:
        """Say something once."""
        if text not in self.remarks:
            self.remarks.append(text)

    @property
    def is_missing(self) -> bool:
        """Whether nothing of what had to be checked could be."""
        return self.is_needed and not self.checked and bool(self.unchecked)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        named = ("what", "unit", "checked", "different", "differences", "unchecked", "remarks")
        return {name: getattr(self, name) for name in named}


@dataclass(frozen=True, slots=True, kw_only=True)
class Odds:
    """How likely a change of the records would have been found by what was checked."""

    change: str
    """What somebody changes, in words."""
    alone: float | None
    """Probability where nothing else is changed; None where the run has no such record."""
    fitted: float | None
    """Probability where all that follows from it by arithmetic, and the manifest, is changed to fit; None as before."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {"change": self.change, "alone": self.alone, "fitted": self.fitted}


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """All that a verification found."""

    run: str
    """The run's directory."""
    share: float
    """Share of the chunks that were generated again, and of the groups that were scored again."""
    seed: int
    """What chose them; it repeats the choice."""
    root: str
    """sha256 of the manifest; empty without one."""
    is_signed: bool
    """Whether the root was the one that was given."""
    is_exact: bool
    """Whether samples had to be the same to the bit, as on the kind of processor and with the versions of the run."""
    checks: Sequence[Check]
    odds: Sequence[Odds]
    notes: Sequence[str]
    """What else is to be known."""

    @property
    def verdict(self) -> Verdict:
        """`differs` where anything does; else `could not check` where a needed check had nothing to compare."""
        if any(check.different for check in self.checks):
            return "differs"
        return "could not check" if any(check.is_missing for check in self.checks) else "agrees"

    @property
    def exit_code(self) -> int:
        """0, 1 or 2."""
        return {"agrees": 0, "differs": 1, "could not check": 2}[self.verdict]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        named = ("run", "share", "seed", "root", "is_signed", "is_exact", "verdict")
        return {
            **{name: getattr(self, name) for name in named},
            "checks": [check.as_dict() for check in self.checks],
            "odds": [odds.as_dict() for odds in self.odds],
            "notes": list(self.notes),
        }


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
