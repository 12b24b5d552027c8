"""The result of an optimizer update, and the metrics of a step that made several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rlft.objectives.measures import Measures, join, numbers
from rlft.types import Metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """The result of one optimizer update: what was measured, and whether it was made."""

    measures: Measures
    """What was measured in it."""
    skipped: str = ""
    """Why it was skipped: then parameters and optimizer stay as they were. Empty if it was made."""

    @property
    def metrics(self) -> Metrics:
        """The metrics of a step that makes this update only."""
        return step_metrics([self])

    @property
    def mismatch(self) -> float:
        """Mean |difference| between the log-probs of engine and learner, nats per token; 0 where no engine sampled."""
        measure = self.measures.get("policy/mismatch")
        return (measure.value if measure else None) or 0.0


def step_metrics(updates: Sequence[Update]) -> Metrics:
    """The metrics of a step's updates together: each combined as its measure says, `policy/skipped` counted.

    What a skipped update measured need not be finite, so it counts only in a step that made none.
    """
    if not updates:
        return {}
    made = [update for update in updates if not update.skipped]
    skipped = len(updates) - len(made)
    return numbers(join([update.measures for update in made or updates])) | {"policy/skipped": float(skipped)}
