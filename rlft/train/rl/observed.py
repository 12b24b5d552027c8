"""Failures of observed rewards, those of weight 0: they stop nothing, so a run says once that there are any."""

from __future__ import annotations

from collections.abc import Sequence

from rlft.config import RunConfig
from rlft.curves.live_panel import View
from rlft.run.directory import Run
from rlft.types import Failed, Group

EVENT = "observed_reward_failed"


def note_observed_failures(run: Run, view: View, groups: Sequence[Group], *, step: int) -> None:
    """Enter an event for each observed reward that fails for the first time in the run; later ones are only counted.

    The event says on how many of these samples it failed, and has the first failure with the program that repeats it.
    """
    for text, (name, first) in observed_sentences(run.config, groups).items():
        if not any(told.startswith(_beginning(name)) for told in run.told(EVENT)):
            run.event(EVENT, f"{text}\nReproduce it with:\n{first.reproduce}", step=step)
            view.note(text)


def observed_sentences(config: RunConfig, groups: Sequence[Group]) -> dict[str, tuple[str, Failed]]:
    """A sentence for each observed reward that failed on some of these samples: its name and the first failure."""
    trajectories = [t for group in groups for t in group.trajectories]
    found = {}
    for spec in config.rewards:
        failures = [t.failed_parts[spec.label] for t in trajectories if spec.label in t.failed_parts]
        if failures and not spec.weight:
            found[_sentence(spec.label, failures, len(trajectories))] = (spec.label, failures[0])
    return found


def _sentence(name: str, failures: Sequence[Failed], samples: int) -> str:
    first = failures[0]
    return (
        f"{_beginning(name)}{len(failures)} of {samples} samples and is missing there; it has weight 0, so the run "
        f"goes on. First failure ({first.kind}): {first.message}"
    )


def _beginning(name: str) -> str:
    return f"observed reward {name} failed on "
