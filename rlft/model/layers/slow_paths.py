"""Why parts of a model are computed by transformers or PEFT although rlft has a faster way: for a run's events.

A replacement is used only where it gives the module's results on a probe. Where it does not, the model is slower and
just as right, so that a mistake here would show nowhere: the reason is noted on the model and told once.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import nn

from rlft.model.kernels import library

SLOW_PATH = "slow_path"
"""Kind of the event that has a reason."""
ON_GPU = "the model is on a GPU, where its layers are transformers' own: rlft's were measured to be faster on CPUs only"


def slow_paths(model: nn.Module) -> dict[str, None]:
    """The reasons noted on a model, each once and in order; add to it by `note`."""
    noted: dict[str, None] = model.__dict__.setdefault("rlft_slow_paths", {})
    return noted


def is_on_cpu(model: nn.Module) -> bool:
    """Whether the model's layers may be replaced; that they may not is noted, and which kernels this machine lacks."""
    if next(model.parameters()).device.type == "cpu":
        if lost := library.lost():
            note(slow_paths(model), lost)
        return True
    note(slow_paths(model), ON_GPU)
    return False


def note(noted: dict[str, None], reason: str) -> None:
    """Add a reason; one that is there already is not added again."""
    noted.setdefault(reason)


def note_all(noted: dict[str, None], what: str, verdicts: Iterable[tuple[Any, str]]) -> None:
    """Add one reason for all modules of a class that are computed otherwise for the same cause.

    Args:
        what: kind of module, as a plural.
        verdicts: (module, why it is not replaced, empty where it is) of all modules of that kind.
    """
    verdicts = list(verdicts)
    counts: dict[tuple[str, str], int] = {}
    for module, why in verdicts:
        if why:
            key = (type(module).__name__, why)
            counts[key] = counts.get(key, 0) + 1
    for (name, why), count in counts.items():
        note(noted, f"{count} of {len(verdicts)} {what} ({name}) are not replaced: {why}")
