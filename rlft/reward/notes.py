"""What a reward notes beside its result: `log_metric` for the curves, `log_extra` on each sample."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from rlft.reward.contract import ignore
from rlft.reward.outcomes import checked_number
from rlft.types import Failed


class Notes:
    """The notes of one call, which covers one trajectory or a whole group."""

    def __init__(self, size: int, *, is_sample: bool) -> None:
        """Args: size: trajectories that the call covers; is_sample: whether `log_extra` takes one value, not a list."""
        self._size, self._is_sample = size, is_sample
        self.metrics: dict[str, float] = {}
        """Number of each name, the last one that was logged."""
        self.extras: dict[str, list[Any]] = {}
        """Values of each name, one for each trajectory; plain data."""

    def offered(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments with these notes in the place of what stands in for them."""
        own = {"log_metric": self.log_metric, "log_extra": self.log_extra}
        return {name: own[name] if value is ignore and name in own else value for name, value in arguments.items()}

    def log_metric(self, name: str, value: Any) -> None:
        """Note a number for the step's metrics.

        Raises:
            ValueError: it is none.
        """
        number = checked_number(value)
        if isinstance(number, Failed):
            raise ValueError(f"log_metric({name!r}, ...): {number.message}")
        self.metrics[str(name)] = number

    def log_extra(self, name: str, values: Any) -> None:
        """Note a value on each trajectory for the rollout table.

        Raises:
            ValueError: their number is not that of the trajectories.
        """
        listed = [values] if self._is_sample else list(values)
        if len(listed) != self._size:
            raise ValueError(f"log_extra({name!r}, ...): expected {self._size} values, got {len(listed)}")
        self.extras[str(name)] = [_plain(value) for value in listed]


def _plain(value: Any) -> Any:
    """The value as JSON has it; as text where JSON has no such thing."""
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        value = value.item()
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError):
        return str(value)
