"""What a check of a reward found, in a form for people and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rlft.reward.transforms import Severity
from rlft.types import Score, Task, Trajectory

SHOWN = 90
ORDER: tuple[Severity, ...] = ("error", "warning", "info")
ALL = "all together"
"""Name of the weighted sum of a config's rewards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """A made-up reply that was scored."""

    task: Task
    text: str
    trajectory: Trajectory

    @property
    def total(self) -> float | None:
        """The weighted sum; None where there is none."""
        return self.trajectory.outcome.value if isinstance(self.trajectory.outcome, Score) else None

    @property
    def parts(self) -> Mapping[str, float]:
        """The values of the rewards and of their parts; empty where there are none."""
        return self.trajectory.outcome.parts if isinstance(self.trajectory.outcome, Score) else {}

    def value(self, reward: str) -> float | None:
        """What one reward gave; None where it abstained, or a reward failed."""
        return self.parts.get(reward)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a check has to say about a reward."""

    check: str
    """What was looked at: `contract`, `cases`, `deterministic`, or a family of transforms."""
    severity: Severity
    """`error`: training would fail or learn something else; `warning`: it may; `info`: good to know."""
    reward: str
    """Name of the reward, or `all together` for the weighted sum of a config's."""
    detail: str
    """What was seen."""
    example: str = ""
    """The shortest reply that shows it."""
    advice: str = ""
    """What to do about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """All findings of one check."""

    findings: tuple[Finding, ...]
    """The worst first."""
    replies: int
    """Made-up replies that were scored."""
    seconds: float
    """How long it took."""
    cannot_tell: bool = False
    """Whether there was time for less than half of the ordinary replies, so that no error says little."""

    @property
    def errors(self) -> list[Finding]:
        """The findings because of which nobody should train."""
        return [finding for finding in self.findings if finding.severity == "error"]

    def as_dict(self) -> dict[str, Any]:
        """Plain data, for JSON."""
        return {"is_fine": not self.errors and not self.cannot_tell, **asdict(self)}


def sorted_findings(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    """The worst first, else in their order; what is said twice is said once."""
    return tuple(sorted(dict.fromkeys(findings), key=lambda finding: ORDER.index(finding.severity)))


def quoted(text: str) -> str:
    """A reply as it is shown: with quotation marks and escapes, the middle of a long one left out."""
    shown = repr(text)
    half = SHOWN // 2
    return shown if len(shown) <= SHOWN else f"{shown[:half]} [{len(text)} characters] {shown[-half:]}"
