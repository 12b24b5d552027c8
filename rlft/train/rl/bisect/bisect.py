"""`rlft bisect`: measures stored policies where the search looks next, and says between which steps it changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import logging as transformers_logging

from rlft.config import RunConfig
from rlft.curves.live_panel import View
from rlft.curves.statistics import mean_interval
from rlft.curves.text import interval_text
from rlft.run.records import EVALS, Interval
from rlft.train.rl.bisect.measure import Measured, Source
from rlft.train.rl.bisect.metrics import metric_name
from rlft.train.rl.bisect.search import ERROR_RATE, Found, Look, Question, Side, Values, look, looks_at_most, search


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """A policy that the search looked at."""

    step: int
    """RL steps behind it."""
    mean: Interval
    """The metric over held-out tasks, with its 95 % interval."""
    side: Side
    """`before` the change, `after` it, or `unclear`."""
    margin: Interval
    """How far beyond what is asked, with the interval that decides the side."""
    source: Source
    """Where its values come from."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        intervals = {"mean": self.mean.as_dict(), "margin": self.margin.as_dict()}
        return {"step": self.step, "side": self.side, "source": self.source, **intervals}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisection:
    """The result of a search."""

    metric: str
    question: Question
    measurements: Sequence[Measurement]
    """By ascending step."""
    after: int | None
    """The last step that is clearly before the change; None where the ends do not differ clearly."""
    until: int | None
    """The first step behind it that is clearly after the change."""
    sentence: str
    """The answer."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return {
            "metric": self.metric,
            "question": self.question.words,
            "after": self.after,
            "until": self.until,
            "sentence": self.sentence,
            "error_rate": ERROR_RATE,
            "measurements": [each.as_dict() for each in self.measurements],
        }


def bisect(run: Path, config: RunConfig, metric: str, question: Question) -> Bisection:
    """Find the step at which a run's policies changed a behaviour on held-out tasks.

    Args:
        config: the run's, perhaps with other settings of its evaluation.
        metric: a reward or a part of one, or what `metrics.SHORT` names.

    Raises:
        ValueError: there is no such metric, or the run's model or tasks are not here, or it keeps too few policies.
        RuntimeError: rollout workers were lost.
    """
    name = metric_name([reward.label for reward in config.rewards], (), metric)
    transformers_logging.disable_progress_bar()
    taken: dict[int, tuple[Values, Source]] = {}
    seen: dict[int, Look] = {}
    with View(f"bisect {config.name}", steps=0) as view, Measured(run, config, name, view) as measured:
        versions = measured.versions
        known = [index for index, version in enumerate(versions) if measured.is_known(version)]
        looks = looks_at_most(len(versions), known)
        if lacking := [str(version) for index, version in enumerate(versions) if index not in known]:
            steps = f"step{'' if len(lacking) == 1 else 's'} {', '.join(lacking)}"
            view.note(
                f"{name} of the policy of {steps} is in no evaluation of {run / EVALS}: where the search looks at one, "
                "the model is loaded and answers the held-out tasks"
            )

        def values(index: int) -> Values:
            if index not in taken:
                taken[index] = measured.values(versions[index])
            return taken[index][0]

        def look_at(index: int) -> Look:
            first, last = values(0), values(len(versions) - 1)
            seen[index] = look(question, values(index), first=first, last=last, looks=looks)
            shown = interval_text(mean_interval(values(index)))
            view.note(f"step {versions[index]}: {name} {shown}, {seen[index].side}")
            return seen[index]

        found = search(len(versions), look_at, known)
    measurements = [
        Measurement(
            step=versions[index],
            mean=mean_interval(taken[index][0]),
            side=seen[index].side,
            margin=seen[index].margin,
            source=taken[index][1],
        )
        for index in sorted(seen)
    ]
    after, until = (None if i is None else versions[i] for i in (found.last_before, found.first_after))
    return Bisection(
        metric=name,
        question=question,
        measurements=measurements,
        after=after,
        until=until,
        sentence=_sentence(name, question, found, versions),
    )


def _sentence(name: str, question: Question, found: Found, versions: Sequence[int]) -> str:
    asked = f"{name} {question.words}"
    if found.last_before is None or found.first_after is None:
        return f"No step at which {asked}: {found.reason}."
    after, until = versions[found.last_before], versions[found.first_after]
    if until == after + 1:
        return f"It is step {until} at which {asked}."
    if found.unclear:
        steps = ", ".join(str(versions[index]) for index in found.unclear)
        return (
            f"Between step {after} and step {until} {asked}; it cannot be narrowed: the intervals of step {steps} "
            "overlap with what is asked. More held-out tasks or samples narrow it: evaluation.samples_per_task=4 "
            "evaluation.temperature=1"
        )
    return f"Between step {after} and step {until} {asked}; no adapter between them is stored."
